"""Arrays and images: loading, checking and splitting."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.binarize import evaluation_bits
from pyrovae.data.dataset import Data
from pyrovae.data.folds import Fold, fold_rows
from pyrovae.data.sources import read_array, read_digits, read_mnist, unknown
from pyrovae.densities import Streamed

BINARIZATIONS = ("dynamic", "static", "none")
_MOST_CLASSES = 1000  # integer covariates with more values are probably quantities
_CHUNK = 4096  # data whose values are checked at once


def load_data(
    name: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    binarize: str | None = None,
    split_seed: int = 0,
    fold: Fold | None = None,
    num_validation: int | None = None,
    covariates: str | os.PathLike[str] | None = None,
    stream: bool = False,
    download: bool = True,
) -> Data:
    """Read a data set, check it, split it, and binarise it if requested.

    The sources are

    * "digits": the 1,797 images of 8 x 8 counts 0..16 that scikit-learn installs;
    * "mnist": the 70,000 images of LeCun, Cortes and Burges (CC BY-SA 3.0) as grey values k / 255, read from
      `data_dir`/MNIST/raw, or downloaded to it by torchvision if missing and `download` allows;
    * "PATH.npy", "PATH.npz:KEY" or "PATH.npz" (of one array): an array of the user with booleans, integers or real
      numbers and shape (N, ...), N >= 10; NaN where a value is missing.

    Tables of mixed columns have a reader of their own, `read_table`.

    Digits and arrays of the user are permuted by `split_seed`; floor(N / 10) data are the validation set, floor(N / 10)
    the test set, and the rest the training set. MNIST's training file is permuted and split 11 to 1 (55,000 and 5,000);
    its test file is the test set, in order. With `fold`, the test set is that fold (see `fold_rows`). With
    `num_validation`, the validation set has that size instead, and the training set the rest.

    Evaluation bits are drawn once for the whole source, in source order, from `EVALUATION_SEED`, so a datum has the
    same bits under every split, seed and run. Static binarisation uses the same draw for the training data.

    Args:
        name: Source of the data.
        data_dir: Folder that contains MNIST/raw; None for "data". Other sources ignore it.
        binarize: Binarisation: "dynamic", "static" or "none"; None for "dynamic" on MNIST, else "none".
        split_seed: Random seed of the split.
        fold: Number k of the fold that is the test set, from 1, and number of folds K; None for a single split.
        num_validation: Number of validation data; None for the shares above.
        covariates: Covariates c: "labels", the one-hot labels of digits and MNIST, or an array file as above with one
            row per datum. Integers with shape (N,) are classes and become one-hot; other arrays are used as real
            numbers, with shape (N,) or (N, C). None for no covariates.
        stream: Whether to leave the training data of PATH.npy on disk and read them batch by batch. The other splits
            are read into memory.
        download: Whether to download MNIST if it is missing.

    Returns:
        The data set with its three splits.

    Raises:
        ValueError: If the name, the binarisation, or the key or content of a file is invalid, if values outside [0, 1]
            are to be binarised, if there is no such fold, if no training data would be left, or if stream is used
            without a PATH.npy or with static binarisation.
        FileNotFoundError: If the file is missing, or MNIST is missing and is not or cannot be downloaded.

    Example:
        >>> digits = load_data("digits")
        >>> digits.train.shape, digits.test.shape, digits.shape
        (torch.Size([1439, 64]), torch.Size([179, 64]), (8, 8))
    """
    name = os.fspath(name)
    if binarize is None:
        binarize = "dynamic" if name == "mnist" else "none"
    _check_options(name, binarize, stream)
    if fold is not None and name == "mnist":
        raise ValueError("--folds: mnist has a test set of its own; omit the folds, or give digits or an array")
    labels: Tensor | None = None
    num_test_file = 0
    if name == "digits":
        source, labels = read_digits()
    elif name == "mnist":
        source, labels, num_test_file = read_mnist(Path(os.path.expanduser(data_dir or "data")), download=download)
    else:
        source = read_array(name, stream=stream)

    conditions, digest = None, ""
    if covariates is not None:
        conditions = _covariates(os.fspath(covariates), labels, len(source), name)
        digest = _sha256(conditions.numpy())

    splits = _split_rows(len(source), num_test_file, split_seed, fold, num_validation)
    train, test = splits["train"], splits["test"]
    in_memory = {split: rows for split, rows in splits.items() if not (stream and split == "train")}
    values: Tensor | Streamed = Streamed(source) if stream else _floats(source, 255 if name == "mnist" else 1)
    if binarize == "none":
        parts = {split: values[rows] for split, rows in in_memory.items()}
    else:
        parts = _binarized(values, in_memory, name, binarize)
    return Data(
        name=name,
        train=Streamed(source, train) if stream else parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        shape=tuple(source.shape[1:]),
        binarize=binarize,
        train_index=train,
        validation_index=splits["validation"],
        test_index=test - (len(source) - num_test_file) if num_test_file else test,
        sha256=_sha256(source, digest),
        labels=None if labels is None else {split: labels[rows] for split, rows in splits.items()},
        covariates=None if conditions is None else {split: conditions[rows] for split, rows in splits.items()},
    )


def _check_options(name: str, binarize: str, stream: bool) -> None:
    if binarize not in BINARIZATIONS:
        raise ValueError(unknown("--binarize", binarize, BINARIZATIONS))
    if stream and not name.endswith(".npy"):
        raise ValueError(f"--stream needs a PATH.npy, got {name}; save the array with numpy.save")
    if stream and binarize == "static":
        raise ValueError(
            "--stream needs --binarize dynamic or none, got static; binarise the file beforehand, or use dynamic"
        )


def _split_rows(
    num_data: int, num_test_file: int, seed: int, fold: Fold | None, num_validation: int | None
) -> dict[str, Tensor]:
    """Return the rows of each split in the source. The last num_test_file rows, if any, are the test set."""
    if fold is not None:
        if num_validation is not None:
            raise ValueError(
                "--num_validation: in cross-validation a tenth of the data are for validation; omit the flag"
            )
        return fold_rows(num_data, seed, fold)
    order = torch.randperm(num_data - num_test_file, generator=torch.Generator().manual_seed(seed))
    num_test = 0 if num_test_file else len(order) // 10
    if num_validation is None:
        num_validation = max(1, len(order) // 12) if num_test_file else num_test
    num_train = len(order) - num_validation - num_test
    if num_train < 1:
        most = len(order) - num_test - 1
        raise ValueError(f"--num_validation {num_validation} leaves no training data; give at most {most:,}")
    train, validation, test = order.split([num_train, num_validation, num_test])
    if num_test_file:
        test = torch.arange(num_test_file) + len(order)
    return {"train": train, "validation": validation, "test": test}


def _binarized(values: Tensor | Streamed, splits: Mapping[str, Tensor], name: str, binarize: str) -> dict[str, Tensor]:
    """Return the evaluation bits of the splits. Under dynamic binarisation, the training data stay grey."""
    ends = [torch.aminmax(part) for part in values.split(_CHUNK)]
    if any(bool(one.min.isnan()) for one in ends):
        raise ValueError(
            f"--binarize {binarize} needs complete data, but {name} has missing values (NaN); fill them first"
        )
    low, high = min(float(one.min) for one in ends), max(float(one.max) for one in ends)
    if low < 0 or high > 1:
        raise ValueError(
            f"--binarize {binarize} needs grey values in [0, 1], but {name} ranges from {low:g} to {high:g}; rescale "
            "the data, or use --binarize none"
        )
    bits = {split: rows for split, rows in splits.items() if split != "train" or binarize == "static"}
    parts = evaluation_bits(values, bits)
    if binarize == "dynamic" and "train" in splits:
        parts["train"] = values[splits["train"]]
    return parts


def _floats(source: np.ndarray, unit: int) -> Tensor:
    """Flatten the data, convert them to float32, and divide them by a unit."""
    values = torch.from_numpy(source.astype(np.float32).reshape(len(source), -1))
    return values.div_(unit) if unit != 1 else values


def _covariates(given: str, labels: Tensor | None, num_data: int, name: str) -> Tensor:
    """Return the covariates of all data in source order, with shape (N, C), float32."""
    if given == "labels":
        if labels is None:
            raise ValueError(f"--covariates labels: {name} has no labels; give an array, PATH.npy or PATH.npz:KEY")
        classes = labels
    else:
        array = read_array(given, flag="--covariates")
        if len(array) != num_data:
            raise ValueError(
                f"--covariates {given} must have {num_data} rows for {name}, got {len(array)}; give one row per datum"
            )
        if array.ndim > 1 or array.dtype.kind == "f":
            return torch.from_numpy(array.astype(np.float32).reshape(num_data, -1))
        classes = torch.from_numpy(array.astype(np.int64))
        if int(classes.min()) < 0 or int(classes.max()) >= _MOST_CLASSES:
            raise ValueError(
                f"--covariates {given}: integers with shape (N,) must be classes 0 to {_MOST_CLASSES - 1}, got "
                f"{int(classes.min())} to {int(classes.max())}; number the classes from 0, or give real numbers"
            )
    return torch.nn.functional.one_hot(classes).float()


def _sha256(source: np.ndarray, more: str = "") -> str:
    """Return the digest of dtype, shape and little-endian values of the source, followed by `more`."""
    dtype = source.dtype.newbyteorder("<")
    digest = hashlib.sha256(f"{dtype.str} {source.shape}".encode())
    for start in range(0, len(source), _CHUNK):
        part = np.ascontiguousarray(source[start : start + _CHUNK], dtype=dtype)
        digest.update(part.reshape(-1).view(np.uint8).data)
    digest.update(more.encode())
    return digest.hexdigest()
