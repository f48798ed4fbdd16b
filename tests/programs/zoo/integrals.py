"""Integrals over latents by grids of plain torch, one datum at a time."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Axis = tuple[Tensor, Tensor]  # points and log weights, each with shape (S,)


def line(half_width: float = 9.0, size: int = 241) -> Axis:
    """Return a grid of the real line: the trapezoid rule, whose error falls exponentially for smooth integrands."""
    z = torch.linspace(-half_width, half_width, size, dtype=torch.float64)
    return z, torch.full_like(z, math.log(2 * half_width / (size - 1)))


def half_line(size: int = 481) -> Axis:
    """Return a grid of the positive numbers."""
    u, log_w = line(16.0, size)
    return u.exp(), log_w + u


def interval(low: float = 0.0, high: float = 1.0, size: int = 961) -> Axis:
    """Return a grid of an interval."""
    u, log_w = line(30.0, size)
    log_slope = torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u)
    return low + (high - low) * u.sigmoid(), log_w + log_slope + math.log(high - low)


def circle(size: int = 400) -> Axis:
    """Return a grid of one period of an angle."""
    z = torch.arange(size, dtype=torch.float64) / size * 2 * math.pi - math.pi
    return z, torch.full_like(z, math.log(2 * math.pi / size))


def values(*numbers: float) -> Axis:
    """Return the values of a discrete latent."""
    z = torch.tensor(numbers, dtype=torch.float64)
    return z, torch.zeros(len(numbers), dtype=torch.float64)


def log_integral(log_joint: Callable[..., Tensor], axes: Iterable[Axis], *data: Any) -> Tensor:
    """Integrate a density over all latents, for each datum, with shape (N,).

    Args:
        log_joint: Function of one datum (one row of each of data) and of latents, each with shape (S,), which returns
            log p(x_n, z) with shape (S,).
        axes: Grid of each latent.
        data: Tensors with leading length N.
    """
    axes = list(axes)
    grids = [grid.flatten() for grid in torch.meshgrid(*(z for z, _ in axes), indexing="ij")]
    log_w = sum(w.flatten() for w in torch.meshgrid(*(w for _, w in axes), indexing="ij"))
    return torch.stack([(log_joint(*row, *grids) + log_w).logsumexp(0) for row in zip(*data, strict=True)])


def filtered(log_start: Tensor, log_step: Tensor, log_obs: Iterable[Tensor], log_w: Tensor) -> Tensor:
    """Compute log p(x) of one chain on a grid of S states by the forward recursion.

    Args:
        log_start: Log density of the first state, with shape (S,).
        log_step: Log density of a step from state i to j, with shape (S, S).
        log_obs: Log density of each observation in each state, with shape (S,).
        log_w: Log weights of the grid, with shape (S,).
    """
    alpha = None
    for log_lik in log_obs:
        prior = log_start if alpha is None else (alpha.unsqueeze(1) + log_step).logsumexp(0)
        alpha = prior + log_lik + log_w
    assert alpha is not None
    return alpha.logsumexp(0)
