"""Helpers for program arguments: count the data, find their device, select and repeat rows."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pyrovae.densities.streamed import Streamed


class Whole:
    """Tensor argument that is the same for all data, also if its leading length equals the number of data.

    Programs receive the tensor itself.

    Args:
        tensor: Tensor that no function cuts by rows.

    Raises:
        ValueError: If tensor is no tensor.

    Example:
        >>> x, noise = torch.zeros(3, 3), torch.ones(3)  # without Whole, noise would be cut like the rows of x
        >>> args, _ = take((x, Whole(noise)), {}, slice(0, 2))
        >>> args[0].shape, args[1].tensor.shape
        (torch.Size([2, 3]), torch.Size([3]))
    """

    def __init__(self, tensor: Tensor) -> None:
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"Whole needs a tensor, got {type(tensor).__name__}; pass arguments of other types as they are, since "
                "only tensors are cut by rows"
            )
        self.tensor = tensor

    def __repr__(self) -> str:
        return f"Whole(tensor of shape {tuple(self.tensor.shape)})"

    def to(self, device: torch.device | str) -> "Whole":
        """Return the same argument on another device."""
        return Whole(self.tensor.to(device))


def num_data(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return the number of data N, the leading length of the first tensor among the arguments.

    Args:
        args: Positional arguments of a program.
        kwargs: Keyword arguments of a program.

    Raises:
        ValueError: If no argument is a tensor, if the first one is empty, or if one is a numpy array.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, np.ndarray):
            raise ValueError(
                "data must be a tensor, got a numpy array; give torch.as_tensor(x) of floating point numbers, or "
                "Streamed(x) for a memory-mapped array"
            )
        if isinstance(value, Tensor | Streamed) and value.dim() > 0:
            if not value.shape[0]:
                raise ValueError("the data are empty, the first tensor has leading length 0; give at least one datum")
            return value.shape[0]
    raise ValueError("programs need data, got no tensor; give a tensor of shape (N, ...) first")


def has_data(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a tensor is among the arguments; a program without one holds its data itself."""
    return any(isinstance(value, Tensor | Streamed) and value.dim() > 0 for value in (*args, *kwargs.values()))


def device_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.device:
    """Return the device of the first tensor among the arguments of a program."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor | Streamed)).device


def take(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: slice | Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Select rows of every tensor argument, in memory or streamed, with leading length N. Keep all other arguments.

    Sequences of a `PackedSequence` of N sequences are selected like rows.

    Args:
        args: Positional arguments of a program.
        kwargs: Keyword arguments of a program.
        rows: Rows to select.
    """
    size = num_data(args, kwargs)
    return _map(lambda value: _rows_of(value, rows) if is_per_datum(value, size) else value, args, kwargs)


def _rows_of(value: Any, rows: slice | Tensor) -> Any:
    """Select rows of a tensor, or sequences of a `PackedSequence`."""
    if not isinstance(value, PackedSequence):
        return value[rows]
    padded, lengths = pad_packed_sequence(value, batch_first=True)
    rows = rows.cpu() if isinstance(rows, Tensor) else rows
    padded, lengths = padded[rows], lengths[rows]
    is_sorted = bool((lengths.diff() <= 0).all())
    return pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=is_sorted)


def tile(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], num_particles: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Repeat the rows of every tensor argument with leading length N, so that row n K + k is copy k of datum n.

    Rows that are sorted, such as by length for packed sequences, stay sorted.

    Args:
        args: Positional arguments of a program.
        kwargs: Keyword arguments of a program.
        num_particles: Number of copies K.
    """
    size = num_data(args, kwargs)

    def repeated(value: Any) -> Any:
        if not is_per_datum(value, size):
            return value
        if isinstance(value, PackedSequence):
            return _rows_of(value, torch.arange(size).repeat_interleave(num_particles))
        value = value[:] if isinstance(value, Streamed) else value
        return value.unsqueeze(1).expand(size, num_particles, *value.shape[1:]).flatten(0, 1)

    return _map(repeated, args, kwargs)


def plain(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replace each `Whole` argument by its tensor."""
    return _map(lambda value: value.tensor if isinstance(value, Whole) else value, args, kwargs)


def mark_whole(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], program: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Mark as `Whole` every tensor argument whose leading length is not N, so that no batch of that size cuts it.

    Warns, once for each program, of tensors that are cut by rows though their leading length may be another dimension.

    Args:
        args: Positional arguments of a program.
        kwargs: Keyword arguments of a program.
        program: The program, which identifies repeated calls; None for no warning.
    """
    size = num_data(args, kwargs)
    named = {f"number {place}": value for place, value in enumerate(args, 1)} | dict(kwargs)
    per_datum = {name: value for name, value in named.items() if is_per_datum(value, size)}
    first = next(iter(per_datum), None)
    widths = {width for value in named.values() if isinstance(value, Tensor | Streamed) for width in value.shape[1:]}
    doubtful = [name for name in per_datum if name != first]
    if program is not None and doubtful and size in widths and _is_first(program):
        warnings.warn(
            f"arguments cut by rows, as one row per datum, include {' and '.join(doubtful)} of leading length {size}, "
            f"but {size} is also another dimension of the arguments; give Whole(argument) if one is the same for all "
            "data",
            stacklevel=2,
        )

    def marked(value: Any) -> Any:
        other = isinstance(value, Tensor) and value.dim() > 0 and not is_per_datum(value, size)
        return Whole(value) if other else value

    return _map(marked, args, kwargs)


_warned: WeakSet[Any] = WeakSet()


def _is_first(program: Any) -> bool:
    """Return whether this program is new here; a program that cannot be referenced weakly is."""
    owner = getattr(program, "__self__", program)
    with suppress(TypeError):
        if owner in _warned:
            return False
        _warned.add(owner)
    return True


def is_per_datum(value: Any, size: int) -> bool:
    """Return whether an argument has one row, or one sequence of a `PackedSequence`, for each of N data."""
    if isinstance(value, PackedSequence):
        return int(value.batch_sizes[0]) == size
    return isinstance(value, Tensor | Streamed) and value.dim() > 0 and value.shape[0] == size


def _map(
    function: Callable[[Any], Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(map(function, args)), {key: function(value) for key, value in kwargs.items()}
