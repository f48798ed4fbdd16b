"""Points from which climbs start, and the prior's width, which is the unit of their steps."""

import torch
from torch import Tensor

from pyrovae.evidence.blocks import DEFAULT_CHUNK_SIZE, split_count
from pyrovae.evidence.derivatives import log_joint_at
from pyrovae.evidence.latent_space import LatentSpace

_PRIOR_DRAWS = 64  # for the prior's width


def starting_points(space: LatentSpace, starts: int, chunk_size: int) -> Tensor:
    """Find starting points, with shape (S, N, U)."""
    drawn = space.pack(space.from_guide(8))
    drawn = torch.where(drawn.isfinite(), drawn, 0.0)
    first = highest(space, torch.cat([drawn.mean(0, keepdim=True), drawn]), chunk_size)
    if starts > 1:
        others = [
            space.pack(space.from_guide(4)) if s % 2 else from_prior(space, 4, chunk_size) for s in range(starts - 1)
        ]
        others = [highest(space, torch.where(u.isfinite(), u, 0.0), chunk_size) for u in others]
        first = torch.cat([first, *others])
    return first


def highest(space: LatentSpace, u: Tensor, chunk_size: int) -> Tensor:
    """Select the best of K points for each datum, with shape (1, N, U)."""
    best = log_joint_at(space, u, chunk_size).argmax(0)
    return u[best, torch.arange(space.num_data, device=best.device)].unsqueeze(0)


def from_prior(space: LatentSpace, draws: int, chunk_size: int) -> Tensor:
    """Draw u from the prior, with shape (K, N, U), in chunks, since the model decodes the draws."""
    counts = split_count(draws, chunk_size // space.num_data)
    return torch.cat([space.pack(space.from_prior(count)) for count in counts])


def prior_scale(space: LatentSpace, chunk_size: int = DEFAULT_CHUNK_SIZE) -> tuple[Tensor, Tensor]:
    """Find the prior's middle and width in each coordinate, with shape (N, U), by quartiles, robust to heavy tails."""
    if "prior scale" not in space.memo:
        space.memo["prior scale"] = _prior_scale(space, chunk_size)
    return space.memo["prior scale"]


def _prior_scale(space: LatentSpace, chunk_size: int) -> tuple[Tensor, Tensor]:
    u = from_prior(space, _PRIOR_DRAWS, chunk_size)
    lower, upper = torch.where(u.isfinite(), u, 0.0).quantile(u.new_tensor([0.25, 0.75]), dim=0)
    width = (upper - lower) / 1.349
    return (lower + upper) / 2, torch.where(width > 0, width, 1.0)
