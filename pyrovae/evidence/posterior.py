"""Weighted draws of the latents of a block of data, from any proposal, and the sites of the model at them."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Site, bad_data
from pyrovae.evidence.blocks import DataBlock
from pyrovae.evidence.latent_space import Latents
from pyrovae.evidence.points import Points
from pyrovae.evidence.proposals import Proposal, default_proposal
from pyrovae.stats import LogMarginal, summarize_log_weights


class WeightedPoints(NamedTuple):
    """Draws of the latents of n data with their weights.

    Attributes:
        points: Draws, with shape (K, n, ...).
        log_w: Log weights log p(x, z) - log q(z) in nats, with shape (K, n), float64.
        bad: Whether a weight of the datum is NaN or unbounded, with shape (n,).
        names: Names of the proposal's components.
    """

    points: Points
    log_w: Tensor
    bad: Tensor
    names: tuple[str, ...]

    @property
    def weight(self) -> Tensor:
        """Self-normalised weights, with shape (K, n); NaN for bad data."""
        return torch.where(self.bad, torch.nan, self.log_w).softmax(0)

    def summary(self) -> LogMarginal:
        """Summarise the weights: log p(x), its error, effective sample size and k-hat; NaN for bad data."""
        found = summarize_log_weights(torch.where(self.bad, 0.0, self.log_w), self.points.component)
        return LogMarginal(*(torch.where(self.bad, torch.nan, value) for value in found))


def weighted_points(block: DataBlock, num_particles: int, proposal: Proposal | None, chunk_size: int) -> WeightedPoints:
    """Draw latents of a block of data, all at once. Programs must be in evaluation mode.

    Args:
        block: Block of n data.
        num_particles: Number of draws K per datum.
        proposal: `Proposal` to draw from; None for the default.
        chunk_size: Number of latents decoded at once while the proposal adapts.
    """
    chosen = default_proposal(block.space, chunk_size) if proposal is None else proposal
    component = chosen.adapt(block.space, chunk_size=chunk_size)
    points = component.draw(num_particles)
    log_prior, log_lik = points.log_prior_and_likelihood
    log_p = log_prior + log_lik
    log_w = torch.where(log_p == -torch.inf, -torch.inf, log_p - component.log_density(points)).double()
    return WeightedPoints(points, log_w, bad_data(log_w), component.names)


def site_at(block: DataBlock, latents: Latents, name: str) -> Site:
    """Run the model at given latents, with shape (K, n, ...), and return one of its sites.

    Raises:
        ValueError: If the model has no such site.
    """
    sites = block.model.trace(len(next(iter(latents.values()))), block.args, block.kwargs, latents).sites
    if name not in sites:
        raise ValueError(f"the model has no site {name!r}, but {', '.join(map(repr, sites))}; give site=...")
    return sites[name]
