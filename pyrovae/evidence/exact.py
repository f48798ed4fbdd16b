"""Exact log p(x) where a model is small enough: closed form, quadrature, enumeration; to check estimates against."""

import math
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae.densities import Program, check_support, evaluating, isolated_rng
from pyrovae.evidence.laplace import prior_scale
from pyrovae.evidence.latent_space import Latents, LatentSpace

# Points per coordinate for one, two and three coordinates.
_POINTS = {1: 2000, 2: 100, 3: 50}

_REACH = 3.0  # half of the points lie within 2 / 3 of this many of the posterior's standard deviations
_COARSEST = 1.0  # the widest that half as many points may stand apart, in its standard deviations
_MOST_MOVES = 8

_MOST_COMBINATIONS = 1_000_000  # of discrete latents


class ExactMarginal(NamedTuple):
    """Log p(x_n) without Monte Carlo, in nats, each of shape (N,), float64; by quadrature, p(z|x_n)'s moments with it.

    Attributes:
        value: Log p(x_n).
        error: How far the value lies from that of half as many points, which bounds the error of a rule that
            converges; 0 for enumeration, infinite where every point has density 0.
        loc: Posterior means of the unconstrained coordinates u, with shape (N, U); None for enumeration.
        covariance: Posterior covariances of u, with shape (N, U, U); None for enumeration.
    """

    value: Tensor
    error: Tensor
    loc: Tensor | None = None
    covariance: Tensor | None = None


