"""Scores of data by entry: log p(x_d | the other entries), which says why a datum is odd."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, Site, entry, entry_of, vectorize_pair
from pyrovae.evidence.blocks import (
    DataBlock,
    check_counts,
    chunk_size_or_default,
    concatenate,
    data_at_once,
    data_blocks,
    evaluation_mode,
)
from pyrovae.evidence.posterior import site_at, weighted_points
from pyrovae.evidence.proposals import Proposal
from pyrovae.stats import LogMarginal, log_mean_exp, pareto_khat


class Score(NamedTuple):
    """Log p(x) and its parts, in nats, float64.

    Attributes:
        log_marginal: Log p(x_obs), with errors, effective sample sizes and k-hats, each with shape (N,).
        conditional: Log p(x_d | the other observed entries), with shape (N, D); NaN for missing entries.
        std_error: Standard errors of conditional, with shape (N, D).
        khat: k-hats of the weights without the entry, with shape (N, D); above 0.7 the error is unreliable.
    """

    log_marginal: LogMarginal
    conditional: Tensor
    std_error: Tensor
    khat: Tensor


@entry("num_particles", "proposal", "chunk_size", "site", "plate")
def score(
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    num_particles: int = 1000,
    proposal: Proposal | None = None,
    chunk_size: int | None = None,
    site: str = "x",
    plate: str | None = None,
    **kwargs: Any,
) -> Score:
    """Score each datum, and each entry given the others, from one set of draws.

        log p(x_d | x_-d) ~ log mean_k w_k - log mean_k v_k,  v_k = w_k / p(x_d | z_k)

    w are the weights of log p(x), v those of log p(x_-d), since p(x | z) is a product over entries. (The same identity
    as in importance-sampling leave-one-out: Gelfand, Dey and Chang 1992; Vehtari, Gelman and Gabry 2017,
    https://doi.org/10.1007/s11222-016-9696-4.) The standard error is that of the difference, by the delta method.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        x: Data, with shape (N, D).
        num_particles: Number of draws K of the latents per datum.
        proposal: `Proposal` to draw the latents from; None for the default.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None as in `log_marginal`.
        site: Name of the model's site of x.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Further keyword arguments of both programs, such as mask and covariates.

    Raises:
        ValueError: If p(x|z) is no product over entries, the model has no such site, or as `log_marginal`.
    """
    check_counts(num_particles=num_particles)
    pair = vectorize_pair(model, guide, (x,), kwargs, plate=plate)
    chunk_size = chunk_size_or_default(chunk_size, (x,), kwargs)
    blocks = data_blocks(*pair, (x,), kwargs, data_at_once(num_particles, chunk_size))
    found = [_of_block(block, num_particles, proposal, chunk_size, site) for block in blocks]
    return Score(
        LogMarginal(*concatenate([one.log_marginal for one in found])),
        *concatenate([one[1:] for one in found]),
    )


def _of_block(block: DataBlock, num_particles: int, proposal: Proposal | None, chunk_size: int, site: str) -> Score:
    with evaluation_mode(block.model, block.guide):
        drawn = weighted_points(block, num_particles, proposal, chunk_size)
        log_p, seen = _entries(site_at(block, drawn.points.latents, site))
    log_w = torch.where(drawn.bad, 0.0, drawn.log_w)
    without = log_w.unsqueeze(-1) - torch.where(seen, log_p.double(), 0.0)  # (K, n, D)
    value, rest = log_mean_exp(log_w), log_mean_exp(without)
    ratio = (log_w - value).exp().unsqueeze(-1) - (without - rest).exp()
    error = ratio.std(0) / num_particles**0.5
    khat = pareto_khat(without.flatten(1)).view_as(rest)
    keep = seen[0] & ~drawn.bad.unsqueeze(-1)
    parts = (torch.where(keep, part, torch.nan) for part in (value.unsqueeze(-1) - rest, error, khat))
    return Score(drawn.summary(), *parts)


def _entries(site: Site) -> tuple[Tensor, Tensor]:
    """Return the log densities of the entries of a site, and whether each is observed, both with shape (K, n, D).

    Raises:
        ValueError: If the distribution is no product over entries.
    """
    fn = entry_of(site.fn)
    if fn.event_shape or len(site.fn.event_shape) != 1:
        raise ValueError(
            f"site {site.name!r} has the distribution {type(fn).__name__}, which is no product over the entries of one "
            "vector, so the entries have no scores; use log_marginal"
        )
    seen = site.mask_per_datum()
    value = torch.where(torch.as_tensor(site.mask), site.raw_value, fn.sample())
    log_p = fn.log_prob(value)
    return site.layout.per_datum(log_p, site.plate_sizes, 1), seen
