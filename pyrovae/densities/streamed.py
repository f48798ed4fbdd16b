"""Data that stay on disk: rows of a memory-mapped array, read when they are asked for."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Batch = TypeVar("Batch")


class Streamed:
    """Some rows of an array on disk, in place of a tensor of data where this does not fit into memory.

    `fit` takes it for any argument of the programs and prepares the next batch beside each step. It is indexed like the
    tensor that it stands for, with shape (N, D), each datum flattened; what comes is a tensor in memory.

    Args:
        array: Real numbers, integers or booleans, with shape (N', ...), such as `numpy.load(path, mmap_mode="r")`.
        rows: Which rows, in which order, with shape (N,); None for all, in order.
        device: Where its tensors are to be.

    Raises:
        ValueError: If array has one dimension, or rows lie outside of it.

    Example:
        >>> x = Streamed(np.arange(12).reshape(4, 3), torch.tensor([3, 0]))
        >>> x.shape, x[:1]
        (torch.Size([2, 3]), tensor([[ 9., 10., 11.]]))
    """

    dtype = torch.float32

    def __init__(self, array: np.ndarray, rows: Tensor | None = None, *, device: torch.device | str = "cpu") -> None:
        if array.ndim < 2:
            raise ValueError(f"the array has shape {array.shape}; data have shape (N, ...), a row for each")
        self.rows = torch.arange(len(array)) if rows is None else rows.cpu()
        if len(self.rows) and not 0 <= int(self.rows.min()) <= int(self.rows.max()) < len(array):
            raise ValueError(f"rows must lie in 0..{len(array) - 1}, for so many are in the array")
        self.array, self.device = array, torch.device(device)
        self.shape = torch.Size((len(self.rows), int(np.prod(array.shape[1:]))))

    def __len__(self) -> int:
        return len(self.rows)

    def dim(self) -> int:
        """The number of dimensions, 2."""
        return 2

    def to(self, device: torch.device | str) -> "Streamed":
        """The same with tensors on another device."""
        return Streamed(self.array, self.rows, device=device)

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """Read data, with shape (N', D), float32, in the order asked for; from the disk in its own."""
        rows = self.rows[which if isinstance(which, slice) else which.cpu()]
        ordered, back = rows.unique(return_inverse=True)
        read = self.array[ordered.numpy()].reshape(len(ordered), self.shape[1]).astype(np.float32)
        return torch.from_numpy(read)[back].to(self.device)

    def split(self, size: int) -> Iterator[Tensor]:
        """Read all data in chunks of so many."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


def prepared(make: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """Yield make(start), ..., make(stop - 1), each made by a thread while the one before is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="next batch") as pool:
        coming = pool.submit(make, start) if start < stop else None
        for index in range(start, stop):
            assert coming is not None
            now = coming.result()
            coming = pool.submit(make, index + 1) if index + 1 < stop else None
            yield now
