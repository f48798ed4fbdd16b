"""Probability integral transform of data: where each value lies in its predictive distribution."""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, Site, entry, entry_of, isolated_rng
from pyrovae.diagnostics.distribution_functions import NoDistributionFunctionError, distribution_function
from pyrovae.diagnostics.replicates import ReplicateSource, one_site, with_holes
from pyrovae.evidence import check_counts, chunk_size_or_default

_MOST_NUMBERS = 4_000_000  # values of distribution functions held at once


class PIT(NamedTuple):
    """Randomised probability integral transform of N data with D entries each.

    Attributes:
        value: U = F(x-) + V (F(x) - F(x-)), with V uniform on (0, 1), with shape (N, D), float64. Each column has N
            independent uniform values if the model is right. NaN where an entry is missing.
        std_error: Monte Carlo standard error of F(x) by K draws of z, with shape (N, D); NaN where an entry is missing.
        method: "cdf" if F is the mean of the likelihood's distribution function over draws of z, "ranks" if it is the
            share of draws of x.
        num_particles: Number of draws K per datum.
    """

    value: Tensor
    std_error: Tensor
    method: Literal["cdf", "ranks"]
    num_particles: int


@entry()
def pit(
    model: Program,
    *args: Any,
    num_particles: int = 500,
    site: str | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
    plate: str | None = None,
    **kwargs: Any,
) -> PIT:
    """Compute the randomised probability integral transform of each entry of the data.

        F(x_d) = E_{z ~ p(z)} P(X_d <= x_d | z)

    Dunn and Smyth 1996, "Randomized quantile residuals"; Czado, Gneiting and Held 2009, "Predictive model assessment
    for count data". z comes from the prior, given the covariates, never from q(z|x): the data must not choose their own
    predictive distribution. Where the likelihood has a distribution function, F is exact given z and averaged over K
    draws. Otherwise it comes from the rank of x among K draws: U = (#{x_k < x} + V (1 + #{x_k = x})) / (K + 1), which
    is exactly uniform under the model.

    With K draws F has an error, so that U is uniform up to about 1/(2 K) in its distribution function: choose K well
    above the square root of N. Without randomisation the values of counts are far from uniform even if the model is
    right. Columns of one datum depend on each other, so test each column by itself and combine the p-values.

    Args:
        model: Pyro program p(z) p(x|z).
        *args: Positional arguments of the model, the data first, with shape (N, ...). Use held-out data.
        num_particles: Number of draws K of the latents per datum.
        site: Name of the observed site; None for the only one.
        seed: Random seed; the global random state is restored at the end.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None for 8,192.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of the model, such as mask and covariates.

    Raises:
        ValueError: As `replicate`, or if there are several observed sites and none is named.

    Example:
        >>> from pyrovae import MLP, VAE, NormalEncoder, NormalLikelihood, StandardNormalPrior
        >>> vae = VAE(StandardNormalPrior(1), NormalLikelihood(MLP(1, 3)), NormalEncoder(MLP(3, 2)))
        >>> found = pit(vae.model, torch.randn(4, 3), num_particles=100)
        >>> found.value.shape, found.method
        (torch.Size([4, 3]), 'cdf')
    """
    check_counts(num_particles=num_particles)
    chunk = chunk_size_or_default(chunk_size, args, kwargs)
    check_counts(chunk_size=chunk)
    source = ReplicateSource.of(model, None, args, kwargs, plate=plate)
    name = one_site(source.names, site)
    with isolated_rng(seed), source.evaluating():
        method: Literal["cdf", "ranks"] = "cdf" if _has_function(source, name) else "ranks"
        numbers = source.some(slice(0, 1)).draw(1)[name][0, 0].numel()
        chunk = max(1, min(chunk, _MOST_NUMBERS // max(1, numbers)))
        parts = []
        for block in source.blocks(max(1, min(chunk, max(64, chunk // num_particles)))):
            counts = _split(num_particles, max(1, chunk // block.num_data))
            moments = _moments_of_functions if method == "cdf" else _shares_of_draws
            parts.append(_transform(*moments(block, name, counts), num_particles, ranks=method == "ranks"))
    value, error = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return PIT(value, error, method, num_particles)


def _has_function(source: ReplicateSource, name: str) -> bool:
    """Return whether the entries of the site have a distribution function."""
    few = source.some(slice(0, min(3, source.num_data)))
    site = few.model.trace(1, few.args, few.kwargs).sites[name]
    try:
        _function_at(site, _seen_value(site))
        return True
    except NoDistributionFunctionError:
        return False


def _seen_value(site: Site) -> Tensor:
    """Return the observed value of a site, with shape (1, N, *event), and some draw where it is missing."""
    drawn = site.layout.per_datum(site.fn.sample(), site.plate_sizes, len(site.fn.event_shape))
    return torch.where(site.mask_per_datum(), site.value, drawn.to(site.value))[:1]


def _function_at(site: Site, value: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate P(X <= x | z) and P(X = x | z) of the entries of a site, each with shape (K, N, D), float64."""
    fn = entry_of(site.fn)
    if fn.event_shape:
        raise NoDistributionFunctionError
    value = value.expand(site.layout.num_particles, *value.shape[1:])
    found = distribution_function(fn, site.layout.to_site(value, site.plate_sizes))
    parts = []
    for one in found:
        one = one.expand(torch.broadcast_shapes(one.shape, site.fn.event_shape))
        each = site.layout.per_datum(one, site.plate_sizes, len(site.fn.event_shape))
        parts.append(each.reshape(*each.shape[:2], -1))
    return parts[0], parts[1]


def _moments_of_functions(
    block: ReplicateSource, name: str, counts: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum P(X <= x | z), its square and P(X = x | z) over draws; return also which entries are observed, (n, D)."""
    sums: list[Tensor] = []
    fixed: Tensor | None = None
    for count in counts:
        site = block.model.trace(count, block.args, block.kwargs).sites[name]
        if fixed is None:
            fixed, seen = _seen_value(site), _flat(site.mask_per_datum()[0])
        at_most, mass = _function_at(site, fixed)
        more = [at_most.sum(0), at_most.square().sum(0), mass.sum(0)]
        sums = more if not sums else [one + other for one, other in zip(sums, more, strict=True)]
    return sums[0], sums[1], sums[2], seen.expand_as(sums[0])


def _shares_of_draws(block: ReplicateSource, name: str, counts: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Count draws that are at most x, the same again (a square of 0 or 1), and draws that equal x; each (n, D)."""
    x = _flat(with_holes(block.model.trace(1, block.args, block.kwargs).sites[name])[0])
    at_most, equal = torch.zeros_like(x, dtype=torch.float64), torch.zeros_like(x, dtype=torch.float64)
    for count in counts:
        drawn = block.draw(count)[name].reshape(count, *x.shape)
        at_most, equal = at_most + (drawn <= x).double().sum(0), equal + (drawn == x).double().sum(0)
    return at_most, at_most, equal, ~x.isnan()


def _transform(
    at_most: Tensor, squares: Tensor, equal: Tensor, seen: Tensor, num_particles: int, *, ranks: bool
) -> tuple[Tensor, Tensor]:
    """Draw U, and compute the standard error of F(x), each with shape (n, D), from sums over the draws."""
    noise = torch.rand_like(at_most)
    share = at_most / num_particles
    if ranks:  # x and its draws are exchangeable under the model
        value = (at_most - equal + noise * (1 + equal)) / (num_particles + 1)
    else:
        value = (share - noise * equal / num_particles).clamp(0, 1)
    variance = (squares / num_particles - share.square()).clamp(min=0) / max(1, num_particles - 1)
    error = variance.sqrt() if num_particles > 1 else torch.full_like(variance, math.inf)
    return torch.where(seen, value, torch.nan), torch.where(seen, error, torch.nan)


def _split(total: int, at_once: int) -> list[int]:
    return [min(at_once, total - done) for done in range(0, total, at_once)]


def _flat(value: Tensor) -> Tensor:
    """Flatten the entries of N data, to shape (N, D)."""
    return value.reshape(len(value), -1)
