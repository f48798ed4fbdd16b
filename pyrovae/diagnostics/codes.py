"""Codes of data: their latents under the guide, beside draws from the prior, and decoded places of latent space."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import Independent, MaskedDistribution
from torch import Tensor

from pyrovae.densities import (
    Program,
    Site,
    device_of,
    entry,
    evaluating,
    isolated_rng,
    num_data,
    take,
    vectorize,
)
from pyrovae.diagnostics.labels import dimension_labels
from pyrovae.evidence import encode

_DECODED_AT_ONCE = 2**12


class Codes(NamedTuple):
    """Codes of N data in the J dimensions of all real latent sites, in the order of the model.

    Attributes:
        names: Names of the dimensions, such as "z[0]".
        mean: Means of q(z|x), with shape (N, J).
        sd: Standard deviations of q(z|x), with shape (N, J).
        draw: One draw from q(z|x) per datum, with shape (N, J).
        prior: Draws from the prior, with shape (M, J).
        activity: Var_x(E_q[z_j|x]) / Var_p(z_j), with shape (J,); the Monte Carlo variance of the means is removed, so
            that it can be negative.
        quantiles: Quantiles of the prior at `levels`, with shape (G, J): exact where the prior has an inverse cdf,
            else those of its draws.
        levels: Probabilities of the quantiles, with shape (G,).
        sites: Shape of one latent of each site, by name.
    """

    names: tuple[str, ...]
    mean: Tensor
    sd: Tensor
    draw: Tensor
    prior: Tensor
    activity: Tensor
    quantiles: Tensor
    levels: Tensor
    sites: dict[str, torch.Size]

    @property
    def order(self) -> list[int]:
        """Dimensions by falling activity."""
        return self.activity.nan_to_num(-math.inf).sort(descending=True, stable=True).indices.tolist()


@entry()
def encode_codes(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int = 100,
    num_prior: int = 10_000,
    levels: Tensor | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Codes:
    """Compute codes of data (`encode`), beside draws from the prior.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        num_particles: Number of draws K per datum, where means and deviations have no closed form.
        num_prior: Number of draws from the prior, at least. A prior with covariates is given those of the data.
        levels: Probabilities of the quantiles of the prior, with shape (G,); None for 0.005, ..., 0.995 in 21 steps.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If there are fewer than two data or draws, or no real latents.
    """
    size = num_data(args, kwargs)
    if size < 2 or num_particles < 2:
        raise ValueError(f"codes need at least two data and two draws, got {size} and {num_particles}; give more")
    levels = torch.linspace(0.005, 0.995, 21, dtype=torch.float64) if levels is None else levels.double()
    with isolated_rng(seed), evaluating(model, guide), pyro.validation_enabled(False):
        some_args, some_kwargs = take(args, kwargs, slice(0, min(size, 2000)))
        count = math.ceil(num_prior / num_data(some_args, some_kwargs))
        prior = vectorize(model, None, some_args, some_kwargs)[0].trace(count, some_args, some_kwargs)
        found = encode(model, guide, *args, num_particles=num_particles, num_draws=1, **kwargs)
    real = {name: site for name, site in prior.latents.items() if _is_real(site) and name in found.mean}
    if not real:
        raise ValueError("codes need a real latent site of model and guide, but there is none")
    mean, sd, error = (_joined(values, list(real)) for values in (found.mean, found.std, found.mean_error))
    draw = _joined({name: values[0] for name, values in found.draws.items()}, list(real))
    draws = {name: site.value.expand(*prior.shape, *site.event_shape).flatten(0, 1) for name, site in real.items()}
    prior_draws = _joined(draws, list(real))
    between = mean.var(0) - error.square().mean(0)
    quantiles = torch.cat([quantiles_of(site, levels) for site in real.values()], 1).cpu()
    names = tuple(name for site in real.values() for name in dimension_labels(site.name, site.event_shape))
    sites = {name: site.event_shape for name, site in real.items()}
    return Codes(names, mean, sd, draw, prior_draws, between / prior_draws.var(0), quantiles, levels, sites)


@entry()
def decode_means(
    model: Program,
    *args: Any,
    z: Tensor,
    sites: Mapping[str, torch.Size],
    levels: Mapping[int, int] | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Tensor:
    """Compute the means E[x|z] of the model at places of its latent space, given the arguments of one datum.

    The mean of a level's code says nothing. Columns of levels can have the probabilities of their levels instead, in
    as many columns.

    Args:
        model: Pyro program p(z) p(x|z), with one observed site.
        *args: Positional arguments of the model for one datum, with shape (1, ...).
        z: Places, with shape (M, J), in the dimensions of `Codes`.
        sites: Shape of one latent of each site, by name, as `Codes.sites`. Other latents are drawn.
        levels: Numbers of levels by column; None for no such columns.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of the model for one datum.

    Returns:
        The means, with shape (M, D), or more columns with levels. If the distribution has no closed form for them,
            they are averages of 100 draws.

    Raises:
        ValueError: If the arguments are not those of one datum, or the model has no observed site.
    """
    if num_data(args, kwargs) != 1:
        raise ValueError(f"decoding needs the arguments of one datum, got {num_data(args, kwargs)}; select one row")
    found = []
    device = device_of(args, kwargs)
    with isolated_rng(seed), evaluating(model), pyro.validation_enabled(False):
        program = vectorize(model, None, args, kwargs)[0]
        for some in z.split(_DECODED_AT_ONCE):
            given, start = {}, 0
            for name, shape in sites.items():
                values = some[:, start : start + shape.numel()].to(device, torch.get_default_dtype())
                given[name], start = values.reshape(len(some), 1, *shape), start + shape.numel()
            trace = program.trace(len(some), args, kwargs, given)
            observed = [site for name, site in trace.sites.items() if site.is_observed and name not in sites]
            if not observed:
                raise ValueError("decoding needs a model with an observed site, but there is none")
            site = observed[0]
            mean = _per_place(site, _mean(site.fn), len(some))
            found.append(_with_levels(site, mean, levels) if levels else mean)
    return torch.cat(found)


def _mean(distribution: Any) -> Tensor:
    """Return the mean, or the average of 100 draws if the distribution has no closed form for it."""
    try:
        return distribution.mean
    except NotImplementedError:
        return distribution.sample((100,)).mean(0)


def _per_place(site: Site, values: Tensor, count: int) -> Tensor:
    """Bring values with the shape of a site, for M places and one datum, to shape (M, D)."""
    values = site.layout.per_datum(values, site.plate_sizes, len(site.fn.event_shape))
    return values.expand(count, *values.shape[1:])[:, 0].flatten(1).double().cpu()


def _with_levels(site: Site, mean: Tensor, levels: Mapping[int, int]) -> Tensor:
    """Replace the means of columns of levels by the probabilities of their levels."""
    fn = site.fn
    while isinstance(fn, Independent | MaskedDistribution):
        fn = fn.base_dist
    codes = range(max(levels.values()))
    like = torch.zeros(mean.shape[1], device=site.raw_value.device)
    probs = [_per_place(site, fn.log_prob(like + code).exp(), len(mean)) for code in codes]
    columns = (
        [probs[code][:, d] for code in range(levels[d])] if d in levels else [mean[:, d]] for d in range(mean.shape[1])
    )
    return torch.stack([column for part in columns for column in part], 1)


def _is_real(site: Site) -> bool:
    return site.raw_value.is_floating_point() and not site.fn.support.is_discrete


def _joined(values: Mapping[str, Tensor], names: list[str]) -> Tensor:
    """Concatenate values of sites, each with shape (N, *event), to shape (N, J), float64, on the CPU."""
    return torch.cat([values[name].reshape(len(values[name]), -1).double().cpu() for name in names], -1)


def quantiles_of(site: Site, levels: Tensor) -> Tensor:
    """Return the quantiles of each dimension of a latent site, with shape (G, J)."""
    fn = site.fn
    while isinstance(fn, Independent):
        fn = fn.base_dist
    size = site.event_shape.numel()
    try:
        u = levels.to(site.raw_value).reshape(-1, *[1] * len(fn.batch_shape + fn.event_shape))
        exact = fn.icdf(u).reshape(len(levels), -1, size).double()
        if bool((exact == exact[:, :1]).all()):  # a prior that depends on covariates or other latents varies
            return exact[:, 0]
    except (NotImplementedError, RuntimeError, ValueError):
        pass
    return torch.quantile(site.value.double().reshape(-1, size)[:100_000], levels.to(site.value.device), dim=0)


class DecodedGrid(NamedTuple):
    """Means E[x|z] over a grid in two dimensions of latent space.

    Attributes:
        names: Names of the two dimensions.
        x: Places along the first, with shape (G,).
        y: Places along the second, with shape (H,).
        means: Means, with shape (H, G, D).
        others: Whether there are more dimensions, held at the prior's medians.
    """

    names: tuple[str, str]
    x: Tensor
    y: Tensor
    means: Tensor
    others: bool


@entry()
def decoded_grid(
    model: Program, *args: Any, codes: Codes, dims: tuple[int, int], places: tuple[Tensor, Tensor], **kwargs: Any
) -> DecodedGrid:
    """Decode a grid in two dimensions of latent space, the others at the prior's medians.

    Args:
        model: Pyro program p(z) p(x|z), with one observed site.
        *args: Positional arguments of the model for one datum, with shape (1, ...).
        codes: Codes of the data.
        dims: The two dimensions.
        places: Places along both, with shapes (G,) and (H,), such as quantiles of the prior.
        **kwargs: Keyword arguments of the model for one datum.

    Raises:
        ValueError: As `decode_means`.
    """
    x, y = places
    z = codes.prior.median(0).values.repeat(len(y), len(x), 1)
    z[..., dims[0]], z[..., dims[1]] = x, y[:, None]
    means = decode_means(model, *args, z=z.flatten(0, 1), sites=codes.sites, **kwargs)
    names = codes.names[dims[0]], codes.names[dims[1]]
    return DecodedGrid(names, x, y, means.reshape(len(y), len(x), -1), len(codes.names) > 2)
