"""Readers of data sources. Each returns the whole source as a NumPy array."""

from __future__ import annotations

import contextlib
import difflib
import os
import socket
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_CHUNK = 4096  # data that are checked at once
_LARGE = 2**20  # bytes of a file
_FEW_VALUES = 2**20  # of an array whose columns are all sorted
_TIMEOUT = 20.0  # seconds without a response before a download fails


def read_digits() -> tuple[np.ndarray, Tensor]:
    """Read scikit-learn's digits: images, with shape (1797, 8, 8), float64; labels, with shape (1797,), int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, torch.from_numpy(digits.target).long()


def read_mnist(root: Path, *, download: bool = True) -> tuple[np.ndarray, Tensor, int]:
    """Read MNIST from ROOT/MNIST/raw, the training file, then the test file.

    Args:
        root: Folder ROOT.
        download: Whether to download missing files.

    Returns:
        The images, with shape (N, H, W), uint8; the labels, with shape (N,), int64; and the number of data from the
        test file, which come last.

    Raises:
        FileNotFoundError: If files are missing and are not or cannot be downloaded.
        ValueError: If a file is corrupted, or the sizes of the files do not agree.
    """
    from torchvision.datasets import mnist

    raw = root / "MNIST" / "raw"
    if not all(os.path.isfile(raw / file) for file in MNIST_FILES):
        if not download:
            raise FileNotFoundError(
                f"MNIST is not in {raw}, and a configuration starts no download; give --data_dir with the folder that "
                f"holds MNIST, or download it first by train.py --data mnist --data_dir {root}"
            )
        _download_mnist(root, raw)
    arrays = []
    for file in MNIST_FILES:
        read = mnist.read_image_file if "images" in file else mnist.read_label_file
        try:
            arrays.append(read(os.fspath(raw / file)).numpy())
        except Exception as error:  # torchvision raises many kinds of errors on corrupted files
            raise ValueError(
                f"{raw / file} is corrupted, truncated or unreadable ({_one_line(error)}); replace it, or delete it to "
                "download it again"
            ) from error
    images, labels, test_images, test_labels = arrays
    if len(images) < 2 or len(images) != len(labels) or len(test_images) != len(test_labels):
        raise ValueError(
            f"{raw}: images and labels must agree in number, but the training files hold {len(images)} and "
            f"{len(labels)}, the test files {len(test_images)} and {len(test_labels)}; replace the wrong files"
        )
    if images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            f"{raw}: training images have shape {images.shape[1:]}, test images {test_images.shape[1:]}; replace the "
            "wrong files"
        )
    source = np.concatenate([images, test_images])
    return source, torch.from_numpy(np.concatenate([labels, test_labels])), len(test_images)


def _download_mnist(root: Path, raw: Path) -> None:
    """Download MNIST to a temporary folder, and move missing files to `raw` once all are complete."""
    from torchvision.datasets import MNIST

    new_folders = [folder for folder in (raw, *raw.parents) if not os.path.exists(folder)]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as folder:
            with _socket_timeout():
                fresh = Path(MNIST(folder, download=True).raw_folder)
            raw.mkdir(parents=True, exist_ok=True)
            for file in MNIST_FILES:
                if not os.path.isfile(raw / file):
                    os.replace(fresh / file, raw / file)
    except Exception as error:  # network, name service, disk, rights, or a wrong checksum
        raise FileNotFoundError(
            f"MNIST is not in {raw} and cannot be downloaded ({_one_line(error)}); put {', '.join(MNIST_FILES)} into "
            "ROOT/MNIST/raw and give --data_dir ROOT"
        ) from error
    finally:
        for new_folder in new_folders:  # rmdir removes those that are empty
            with contextlib.suppress(OSError):
                new_folder.rmdir()


@contextlib.contextmanager
def _socket_timeout() -> Iterator[None]:
    """Set a timeout for connections, which torchvision opens without one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT if before is None else before)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_array(name: str, flag: str = "--data", *, stream: bool = False, new_data: bool = False) -> np.ndarray:
    """Read an array of the user, and check that its values are finite and representable in float32.

    Args:
        name: PATH.npy, PATH.npz:KEY, or PATH.npz if the file holds one array.
        flag: Flag that named the array: "--data", which may have missing values (NaN), or "--covariates", for which
            shape (N,) is also valid.
        stream: Whether to map PATH.npy into memory instead of reading it; it must then be complete.
        new_data: Whether the rows are new to a fitted model: then one row is enough, and a column may be all missing.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the name, the file, the key, the dtype, the shape or a value is invalid.
    """
    stem, has_key, key = name.partition(".npz:")
    # Path.expanduser raises an error for a name without a home, such as ~name.npy
    path = Path(os.path.expanduser(stem + ".npz" if has_key else name))
    if path.suffix not in (".npy", ".npz"):
        names = ("digits", "mnist") if flag == "--data" else ("labels",)
        if new_data:
            raise ValueError(f"{flag} {name!r} must be a file, PATH.npy or PATH.npz:KEY")
        raise ValueError(unknown(flag, name, names) + ", or a file: PATH.npy or PATH.npz:KEY")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file; check the path given to {flag}")
    array = _load(path, key, stream)
    if array.dtype.kind not in "buif":
        raise ValueError(
            f"{name} must hold booleans, integers or real numbers, got dtype {array.dtype}; convert it before saving"
        )
    least = 1 if new_data else 10
    if array.ndim < (1 if flag == "--covariates" else 2) or array.size == 0 or len(array) < least:
        rows = "one row" if new_data else "ten rows"
        raise ValueError(
            f"{name} must have shape (N, ...) with at least {rows} and one value in each, got {array.shape}; reshape "
            "it, or give more data"
        )
    _check_values(array, name, missing=flag != "--covariates" and not stream, new_data=new_data)
    return array


