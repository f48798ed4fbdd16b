"""Helper for the `expand` methods of the distributions in this room."""

from typing import Any

import torch

Shape = torch.Size | list[int] | tuple[int, ...]


def expand_parameters(old: Any, new: Any, batch_shape: Shape, *names: str) -> Any:
    """Initialise `new` with the named parameters of `old`, expanded to batch_shape, and return it."""
    batch_shape = torch.Size(batch_shape)
    for name in names:
        setattr(new, name, getattr(old, name).expand(batch_shape))
    super(type(new), new).__init__(batch_shape, old.event_shape, validate_args=False)
    new._validate_args = old._validate_args
    return new
