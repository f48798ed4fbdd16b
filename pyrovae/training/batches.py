"""Batches of the training data."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.densities import Streamed, device_of, num_data, prepared, take

Argument = Tensor | Streamed
Arguments = Argument | Sequence[Argument] | Mapping[str, Argument]
ProgramArguments = tuple[tuple[Any, ...], dict[str, Any]]


def as_arguments(data: Arguments) -> ProgramArguments:
    """Split data as `fit` accepts them into positional and keyword arguments of the programs."""
    if isinstance(data, Tensor | Streamed | np.ndarray):  # num_data refuses arrays
        return (data,), {}
    if isinstance(data, Mapping):
        return (), dict(data)
    return tuple(data), {}


def transformed(
    args: tuple[Any, ...], kwargs: dict[str, Any], transform: Callable[[Tensor], Tensor] | None
) -> ProgramArguments:
    """Apply a transform to x, the first argument."""
    if transform is None:
        return args, kwargs
    if args:
        return (transform(args[0]), *args[1:]), kwargs
    first = next(iter(kwargs))
    return args, {**kwargs, first: transform(kwargs[first])}


def epoch_order(size: int, *, epoch: int, seed: int) -> Tensor:
    """Draw the order of the data in an epoch: a permutation of range(size) that depends only on epoch and seed."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(size, generator=generator)


class Batches:
    """Batches of the training data, shuffled anew in each epoch.

    Args:
        args: Positional arguments of both programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of both programs.
        batch_size: Number of data B per batch. The last batch of an epoch may be smaller.
        transform: Transform of x, the first argument, applied to each batch anew; None for no transform.
        seed: Random seed of the order of the data.

    Attributes:
        size: Number of data N.
        steps: Number of batches per epoch.
        device: Device of the data.
        streamed: Whether an argument is `Streamed`. Its batches are read from disk one step ahead.
        order: Order of the data in the current epoch, with shape (N,), overwritten in place by the next epoch.
        shuffled: Whether each epoch has its own order. False for a guide with one row of parameters per datum.
    """

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        batch_size: int,
        transform: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        self.args, self.kwargs, self.transform = args, kwargs, transform
        self.batch_size, self.seed = batch_size, seed
        self.size, self.device = num_data(args, kwargs), device_of(args, kwargs)
        self.steps = math.ceil(self.size / batch_size)
        self.streamed = any(isinstance(value, Streamed) for value in (*args, *kwargs.values()))
        self.order = torch.arange(self.size, device=self.device)
        self.shuffled = True
        self._ahead: Iterator[ProgramArguments] | None = None

    def start_epoch(self, epoch: int, step: int = 0) -> None:
        """Shuffle the data for an epoch, whose next step is `step`."""
        if self.shuffled:
            self.order.copy_(epoch_order(self.size, epoch=epoch, seed=self.seed))
        if self.streamed:
            self._ahead = prepared(self._read, step, self.steps)

    def batch(self, step: int) -> ProgramArguments:
        """Return the arguments of a step of the epoch, transformed. If the data are streamed, call it step by step."""
        args, kwargs = next(self._ahead) if self._ahead else self._read(step)
        return transformed(args, kwargs, self.transform)

    def first(self, size: int | None = None) -> ProgramArguments:
        """Return the arguments at the first rows of the data, transformed: `size` rows, or those of a full batch."""
        return self.at(slice(0, min(self.size, self.batch_size) if size is None else size))

    def at(self, rows: Tensor | slice) -> ProgramArguments:
        """Return the arguments at some rows of the data, transformed."""
        return transformed(*take(self.args, self.kwargs, rows), self.transform)

    def rows(self, step: int) -> Tensor:
        """Return the rows of a step of the epoch, with shape (B,)."""
        return self.order[step * self.batch_size : (step + 1) * self.batch_size]

    def _read(self, step: int) -> ProgramArguments:
        return take(self.args, self.kwargs, self.rows(step))