def exact_log_marginal(
    model: Program, *args: Any, num_points: int | None = None, chunk_size: int = 8192, **kwargs: Any
) -> ExactMarginal:
    r"""Compute log p(x_n) of a small model: by quadrature over one to three latents, or by summing discrete ones out.

    log p(x_n) = log sum_z p(z) p(x_n|z)   or   log int p(z(u)) p(x_n|z(u)) |dz/du| du,

    with the trapezoid rule on s in (-1, 1)^U after u = c + L s / (1 - s^2), which takes heavy tails to smooth ends, in
    the unconstrained coordinates u. c and L are the prior's middle and widths at first; then the mean and a multiple of
    the Cholesky factor of the covariance that half as many points find for each datum's posterior, until these stand
    close within it. It converges fast unless a posterior has several modes that are each much narrower than all of them
    together; look at the error.

    Args:
        model: Pyro program p(z) p(x|z), with parallel sampling of discrete sites by `enumerate_support`.
        *args: The model's arguments, the data first, with shape (N, ...).
        num_points: Points per coordinate, 4 at least; None for 2000, 100 and 50 with one, two and three of them.
        chunk_size: Latents decoded at once.
        **kwargs: The model's keyword arguments.

    Raises:
        ValueError: If there are more than three coordinates or a million combinations, sites of both kinds, a latent
            under a mask, or data outside the support.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)
        >>> x = torch.tensor([[0.5]])
        >>> (exact_log_marginal(model, x).value - dist.Normal(0.0, 2**0.5).log_prob(x)).abs().item() < 1e-6
        True
    """
    check_support(model, *args, **kwargs)
    with evaluating(model), isolated_rng(0), pyro.validation_enabled(False):
        space = LatentSpace(model, None, *args, **kwargs)
        if space.masked:
            raise ValueError("a mask leaves latents out, so there is nothing to integrate over; leave these data out")
        at_once = max(1, chunk_size // space.num_data)
        if space.continuous:
            return _by_quadrature(space, num_points, at_once)
        return _by_enumeration(space, at_once)


def linear_gaussian_log_marginal(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | float) -> Tensor:
    """Log p(x_n) in nats, with shape (N,), of z ~ N(0, I), x|z ~ N(W z + b, diag(scale^2)), in closed form.

    log N(x; b, W W' + diag(scale^2)) (Bishop 2006, "Pattern recognition and machine learning", section 12.2.1).

    Args:
        x: Data with shape (N, D).
        weight: W, with shape (D, Z).
        bias: b, with shape (D,).
        scale: Standard deviations, a number or with shape (D,), positive.

    Raises:
        ValueError: If shapes do not fit, or a scale is not positive.
    """
    dims = weight.shape[0]
    scale = torch.as_tensor(scale, dtype=weight.dtype, device=weight.device)
    if weight.dim() != 2 or bias.shape != (dims,) or x.shape[1:] != (dims,) or scale.shape not in ((), (dims,)):
        shapes = ", ".join(str(tuple(value.shape)) for value in (x, weight, bias, scale))
        raise ValueError(f"expected x (N, D), weight (D, Z), bias (D,) and scale () or (D,); got {shapes}")
    if not bool((scale > 0).all()):
        raise ValueError("every scale must be positive")
    weight, bias, scale = (value.double() for value in (weight, bias, scale))
    covariance = weight @ weight.T + torch.diag_embed(scale.expand(dims).square())
    return torch.distributions.MultivariateNormal(bias, covariance, validate_args=False).log_prob(x.double())


def _by_quadrature(space: LatentSpace, num_points: int | None, at_once: int) -> ExactMarginal:
    if space.size not in _POINTS:
        raise ValueError(
            f"quadrature is for one to three latent coordinates, and these are {space.size}; take log_marginal, or ais"
        )
    points = num_points or _POINTS[space.size]
    if points < 4:
        raise ValueError(f"num_points must be 4 at least, got {points}")
    points -= points % 2  # every second point makes a rule of its own
    loc, width = prior_scale(space, at_once * space.num_data)
    integrate = partial(_integrate, space, loc.dtype, at_once)
    sketch = max(4, points // 2)
    found = integrate(sketch, loc.double().expand(space.num_data, -1), width.double().diag_embed())
    for _ in range(_MOST_MOVES):
        found = integrate(sketch, found.loc, found.axes())
        cells, variance = (value.diagonal(dim1=-2, dim2=-1) for value in (found.cells, found.covariance))
        if bool((12 * cells <= _COARSEST**2 * variance).all()):
            break
    found = integrate(points, found.loc, found.axes())
    error = (found.coarse - found.log_p).abs().nan_to_num(torch.inf)
    return ExactMarginal(found.log_p, error, found.loc, found.covariance)


class _Integral(NamedTuple):
    log_p: Tensor  # (N,)
    coarse: Tensor  # (N,), from every second point
    loc: Tensor  # (N, U), the posterior's mean
    covariance: Tensor  # (N, U, U)
    cells: Tensor  # (N, U, U), what a posterior even between the points would add to it

    def axes(self) -> Tensor:
        """Where to put the points next: `_REACH` times a Cholesky factor, with shape (N, U, U)."""
        return _REACH * torch.linalg.cholesky(self.covariance + self.cells)


def _integrate(
    space: LatentSpace, dtype: torch.dtype, at_once: int, points: int, loc: Tensor, root: Tensor
) -> _Integral:
    """The trapezoid rule at u = loc + root t, with loc (N, U), root (N, U, U), and its moments of p(z|x)."""
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
    within = torch.where(total.isneginf().unsqueeze(-1), 1.0, within)  # nothing was found, so all stay where they are
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
        total = _added(total, (log_prior + log_lik).double())
    assert total is not None
    return ExactMarginal(total, torch.zeros_like(total))


def _combinations(space: LatentSpace, at_once: int) -> Iterator[Latents]:
    """Every combination of the discrete latents' values, each site with shape (K, N, ...), a few of the K at once."""
    supports = {}
    for name, fn in space.prior_sites().items():
        if not fn.has_enumerate_support:
            raise ValueError(
                f"site {name!r} cannot be summed out: its values cannot be listed; exact answers are for models whose "
                "latents are all discrete and finite, or all continuous"
            )
        supports[name] = fn.enumerate_support(expand=False).reshape(-1, *fn.event_shape)
    count = math.prod(len(values) for values in supports.values())
    if count > _MOST_COMBINATIONS:
        raise ValueError(f"the latents have {count:,} combinations, and a million can be summed; take log_marginal")
    every = torch.tensor(list(product(*(range(len(values)) for values in supports.values()))))
    for part in every.split(at_once):
        yield {
            name: values[part[:, i]].unsqueeze(1).expand(-1, space.num_data, *values.shape[1:])
            for i, (name, values) in enumerate(supports.items())
        }


def _added(total: Tensor | None, terms: Tensor) -> Tensor:
    """Add terms with shape (K, N) to a sum, both as logarithms."""
    more = terms.logsumexp(0)
    return more if total is None else torch.logaddexp(total, more)
