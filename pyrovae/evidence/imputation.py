"""Missing entries of data given the observed ones: conditional means, and draws of p(x_mis | x_obs)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, entry, vectorize_pair
from pyrovae.evidence.blocks import (
    DataBlock,
    check_counts,
    chunk_size_or_default,
    data_at_once,
    data_blocks,
    evaluation_mode,
)
from pyrovae.evidence.posterior import site_at, weighted_points
from pyrovae.evidence.proposals import Proposal
from pyrovae.stats import LogMarginal, component_shares


class Imputation(NamedTuple):
    """Completed data. Observed entries are as given.

    Attributes:
        mean: Conditional means E[x | x_obs], with shape (N, D).
        draws: Draws of p(x_mis | x_obs), with shape (M, N, D).
        log_marginal: Estimates of log p(x_obs), with their errors, effective sample sizes and k-hats, in nats.
        served: Index of the proposal's component with the largest share of each datum's weight, with shape (N,).
        components: Names of the components.
    """

    mean: Tensor
    draws: Tensor
    log_marginal: LogMarginal
    served: Tensor
    components: tuple[str, ...]


@entry("num_particles", "num_draws", "proposal", "chunk_size", "site", "plate")
def impute(
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    mask: Tensor,
    num_particles: int = 1000,
    num_draws: int = 20,
    proposal: Proposal | None = None,
    chunk_size: int | None = None,
    site: str = "x",
    plate: str | None = None,
    **kwargs: Any,
) -> Imputation:
    """Impute missing entries by self-normalised importance sampling.

        E[x | x_obs] ~ sum_k w_k E[x | z_k],  w_k = p(x_obs, z_k)/q(z_k) / sum_j p(x_obs, z_j)/q(z_j),  z_k ~ q

    (Mattei and Frellsen, "MIWAE", ICML 2019, https://arxiv.org/abs/1812.02633, section 4, with the default proposal in
    place of the guide.) A draw chooses k with probability w_k, then draws p(x | z_k): never an average of draws. The
    weights are those of `log_marginal`; a k-hat above 0.7 says that few draws carry them.

    Args:
        model: Pyro program p(z) p(x|z), with an argument `mask`.
        guide: Pyro program q(z|x), with the model's arguments.
        x: Data, with shape (N, D); missing entries may be NaN.
        mask: Whether each entry of x is observed, with shape (N, D).
        num_particles: Number of draws K of the latents per datum.
        num_draws: Number of draws M of the missing entries per datum; 0 for means alone.
        proposal: `Proposal` to draw the latents from; None for the default, which needs no guide trained on such masks.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None as in `log_marginal`.
        site: Name of the model's site of x.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Further keyword arguments of both programs, such as covariates.

    Raises:
        ValueError: If mask does not have the shape of x, the model has no such site, or as `log_marginal`.
    """
    check_counts(num_particles=num_particles)
    if mask.shape != x.shape:
        raise ValueError(f"mask must have the shape {tuple(x.shape)} of x, got {tuple(mask.shape)}")
    kwargs = {**kwargs, "mask": mask}
    pair = vectorize_pair(model, guide, (x,), kwargs, plate=plate)
    chunk_size = chunk_size_or_default(chunk_size, (x,), kwargs)
    blocks = data_blocks(*pair, (x,), kwargs, data_at_once(num_particles, chunk_size))
    found = [
        _of_block(block, mask[block.rows], num_particles, num_draws, proposal, chunk_size, site) for block in blocks
    ]
    names = tuple(dict.fromkeys(name for one in found for name in one.components))
    places = [torch.tensor([names.index(name) for name in one.components])[one.served] for one in found]
    return Imputation(
        torch.cat([one.mean for one in found]),
        torch.cat([one.draws for one in found], 1),
        LogMarginal(*map(torch.cat, zip(*(one.log_marginal for one in found), strict=True))),
        torch.cat(places),
        names,
    )


def _of_block(
    block: DataBlock,
    mask: Tensor,
    num_particles: int,
    num_draws: int,
    proposal: Proposal | None,
    chunk_size: int,
    site: str,
) -> Imputation:
    with evaluation_mode(block.model, block.guide):
        drawn = weighted_points(block, num_particles, proposal, chunk_size)
        x, given = block.args[0], torch.where(mask, block.args[0], 0)
        p = site_at(block, drawn.points.latents, site)
        means = p.layout.per_datum(p.fn.mean, p.plate_sizes, len(p.fn.event_shape))
        weight = drawn.weight
        mean = torch.einsum("kn,kn...->n...", weight.to(means), means)
        draws = x.new_empty(0, *x.shape)
        if num_draws:
            rows = torch.multinomial(weight.nan_to_num(1.0).T, num_draws, replacement=True).T
            chosen = {name: _chosen(value, rows) for name, value in drawn.points.latents.items()}
            p = site_at(block, chosen, site)
            draws = p.layout.per_datum(p.fn.sample(), p.plate_sizes, len(p.fn.event_shape))
            draws = torch.where(drawn.bad.unsqueeze(-1), torch.nan, draws)
        shares = component_shares(drawn.log_w, drawn.points.component, len(drawn.names))
        mean, draws = torch.where(mask, given, mean), torch.where(mask, given, draws)
        return Imputation(mean, draws, drawn.summary(), shares.argmax(0), drawn.names)


def _chosen(value: Tensor, rows: Tensor) -> Tensor:
    """Choose draws: entry (m, n) of the result is entry (rows[m, n], n) of a value with shape (K, N, ...)."""
    return value[rows, torch.arange(value.shape[1], device=value.device)]
