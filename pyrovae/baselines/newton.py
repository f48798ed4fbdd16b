"""Maximum likelihood of many small problems at once, in float64."""

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]

_STEP = 1e-4  # of the differences of gradients; parameters are of order 1
_MOST_BY_NEWTON = 8  # parameters of a problem, beyond which second derivatives cost more than they save


def minimise(loss: Loss, start: Tensor, *, tolerance: float = 1e-10, max_steps: int = 100) -> Tensor:
    """Minimise C functions of P parameters each, the c-th of which depends on row c alone.

    Each row takes Newton steps with the absolute eigenvalues of its Hessian, within a trust region of its own, until
    the next step promises less than the tolerance. Negative curvature therefore leads away from a saddle point, and a
    parameter whose optimum is infinite stops where the function is flat. (Dauphin et al., "Identifying and attacking
    the saddle point problem in high-dimensional non-convex optimization", NeurIPS 2014,
    https://arxiv.org/abs/1406.2572.) Rows of more than eight parameters are minimised together, by L-BFGS.

    Args:
        loss: Function from parameters, with shape (C, P), float64, to C values.
        start: Initial parameters, with shape (C, P), float64, at which each value is finite.
        tolerance: Smallest decrease of a value that is worth a step.
        max_steps: Largest number of steps.
    """
    if start.shape[1] > _MOST_BY_NEWTON:
        return _by_lbfgs(loss, start)
    theta, radius = start.clone(), torch.ones(len(start), dtype=start.dtype)
    value, slope = _with_gradient(loss, theta)
    for _ in range(max_steps):
        values, vectors = torch.linalg.eigh(_hessian(loss, theta))
        direction = -(vectors @ ((vectors.mT @ slope.unsqueeze(-1)) / values.abs().clamp(min=1e-12).unsqueeze(-1)))
        step = direction.squeeze(-1)
        length = step.norm(dim=1)
        step = step * torch.clamp(radius / length.clamp(min=1e-300), max=1).unsqueeze(-1)
        active = (slope * step).sum(1) < -tolerance
        if not bool(active.any()):
            break
        moved = torch.where(active.unsqueeze(-1), theta + step, theta)
        new_value, new_slope = _with_gradient(loss, moved)
        better = active & (new_value < value) & new_slope.isfinite().all(1)
        theta = torch.where(better.unsqueeze(-1), moved, theta)
        value, slope = torch.where(better, new_value, value), torch.where(better.unsqueeze(-1), new_slope, slope)
        radius = torch.where(better, radius.clamp(max=1e3) * 2, torch.minimum(radius, length) / 4)
    return theta


def _with_gradient(loss: Loss, theta: Tensor) -> tuple[Tensor, Tensor]:
    theta = theta.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(theta)
        (slope,) = torch.autograd.grad(value.sum(), theta)
    return value.detach(), slope


def _hessian(loss: Loss, theta: Tensor) -> Tensor:
    """Return the Hessian of each row, with shape (C, P, P), by central differences of the gradients."""
    columns = []
    for p in range(theta.shape[1]):
        step = torch.zeros_like(theta)
        step[:, p] = _STEP
        columns.append((_with_gradient(loss, theta + step)[1] - _with_gradient(loss, theta - step)[1]) / (2 * _STEP))
    hessian = torch.stack(columns, -1).nan_to_num(0.0, 0.0, 0.0)
    return (hessian + hessian.mT) / 2


def _by_lbfgs(loss: Loss, start: Tensor) -> Tensor:
    theta = start.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=500,
        history_size=30,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = loss(theta).sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(closure)
    better = loss(theta.detach()) < loss(start)
    return torch.where(better.unsqueeze(-1), theta.detach(), start)
