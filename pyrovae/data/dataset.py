"""Data sets in three splits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyrovae.data.table_splits import SPLITS
from pyrovae.data.tables import Table
from pyrovae.densities import Streamed

_MOST_EXAMPLES = 10_000
_CHUNK = 4096  # data whose values are checked at once


@dataclass(frozen=True, eq=False)
class Data:
    """Data set in three splits, as vectors.

    Attributes:
        name: Source of the data: "digits", "mnist", or a path.
        train: Training data, with shape (N_train, D), float32, in memory or on disk; NaN where missing, in all splits.
            Under dynamic binarisation they are grey values in [0, 1], and `Binarize` draws the bits of every minibatch.
        validation: Validation data, binarised if training is, with shape (N_validation, D), float32.
        test: Test data, binarised if training is, with shape (N_test, D), float32.
        shape: Shape of one datum before it was flattened, with product D.
        binarize: Binarisation: "dynamic", "static" or "none".
        train_index: Rows of the training data in the source, with shape (N_train,), int64.
        validation_index: Rows of the validation data in the source, with shape (N_validation,), int64.
        test_index: Rows of the test data in the source, with shape (N_test,), int64. For MNIST they index the test
            file, the other two the training file.
        sha256: Hexadecimal digest of dtype, shape and values of the source in its order, and of the covariates, if any.
            It does not depend on the split or the binarisation.
        labels: Class labels by split ("train", "validation", "test"), with shape (N_split,), int64, -1 where missing;
            None for arrays of the user.
        covariates: Covariates by split, with shape (N_split, C), float32; None if there are none.
        table: The table that the data are from; None for arrays and images.
        labelled: Whether the labels are an argument of the programs.
    """

    name: str
    train: Tensor | Streamed
    validation: Tensor
    test: Tensor
    shape: tuple[int, ...]
    binarize: str
    train_index: Tensor
    validation_index: Tensor
    test_index: Tensor
    sha256: str
    labels: dict[str, Tensor] | None = None
    covariates: dict[str, Tensor] | None = None
    table: Table | None = None
    labelled: bool = False

    @classmethod
    def of(cls, table: Table, *, labelled: bool = False) -> Data:
        """Return the data set of a table.

        Args:
            table: Table.
            labelled: Whether the labels are an argument of the programs.

        Raises:
            ValueError: If a split has no rows, or there are no labels for the programs.
        """
        if labelled and table.labels is None:
            raise ValueError(f"{table.name} has no labels; name their column by label")
        parts = {split: table.part(split) for split in SPLITS}
        index = {split: (table.splits == code).nonzero().squeeze(1) for code, split in enumerate(SPLITS)}
        covariates: dict[str, Tensor] = {
            split: part.covariates for split, part in parts.items() if part.covariates is not None
        }
        labels: dict[str, Tensor] = {split: part.labels for split, part in parts.items() if part.labels is not None}
        return cls(
            name=table.name,
            train=parts["train"].x,
            validation=parts["validation"].x,
            test=parts["test"].x,
            shape=(table.x.shape[1],),
            binarize="none",
            train_index=index["train"],
            validation_index=index["validation"],
            test_index=index["test"],
            sha256=table.sha256,
            labels=labels or None,
            covariates=covariates or None,
            table=table,
            labelled=labelled,
        )

    @property
    def examples(self) -> Tensor:
        """Training data from which a model is built: all, or 10,000 random ones if they are on disk."""
        return self.train if isinstance(self.train, Tensor) else self.train[:_MOST_EXAMPLES]

    @property
    def num_covariates(self) -> int:
        """Number of covariates C, 0 if there are none."""
        return 0 if self.covariates is None else self.covariates["train"].shape[1]

    @cached_property
    def has_holes(self) -> bool:
        """Whether an entry of any split is missing. Data on disk have none."""
        splits = (self.train, self.validation, self.test)
        return any(isinstance(x, Tensor) and bool(x.isnan().any()) for x in splits)

    def conditions(self, split: str, device: torch.device | str = "cpu", *, labels: bool = False) -> dict[str, Tensor]:
        """Return the keyword arguments of the programs for one split: covariates and mask, if any.

        If any split has missing entries, every split has a mask, with shape (N_split, D), true where x is observed.

        Args:
            split: "train", "validation" or "test".
            device: Device of the tensors.
            labels: Whether to give the labels too, as in training. Without them log p(x) is that of x alone, which is
                comparable with models without labels.
        """
        found = {} if self.covariates is None else {"covariates": self.covariates[split]}
        if labels and self.labelled:
            assert self.labels is not None
            found["labels"] = self.labels[split]
        if self.has_holes:
            found["mask"] = ~getattr(self, split).isnan()
        return {name: value.to(device) for name, value in found.items()}

    def weights(self, split: str) -> Tensor | None:
        """Return the case weights of a split, with shape (N_split,), float32; None if there are none.

        Args:
            split: "train", "validation" or "test".
        """
        if self.table is None or self.table.weights is None:
            return None
        return self.table.weights[getattr(self, f"{split}_index")]

    @cached_property
    def maximum(self) -> int | None:
        """Largest observed value over all splits if the model's data are non-negative integers, else None."""
        if self.binarize != "none":
            return 1
        largest = 0
        for part in (self.train, self.validation, self.test):
            for x in part.split(_CHUNK):
                x = x.nan_to_num(0.0)
                if not bool(((x >= 0) & (x == x.floor())).all()):
                    return None
                largest = max(largest, int(x.max()))
        return largest

    @property
    def binary(self) -> bool:
        """Whether all of the model's data are 0 or 1."""
        return self.maximum is not None and self.maximum <= 1
