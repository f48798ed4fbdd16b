"""The arguments of programs: how many data, on which device, and some of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.densities.streamed import Streamed


def num_data(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """N: the leading length of the first tensor among a program's arguments.

    Raises:
        ValueError: If there is none, or it is empty.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, np.ndarray):
            raise ValueError(
                "the data are a numpy array; give torch.as_tensor(x), as floating point numbers, or Streamed(x), which "
                "leaves a memory-mapped one on disk"
            )
        if isinstance(value, Tensor | Streamed) and value.dim() > 0:
            if not value.shape[0]:
                raise ValueError("the data are empty: the first tensor has leading length 0; give at least one datum")
            return value.shape[0]
    raise ValueError("no data: give the programs' arguments, a tensor of shape (N, ...) first")


def device_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.device:
    """The device of the first tensor among a program's arguments."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor | Streamed)).device


def take(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: slice | Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Take some data: index every tensor argument whose leading length is N, streamed ones too; leave others whole."""
    size = num_data(args, kwargs)

    def part(value: Any) -> Any:
        per_datum = isinstance(value, Tensor | Streamed) and value.dim() > 0 and value.shape[0] == size
        return value[rows] if per_datum else value

    return tuple(map(part, args)), {key: part(value) for key, value in kwargs.items()}
