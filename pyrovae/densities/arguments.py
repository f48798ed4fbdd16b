"""Helpers for program arguments: count the data, find their device, select rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.densities.streamed import Streamed


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


def device_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.device:
    """Return the device of the first tensor among the arguments of a program."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor | Streamed)).device


def take(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: slice | Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Select rows of every tensor argument, in memory or streamed, with leading length N. Keep all other arguments.

    Args:
        args: Positional arguments of a program.
        kwargs: Keyword arguments of a program.
        rows: Rows to select.
    """
    size = num_data(args, kwargs)

    def part(value: Any) -> Any:
        per_datum = isinstance(value, Tensor | Streamed) and value.dim() > 0 and value.shape[0] == size
        return value[rows] if per_datum else value

    return tuple(map(part, args)), {key: part(value) for key, value in kwargs.items()}
