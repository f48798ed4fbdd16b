"""Scores of data by entry: log p(x_d | the other entries), which says why a datum is odd."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, Site, entry, entry_of, vectorize_pair
from pyrovae.evidence.blocks import (
    check_counts,
    chunk_size_or_default,
    concatenate,
    data_blocks,
    decoded_data_at_once,
    evaluation_mode,
)
from pyrovae.evidence.posterior import per_datum, sites_at, weighted_points, with_weights
from pyrovae.evidence.proposals import Proposal
from pyrovae.evidence.weight_blocks import WeightBlock, tell_faults
from pyrovae.stats import LogMarginal, log_mean_exp, pareto_khat


class Score(NamedTuple):
    """Log p(x) and its parts, in nats, float64.

    Attributes:
        log_marginal: Log p(x_obs), with errors, effective sample sizes and k-hats, each with shape (N,).
        conditional: Log p(x_d | the other observed entries), with shape (N, D); NaN for missing entries, and for those
            of density 0 at some draws, for which the weights without the entry are not known.
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
    Numbers for K times n times D entries are held, for n data with K n of at most chunk_size, or one datum. By default
    4 K n D is at most 6.5 million.

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
    at_once = decoded_data_at_once(num_particles, chunk_size, (x,), kwargs)
    chunk_size = chunk_size_or_default(chunk_size, (x,), kwargs)
    weights, parts = [], []
    for block in data_blocks(*pair, (x,), kwargs, at_once):
        with evaluation_mode(*pair):
            drawn = weighted_points(block, num_particles, proposal, chunk_size)
            weights.append(drawn.weights)
            some, known, rows = with_weights(block, drawn)
            whole = [torch.full_like(block.args[0].flatten(1), torch.nan, dtype=torch.float64) for _ in range(3)]
            if not len(rows):
                parts.append(whole)
                continue
            entries = [_entries(one) for one in sites_at(some, known.latents, site, chunk_size, "scores")]
        log_p, seen = (torch.cat(part) for part in zip(*entries, strict=True))
        scores = _of_block(known.weights.log_w, log_p, seen, drawn.weights, rows)
        parts.append([one.index_copy(0, rows, score) for one, score in zip(whole, scores, strict=True)])
    log_marginal = LogMarginal(*concatenate([one.summary() for one in weights]))
    tell_faults([one.fault for one in weights], log_marginal.value)
    return Score(log_marginal, *concatenate(parts))


class Rank(NamedTuple):
    """Place of N data among training rows by log p(x).

    Attributes:
        rank: 1 + number of training rows with a smaller log p(x), with shape (N,), float64: 1 if none is as improbable;
            NaN for data whose log p(x) is NaN.
        share: Share of training rows with a smaller log p(x), in [0, 1], with shape (N,), float64; NaN as the rank.
    """

    rank: Tensor
    share: Tensor


def rank_among(log_p: Tensor, training: Tensor) -> Rank:
    """Rank data among training rows by log p(x).

    Compare rows with the same observed entries: log p(x_obs) depends on how many there are, and on their units. The
    model knows its training rows, so other rows of the same population rank a little lower.

    A datum whose log p(x) is NaN has no rank. Training rows whose log p(x) is NaN are left out.

    Args:
        log_p: Log p(x) in nats, with shape (N,).
        training: Log p(x) of the training rows in nats, with shape (T,).

    Raises:
        ValueError: If there is no training row, or all have NaN.

    Example:
        >>> rank_among(torch.tensor([-9.0, -2.5]), torch.tensor([-2.0, -4.0, -3.0, -1.0]))
        Rank(rank=tensor([1., 3.], dtype=torch.float64), share=tensor([0.0000, 0.5000], dtype=torch.float64))
    """
    if training.dim() != 1 or log_p.dim() != 1 or not len(training):
        raise ValueError(
            f"ranks need log p of shapes (N,) and (T,) with a training row, got {tuple(log_p.shape)} and "
            f"{tuple(training.shape)}; give one number per row"
        )
    known = training[~training.isnan()].double()
    if not len(known):
        raise ValueError(
            f"ranks need the log p of training rows, got NaN for all {len(training):,}; look for NaN in parameters"
        )
    below = torch.searchsorted(known.sort().values, log_p.double().contiguous()).double()
    below = torch.where(log_p.isnan(), torch.nan, below)
    return Rank(below + 1, below / len(known))


def _of_block(
    log_w: Tensor, log_p: Tensor, seen: Tensor, weights: WeightBlock, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Score the entries of some rows of a block, with log densities and whether they are observed, both (K, m, D)."""
    undefined = log_p.isnan()  # at draws of a component that fails, whose weight is 0
    impossible = (seen & (log_p == -torch.inf)).any(0)  # v_k is 0/0
    without = log_w.unsqueeze(-1) - torch.where(seen & ~undefined & ~impossible, log_p.double(), 0.0)
    value, rest = log_mean_exp(log_w), log_mean_exp(without)
    ratio = (log_w - value).exp().unsqueeze(-1) - (without - rest).exp()
    error, khat = ratio.std(0) / len(log_w) ** 0.5, pareto_khat(without.flatten(1)).view_as(rest)
    if weights.unsettled is not None:
        khat = torch.where(weights.unsettled.to(khat.device)[rows].unsqueeze(-1), torch.inf, khat)
    alone = seen[0].sum(-1, keepdim=True) == 1  # given nothing, x_d has the density p(x_d)
    summary = LogMarginal(*(field[rows].unsqueeze(-1) for field in weights.summary()))
    conditional = torch.where(alone, summary.value, value.unsqueeze(-1) - rest)
    error, khat = torch.where(alone, summary.std_error, error), torch.where(alone, summary.khat, khat)
    conditional, error, khat = (
        torch.where(seen[0] & (alone | ~impossible), part, torch.nan) for part in (conditional, error, khat)
    )
    return conditional, error, khat


def _entries(site: Site) -> tuple[Tensor, Tensor]:
    """Return the log densities of the entries of a site, and whether each is observed, both with shape (k, n, D)."""
    fn = entry_of(site.fn)
    value = torch.where(torch.as_tensor(site.mask), site.raw_value, site.fn.sample())
    return per_datum(site, fn.log_prob(value)), site.mask_per_datum().flatten(2)
