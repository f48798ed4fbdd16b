"""Exact log p(x) of small models, to check estimates: closed form, quadrature, enumeration."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, Site, check_support, entry, isolated_rng, take, vectorize
from pyrovae.evidence.blocks import chunk_size_or_default, evaluation_mode
from pyrovae.evidence.latent_space import Latents, LatentSpace
from pyrovae.evidence.quadrature import by_quadrature

_MAX_COMBINATIONS = 1_000_000  # of discrete latents that are listed


class ExactMarginal(NamedTuple):
    """Log p(x_n) without Monte Carlo in nats, and the moments of p(z|x_n) if found by quadrature; float64.

    Attributes:
        value: Log p(x_n), with shape (N,); NaN if no value within 0.1 nats was found.
        error: Bound of the error, with shape (N,): the distance between rules of different degrees or spacings, the
            mass that random points and draws of the prior find outside the rule, and rounding. 0 for enumeration,
            infinite without a value or if every point has density 0.
        loc: Posterior means of the unconstrained coordinates u, with shape (N, U); None for enumeration.
        covariance: Posterior covariances of u, with shape (N, U, U); None for enumeration.
        reason: For each datum the reason why there is no finite value, "" if there is one; None for enumeration.
    """

    value: Tensor
    error: Tensor
    loc: Tensor | None = None
    covariance: Tensor | None = None
    reason: tuple[str, ...] | None = None


@entry()
def exact_log_marginal(
    model: Program,
    *args: Any,
    num_points: int | None = None,
    chunk_size: int | None = None,
    plate: str | None = None,
    **kwargs: Any,
) -> ExactMarginal:
    r"""Compute log p(x_n) of a small model: by quadrature over one to three latents, or by summing discrete ones out.

    log p(x_n) = log sum_z p(z) p(x_n|z)   or   log int p(z(u)) p(x_n|z(u)) |dz/du| du,

    in the unconstrained coordinates u. The trapezoid rule over the prior's range, then over the range of each
    posterior, gives its mean and covariance, and climbs from draws of the prior and from the highest points give its
    modes. If the points lie close together within each mode, and half as many points would do, the sum is the value.
    Otherwise adaptive cubature takes its place (`integrate_adaptively`), with small cells at all modes. Where random
    points find mass between its points, a second cubature with other cells adds the distance of both to the error.
    A datum has no value if its error is too large, or if draws of the prior or the points over the prior's range find
    more mass; the other data keep theirs.

    Discrete latents beside continuous ones are summed out at each point. Discrete latents alone are summed by all
    combinations of their values or, if these are many, if the sites lie in further plates, or under masks, site by site
    (Obermeyer et al. 2019, "Tensor variable elimination for plated factor graphs", https://arxiv.org/abs/1902.03210).

    Args:
        model: Pyro program p(z) p(x|z); discrete sites need `enumerate_support`.
        *args: Positional arguments of the model, the data first, with shape (N, ...).
        num_points: Number of points per coordinate, at least 4; None for 2000, 100 and 50 with one, two and three
            coordinates. Cubature takes up to 50, 50 and 6 times as many in all.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None for 8,192, or
            for 6,500,000 / D if there are more than 793 columns D.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of the model.

    Raises:
        ValueError: If there are more than three coordinates, a density that depends on more than a million combinations
            of discrete latents, a discrete latent that cannot be summed out, a continuous latent under a mask, or data
            outside the support.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)
        >>> x = torch.tensor([[0.5]])
        >>> (exact_log_marginal(model, x).value - dist.Normal(0.0, 2**0.5).log_prob(x)).abs().item() < 1e-6
        True
    """
    model, _ = vectorize(model, None, args, kwargs, plate=plate)
    check_support(model, *args, **kwargs)
    chunk_size = chunk_size_or_default(chunk_size, args, kwargs)
    with evaluation_mode(model), isolated_rng(0):
        space = LatentSpace(model, None, *args, **kwargs)
        at_once = max(1, chunk_size // space.num_data)
        if set(space.names) <= space.model.discrete:
            if space.masked or not _has_few_combinations(space):
                return _by_elimination(space, chunk_size)
            return _by_enumeration(space, at_once)
        if space.masked:
            raise ValueError("exact_log_marginal needs all latents, but a mask leaves some out; remove these data")
        if not space.continuous:
            raise ValueError(
                f"{space.obstacle}, so that it can neither be summed out nor integrated; use log_marginal, or a model "
                "whose latents are discrete with an enumerate_support, or continuous with unconstrained coordinates"
            )
        space.warn_of_saturation()
        return ExactMarginal(*by_quadrature(space, num_points, chunk_size))


def linear_gaussian_log_marginal(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | float) -> Tensor:
    """Compute log p(x_n) in nats, with shape (N,), for z ~ N(0, I), x|z ~ N(W z + b, diag(scale^2)), in closed form.

    log p(x) = log N(x; b, W W' + diag(scale^2))

    (Bishop 2006, "Pattern recognition and machine learning", section 12.2.1).

    Args:
        x: Data, with shape (N, D).
        weight: Weights W, with shape (D, Z).
        bias: Bias b, with shape (D,).
        scale: Standard deviations, positive, one number or with shape (D,).

    Raises:
        ValueError: If shapes do not fit, or a scale is not positive.
    """
    dims = weight.shape[0]
    scale = torch.as_tensor(scale, dtype=weight.dtype, device=weight.device)
    if weight.dim() != 2 or bias.shape != (dims,) or x.shape[1:] != (dims,) or scale.shape not in ((), (dims,)):
        shapes = ", ".join(str(tuple(value.shape)) for value in (x, weight, bias, scale))
        raise ValueError(f"expected x (N, D), weight (D, Z), bias (D,) and scale () or (D,); got {shapes}")
    if not bool((scale > 0).all()):
        raise ValueError(f"scale must be positive, got {scale.min().item():g}")
    weight, bias, scale = (value.double() for value in (weight, bias, scale))
    covariance = weight @ weight.T + torch.diag_embed(scale.expand(dims).square())
    return torch.distributions.MultivariateNormal(bias, covariance, validate_args=False).log_prob(x.double())


def _by_enumeration(space: LatentSpace, at_once: int) -> ExactMarginal:
    total: Tensor | None = None
    for latents in _combinations(space, at_once):
        log_prior, log_lik = space.log_model(latents)
        terms = (log_prior + log_lik).double().logsumexp(0)
        total = terms if total is None else torch.logaddexp(total, terms)
    assert total is not None
    return ExactMarginal(total, torch.zeros_like(total))


def _by_elimination(space: LatentSpace, chunk_size: int) -> ExactMarginal:
    """Sum the discrete latents out one after the other."""
    model = vectorize(space.model, None, space.args, space.kwargs, given=())[0]
    largest = max(len(_values_of(site)) for site in space.prior_sites().values())
    at_once = max(1, chunk_size // largest**2) if model.divisible else space.num_data
    parts = []
    for start in range(0, space.num_data, at_once):
        args, kwargs = take(space.args, space.kwargs, slice(start, start + at_once))
        parts.append(model.trace(1, args, kwargs).log_densities()[0][0].double())
    total = torch.cat(parts)
    return ExactMarginal(total, torch.zeros_like(total))


def _has_few_combinations(space: LatentSpace) -> bool:
    """Return whether all combinations of the discrete latents' values can be listed."""
    sites = space.prior_sites().values()
    in_plates = any(site.event_shape != site.fn.event_shape for site in sites)
    return not in_plates and math.prod(len(_values_of(site)) for site in sites) <= _MAX_COMBINATIONS


def _values_of(site: Site) -> Tensor:
    try:
        return site.fn.enumerate_support(expand=False).reshape(-1, *site.fn.event_shape)
    except NotImplementedError as error:
        raise ValueError(
            f"latent {site.name!r} ({type(site.fn).__name__}) cannot be summed out, since the list of its values "
            "differs between data; use log_marginal with a guide that draws it"
        ) from error


def _combinations(space: LatentSpace, at_once: int) -> Iterator[Latents]:
    """Iterate over all combinations of the discrete latents' values, in chunks, each site with shape (K, N, ...)."""
    supports = {name: _values_of(site) for name, site in space.prior_sites().items()}
    every = torch.tensor(list(product(*(range(len(values)) for values in supports.values()))))
    for part in every.split(at_once):
        yield {
            name: values[part[:, i]].unsqueeze(1).expand(-1, space.num_data, *values.shape[1:])
            for i, (name, values) in enumerate(supports.items())
        }
