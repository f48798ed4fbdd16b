"""Exact log p(x) where a model is small enough: closed form, quadrature, enumeration; to check estimates against."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae.densities import Program, check_support, evaluating, isolated_rng
from pyrovae.laplace import prior_scale
from pyrovae.latents import Latents, LatentSpace

# Points per coordinate for one, two and three coordinates.
_POINTS = {1: 4001, 2: 301, 3: 101}

_MOST_COMBINATIONS = 1_000_000  # of discrete latents


class ExactMarginal(NamedTuple):
    """Log p(x_n) without Monte Carlo, in nats, each of shape (N,), float64.

    Attributes:
        value: Log p(x_n).
        error: How far the value lies from that of half as many points, which bounds the error of a rule that
            converges; 0 for enumeration.
    """

    value: Tensor
    error: Tensor


def exact_log_marginal(
    model: Program, *args: Any, num_points: int | None = None, chunk_size: int = 8192, **kwargs: Any
) -> ExactMarginal:
    r"""Compute log p(x_n) of a small model: by quadrature over one to three latents, or by summing discrete ones out.

    log p(x_n) = log sum_z p(z) p(x_n|z)   or   log int p(z(u)) p(x_n|z(u)) |dz/du| du,

    with the trapezoid rule on s in (-1, 1) after u = c + h s / (1 - s^2), which takes heavy tails to smooth ends; c and
    h are the prior's middle and width in the unconstrained coordinates u. It converges fast where posteriors are not
    much narrower than the prior; look at the error.

    Args:
        model: Pyro program p(z) p(x|z), with parallel sampling of discrete sites by `enumerate_support`.
        *args: The model's arguments, the data first, with shape (N, ...).
        num_points: Points per coordinate, 4 at least; None for 4001, 301 and 101 with one, two and three coordinates.
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
    centre, width = prior_scale(space, at_once * space.num_data)
    dtype, centre, width = centre.dtype, centre.double(), width.double()
    s = torch.arange(1, points, dtype=torch.float64, device=width.device) / points * 2 - 1
    axis, log_weight = s / (1 - s**2), ((1 + s**2) / (1 - s**2) ** 2 * 2 / points).log()
    coarse = torch.arange(1, points, device=width.device) % 2 == 0
    dims = range(space.size)
    fine_sum: Tensor | None = None
    coarse_sum: Tensor | None = None
    for index in torch.arange((points - 1) ** space.size, device=width.device).split(at_once):
        places = torch.stack([index // (points - 1) ** d % (points - 1) for d in dims], -1)  # (K, U)
        u = centre + width * axis[places].unsqueeze(1)  # (K, N, U)
        log_p = space.log_joint(u.to(dtype)).double().nan_to_num(-torch.inf)
        terms = log_p + log_weight[places].sum(-1, keepdim=True) + width.log().sum(-1)
        fine_sum = _added(fine_sum, terms)
        both = coarse[places].all(-1)
        if bool(both.any()):
            coarse_sum = _added(coarse_sum, terms[both])
    assert fine_sum is not None
    assert coarse_sum is not None
    return ExactMarginal(fine_sum, (coarse_sum + space.size * math.log(2) - fine_sum).abs())


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
