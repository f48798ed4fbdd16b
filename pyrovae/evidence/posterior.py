"""Weighted draws of the latents of a block of data, from any proposal, and the sites of the model at them."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Site, bad_data, entry_of, take
from pyrovae.evidence.blocks import DataBlock, split_count
from pyrovae.evidence.latent_space import Latents
from pyrovae.evidence.proposals import Proposal, default_proposal
from pyrovae.evidence.weight_blocks import WeightBlock


class WeightedPoints(NamedTuple):
    """Draws of the latents of n data with their weights.

    Attributes:
        latents: Draws by site, with shape (K, n, ...).
        weights: Their log weights log p(x, z) - log q(z), with shape (K, n), as those of `log_marginal`.
    """

    latents: Latents
    weights: WeightBlock

    @property
    def weight(self) -> Tensor:
        """Self-normalised weights, with shape (K, n), float64; NaN for data without weights, or with zeros alone."""
        return self.weights.log_w.double().softmax(0)


def weighted_points(block: DataBlock, num_particles: int, proposal: Proposal | None, chunk_size: int) -> WeightedPoints:
    """Draw latents of a block of data, chunk by chunk. Programs must be in evaluation mode.

    Args:
        block: Block of n data.
        num_particles: Number of draws K per datum.
        proposal: `Proposal` to draw from; None for the default.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.

    Raises:
        ValueError: If proposal is no `Proposal`, or all latents are summed out.
    """
    if proposal is not None and not isinstance(proposal, Proposal):
        raise ValueError(f"proposal must be a Proposal, got {proposal!r}; give an object such as GuideProposal()")
    if not block.space.names:
        raise ValueError("all latents of the model are summed out, so there are none to draw; give a guide that draws")
    chosen = default_proposal(block.space, chunk_size) if proposal is None else proposal
    component = chosen.adapt(block.space, chunk_size=chunk_size)
    latents, log_w, drawn_by = [], [], []
    for count in split_count(num_particles, chunk_size // block.space.num_data):
        points = component.draw(count)
        latents.append(points.latents)
        log_w.append(component.weigh(points).double())
        drawn_by.append(points.component)
    weights = torch.cat(log_w)
    fault = block.describe(weights)
    if fault:
        weights = torch.where(bad_data(weights), torch.nan, weights)
    return WeightedPoints(
        {name: torch.cat([part[name] for part in latents]) for name in block.space.names},
        WeightBlock(
            block.rows,
            weights,
            torch.cat(drawn_by),
            component.names,
            chosen.name,
            fault=fault,
            unsettled=component.unsettled,
            rounding=block.space.rounding,
            from_prior=component.from_prior,
        ),
    )


def with_weights(block: DataBlock, drawn: WeightedPoints) -> tuple[DataBlock, WeightedPoints, Tensor]:
    """Leave out the data without weights, whose parameters may be NaN, so that nothing can be drawn from them.

    Args:
        block: Block of n data.
        drawn: Their weighted draws.

    Returns:
        The block of the other data, their draws, and their rows in the block; all data if a program cannot be divided.
    """
    rows = (~drawn.weight.isnan().any(0)).nonzero().flatten()
    if len(rows) == drawn.weights.log_w.shape[1] or not block.model.divisible:
        return block, drawn, torch.arange(drawn.weights.log_w.shape[1], device=rows.device)
    args, kwargs = take(block.args, block.kwargs, rows)
    some = DataBlock(block.model, block.guide, block.rows, args, kwargs, block.first)
    latents = {name: value[:, rows] for name, value in drawn.latents.items()}
    return some, WeightedPoints(latents, drawn.weights._replace(log_w=drawn.weights.log_w[:, rows])), rows


def sites_at(block: DataBlock, latents: Latents, name: str, chunk_size: int, purpose: str) -> Iterator[Site]:
    """Run the model at given latents, with shape (K, n, ...), and yield one of its sites, some draws at a time.

    Args:
        block: Block of n data.
        latents: Values by site.
        name: Name of an observed site whose distribution is a product over entries.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.
        purpose: What the entries would have otherwise, for error messages, such as "scores".

    Raises:
        ValueError: If the model has no such site.
    """
    at_once = max(1, chunk_size // max(1, block.model.num_data(block.args, block.kwargs)))
    for start in range(0, len(next(iter(latents.values()))), at_once):
        some = {key: value[start : start + at_once] for key, value in latents.items()}
        sites = block.model.trace(len(next(iter(some.values()))), block.args, block.kwargs, some).sites
        if name not in sites:
            raise ValueError(f"the model has no site {name!r}, but {', '.join(map(repr, sites))}; give site=...")
        _check_entries(sites[name], purpose)
        yield sites[name]


def per_datum(site: Site, tensor: Tensor, event_shape: torch.Size | None = None) -> Tensor:
    """Arrange a tensor with one number per entry of a site as (K, n, D), with the D entries of a datum flattened.

    Args:
        site: Site of a trace.
        tensor: Tensor that broadcasts to the batch and event shape of the site.
        event_shape: Event shape of the entries, if they are not all of the site.
    """
    event = site.fn.event_shape if event_shape is None else event_shape
    tensor = tensor.expand(torch.broadcast_shapes(tensor.shape, event))
    found = site.layout.per_datum(tensor, site.plate_sizes, len(event))
    return found.reshape(*found.shape[:2], -1)


def _check_entries(site: Site, purpose: str) -> None:
    """Raise a ValueError unless a site is observed, and its distribution a product over the entries of each datum."""
    fn, name = entry_of(site.fn), repr(site.name)
    if site.layout.data_dim is None:
        raise ValueError(
            f"the model has no plate over the data, so the data have no {purpose}; put site {name} into a plate"
        )
    if not site.is_observed:
        raise ValueError(f"site {name} is a latent, so it has no {purpose}; give the name of an observed site")
    if site.depends_on_sums:
        raise ValueError(
            f"site {name} depends on discrete latents that are summed out, so its entries have no {purpose}; give a "
            "guide that draws these latents"
        )
    if fn.event_shape:
        raise ValueError(
            f"site {name} has the distribution {type(fn).__name__}, which is no product over the entries of one "
            f"vector, so the entries have no {purpose}; use log_marginal"
        )
