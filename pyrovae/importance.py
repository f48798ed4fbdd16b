"""Importance sampling: log p(x) per datum, with its Monte Carlo error, for any model and guide."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae.densities import Program, check_support, evaluating, log_weights, num_data, take
from pyrovae.stats import LogMarginal, summarize_log_weights

DEFAULT_CHUNK_SIZE = 8192

# Log weights of one block of data are held together for the tail fit: 32 MiB of them at most, in float64.
_HELD_WEIGHTS = 2**22


class LowerBound(NamedTuple):
    """The ELBO per datum, in nats, each of shape (N,).

    Attributes:
        value: Mean of log w over the particles.
        std_error: Monte Carlo standard error of that mean; nan for one particle.
    """

    value: Tensor
    std_error: Tensor


def log_marginal(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int,
    proposal: Program | None = None,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> LogMarginal:
    r"""Estimate log p(x_n) by importance sampling, for each datum n.

    log p(x_n) ~ log 1/K sum_k p(x_n, z_kn) / q(z_kn | x_n),   z_kn ~ q(z | x_n),

    whose expectation bounds log p(x_n) from below and rises with K (Burda, Grosse, Salakhutdinov 2016,
    https://arxiv.org/abs/1509.00519). Modules are put into evaluation mode meanwhile, and no gradient is kept.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Arguments of both, the data first, with shape (N, ...). Every tensor of leading length N is per datum.
        num_particles: K, the draws per datum.
        proposal: Program with the guide's arguments and sites to draw from in place of the guide.
        chunk_size: Latents (K times N) decoded at once, which bounds the memory; None for 8,192.
        **kwargs: Keyword arguments of both.

    Returns:
        LogMarginal of value, std_error, ess and khat, each with shape (N,), in nats, float64.

    Raises:
        ValueError: If num_particles or chunk_size is below 1, data lie outside the support, a weight is NaN or
            unbounded, or a program breaks the contract of `log_weights`.
    """
    blocks = [
        summarize_log_weights(log_w)
        for _, log_w in log_weight_blocks(
            model,
            proposal or guide,
            *args,
            num_particles=num_particles,
            chunk_size=chunk_size,
            **kwargs,
        )
    ]
    return LogMarginal(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def evidence_lower_bound(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int,
    chunk_size: int | None = None,
    checked: bool = False,
    **kwargs: Any,
) -> LowerBound:
    """Estimate the ELBO, E_q[log p(x_n, z) - log q(z | x_n)], for each datum n.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Arguments of both, the data first, with shape (N, ...).
        num_particles: K, the draws per datum.
        chunk_size: Latents (K times N) decoded at once; None for 8,192.
        checked: The data are known to lie in the support, and are not checked again.
        **kwargs: Keyword arguments of both.

    Returns:
        LowerBound of value and std_error, each with shape (N,), in nats, float64.

    Raises:
        ValueError: As `log_marginal`.
    """
    blocks = [
        summarize_lower_bound(log_w)
        for _, log_w in log_weight_blocks(
            model, guide, *args, num_particles=num_particles, chunk_size=chunk_size, checked=checked, **kwargs
        )
    ]
    return LowerBound(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def summarize_lower_bound(log_w: Tensor) -> LowerBound:
    """Reduce log weights, with shape (K, N), to their mean and its Monte Carlo standard error, over K.

    Raises:
        ValueError: If a weight is NaN or unbounded.
    """
    log_w = log_w.double()
    bad = (log_w.isnan() | (log_w == torch.inf)).any(0)
    if bool(bad.any()):
        datum = int(bad.nonzero()[0])
        raise ValueError(f"the log weights of datum {datum} are NaN or +inf; look for a scale that is 0 or not finite")
    draws = log_w.shape[0]
    spread = log_w.std(0) if draws > 1 else torch.full_like(log_w[0], torch.nan)
    return LowerBound(log_w.mean(0), spread / draws**0.5)


def log_weight_blocks(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int,
    chunk_size: int | None = None,
    checked: bool = False,
    **kwargs: Any,
) -> Iterator[tuple[slice, Tensor]]:
    """Go through the data in blocks and yield each block's rows and log weights, with shape (K, n), in nats.

    Memory is bounded whatever N is: at most chunk_size latents are decoded at once, and one block's weights held, which
    are K numbers at least. Args and errors are those of `evidence_lower_bound`.
    """
    chunk_size = DEFAULT_CHUNK_SIZE if chunk_size is None else chunk_size
    for name, given in (("num_particles", num_particles), ("chunk_size", chunk_size)):
        if given < 1:
            raise ValueError(f"{name} must be at least 1, got {given}")
    size = num_data(args, kwargs)
    # A block as tall as the chunk allows runs the encoder seldom; 64 data fill the matrix products all the same.
    at_once = max(
        1,
        min(size, chunk_size, max(64, chunk_size // num_particles), _HELD_WEIGHTS // num_particles),
    )
    particles_at_once = max(1, chunk_size // at_once)
    for start in range(0, size, at_once):
        rows = slice(start, min(start + at_once, size))
        block_args, block_kwargs = take(args, kwargs, rows)
        if not checked:
            try:
                check_support(model, *block_args, guide=guide, **block_kwargs)
            except ValueError as error:
                raise ValueError(f"data {rows.start} to {rows.stop - 1}: {error}") from error
        parts = []
        for done in range(0, num_particles, particles_at_once):
            draws = min(particles_at_once, num_particles - done)
            with evaluating(model, guide), pyro.validation_enabled(False):
                log_w = log_weights(model, guide, *block_args, num_particles=draws, **block_kwargs)
            parts.append(log_w)
        yield rows, torch.cat(parts)
