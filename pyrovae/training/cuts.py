"""Batches along the dim of the data that a named plate has."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from pyrovae.densities import Program, Rows, find_rows
from pyrovae.training.batches import as_arguments

_Result = tuple[Program, Program, Any, Any, Callable[[Tensor], Tensor] | None]


def cut_along(
    plate: str,
    model: Program,
    guide: Program,
    data: Any,
    validation: Any,
    transform: Callable[[Tensor], Tensor] | None,
    *,
    batch_size: int,
) -> _Result:
    """Move the data of a named plate to the front of all arguments, and wrap the programs accordingly.

    Args:
        plate: Name of the plate over the data.
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        data: Data as `fit` accepts them.
        validation: Held-out data, if any.
        transform: Transform of x, the first argument; None for no transform.
        batch_size: Number of data B per batch.

    Returns:
        Model, guide, data, held-out data, and transform; as they are if the data come first.

    Raises:
        ValueError: If no plate has this name, no argument has its length, or it keeps its size on smaller batches.
    """
    if isinstance(data, DataLoader):  # its batches have the data first
        return model, guide, data, validation, transform
    args, kwargs = as_arguments(data)
    rows = find_rows((model, guide), args, kwargs, plate)
    if rows is None:
        return model, guide, data, validation, transform
    if not rows.divisible and batch_size < rows.size:
        raise ValueError(
            f"plate {plate!r} keeps its size {rows.size} on batches of {batch_size}; give it the size of the batch, as "
            f"in data.shape[{next(iter(rows.dims.values()))}], or give batch_size={rows.size}"
        )
    held_out = None if validation is None else _data(rows, validation)
    return rows.program(model), rows.program(guide), _data(rows, data), held_out, rows.transform(transform)


def _data(rows: Rows, data: Any) -> Any:
    """Move the data to the front, by position or by keyword as they came."""
    args, kwargs = rows.first(*as_arguments(data))
    return kwargs or args
