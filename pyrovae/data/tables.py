"""Tables: mixed columns and missing cells as tensors, and back to original units."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyrovae.columns import Column, Columns
from pyrovae.data.folds import Fold
from pyrovae.data.guess import Question
from pyrovae.data.table_build import Built, build
from pyrovae.data.table_files import read_raw
from pyrovae.data.table_splits import SPLITS, Split
from pyrovae.data.table_text import columns_yaml, original, read_columns

NA_VALUES = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "?", ".")
"""Texts that stand for missing cells in every column."""


@dataclass(frozen=True, eq=False)
class Table:
    """Table of N rows as tensors, with D columns of data.

    Attributes:
        name: Path of the file, "data frame", or "mapping".
        columns: All columns of the table.
        x: Data in the columns' own units, origins subtracted, and codes of levels, with shape (N, D), float32; NaN for
            missing cells.
        splits: Split of each row, with shape (N,), int64: 0 for train, 1 for validation, 2 for test.
        values: Data in original units and codes of levels, with shape (N, D), float64; NaN for missing cells.
        covariates: Covariates, with shape (N, C), float32: numbers standardised by centre and spread, levels one-hot;
            None if there are none.
        covariate_names: Names of the C covariates; that of a level is NAME=LEVEL.
        weights: Case weights, with shape (N,), float32; None if there are none.
        group: Group of each row, 0, 1, ..., with shape (N,), int64; None if there are none.
        labels: Code of each row's label, with shape (N,), int64; -1 for missing ones; None if there are none.
        unseen: Rows of each unknown level by column, which are treated as missing.
        notes: Questions to the user by column; "" for those about the whole table.
    """

    name: str
    columns: Columns
    x: Tensor
    splits: Tensor
    values: np.ndarray
    covariates: Tensor | None = None
    covariate_names: tuple[str, ...] = ()
    weights: Tensor | None = None
    group: Tensor | None = None
    labels: Tensor | None = None
    unseen: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: dict[str, list[Question]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of all that a model sees: names and kinds, values, covariates, weights, labels, splits."""
        return self._digest(self.values, self.covariates, self.weights, self.labels, self.group, self.splits)

    @property
    def rows_sha256(self) -> str:
        """Hexadecimal digest of what does not depend on the split: names and kinds, values, weights, labels, groups."""
        return self._digest(self.values, self.weights, self.labels, self.group)

    def _digest(self, *rows: np.ndarray | Tensor | None) -> str:
        digest = hashlib.sha256(repr([(column.name, column.kind, column.role) for column in self.columns]).encode())
        for part in (one.numpy() if isinstance(one, Tensor) else one for one in rows):
            if part is None:
                digest.update(b"none")
                continue
            plain = np.where(np.isnan(part), np.nan, part)  # one kind of NaN
            digest.update(f"{plain.shape}".encode())
            digest.update(np.ascontiguousarray(plain, dtype=plain.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    @property
    def mask(self) -> Tensor:
        """Whether each cell of x is observed, with shape (N, D), bool."""
        return ~self.x.isnan()

    @property
    def questions(self) -> list[str]:
        """Questions about the guesses, one a line. Columns with the same question share a line."""
        facts: dict[str, dict[str, list[str]]] = {}
        for name, questions in self.notes.items():
            for question in questions:
                facts.setdefault(question.advice, {}).setdefault(question.fact, []).append(name)
        lines = []
        for advice, by_fact in facts.items():
            parts = [
                f"{', '.join(filter(None, names))}{': ' if any(names) else ''}{fact}" for fact, names in by_fact.items()
            ]
            lines.append(f"{'; '.join(parts)} -- {advice}")
        return lines

    def part(self, split: Split) -> Table:
        """Return the table of the rows of one split.

        Raises:
            ValueError: If the split has another name, or no rows.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r:.40}")
        rows = self.splits == SPLITS.index(split)
        if not rows.any():
            raise ValueError(
                f"{self.name} has no {split} rows among its {len(self)}; give more rows, or a column split="
            )
        return self.rows(rows)

    def rows(self, keep: Tensor) -> Table:
        """Return the table of some rows.

        Args:
            keep: Whether to keep each row, with shape (N,), bool.
        """
        tensors: dict[str, Any] = {
            key: None if getattr(self, key) is None else getattr(self, key)[keep]
            for key in ("x", "splits", "covariates", "weights", "group", "labels")
        }
        return dataclasses.replace(self, values=self.values[keep.numpy()], **tensors)

    def arguments(self, split: Split | None = None, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return the arguments of the programs: x, the mask if x has missing cells, and the covariates, if any.

        `fit` takes them as its data, `log_marginal(model, guide, **arguments)` by name. If any row of this table has a
        missing cell, the mask is among the arguments of every split.

        Args:
            split: "train", "validation" or "test"; None for all rows.
            device: Device of the tensors.

        Raises:
            ValueError: If the split has no rows.
        """
        part = self if split is None else self.part(split)
        arguments = {"x": part.x}
        if self.x.isnan().any():
            arguments["mask"] = part.mask
        if part.covariates is not None:
            arguments["covariates"] = part.covariates
        return {key: value.to(device) for key, value in arguments.items()}

    def to_frame(self, draws: Tensor | None = None) -> Any:
        """Return data in original units: numbers with their origin, texts of levels, and dates in ISO 8601.

        Cells that equal the table's own get its float64 values. Levels that are numbers or truths are written as such.

        Args:
            draws: Data like x, with shape (N', D), or (K, N', D) for K draws, which get columns ".imp" (1 to K) and
                ".id" (1 to N') in front, as in mice's long format; None for x itself.

        Returns:
            A data frame of pandas if it is installed, else a mapping of names to lists.

        Raises:
            ValueError: If draws have another shape, or a value that is no code of a level.
        """
        x = (self.x if draws is None else draws.detach().cpu()).float().numpy()
        if x.ndim not in (2, 3) or x.shape[-1] != self.x.shape[1]:
            raise ValueError(
                f"draws must have shape (N, {self.x.shape[1]}) or (K, N, {self.x.shape[1]}), got {tuple(x.shape)}"
            )
        own = self.x.numpy()
        frame: dict[str, list[Any]] = {}
        if x.ndim == 3:
            frame[".imp"] = np.repeat(np.arange(1, len(x) + 1), x.shape[1]).tolist()
            frame[".id"] = np.tile(np.arange(1, x.shape[1] + 1), len(x)).tolist()
        for place, column in enumerate(self.columns.data):
            exact = np.full(x.shape[:-1], np.nan)
            if x.shape[-2] == len(own):
                exact = np.where(x[..., place] == own[:, place], self.values[:, place], np.nan)
            frame[column.name] = original(column, x[..., place].reshape(-1), exact.reshape(-1))
        if importlib.util.find_spec("pandas") is None:
            return frame
        import pandas

        counts = {column.name for column in self.columns.data if column.kind == "count"}
        holes = {
            name: pandas.array(cells, dtype="Int64")
            for name, cells in frame.items()
            if name in counts and None in cells
        }
        return pandas.DataFrame({**frame, **holes})

    def describe(self) -> str:
        """Return the columns as YAML with a comment for each question, for `columns.yaml`, which a user may edit.

        The moments are left out. `read_table(path, columns="columns.yaml")` computes them from its training rows.
        """
        head = [
            "Columns of a table. Change a kind, a role, levels or na_values, and give the file back by columns=.",
            "Kinds: real positive interval count binary category ordered drop.",
            "Roles, where not data: covariate label weight group split drop.",
        ]
        notes: dict[str, Sequence[object]] = {**self.notes, "": [*head, *self.notes.get("", ())]}
        return columns_yaml(self.columns, notes, numbers=False)


def read_table(
    source: Any,
    *,
    columns: Columns | str | os.PathLike[str] | None = None,
    na_values: Collection[str] = NA_VALUES,
    na_values_by_column: Mapping[str, Collection[str]] | None = None,
    covariates: Collection[str] = (),
    label: str | None = None,
    weights: str | None = None,
    group: str | None = None,
    split: str | None = None,
    unseen: Literal["refuse", "missing"] = "refuse",
    split_seed: int = 0,
    fold: Fold | None = None,
    names: Sequence[str] | None = None,
    delimiter: str | None = None,
    new_data: bool = False,
) -> Table:
    """Read a table of mixed columns with missing cells.

    Kinds are guessed (`Table.questions` asks where another kind is as likely), or given by `columns`. A column of a
    file is found by its name, wherever it stands; columns of the file that `columns` does not name are ignored.

    The numbers of the columns (range, resolution, origin, centre, spread, share of missing cells) are those of the
    observed cells of the training rows; numbers that `columns` has are kept. Rows are permuted by `split_seed`;
    floor(N / 10) are validation rows, as many are test rows, and the rest are training rows. Rows of one group stay in
    one split. With `fold`, the test rows are those of that fold (see `fold_splits`).

    Args:
        source: Path of a CSV, TSV or Parquet file in UTF-8, a data frame of pandas or polars, or a mapping of names to
            lists. White space around cells is dropped. Parquet needs pandas and pyarrow (pip install 'pyrovae[table]').
        columns: Columns, or the path of a YAML file of them; None to guess.
        na_values: Texts that stand for missing cells in every column. -9 stands for -9.0 too.
        na_values_by_column: Further such texts by column; they are kept in the columns.
        covariates: Names of the covariates. Their cells must be observed.
        label: Name of the column of class labels, which may have missing cells.
        weights: Name of the column of case weights, which are not negative.
        group: Name of the column of groups, such as schools or patients.
        split: Name of the column of splits, with the words train, validation and test.
        unseen: Whether to "refuse" levels that `columns` does not have, or to treat them as "missing" and count them in
            `Table.unseen`.
        split_seed: Random seed of the split.
        fold: Number k of the fold that is the test set, from 1, and number of folds K; None for a single split.
        names: Names of the columns of a text file without a header; None if its first line has them.
        delimiter: Letter between cells; None for a tab in .tsv, and in .csv for a comma, or for ";", a tab or "|" if
            the header has one of them and no comma.
        new_data: Whether the rows are new to a fitted model. They are all test rows, `columns` must be complete, and
            the columns of labels, weights, groups and splits may be absent. Weights that are missing or negative leave
            the rows unweighted, with a note.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If Parquet is given and pandas or pyarrow is not installed.
        ValueError: If the file is no table, or does not fit the columns, with file, column and row. Rows are counted
            from 1 without the header.

    Example:
        >>> rows = {"age": [31, 44, None, 58, 27, 62], "sex": ["F", "M", "M", None, "F", "M"], "id": list("abcdef")}
        >>> table = read_table(rows)
        >>> print(table.columns)
        column  kind    values    missing  likelihood                                       resolution
        age     real    27 .. 62   16.7 %  NormalLikelihood                                          4
        sex     binary  F, M       16.7 %  BernoulliLikelihood
        id      drop                    0  6 levels in 6 rows: an identifier or free text
        >>> table.arguments()["x"][:3]
        tensor([[31., 0.],
                [44., 1.],
                [nan, 1.]])
    """
    if unseen not in ("refuse", "missing"):
        raise ValueError(f"unseen must be 'refuse' or 'missing', got {unseen!r:.40}")
    schema = read_columns(columns) if isinstance(columns, str | os.PathLike) else columns
    if schema is not None and not isinstance(schema, Columns):
        raise ValueError(f"columns must be Columns, or the path of a YAML file, got {type(columns).__name__}")
    by_column = dict(na_values_by_column or {})
    if any(isinstance(texts, str) for texts in (na_values, covariates, *by_column.values())):
        raise ValueError("na_values and covariates must be lists of texts, got a text; write ['NA'] for 'NA'")
    if new_data and (schema is None or not schema.is_complete):
        raise ValueError("new_data needs complete columns; give those of the table that the model was fitted to")
    raw = read_raw(source, names=names, delimiter=delimiter)
    roles = [(name, "covariate") for name in covariates]
    given = {"label": label, "weight": weights, "group": group, "split": split}
    roles += [(name, role) for role, name in given.items() if name is not None]
    built = build(
        raw,
        schema,
        roles=roles,
        na_values=(tuple(na_values), tuple(code for code in na_values if code not in NA_VALUES)),
        by_column={name: tuple(codes) for name, codes in by_column.items()},
        unseen=unseen,
        split_seed=split_seed,
        fold=fold,
        new_data=new_data,
    )
    return _table(raw.name, built)


def _table(name: str, built: Built) -> Table:
    columns = built.columns
    data = columns.data
    if not data:
        raise ValueError(f"{name} has no column left as data; change a kind or a role, or check the file")
    values = np.stack([built.values[column.name] for column in data], axis=1)
    origins = np.array([column.origin for column in data])
    parts = [_covariates(column, built.values[column.name]) for column in columns.of_role("covariate")]
    labels = [built.values[column.name] for column in columns.of_role("label") if column.name in built.values]
    weights = [built.values[column.name] for column in columns.of_role("weight") if column.name in built.values]
    return Table(
        name=name,
        columns=columns,
        x=torch.from_numpy((values - origins).astype(np.float32)),
        splits=torch.from_numpy(built.splits),
        values=values,
        covariates=torch.cat([part for part, _ in parts], dim=1) if parts else None,
        covariate_names=tuple(one for _, names in parts for one in names),
        weights=torch.from_numpy(weights[0].astype(np.float32)) if weights else None,
        group=None if built.group is None else torch.from_numpy(built.group),
        labels=torch.from_numpy(np.nan_to_num(labels[0], nan=-1).astype(np.int64)) if labels else None,
        unseen=built.unseen,
        notes=built.notes,
    )


def _covariates(column: Column, values: np.ndarray) -> tuple[Tensor, list[str]]:
    """Return a covariate as numbers, with shape (N, C'), float32, and their names."""
    if column.kind == "binary":
        return torch.from_numpy(values.astype(np.float32))[:, None], [f"{column.name}={column.levels[1]}"]
    if column.levels:
        codes = torch.from_numpy(values.astype(np.int64))
        one_hot = torch.nn.functional.one_hot(codes, len(column.levels)).float()
        return one_hot, [f"{column.name}={level}" for level in column.levels]
    assert column.centre is not None
    assert column.spread is not None
    standardised = (values - column.origin - column.centre) / column.spread
    return torch.from_numpy(standardised.astype(np.float32))[:, None], [column.name]
