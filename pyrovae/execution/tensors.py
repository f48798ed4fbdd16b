"""Helpers for the tensors among the arguments of a function."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pyrovae.densities import Whole

Outputs = Sequence[Tensor | None]


def signature(values: Iterable[Any]) -> Hashable:
    """Return a hashable key: a record is valid for values with the same key.

    The key has shape, strides, type and device of each tensor, and the other values themselves.
    """

    def of(value: Any) -> Hashable:
        if isinstance(value, Whole):
            return Whole, of(value.tensor)
        if isinstance(value, Tensor):
            return tuple(value.shape), value.stride(), value.dtype, value.device
        return value if isinstance(value, Hashable) else id(value)

    return tuple(map(of, values))


def tensors_of(args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors among arguments, those of `Whole` included."""
    values = (value.tensor if isinstance(value, Whole) else value for value in (*args, *kwargs.values()))
    return [value for value in values if isinstance(value, Tensor)]


def with_tensors(
    args: Iterable[Any], kwargs: Mapping[str, Any], tensors: Iterable[Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replace the tensors among arguments, in the order of `tensors_of`."""
    given = iter(tensors)

    def replaced(value: Any) -> Any:
        if isinstance(value, Whole):
            return Whole(next(given))
        return next(given) if isinstance(value, Tensor) else value

    return tuple(map(replaced, args)), {key: replaced(value) for key, value in kwargs.items()}
