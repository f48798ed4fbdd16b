"""Distribution functions of single entries: those that torch and Pyro lack, too, and sums of masses for levels."""

from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor

from pyrovae.densities import entry_of
from pyrovae.distributions import (
    ByColumn,
    LogitBeta,
    LogitBinomial,
    LogPoisson,
    MeanNegativeBinomial,
    ZeroInflated,
)

_MOST_LEVELS = 256  # of a distribution whose masses are summed one by one


class NoDistributionFunctionError(Exception):
    """A distribution has no distribution function here."""


def distribution_function(fn: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute P(X <= x) and P(X = x) of a distribution of single entries.

    From the distribution's own `cdf`, from the incomplete gamma function (Poisson: P(X <= k) = Q(k + 1, rate)) and the
    incomplete beta function (binomial, negative binomial, beta; Abramowitz and Stegun 1964, 26.5), or, for at most 256
    levels, as a sum of masses.

    Args:
        fn: Distribution of single entries (`entry_of`).
        x: Values that broadcast against its batch shape, without NaN.

    Returns:
        Both in double precision, with the broadcast shape; the mass is 0 where x has a density.

    Raises:
        NoDistributionFunctionError: If there is none.
    """
    fn = entry_of(fn)
    if fn.event_shape:
        raise NoDistributionFunctionError
    if isinstance(fn, ByColumn):
        parts = [distribution_function(part, x[..., places]) for part, places in zip(fn.parts, fn.places, strict=True)]
        order = torch.cat(fn.places).argsort()
        shape = torch.broadcast_shapes(*(part[0].shape[:-1] for part in parts))
        joined = [torch.cat([p[i].expand(*shape, p[i].shape[-1]) for p in parts], -1)[..., order] for i in (0, 1)]
        return joined[0], joined[1]
    below = _below(fn, x)
    shape = torch.broadcast_shapes(below.shape, fn.batch_shape, x.shape)
    return below.expand(shape), _mass(fn, x).expand(shape)


def _below(fn: Any, x: Tensor) -> Tensor:
    """Compute P(X <= x) in double precision."""
    value = x.double()
    if isinstance(fn, ZeroInflated):
        gate = fn.gate_logits.double().sigmoid()
        return torch.where(value < 0, 0.0, gate + (1 - gate) * _below(fn.base_dist, x))
    if isinstance(fn, LogPoisson | torch.distributions.Poisson):
        return torch.special.gammaincc(*torch.broadcast_tensors(value.floor() + 1, fn.rate.double()))
    if isinstance(fn, MeanNegativeBinomial):
        r = fn.total_count.double()
        log_odds = fn.log_mean.double() - r.log()  # of one more count
        return _betainc(r, value.floor() + 1, (-log_odds).sigmoid())
    if isinstance(fn, torch.distributions.NegativeBinomial):
        return _betainc(fn.total_count.double(), value.floor() + 1, (-fn.logits.double()).sigmoid())
    if isinstance(fn, LogitBinomial | torch.distributions.Binomial):
        n = torch.as_tensor(fn.total_count, device=x.device).double()
        inside = _betainc((n - value.floor()).clamp(min=1e-300), value.floor() + 1, (-fn.logits.double()).sigmoid())
        return torch.where(value.floor() >= n, 1.0, inside)
    if isinstance(fn, LogitBeta):
        s = fn.concentration.double()
        return _betainc(s * fn.logits.double().sigmoid(), s * (-fn.logits.double()).sigmoid(), value.clamp(0, 1))
    if isinstance(fn, torch.distributions.Beta):
        return _betainc(fn.concentration1.double(), fn.concentration0.double(), value.clamp(0, 1))
    try:
        found: Tensor = fn.cdf(x).double()
        return found
    except (NotImplementedError, AttributeError):
        return _sum_of_masses(fn, x)


def _betainc(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Compute the regularised incomplete beta function I_x(a, b), which torch lacks."""
    a, b, x = torch.broadcast_tensors(a, b, x)
    found = special.betainc(*(one.cpu().numpy() for one in (a, b, x)))
    return torch.as_tensor(np.asarray(found), device=x.device)


def _sum_of_masses(fn: Any, x: Tensor) -> Tensor:
    """Sum the masses of whole numbers from the lower end of the support to x."""
    support = _support(fn)
    low = 0 if support is torch.distributions.constraints.boolean else getattr(support, "lower_bound", None)
    if support is None or not support.is_discrete or not isinstance(low, int) or not x.numel():
        raise NoDistributionFunctionError
    high = int(x.max())
    if high - low >= _MOST_LEVELS:
        raise NoDistributionFunctionError
    total = torch.zeros(torch.broadcast_shapes(x.shape, fn.batch_shape), dtype=torch.float64, device=x.device)
    for level in range(low, high + 1):
        mass = fn.log_prob(x.new_full((), level)).double().exp()
        total = total + torch.where(x >= level, mass, 0.0)
    return total.clamp(max=1)


def _mass(fn: Any, x: Tensor) -> Tensor:
    """Compute P(X = x): of discrete distributions everywhere, of mixed ones at their points."""
    support = _support(fn)
    if support is None:
        raise NoDistributionFunctionError
    if support.is_discrete:
        mass: Tensor = fn.log_prob(x).double().exp()
        return mass
    mass = torch.zeros_like(x, dtype=torch.float64)
    for atom in getattr(support, "atoms", ()):
        at_atom = fn.log_prob(torch.full_like(x, atom)).double().exp()
        mass = torch.where(x == atom, at_atom, mass)
    return mass


def _support(fn: Any) -> Any:
    try:
        return fn.support
    except (AttributeError, NotImplementedError):
        return None
