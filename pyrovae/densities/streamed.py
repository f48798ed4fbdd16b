"""Data that stay on disk: rows of a memory-mapped array, read when they are indexed."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Batch = TypeVar("Batch")


class Streamed:
    """Rows of an array on disk, in place of a tensor of data that does not fit into memory.

    Indexing works as for a tensor with shape (N, D), each datum flattened, and returns a tensor in memory. `fit`
    accepts this class for any argument of the programs, and reads the next batch during each step.

    Args:
        array: Real numbers, integers or booleans, with shape (N', ...), such as `numpy.load(path, mmap_mode="r")`.
        rows: Rows of the array in the order of the data, with shape (N,); None for all rows.
        device: Device of the tensors that indexing returns.

    Raises:
        ValueError: If array has fewer than two dimensions, or a row lies outside the array.

    Example:
        >>> x = Streamed(np.arange(12).reshape(4, 3), torch.tensor([3, 0]))
        >>> x.shape, x[:1]
        (torch.Size([2, 3]), tensor([[ 9., 10., 11.]]))
    """

    dtype = torch.float32

    def __init__(self, array: np.ndarray, rows: Tensor | None = None, *, device: torch.device | str = "cpu") -> None:
        if array.ndim < 2:
            raise ValueError(
                f"data must have shape (N, ...) with one row per datum, got an array of shape {array.shape}; reshape it"
            )
        self.rows = torch.arange(len(array)) if rows is None else rows.cpu()
        if len(self.rows) and not 0 <= int(self.rows.min()) <= int(self.rows.max()) < len(array):
            raise ValueError(
                f"rows must lie in 0..{len(array) - 1}, got {int(self.rows.min())}..{int(self.rows.max())}"
            )
        self.array, self.device = array, torch.device(device)
        self.shape = torch.Size((len(self.rows), int(np.prod(array.shape[1:]))))

    def __len__(self) -> int:
        return len(self.rows)

    def dim(self) -> int:
        """Return the number of dimensions, 2."""
        return 2

    def to(self, device: torch.device | str) -> "Streamed":
        """Return the same data with tensors on another device."""
        return Streamed(self.array, self.rows, device=device)

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """Read rows, with shape (N', D), float32. The disk is read in its own order, each row once."""
        rows = self.rows[which if isinstance(which, slice) else which.cpu()]
        ordered, back = rows.unique(return_inverse=True)
        read = self.array[ordered.numpy()].reshape(len(ordered), self.shape[1]).astype(np.float32)
        return torch.from_numpy(read)[back].to(self.device)

    def split(self, size: int) -> Iterator[Tensor]:
        """Iterate over all data in chunks of this size."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


def prepared(make: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """Yield make(start), ..., make(stop - 1), each computed by a thread while its predecessor is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="next batch") as pool:
        coming = pool.submit(make, start) if start < stop else None
        for index in range(start, stop):
            assert coming is not None
            now = coming.result()
            coming = pool.submit(make, index + 1) if index + 1 < stop else None
            yield now
