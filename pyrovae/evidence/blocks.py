"""Blocks of data and draws, which bound the memory of estimators, and the case weights of data."""

import hashlib
import inspect
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrovae.densities import (
    Program,
    VectorizedProgram,
    bad_data,
    check_support,
    check_weights,
    describe_bad_data,
    evaluating,
    has_data,
    num_data,
    sum_discrete,
    take,
    vectorize_pair,
)
from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.execution import tensors_of
from pyrovae.stats import check_case_weights

DEFAULT_CHUNK_SIZE = 8192
_MOST_LATENTS = 2**40  # decoded at once; no memory holds more
_MOST_KEPT = 2**17  # latents of a block whose draws are all kept
_PER_COLUMN = 4  # numbers that a column's distribution has, such as location, scale, shape, or some levels
_MOST_NUMBERS = 6_500_000  # latents decoded at once times columns of the data, by default: 26 MB in single precision

_UNDEFINED_SHARE = 0.01  # of the gradients that are NaN, above which a warning names the datum
_NAMED = 10  # data that it names


@dataclass(frozen=True)
class DataBlock:
    """A block of data with the arguments of the programs at these data.

    Attributes:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments; None for the model alone.
        rows: Rows of the block among the data of this call.
        args: Positional arguments of both programs, the data first, with shape (n, ...).
        kwargs: Keyword arguments of both programs.
        first: Index of the first datum in the full data set, for error messages.
    """

    model: VectorizedProgram
    guide: VectorizedProgram | None
    rows: slice
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    first: int

    @cached_property
    def space(self) -> LatentSpace:
        """Latents of model and guide at these data; use it in `evaluation_mode`."""
        return LatentSpace(self.model, self.guide, *self.args, **self.kwargs)

    def check(self, log_w: Tensor) -> None:
        """Raise a ValueError that names datum and site if a log weight, with shape (K, n), is NaN or +inf."""
        check_weights(log_w, self.model, self.guide, *self.args, first=self.first, **self.kwargs)

    def describe(self, log_w: Tensor) -> str:
        """Say which data have a log weight, with shape (K, n), that is NaN or +inf, and why; empty if none has."""
        if not bool(bad_data(log_w).any()):
            return ""
        return describe_bad_data(log_w, self.model, self.guide, *self.args, first=self.first, **self.kwargs)


class UndefinedGradients:
    """Number, for each datum, of gradients of log p(x, z) that are NaN where the density is finite.

    Such gradients come from branches that a program computes but does not use, such as the square root of a negative
    number in torch.where. They stop a method that follows gradients, though no density is NaN.
    """

    def __init__(self) -> None:
        self.counts: Tensor | None = None
        self.total = 0

    def add(self, undefined: Tensor) -> None:
        """Count gradients, with shape (K, N), by whether they are NaN."""
        more = undefined.sum(0).double()
        self.counts = more if self.counts is None else self.counts + more
        self.total += len(undefined)

    def warn(self, first: int, consequence: str) -> None:
        """Warn if more than one gradient in a hundred is NaN, with the numbers of the data.

        Args:
            first: Index of the first datum in the full data set.
            consequence: What follows for these data.
        """
        if self.counts is None:
            return
        shares = self.counts / self.total
        bad = (shares > _UNDEFINED_SHARE).nonzero().flatten().tolist()
        if not bad:
            return
        named = ", ".join(f"{first + n} ({shares[n].item():.0%})" for n in bad[:_NAMED])
        others = f" and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
        warnings.warn(
            f"the gradient of log p(x, z) is NaN where the density is finite, for data {named}{others}, in brackets "
            f"the share of such gradients, so {consequence}; look for a branch of torch.where that is NaN, such as the "
            "root of a negative number, and give its input a safe value first",
            stacklevel=3,
        )


def data_blocks(
    model: Program,
    guide: Program | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    at_once: int,
    *,
    num_done: int = 0,
    first: int = 0,
    skip_support_check: bool = False,
) -> Iterator[DataBlock]:
    """Iterate over the data in blocks, each checked to lie in the support.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments; None for the model alone.
        args: Positional arguments of both programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of both programs.
        at_once: Number of data per block.
        num_done: Number of blocks to skip.
        first: Index of the first datum in the full data set, for error messages.
        skip_support_check: Whether to trust that the data lie in the support.

    Raises:
        SupportError: If a datum lies outside the support.
    """
    if guide is None:
        model = sum_discrete(model, args, kwargs)
    else:
        model, guide = vectorize_pair(model, guide, args, kwargs)
    size = model.num_data(args, kwargs)
    at_once = at_once if model.divisible else size
    for start in range(num_done * at_once, size, at_once):
        rows = slice(start, min(start + at_once, size))
        some = take(args, kwargs, rows) if model.divisible else (args, dict(kwargs))
        block = DataBlock(model, guide, rows, *some, first=first + start)
        if not skip_support_check:
            check_support(model, *block.args, guide=guide, first=block.first, **block.kwargs)
        if block.first == 0:
            with evaluation_mode(model, guide):
                block.space.warn_of_saturation()
        yield block


