"""The log density f(u) = log p(x, z(u)) |dz/du| of a latent space, its gradient and its Hessian, in chunks."""

import warnings
from typing import cast

import torch
from torch import Tensor

from pyrovae.evidence.blocks import DEFAULT_CHUNK_SIZE
from pyrovae.evidence.latent_space import LatentSpace

ROWS_ONE_BY_ONE = "rows one by one"  # key in the memo of a space whose gradients cannot be batched


def log_joint_at(space: LatentSpace, u: Tensor, chunk_size: int) -> Tensor:
    """Compute f(u), with shape (K, N), in chunks; -inf where it is not finite."""
    parts = u.split(max(1, chunk_size // u.shape[1]))
    value = torch.cat([space.log_joint(part) for part in parts])
    return torch.where(value.isfinite(), value, -torch.inf)


def gradient_at(space: LatentSpace, u: Tensor, chunk_size: int) -> Tensor:
    """Compute the gradient of f at u, with shape (S, N, U), in chunks."""
    gradients = []
    for some in u.detach().split(max(1, chunk_size // u.shape[1])):
        with torch.enable_grad():
            point = some.clone().requires_grad_()
            gradients += torch.autograd.grad(space.log_joint(point).sum(), point)
    return torch.cat(gradients)


def derivatives(space: LatentSpace, u: Tensor, chunk_size: int = DEFAULT_CHUNK_SIZE) -> tuple[Tensor, Tensor]:
    """Compute gradient, (S, N, U), and Hessian, (S, N, U, U), of f at u, (S, N, U).

    The program runs once. The rows of the Hessian are the gradients of the entries of the gradient, in batches of as
    many rows as the chunk allows. Rows are computed one by one where an operation cannot be batched, and by differences
    of gradients where it has no second derivative.
    """
    at_once = max(1, chunk_size // u.shape[1])
    if len(u) > at_once:
        parts = [derivatives(space, some, chunk_size) for some in u.split(at_once)]
        gradients, hessians = zip(*parts, strict=True)
        return torch.cat(gradients), torch.cat(hessians)
    point = u.detach().clone().requires_grad_()
    with torch.enable_grad():
        (slopes,) = torch.autograd.grad(space.log_joint(point).sum(), point, create_graph=True)
    if slopes.requires_grad:
        hessian = _hessian(space, slopes, point, max(1, chunk_size // (u.shape[0] * u.shape[1])))
        if hessian is None:
            hessian = _differences(space, u, chunk_size)
    else:
        hessian = u.new_zeros(*u.shape, u.shape[-1])
    return slopes.detach(), (hessian + hessian.mT) / 2


def _hessian(space: LatentSpace, slopes: Tensor, point: Tensor, at_once: int) -> Tensor | None:
    """Compute the Hessian from the graph of the gradient; None if an operation has no second derivative."""
    if not space.memo.get(ROWS_ONE_BY_ONE):
        try:
            return _rows(slopes, point, at_once, batched=True)
        except (RuntimeError, NotImplementedError):
            space.memo[ROWS_ONE_BY_ONE] = True
    try:
        return _rows(slopes, point, 1, batched=False)
    except (RuntimeError, NotImplementedError):
        return None


def _rows(slopes: Tensor, point: Tensor, at_once: int, *, batched: bool) -> Tensor:
    """Compute the rows of the Hessian, at_once of them by each backward pass."""
    rows = []
    basis = torch.eye(point.shape[-1], dtype=point.dtype, device=point.device)
    for directions in basis.split(at_once):
        outputs = directions[:, None, None].expand(-1, *point.shape)
        with warnings.catch_warnings():  # that an operation is batched by a loop is no fault of the program
            warnings.filterwarnings("ignore", message=".*performance drop", category=UserWarning)
            (row,) = cast(
                tuple[Tensor | None],
                torch.autograd.grad(
                    slopes,
                    point,
                    outputs if batched else outputs[0],
                    retain_graph=True,
                    allow_unused=True,
                    is_grads_batched=batched,
                ),
            )
        if row is None:  # the gradient does not depend on the point
            row = torch.zeros_like(outputs)
        rows.append(row if batched else row.expand(1, *point.shape))
    return torch.cat(rows).movedim(0, -2)


def _differences(space: LatentSpace, u: Tensor, chunk_size: int) -> Tensor:
    """Compute the Hessian by differences of gradients."""
    width = torch.finfo(u.dtype).eps ** 0.25 * u.abs().clamp(min=1)
    rows = []
    for direction in torch.eye(u.shape[-1], dtype=u.dtype, device=u.device):
        shift = direction * width
        up, down = (gradient_at(space, u + sign * shift, chunk_size) for sign in (1, -1))
        rows.append((up - down) / (2 * shift.sum(-1, keepdim=True)))
    return torch.stack(rows, -2)