def _check_values(array: np.ndarray, name: str, *, missing: bool, new_data: bool = False) -> None:
    """Check the values of an array. Missing ones, NaN, are allowed if asked for; whole columns of them in new data."""
    bad_values, first = 0, (0, 0)
    seen = np.zeros(int(np.prod(array.shape[1:], dtype=int)), dtype=bool)
    for start in range(0, len(array), _CHUNK):
        part = array[start : start + _CHUNK]
        if array.dtype.kind in "iu":
            largest = max(abs(int(part.min())), abs(int(part.max())))
            if largest >= 2**24:
                raise ValueError(
                    f"integers in {name} must be below {2**24} in absolute value, where float32 is exact, got "
                    f"{largest}; subtract a constant from each column, or divide it"
                )
        with np.errstate(over="ignore"):  # an overflow becomes infinity, which the check finds
            flat = part.astype(np.float32).reshape(len(part), -1)
        holes = np.isnan(flat)
        seen |= (~holes).any(0)
        bad = np.isinf(flat) if missing else ~np.isfinite(flat)
        if bad.any() and not bad_values:
            row, column = divmod(int(bad.argmax()), bad.shape[1])
            first = start + row, column
        bad_values += int(bad.sum())
    if bad_values:
        kinds = "infinite or too large for float32" if missing else "NaN, infinite or too large for float32"
        raise ValueError(
            f"{name} has {bad_values} values that are {kinds}, the first in row {first[0]}, column {first[1]} (counted "
            "from 0, each datum flattened); remove or replace them"
        )
    if not seen.all() and not new_data:
        raise ValueError(
            f"{name} has no value in column {int((~seen).argmax())} (counted from 0, each datum flattened), only NaN; "
            "leave the column out"
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        _check_told_apart(array.reshape(len(array), -1), name)


def _check_told_apart(columns: np.ndarray, name: str) -> None:
    """Refuse columns of which float32 does not tell more than 1 % of the values apart, such as times in seconds."""
    low, high = np.full(columns.shape[1], np.inf), np.full(columns.shape[1], -np.inf)
    for start in range(0, len(columns), _CHUNK):
        part = columns[start : start + _CHUNK]
        low, high = np.fmin(low, np.fmin.reduce(part, 0)), np.fmax(high, np.fmax.reduce(part, 0))
    gap = np.spacing(np.maximum(np.abs(low), np.abs(high)).astype(np.float32))  # of float32, at the largest value
    near = gap * len(columns) > 0.01 * (high - low)  # than the values on average
    for place in np.flatnonzero(near | (columns.size <= _FEW_VALUES)):
        distinct = np.unique(columns[:, place])
        distinct = distinct[~np.isnan(distinct)]
        lost = len(distinct) - len(np.unique(distinct.astype(np.float32)))
        if lost > 0.01 * len(distinct):
            raise ValueError(
                f"{name} has {lost:,} of {len(distinct):,} values in column {place} (counted from 0, each datum "
                "flattened) that float32 does not tell apart; subtract a constant from the column"
            )


def _load(path: Path, key: str, stream: bool) -> np.ndarray:
    """Load one array of a file, with any shape and dtype."""
    is_npz = path.suffix == ".npz"
    try:
        with path.open("rb") as file:
            complete = zipfile.is_zipfile(file) if is_npz else file.read(6) == b"\x93NUMPY"
        if not complete:
            raise ValueError(f"it does not {'end' if is_npz else 'begin'} as such a file")
        content: Any = np.load(path, allow_pickle=False, mmap_mode="r" if stream else None)
        if not is_npz:
            _check_whole(path, content)
            return content
        with content:
            keys = content.files
            if len(set(keys)) < len(keys):
                raise ValueError(f"it has the key {max(keys, key=keys.count)!r} twice")
            if not key and len(keys) == 1:
                key = keys[0]
            if key in keys:
                return np.asarray(content[key])
    except Exception as error:  # zip, zlib and header errors alike
        if isinstance(error, MemoryError) and not is_npz and path.stat().st_size > _LARGE:
            raise  # no damaged header that claims a large array
        raise ValueError(
            f"{path} cannot be read as a NumPy {path.suffix} file ({_one_line(error)}) and may be truncated or hold "
            "Python objects; save numbers again with numpy.save or numpy.savez"
        ) from error
    near = difflib.get_close_matches(key, keys, n=len(keys) or 1)
    listed = [*near, *(k for k in keys if k not in near)]
    more = ", ..." if len(listed) > 20 else ""
    problem = f"has no array {key!r}" if key else f"holds {len(keys)} arrays, and no key was given"
    raise ValueError(f"{path} {problem}; give {path}:KEY, where KEY is one of {', '.join(listed[:20])}{more}")


def _check_whole(path: Path, array: np.ndarray) -> None:
    """Check that a file has no more values than its header says, as after a damage of the header.

    Raises:
        ValueError: If bytes follow the array.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        size = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
        more = path.stat().st_size - file.tell() - size - array.nbytes
    if more > 0:
        raise ValueError(f"{more:,} bytes follow the {array.shape} values of its header")


def unknown(flag: str, got: str, known: Iterable[str]) -> str:
    """Return an error message for an unknown name that suggests the nearest known one."""
    near = difflib.get_close_matches(got.lower(), known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{flag} {got!r} is unknown{hint}; use one of {', '.join(known)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
