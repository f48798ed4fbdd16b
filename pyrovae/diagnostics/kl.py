"""KL divergence, entropy and cross-entropy of the guide against the prior, for each latent dimension."""

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.densities import Program, Site, entry, matched_latents
from pyrovae.diagnostics.draws import (
    DRAWS_AT_ONCE,
    ByDimension,
    Pair,
    RealLatents,
    by_dimension,
    evaluation,
    flat,
    make_pair,
    site_entries,
)

Quantity = Literal["divergence", "marginal divergence", "term of the chain rule", "unknown"]
Method = Literal["closed form", "Monte Carlo", "unknown"]


class KLByDimension(NamedTuple):
    """KL(q(z|x), p(z)) by latent dimension; J dimensions in the order of the model, in nats, float64 on the CPU.

    Attributes:
        labels: Name of each dimension, such as "z[0]".
        kl: KL_j(x_n), with shape (N, J); NaN if it is unknown.
        mean: Mean of kl over data, with shape (J,).
        std_error: Standard error of mean over data and draws, with shape (J,).
        total: log q(z|x_n) - log p(z), the mean over draws, for all latents, with shape (N,).
        total_mean: Mean of total over data.
        total_error: Standard error of total_mean.
        quantity: What kl is: the "divergence" of a dimension that is independent of the others in guide and prior, so
            that these add up to the total; the "marginal divergence" KL(q(z_j|x), p(z_j)) of a dimension that is not;
            a "term of the chain rule", given the latents drawn before. These add up to the total with the terms of
            skipped sites, and can be negative if guide and model draw in different orders; or "unknown".
        method: "closed form" if torch has one, else "Monte Carlo".
        skipped: One sentence for each latent site that is left out.
    """

    labels: tuple[str, ...]
    kl: Tensor
    mean: Tensor
    std_error: Tensor
    total: Tensor
    total_mean: Tensor
    total_error: Tensor
    quantity: tuple[Quantity, ...]
    method: tuple[Method, ...]
    skipped: tuple[str, ...]


@entry()
def kl_by_dimension(
    model: Program, guide: Program, *args: Any, num_particles: int = 64, seed: int = 0, **kwargs: Any
) -> KLByDimension:
    """Compute KL_j(x_n), the KL divergence from the prior to the guide of each real latent dimension.

        KL_j(x) = E_q[log q(z_j|x) - log p(z_j)]

    It is in closed form if torch has one, else the mean over K draws of the guide, unbiased. Kingma and Welling,
    "Auto-encoding variational Bayes" (2014, https://arxiv.org/abs/1312.6114), appendix B, have the normal case.
    Covariates condition both densities. Densities of dimensions are known for distributions independent by dimension,
    for multivariate normals and Student-t, for mixtures of these, for transforms of single dimensions, and for
    two blocks in one site (`HierarchicalDistribution`). For others, such as flows, kl is NaN.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        num_particles: Number of draws K per datum.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If there is no real latent, or a program breaks the contract of `log_weights`.
    """
    found = compare(make_pair(model, guide, args, kwargs), num_particles, seed)
    mean, error = mean_and_error(found.kl)
    total_mean, total_error = mean_and_error(found.total)
    return KLByDimension(
        found.latents.labels,
        found.kl,
        mean,
        error,
        found.total,
        total_mean,
        total_error,
        found.quantity,
        found.method,
        found.latents.skipped,
    )


@dataclass(frozen=True)
class Comparison:
    """Guide against prior by datum and dimension, in nats.

    Attributes:
        latents: Real latents.
        kl: KL divergence, with shape (N, J).
        entropy: Entropy of the guide, with shape (N, J).
        total: Log q(z|x) - log p(z) of all latents, the mean over draws, with shape (N,).
        quantity: What kl is, for each dimension.
        method: How kl was computed, for each dimension.
    """

    latents: RealLatents
    kl: Tensor
    entropy: Tensor
    total: Tensor
    quantity: tuple[Quantity, ...]
    method: tuple[Method, ...]


def compare(pair: Pair, num_particles: int, seed: int) -> Comparison:
    """Compare guide and prior, for each datum and real latent dimension.

    Args:
        pair: Model and guide with their arguments.
        num_particles: Number of draws K per datum.
        seed: Random seed; the global random state is restored at the end.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles must be at least 1, got {num_particles}")
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with evaluation(pair, seed):
        for _, block in pair.blocks(DRAWS_AT_ONCE // num_particles):
            guide_trace = block.posterior(num_particles)
            drawn = {name: site.value for name, site in guide_trace.latents.items()}
            model_trace = block.joint(num_particles, drawn)
            sites = matched_latents(model_trace, guide_trace)
            latents = RealLatents.find(model_trace, guide_trace)
            order = list(model_trace.latents), list(sites)
            parts = [_of_site(sites[name], model_trace.sites[name], order) for name in latents.names]
            log_joint, log_lik = model_trace.log_densities()
            total = (guide_trace.log_densities()[0] - (log_joint - log_lik)).double().mean(0).cpu()
            found.append((torch.cat([part.kl for part in parts], -1), torch.cat([p.entropy for p in parts], -1), total))
    kl, entropy, total = map(torch.cat, zip(*found, strict=True))
    counts = [part.kl.shape[-1] for part in parts]
    quantity = [part.quantity for part, count in zip(parts, counts, strict=True) for _ in range(count)]
    method = [part.method for part, count in zip(parts, counts, strict=True) for _ in range(count)]
    return Comparison(latents, kl, entropy, total, tuple(quantity), tuple(method))


class _SiteComparison(NamedTuple):
    kl: Tensor  # (N, J)
    entropy: Tensor  # (N, J)
    quantity: Quantity
    method: Method


def _of_site(drawn: Site, scored: Site, order: tuple[list[str], list[str]]) -> _SiteComparison:
    """Compare guide and prior at one site, given the orders of the latent sites of model and guide."""
    q, p = by_dimension(drawn), by_dimension(scored)
    nothing = torch.full((drawn.value.shape[1], drawn.event_shape.numel()), math.nan, dtype=torch.float64)
    if q.log_prob is None:
        return _SiteComparison(nothing, nothing, "unknown", "unknown")
    log_q = flat(q.log_prob)
    entropy = -log_q.mean(0)
    with suppress(NotImplementedError, AttributeError):
        entropy = flat(site_entries(drawn, q.entries.entropy())).mean(0)
    splits = {q.split, p.split}
    if p.log_prob is None or splits == {"chain rule", "marginal"}:
        return _SiteComparison(nothing, entropy, "unknown", "unknown")
    quantity: Quantity = "divergence" if splits == {"independent"} else "marginal divergence"
    if "chain rule" in splits or not order[0][0] == order[1][0] == drawn.name:
        quantity = "term of the chain rule"
    closed = _closed_form(drawn, q, p) if order[0] == order[1] else None
    if closed is not None:
        return _SiteComparison(closed, entropy, quantity, "closed form")
    return _SiteComparison((log_q - flat(p.log_prob)).mean(0), entropy, quantity, "Monte Carlo")


def _closed_form(site: Site, q: ByDimension, p: ByDimension) -> Tensor | None:
    """Compute the divergence of each dimension in closed form, with shape (N, J); None if torch has none."""
    try:
        kl = kl_divergence(q.entries, p.entries)
    except (NotImplementedError, AttributeError):
        return None
    return flat(site_entries(site, kl)).mean(0)


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean over dim 0, the data, and its standard error, which is NaN for one datum."""
    error = values.std(0) / math.sqrt(len(values)) if len(values) > 1 else torch.full_like(values[0], math.nan)
    return values.mean(0), error
