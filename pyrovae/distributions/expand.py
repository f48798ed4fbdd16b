"""Pyro distributions that neither torch nor Pyro has, or has in a form that a likelihood cannot use."""

from typing import Any

import torch

Shape = torch.Size | list[int] | tuple[int, ...]


def expanded(old: Any, new: Any, batch_shape: Shape, *names: str) -> Any:
    """Finish `expand`: the named parameters of old, expanded, in new."""
    batch_shape = torch.Size(batch_shape)
    for name in names:
        setattr(new, name, getattr(old, name).expand(batch_shape))
    super(type(new), new).__init__(batch_shape, old.event_shape, validate_args=False)
    new._validate_args = old._validate_args
    return new