def data_at_once(num_particles: int, chunk_size: int) -> int:
    """Compute the number of data per block so that K times it is at most chunk_size, but at least one datum."""
    check_counts(chunk_size=chunk_size)
    return max(1, chunk_size // num_particles)


def chunk_size_or_default(chunk_size: int | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return a number of latents decoded at once, which bounds memory.

    The default is 8,192. For data with more than 793 columns it is smaller, so that a decoded chunk has at most 6.5
    million numbers.

    Args:
        chunk_size: The number of latents, if it is given.
        args: Positional arguments of the programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of the programs.
    """
    if chunk_size is not None:
        return min(chunk_size, _MOST_LATENTS)
    return max(1, min(DEFAULT_CHUNK_SIZE, _MOST_NUMBERS // _num_columns(args, kwargs)))


def fingerprint(programs: Iterable[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Compute 56 bits of the SHA-256 of the tensors among arguments and of the programs' parameters and buffers.

    A saved state holds it, so that it resumes with the same data and weights alone. Of programs, only modules count.

    Args:
        programs: Model and guide.
        args: Positional arguments of the programs.
        kwargs: Keyword arguments of the programs.
    """
    states = [program.state_dict(keep_vars=True) for program in programs if isinstance(program, nn.Module)]
    digest = hashlib.sha256()
    for tensor in tensors_of((*args, *(value for state in states for value in state.values())), kwargs):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest()[:7])


def decoded_data_at_once(
    num_particles: int, chunk_size: int | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> int:
    """Compute the number of data per block for estimators that keep what is decoded from all K draws of a block.

    By default a block has at most 131,072 latents, and at most 6.5 million numbers, four for each latent and column. A
    table of few columns then has large blocks, which share each step of the search for modes.

    Args:
        num_particles: Number of draws K per datum.
        chunk_size: Number of latents, K times N, decoded at once, if it is given; it then bounds the block as well.
        args: Positional arguments of the programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of the programs.
    """
    least = data_at_once(num_particles, chunk_size_or_default(chunk_size, args, kwargs))
    if chunk_size is not None:
        return least
    most = min(_MOST_KEPT, _MOST_NUMBERS // (_PER_COLUMN * _num_columns(args, kwargs)))
    return max(least, most // num_particles)


def _num_columns(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return the largest number of columns of the arguments that have one row per datum, at least 1."""
    size = num_data(args, kwargs) if has_data(args, kwargs) else 0
    shapes: list[tuple[int, ...]] = [tuple(getattr(value, "shape", ())) for value in (*args, *kwargs.values())]
    return max([1, *(math.prod(shape[1:]) for shape in shapes if len(shape) > 1 and shape[0] == size)])


def split_count(total: int, at_once: int) -> list[int]:
    """Split a number of draws into parts of at most at_once draws, and at least one."""
    at_once = max(1, at_once)
    return [min(at_once, total - done) for done in range(0, total, at_once)]


def concatenate(blocks: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Concatenate the results of several blocks, field by field."""
    return [torch.cat(field) for field in zip(*blocks, strict=True)]


@contextmanager
def evaluation_mode(*programs: Program | None) -> Iterator[None]:
    """Put the programs' modules into evaluation mode, without gradients and without Pyro's validation."""
    with evaluating(*(program for program in programs if program is not None)), pyro.validation_enabled(False):
        yield


def check_memory(num_particles: int) -> None:
    """Check before any draw that the log weights of one datum, in float64, fit into the memory of the machine.

    Raises:
        ValueError: If they do not.
    """
    if not hasattr(os, "sysconf"):  # Windows
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 8 * num_particles > memory:
        raise ValueError(
            f"the log weights of one datum need {8 * num_particles // 10**9:,} GB for num_particles={num_particles:,} "
            f"draws, but the machine has {memory // 10**9:,} GB; lower num_particles"
        )


def check_counts(**counts: int) -> None:
    """Raise a ValueError if a count is no integer or below 1."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise ValueError(f"{name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def case_weights_of(function: str, weights: Any, size: int, *programs: Program | None) -> Tensor | None:
    """Check case weights, and return them as a tensor, float64 on the CPU; None if there are none.

    Args:
        function: Name of the function that takes the weights, for error messages.
        weights: Case weights, not negative, with shape (N,); None for 1.
        size: Number of data N.
        *programs: Programs, which must not have an argument of this name.

    Raises:
        ValueError: If a program has one, or they are no case weights.
    """
    if weights is None:
        return None
    for program in programs:
        if program is None:
            continue
        with suppress(TypeError):
            names = inspect.signature(getattr(program, "forward", program)).parameters
            if "weights" in names:
                raise ValueError(
                    f"weights are the case weights of {function}, but a program has an argument of this name, too; "
                    "rename the argument of the program"
                )
    found = torch.as_tensor(weights).detach().cpu().double()
    check_case_weights(found, size)
    return found
