"""The data set as a value, its split, and its bits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.sources import read_array, read_digits, read_mnist, unknown
from pyrovae.densities import Streamed

EVALUATION_SEED = 20160304
"""Seed of the bits that evaluation and static binarisation use: no run may change it."""

BINARIZATIONS = ("dynamic", "static", "none")
_MOST_CLASSES = 1000  # of a covariate of integers; more are a quantity rather
_EXAMPLES = 10_000
_CHUNK = 4096  # data whose uniform draws are held at once


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in three parts, as vectors.

    Attributes:
        name: "digits", "mnist", or the path the data came from.
        train: Training data, with shape (N_train, D), float32, in memory or on disk. Under dynamic
            binarisation these are grey values in [0, 1], and `Binarize` makes bits of every minibatch.
        validation: Validation data as the model sees them, with shape (N_validation, D), float32.
        test: Test data as the model sees them, with shape (N_test, D), float32.
        shape: Event shape of a datum before it was flattened; its product is D.
        binarize: "dynamic", "static" or "none".
        train_index: Rows of the training data in the source, with shape (N_train,), int64.
        validation_index: Rows of the validation data in the source, with shape (N_validation,).
        test_index: Rows of the test data in the source, with shape (N_test,). For MNIST they
            count in the test file, the other two in the training file.
        sha256: Hexadecimal digest of the source's dtype, shape and values, all rows in source
            order, and of the covariates' where there are some. It depends neither on the split
            nor on the binarisation.
        labels: Class labels by split ("train", "validation", "test"), each with shape (N_split,),
            int64. None for the reader's own arrays.
        covariates: Covariates by split, each with shape (N_split, C), float32. None without.
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

    @property
    def examples(self) -> Tensor:
        """Training data to build a model by: all, or of those on disk 10,000 in the split's random order."""
        return self.train if isinstance(self.train, Tensor) else self.train[:_EXAMPLES]

    @property
    def num_covariates(self) -> int:
        """C; 0 without covariates."""
        return 0 if self.covariates is None else self.covariates["train"].shape[1]

    def conditions(self, split: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Keyword arguments of the programs beside x for "train", "validation" or "test": the covariates."""
        return {} if self.covariates is None else {"covariates": self.covariates[split].to(device)}

    @cached_property
    def maximum(self) -> int | None:
        """Largest value over all splits if the model sees non-negative integers, else None."""
        if self.binarize != "none":
            return 1
        largest = 0
        for part in (self.train, self.validation, self.test):
            for x in part.split(_CHUNK):
                if not bool(((x >= 0) & (x == x.floor())).all()):
                    return None
                largest = max(largest, int(x.max()))
        return largest

    @property
    def binary(self) -> bool:
        """Whether every value that the model sees is 0 or 1."""
        return self.maximum is not None and self.maximum <= 1


class Binarize:
    """Bits x ~ Bernoulli(grey), drawn anew at every call: dynamic binarisation of a minibatch.

    The draw comes from the global generator of the tensor's device, so a run's seed fixes it.
    Evaluation never calls this: its bits are fixed by `load_data`.

    Example:
        >>> Binarize()(torch.tensor([[0.0, 1.0, 1.0]]))
        tensor([[0., 1., 1.]])
    """

    def __call__(self, grey: Tensor) -> Tensor:
        """Draw the bits.

        Args:
            grey: Probabilities of a one, in [0, 1], of any shape.

        Returns:
            Zeros and ones, with the shape, dtype and device of `grey`.
        """
        return torch.bernoulli(grey)

    def __repr__(self) -> str:
        return "Binarize()"


def load_data(
    name: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    binarize: str | None = None,
    split_seed: int = 0,
    covariates: str | os.PathLike[str] | None = None,
    stream: bool = False,
) -> Data:
    """Read a data set, check it, split it, and binarise it where asked.

    The sources are

    * "digits": scikit-learn's 1,797 images of 8 x 8 counts 0..16, installed with it;
    * "mnist": the 70,000 images of LeCun, Cortes and Burges (CC BY-SA 3.0) as grey values
      k / 255, read from `data_dir`/MNIST/raw, and downloaded there by torchvision if missing;
    * "PATH.npy", "PATH.npz:KEY" or "PATH.npz" (of one array): the reader's own booleans,
      integers or real numbers, with shape (N, ...), at least ten rows of them.

    Digits and own arrays are permuted by `split_seed`; floor(N / 10) data are for validation, as
    many for the test, the rest for training. MNIST's training file is permuted and split 11 to 1
    (55,000 and 5,000); its test file is the test set, in order.

    Evaluation bits are drawn once for the whole source, in source order, from `EVALUATION_SEED`:
    a datum has the same bits under every split, seed and run. Static binarisation takes the
    training data's bits from the same draw.

    Args:
        name: One of the sources above.
        data_dir: Folder that holds MNIST/raw; "data" if None. The other sources ignore it.
        binarize: "dynamic", "static" or "none". None means "dynamic" for MNIST, else "none".
        split_seed: Seed of the split.
        covariates: "labels" of digits and MNIST, one-hot, or an array as above with a row for each
            datum of the source: integers with shape (N,) are taken for classes and made one-hot,
            anything else for real numbers, one column or C of them, used as they are.
        stream: Leave the training data of PATH.npy on disk, to be read batch by batch; the other
            two splits come into memory.

    Returns:
        The three splits, and where they came from.

    Raises:
        ValueError: The name, the binarisation, the key, or the content of a file is not one that
            can be used; values outside [0, 1] are to be binarised; what is to be streamed is no
            PATH.npy, or is to be binarised once and for all.
        FileNotFoundError: The file is missing, or MNIST is missing and cannot be downloaded.

    Example:
        >>> digits = load_data("digits")
        >>> digits.train.shape, digits.test.shape, digits.shape
        (torch.Size([1439, 64]), torch.Size([179, 64]), (8, 8))
    """
    name = os.fspath(name)
    if binarize is None:
        binarize = "dynamic" if name == "mnist" else "none"
    if binarize not in BINARIZATIONS:
        raise ValueError(unknown("--binarize", binarize, BINARIZATIONS))
    if stream and not name.endswith(".npy"):
        raise ValueError(f"--stream reads batches of a PATH.npy, and this is {name}; save it with numpy.save")
    if stream and binarize == "static":
        raise ValueError("--stream keeps no bits: binarise the file beforehand, or use --binarize dynamic")
    labels: Tensor | None = None
    num_test_file = 0
    digest = ""
    if name == "digits":
        source, labels = read_digits()
    elif name == "mnist":
        source, labels, num_test_file = read_mnist(Path(data_dir or "data").expanduser())
    else:
        source = read_array(name, stream=stream)
    num_data, shape = len(source), tuple(source.shape[1:])

    conditions = None
    if covariates is not None:
        conditions = _covariates(os.fspath(covariates), labels, num_data, name)
        digest = _sha256(conditions.numpy())

    generator = torch.Generator().manual_seed(split_seed)
    order = torch.randperm(num_data - num_test_file, generator=generator)
    if num_test_file:
        num_validation = max(1, len(order) // 12)
        train, validation = order[:-num_validation], order[-num_validation:]
        test = torch.arange(num_test_file) + len(order)
    else:
        tenth = len(order) // 10
        train, validation, test = order.split([len(order) - 2 * tenth, tenth, tenth])

    values: Tensor | Streamed = Streamed(source) if stream else _floats(source, 255 if name == "mnist" else 1)
    splits = {"train": train, "validation": validation, "test": test}
    parts: dict[str, Tensor]
    if binarize == "none":
        parts = {split: values[rows] for split, rows in splits.items() if not (stream and split == "train")}
    else:
        ends = [torch.aminmax(part) for part in values.split(_CHUNK)]
        low, high = min(float(one.min) for one in ends), max(float(one.max) for one in ends)
        if low < 0 or high > 1:
            raise ValueError(
                f"--binarize {binarize} needs grey values in [0, 1], and {name} runs from {low:g} "
                f"to {high:g}: rescale the data, or use --binarize none"
            )
        bits = {split: rows for split, rows in splits.items() if split != "train" or binarize == "static"}
        parts = _evaluation_bits(values, bits)
        if binarize == "dynamic" and not stream:
            parts["train"] = values[train]
    return Data(
        name=name,
        train=Streamed(source, train) if stream else parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        shape=shape,
        binarize=binarize,
        train_index=train,
        validation_index=validation,
        test_index=test - len(order) if num_test_file else test,
        sha256=_sha256(source, digest),
        labels=None if labels is None else {split: labels[rows] for split, rows in splits.items()},
        covariates=None if conditions is None else {split: conditions[rows] for split, rows in splits.items()},
    )


def _floats(source: np.ndarray, unit: int) -> Tensor:
    values = torch.from_numpy(source.astype(np.float32).reshape(len(source), -1))
    return values.div_(unit) if unit != 1 else values


def _covariates(given: str, labels: Tensor | None, num_data: int, name: str) -> Tensor:
    """Covariates of all data in source order, with shape (N, C), float32."""
    if given == "labels":
        if labels is None:
            raise ValueError(f"--covariates labels: {name} has none; give an array, PATH.npy or PATH.npz:KEY")
        classes = labels
    else:
        array = read_array(given, flag="--covariates")
        if len(array) != num_data:
            raise ValueError(
                f"--covariates {given} has {len(array)} rows and {name} {num_data}: give one row for each datum"
            )
        if array.ndim > 1 or array.dtype.kind == "f":
            return torch.from_numpy(array.astype(np.float32).reshape(num_data, -1))
        classes = torch.from_numpy(array.astype(np.int64))
        if int(classes.min()) < 0 or int(classes.max()) >= _MOST_CLASSES:
            raise ValueError(
                f"--covariates {given}: integers with shape (N,) are classes, 0 to {_MOST_CLASSES - 1}, and these run "
                f"from {int(classes.min())} to {int(classes.max())}: number the classes from 0, or give real numbers"
            )
    return torch.nn.functional.one_hot(classes).float()


def _evaluation_bits(grey: Tensor | Streamed, splits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bits of some splits, each with shape (N_split, D), float32, drawn in source order: the same in every run."""
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    bits = {split: torch.empty(len(rows), grey.shape[1]) for split, rows in splits.items()}
    start = 0
    for part in grey.split(_CHUNK):
        drawn = (torch.rand(part.shape, generator=generator) < part).float()
        for split, rows in splits.items():
            here = (rows >= start) & (rows < start + len(part))
            bits[split][here] = drawn[rows[here] - start]
        start += len(part)
    return bits


def _sha256(source: np.ndarray, more: str = "") -> str:
    """Digest of dtype, shape and values, and more; in little-endian order, so that machines agree."""
    dtype = source.dtype.newbyteorder("<")
    digest = hashlib.sha256(f"{dtype.str} {source.shape}".encode())
    for start in range(0, len(source), _CHUNK):
        part = np.ascontiguousarray(source[start : start + _CHUNK], dtype=dtype)
        digest.update(part.reshape(-1).view(np.uint8).data)
    digest.update(more.encode())
    return digest.hexdigest()
