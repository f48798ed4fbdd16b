"""Posterior collapse: the latent dimensions that the guide leaves at the prior, and whose fault it is."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import ParticleTrace, Program, Site, entry
from pyrovae.diagnostics.draws import Pair, RealLatents, evaluation, flat, make_pair
from pyrovae.diagnostics.kl import compare, mean_and_error

COLLAPSED_BELOW = 0.01  # nats
COLLAPSED_SHARE = 0.99  # of the data

EPSILONS = tuple(10 ** (power / 5) for power in range(-20, 6))

IN_USE = "in use"
BY_DECODER = "collapsed: the decoder ignores it"
BY_GUIDE = "collapsed: the guide's fault, since the decoder uses it"
WASTED = "ignored by the decoder, but the guide differs from the prior"
UNKNOWN = "unknown: KL_j has no known density"

_DECODED_AT_ONCE = 2**13


class Collapse(NamedTuple):
    """Collapse of each real latent dimension; J dimensions in the order of the model, float64 on the CPU.

    Attributes:
        labels: Name of each dimension, such as "z[0]".
        epsilon: Thresholds in nats, with shape (E,).
        share: Share of the data with KL_j(x) < epsilon, with shape (E, J); NaN if KL_j is unknown.
        share_error: Standard error of share over data, with shape (E, J).
        kl: Mean of KL_j(x) in nats, with shape (J,).
        kl_error: Standard error of kl, with shape (J,).
        collapsed: Whether KL_j(x) < 0.01 nats for 99 % of the data, with shape (J,).
        offered: Mean over the checked data of the divergence that the decoder offers in nats, with shape (J,).
        offered_error: Standard error of offered, with shape (J,).
        ignored: Whether the decoder offers less than 0.01 nats at 99 % of the checked data, with shape (J,).
        decoded_variance: Variance of the decoded mean E[x|z] along z_j, summed over the entries of x, the mean over the
            checked data, in the square of x's unit, with shape (J,). NaN if p(x|z) has no mean in closed form. It is 0
            for a latent that acts on x through other latents alone.
        verdict: One sentence for each dimension.
        skipped: One sentence for each latent site that is left out.
    """

    labels: tuple[str, ...]
    epsilon: Tensor
    share: Tensor
    share_error: Tensor
    kl: Tensor
    kl_error: Tensor
    collapsed: Tensor
    offered: Tensor
    offered_error: Tensor
    ignored: Tensor
    decoded_variance: Tensor
    verdict: tuple[str, ...]
    skipped: tuple[str, ...]


@entry()
def collapse(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int = 64,
    epsilons: Sequence[float] = EPSILONS,
    num_checked: int = 100,
    seed: int = 0,
    **kwargs: Any,
) -> Collapse:
    """Find the latent dimensions that have collapsed, and say whether the guide or the decoder is the reason.

    Dimension j has collapsed by (epsilon, delta) if KL_j(x) < epsilon for a share of at least 1 - delta of the data.
    The share is given for all epsilons, and `collapsed` is for (0.01, 0.01). KL_j(x) is that of `kl_by_dimension`. If
    it comes from draws, their noise flattens the curve.

    The guide may be at the prior because the decoder does not use z_j, or although it does. To tell them apart, z_j
    varies over M draws of its prior while the other latents stay at one draw from the guide. The remaining density,
    f(z_j) = p(x, z) / p(z_j), weighs the draws. The decoder offers

        KL(p(z_j|x, z_others), p(z_j)) = E_p[w log w],  w = f(z_j) / E_p[f(z_j)],

    the divergence that the best guide could have at these values. If the decoder ignores z_j, it is exactly 0; else the
    estimate is too high by a part of order 1/M, and at most log M. It needs no optimisation, any prior, and any
    likelihood. It judges one dimension at a time. Of two dimensions that do the same, each looks used.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        num_particles: Number of draws per datum, K of the guide and M of the prior.
        epsilons: Thresholds in nats.
        num_checked: Largest number of data, chosen at random, at which the decoder is checked.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If num_particles is below 2, num_checked below 1, there is no real latent, or a program breaks the
            contract of `log_weights`.
    """
    if num_particles < 2 or num_checked < 1:
        raise ValueError(
            f"collapse needs num_particles of at least 2 and num_checked of at least 1, got {num_particles} and "
            f"{num_checked}"
        )
    pair = make_pair(model, guide, args, kwargs)
    found = compare(pair, num_particles, seed)
    epsilon = torch.tensor(list(epsilons), dtype=torch.float64)
    unknown = found.kl.isnan().any(0)
    share = (found.kl < epsilon[:, None, None]).double().mean(1)
    share = torch.where(unknown, math.nan, share)
    collapsed = (found.kl < COLLAPSED_BELOW).double().mean(0) >= COLLAPSED_SHARE
    with evaluation(pair, seed):
        offered, decoded = _offered(_some_of(pair, num_checked), found.latents, num_particles)
    ignored = (offered < COLLAPSED_BELOW).double().mean(0) >= COLLAPSED_SHARE
    return Collapse(
        found.latents.labels,
        epsilon,
        share,
        (share * (1 - share) / len(found.kl)).sqrt(),
        *mean_and_error(found.kl),
        collapsed,
        *mean_and_error(offered),
        ignored,
        decoded.mean(0),
        tuple(map(_verdict, collapsed.tolist(), ignored.tolist(), unknown.tolist())),
        found.latents.skipped,
    )


def _verdict(collapsed: bool, ignored: bool, unknown: bool) -> str:
    if unknown:
        return UNKNOWN
    if collapsed:
        return BY_DECODER if ignored else BY_GUIDE
    return WASTED if ignored else IN_USE


def _some_of(pair: Pair, count: int) -> Pair:
    if count >= pair.size or not pair.divisible:
        return pair
    return pair.at(torch.randperm(pair.size)[:count].sort().values)


def _offered(pair: Pair, latents: RealLatents, num_particles: int) -> tuple[Tensor, Tensor]:
    """Compute the divergence that the decoder offers, and the decoded variance, each with shape (N, J)."""
    found = []
    for _, block in pair.blocks(_DECODED_AT_ONCE // num_particles):
        drawn = {name: site.value for name, site in block.posterior(1).latents.items()}
        base = {name: value.expand(num_particles, *value.shape[1:]) for name, value in drawn.items()}
        trace = block.joint(num_particles, base)
        columns = []
        for name in latents.names:
            site = trace.sites[name]
            if site.depends_on_sums:  # its divergences are unknown
                nothing = torch.full((block.size,), math.nan, dtype=torch.float64)
                columns += [(nothing, nothing)] * latents.shapes[name].numel()
                continue
            fresh = replace(site, raw_value=_draw(site)).value.reshape(*base[name].shape[:2], -1)
            for j in range(fresh.shape[-1]):
                value = base[name].reshape(fresh.shape).clone()
                value[..., j] = fresh[..., j]
                changed = block.joint(num_particles, base | {name: value.reshape(base[name].shape)})
                columns.append((_divergence(changed, name), _decoded_variance(changed)))
        found.append([torch.stack(part, -1) for part in zip(*columns, strict=True)])
    offered, decoded = (torch.cat(part) for part in zip(*found, strict=True))
    return offered, decoded


def _draw(site: Site) -> Tensor:
    """Draw a latent site from the prior given its parents."""
    return site.fn.expand(site.raw_value.shape[: site.raw_value.dim() - len(site.fn.event_shape)]).sample()


def _divergence(trace: ParticleTrace, name: str) -> Tensor:
    """Compute E[w log w] over the draws, with shape (N,)."""
    log_f = (trace.log_densities()[0] - trace.sites[name].log_density()).double().cpu()
    log_w = log_f.log_softmax(0)
    return (log_w.exp() * (log_w + math.log(len(log_w)))).nan_to_num(0.0).sum(0)


def _decoded_variance(trace: ParticleTrace) -> Tensor:
    """Compute the variance of E[x|z] over the draws, summed over the entries, with shape (N,)."""
    total = torch.zeros(trace.shape[1], dtype=torch.float64)
    for site in (site for site in trace.sites.values() if site.is_observed):
        try:
            if site.depends_on_sums:
                raise NotImplementedError
            mean = site.layout.per_datum(site.fn.mean, site.plate_sizes, len(site.fn.event_shape))
        except (NotImplementedError, AttributeError):
            return torch.full_like(total, math.nan)
        total = total + flat(mean).var(0).sum(-1)
    return total
