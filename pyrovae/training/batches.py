"""Batches of data in memory or on disk."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.densities import (
    Program,
    Streamed,
    VectorizedProgram,
    Whole,
    device_of,
    isolated_rng,
    num_data,
    plain,
    prepare_arguments,
    prepared,
    take,
)
from pyrovae.objectives import CASE_WEIGHTS

_CHUNK_SIZE = 4096

Argument = Tensor | Streamed
Arguments = Argument | Sequence[Argument] | Mapping[str, Argument]
ProgramArguments = tuple[tuple[Any, ...], dict[str, Any]]


def as_arguments(data: Arguments) -> ProgramArguments:
    """Split data as `fit` accepts them into positional and keyword arguments of the programs."""
    if isinstance(data, Tensor | Streamed | np.ndarray | Whole):
        return (data,), {}
    if isinstance(data, Mapping):
        return (), dict(data)
    if not isinstance(data, Sequence):
        raise ValueError(
            f"data must be a tensor, a sequence of them, a mapping of names to them, or a DataLoader, got "
            f"{type(data).__name__}; give torch.as_tensor(x), or DataLoader(dataset, batch_size=128, shuffle=True)"
        )
    return tuple(data), {}


def for_programs(model: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ProgramArguments:
    """Return the arguments as a model takes them: `Whole` ones as tensors, unless it knows how it runs on draws."""
    return (args, dict(kwargs)) if isinstance(model, VectorizedProgram) else plain(args, kwargs)


def transformed(
    args: tuple[Any, ...], kwargs: dict[str, Any], transform: Callable[[Tensor], Tensor] | None
) -> ProgramArguments:
    """Apply a transform to x, the first argument."""
    if transform is None:
        return args, kwargs
    x, *_ = (*args, *kwargs.values())
    return _with_x(args, kwargs, transform(x))


def epoch_order(size: int, *, epoch: int, seed: int) -> Tensor:
    """Draw the order of the data in an epoch: a permutation of range(size) that depends only on epoch and seed."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(size, generator=generator)


def prepare_data(
    programs: Sequence[Program], data: Arguments, transform: Callable[[Tensor], Tensor] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any], Callable[[Tensor], Tensor] | None]:
    """Prepare the data of `fit` for the programs (`prepare_arguments`).

    If a transform is given, x itself stays as it is; the transformed x is checked on one datum and converted.

    Args:
        programs: The model and the guide.
        data: Data as `fit` accepts them.
        transform: Transform of x, the first argument; None for no transform.

    Returns:
        Positional arguments, keyword arguments, and the transform.

    Raises:
        ValueError: If the programs cannot take the data.
    """
    args, kwargs = as_arguments(data)
    if transform is None:
        return *prepare_arguments("fit", programs, args, kwargs), None
    size = num_data(args, kwargs)
    raw, *_ = (*args, *kwargs.values())
    with isolated_rng():
        first = transform(raw[:1])
    x = first.expand(size, *first.shape[1:])
    args, kwargs = prepare_arguments("fit", programs, *_with_x(args, kwargs, x))
    converted, *_ = (*args, *kwargs.values())
    args, kwargs = _with_x(args, kwargs, raw)
    if converted.dtype == x.dtype and converted.device == x.device:
        return args, kwargs, transform
    like = converted[:1]
    return args, kwargs, lambda rows: transform(rows).to(like)


def _of_programs(arguments: ProgramArguments) -> ProgramArguments:
    """Return the arguments of a step without its case weights, which the programs do not take."""
    args, kwargs = arguments
    return args, {name: value for name, value in kwargs.items() if name != CASE_WEIGHTS}


def _with_x(args: tuple[Any, ...], kwargs: dict[str, Any], x: Any) -> ProgramArguments:
    """Replace x, the first argument."""
    if args:
        return (x, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): x}


class Batches:
    """Batches of the training data, shuffled anew in each epoch.

    Args:
        args: Positional arguments of both programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of both programs.
        batch_size: Number of data B per batch. The last batch of an epoch may be smaller.
        transform: Transform of x, the first argument, applied to each batch anew; None for no transform.
        seed: Random seed of the order of the data.
        least_data: Smallest number of data of a batch. A smaller remainder joins the last full batch.
        weights: Case weights, with shape (N,), which the steps get as a further argument, `CASE_WEIGHTS`; None for 1.

    Attributes:
        size: Number of data N.
        steps: Number of batches per epoch.
        full_steps: Number of batches of exactly B data.
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
        least_data: int = 1,
        weights: Tensor | None = None,
    ) -> None:
        self.args, self.kwargs, self.transform, self.weights = args, kwargs, transform, weights
        if weights is not None:
            self.kwargs = {**kwargs, CASE_WEIGHTS: weights}
        self.batch_size, self.seed = batch_size, seed
        self.size, self.device = num_data(args, kwargs), device_of(args, kwargs)
        self.full_steps, rest = divmod(self.size, batch_size)
        self.steps = math.ceil(self.size / batch_size)
        if 0 < rest < least_data and self.full_steps:
            self.steps, self.full_steps = self.full_steps, self.full_steps - 1
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

    def keep_order(self) -> None:
        """Keep the order of the data in all epochs."""
        self.shuffled = False

    def batch(self, step: int) -> ProgramArguments:
        """Return the arguments of a step of the epoch, transformed. If the data are streamed, call it step by step."""
        args, kwargs = next(self._ahead) if self._ahead else self._read(step)
        return transformed(args, kwargs, self.transform)

    @property
    def sizes(self) -> Tensor:
        """Number of data of each batch of an epoch, with shape (steps,)."""
        sizes = torch.full((self.steps,), self.batch_size)
        sizes[-1] = self.size - (self.steps - 1) * self.batch_size
        return sizes

    def calls(self, epochs: int) -> dict[int, int]:
        """Return the number of steps in a number of epochs, by batch size."""
        return {self.batch_size: epochs * self.full_steps, self.size - self.full_steps * self.batch_size: epochs}

    def first(self, size: int | None = None) -> ProgramArguments:
        """Return the arguments at the first rows of the data, transformed: `size` rows, or those of a full batch."""
        return _of_programs(self.at(slice(0, min(self.size, self.batch_size) if size is None else size)))

    def taken(self, step: int) -> ProgramArguments:
        """Return the arguments of a step of the epoch again, transformed anew."""
        return _of_programs(self.at(self.rows(step)))

    def chunks(self) -> Iterator[ProgramArguments]:
        """Iterate over all data in their order, transformed."""
        for start in range(0, self.size, _CHUNK_SIZE):
            yield _of_programs(self.at(slice(start, start + _CHUNK_SIZE)))

    def at(self, rows: Tensor | slice) -> ProgramArguments:
        """Return the arguments of a step at some rows of the data, transformed."""
        return transformed(*take(self.args, self.kwargs, rows), self.transform)

    def rows(self, step: int) -> Tensor:
        """Return the rows of a step of the epoch, with shape (B,)."""
        end = self.size if step == self.steps - 1 else (step + 1) * self.batch_size
        return self.order[step * self.batch_size : end]

    def _read(self, step: int) -> ProgramArguments:
        return take(self.args, self.kwargs, self.rows(step))
