"""Exact log p(x) of small models, to check estimates: closed form, quadrature, enumeration."""

import math
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, Site, check_support, entry, isolated_rng, take, vectorize
from pyrovae.evidence.blocks import DEFAULT_CHUNK_SIZE, evaluation_mode
from pyrovae.evidence.laplace import prior_scale
from pyrovae.evidence.latent_space import Latents, LatentSpace

# Points per coordinate for one, two and three coordinates.
_POINTS = {1: 2000, 2: 100, 3: 50}

_REACH = 3.0  # half of the points lie within 2 / 3 of this number of the posterior's standard deviations
_MAX_SPACING = 1.0  # of half as many points, in the posterior's standard deviations
_MAX_MOVES = 8

_MAX_COMBINATIONS = 1_000_000  # of discrete latents that are listed


class ExactMarginal(NamedTuple):
    """Log p(x_n) without Monte Carlo in nats, and the moments of p(z|x_n) if found by quadrature; float64.

    Attributes:
        value: Log p(x_n), with shape (N,).
        error: Distance of the value from that of half as many points, with shape (N,), which bounds the error if the
            rule converges; 0 for enumeration, infinite if every point has density 0.
        loc: Posterior means of the unconstrained coordinates u, with shape (N, U); None for enumeration.
        covariance: Posterior covariances of u, with shape (N, U, U); None for enumeration.
    """

    value: Tensor
    error: Tensor
    loc: Tensor | None = None
    covariance: Tensor | None = None


@entry()
def exact_log_marginal(
    model: Program,
    *args: Any,
    num_points: int | None = None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    plate: str | None = None,
    **kwargs: Any,
) -> ExactMarginal:
    r"""Compute log p(x_n) of a small model: by quadrature over one to three latents, or by summing discrete ones out.

    log p(x_n) = log sum_z p(z) p(x_n|z)   or   log int p(z(u)) p(x_n|z(u)) |dz/du| du,

    in the unconstrained coordinates u. The integral uses the trapezoid rule on s in (-1, 1)^U after the substitution
    u = c + L s / (1 - s^2), which maps heavy tails to smooth ends. c and L are the prior's middle and widths at first.
    Then c is the posterior mean of each datum, and L a multiple of the Cholesky factor of its covariance, both found
    with half as many points, until the spacing of these points is small within the posterior. The rule converges fast
    unless a posterior has several modes that are each much narrower than all of them together; look at the error.

    Discrete latents beside continuous ones are summed out at each point. Discrete latents alone are summed by all
    combinations of their values or, if these are many, if the sites lie in further plates, or under masks, site by site
    (Obermeyer et al. 2019, "Tensor variable elimination for plated factor graphs", https://arxiv.org/abs/1902.03210).

    Args:
        model: Pyro program p(z) p(x|z); discrete sites need `enumerate_support`.
        *args: Positional arguments of the model, the data first, with shape (N, ...).
        num_points: Number of points per coordinate, at least 4; None for 2000, 100 and 50 with one, two and three
            coordinates.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.
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
        return _by_quadrature(space, num_points, at_once)


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


def _by_quadrature(space: LatentSpace, num_points: int | None, at_once: int) -> ExactMarginal:
    if space.size not in _POINTS:
        raise ValueError(f"quadrature needs one to three latent coordinates, got {space.size}; use log_marginal or ais")
    points = num_points or _POINTS[space.size]
    if points < 4:
        raise ValueError(f"num_points must be at least 4, got {points}")
    points -= points % 2  # so that every second point makes a coarser rule
    loc, width = prior_scale(space, at_once * space.num_data)
    integrate = partial(_integrate, space, loc.dtype, at_once)
    sketch = max(4, points // 2)
    found = integrate(sketch, loc.double().expand(space.num_data, -1), width.double().diag_embed())
    for _ in range(_MAX_MOVES):
        found = integrate(sketch, found.loc, found.axes())
        cells, variance = (value.diagonal(dim1=-2, dim2=-1) for value in (found.cells, found.covariance))
        if bool((12 * cells <= _MAX_SPACING**2 * variance).all()):
            break
    found = integrate(points, found.loc, found.axes())
    error = (found.coarse - found.log_p).abs().nan_to_num(torch.inf)
    return ExactMarginal(found.log_p, error, found.loc, found.covariance)


class _Integral(NamedTuple):
    """Log p(x) and moments of p(u|x) by the trapezoid rule.

    Attributes:
        log_p: Log p(x) from all points, with shape (N,).
        coarse: Log p(x) from every second point, with shape (N,).
        loc: Posterior means, with shape (N, U).
        covariance: Posterior covariances, with shape (N, U, U).
        cells: Covariances within the cells between points, with shape (N, U, U), if the posterior is uniform there.
    """

    log_p: Tensor
    coarse: Tensor
    loc: Tensor
    covariance: Tensor
    cells: Tensor

    def axes(self) -> Tensor:
        """Compute the axes of the next points, `_REACH` times a Cholesky factor, with shape (N, U, U)."""
        return _REACH * torch.linalg.cholesky(self.covariance + self.cells)


def _integrate(
    space: LatentSpace, dtype: torch.dtype, at_once: int, points: int, loc: Tensor, root: Tensor
) -> _Integral:
    """Integrate by the trapezoid rule at u = loc + root t, with loc (N, U) and root (N, U, U)."""
    size, device = space.size, loc.device
    s = torch.arange(1, points, dtype=torch.float64, device=device) / points * 2 - 1
    axis, width = s / (1 - s**2), (1 + s**2) / (1 - s**2) ** 2 * 2 / points
    second = torch.arange(1, points, device=device) % 2 == 0
    total = coarse = torch.full((space.num_data,), -torch.inf, dtype=torch.float64, device=device)
    moments = torch.zeros(space.num_data, size + size**2 + size, dtype=torch.float64, device=device)
    for index in torch.arange((points - 1) ** size, device=device).split(at_once):
        places = torch.stack([index // (points - 1) ** d % (points - 1) for d in range(size)], -1)  # (K, U)
        t, widths = axis[places], width[places]
        u = loc + torch.einsum("nuv,kv->knu", root, t)
        terms = space.log_joint(u.to(dtype)).double().nan_to_num(-torch.inf) + widths.log().sum(-1, keepdim=True)
        every_second = torch.where(second[places].all(-1, keepdim=True), terms, -torch.inf)
        coarse = torch.logaddexp(coarse, every_second.logsumexp(0))
        more = torch.logaddexp(total, terms.logsumexp(0))
        features = torch.cat([t, (t.unsqueeze(-1) * t.unsqueeze(-2)).flatten(1), widths**2 / 12], -1)
        kept, share = ((value - more).exp().nan_to_num(0.0) for value in (total, terms))
        moments, total = kept.unsqueeze(-1) * moments + share.T @ features, more
    mean, square, within = moments.split([size, size**2, size], -1)
    within = torch.where(total.isneginf().unsqueeze(-1), 1.0, within)  # without any density, the points stay
    covariance = square.unflatten(-1, (size, size)) - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    log_det = torch.linalg.slogdet(root).logabsdet
    return _Integral(
        total + log_det,
        coarse + log_det + size * math.log(2),
        loc + (root @ mean.unsqueeze(-1)).squeeze(-1),
        root @ covariance @ root.mT,
        root @ within.diag_embed() @ root.mT,
    )


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
