"""Measured rounding of log densities: of a trace in its own precision, with moved parameters, against double precision.

The terms of a density may cancel: those of a Poisson distribution with rate r = 1e5, x log r - r - log x!, are of the
order 1e6, and their sum is about -7. In single precision their rounding changes the sum by 0.1. No bound by the sum
itself shows this.
"""

import copy
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from pyrovae.densities.looped import LoopedTrace
from pyrovae.densities.traces import ParticleTrace, Site

Change = Callable[[Tensor], Tensor]

_OF_ARITHMETIC = 0.3  # epsilons by which a program's parameters are rounded, as a standard deviation


def log_density_rounding(trace: ParticleTrace, rounds: int, apart: float = 0.0) -> Tensor:
    """Measure the rounding of the log densities of a trace on one draw, in each of several rounds.

    In a round all parameters of the distributions are multiplied by 1 + apart eps e with normal e. The density in
    double precision is then compared with that in the trace's own precision, whose parameters are further multiplied by
    1 + 0.3 eps e: about what the arithmetic of a program leaves. Values and whole numbers stay. Distributions that
    cannot be computed in double precision count as exact.

    Args:
        trace: Trace on one draw for N data.
        rounds: Number of rounds R.
        apart: Change of the parameters in epsilons. From 8 on the rounding of functions of them, such as logarithms,
            changes from round to round, as it does from draw to draw. At 0 it stays, as that of constants does.

    Returns:
        Log density in the trace's precision less that in double precision, in nats, with shape (R, N), float64; 0 where
        one of them is infinite.
    """
    if isinstance(trace, LoopedTrace):
        return torch.cat([log_density_rounding(part, rounds, apart) for part in trace.parts], dim=-1)
    found = []
    near, exact = trace, _log_density(_with_changed(trace, torch.Tensor.double))
    for _ in range(rounds):
        if apart:
            near = _with_changed(trace, partial(_moved, apart))
            exact = _log_density(_with_changed(near, torch.Tensor.double))
        found.append(_log_density(_with_changed(near, partial(_moved, _OF_ARITHMETIC))) - exact)
    return torch.stack(found).nan_to_num(0.0, 0.0, 0.0)


def shared_rounding(rounding: Tensor) -> Tensor:
    """Estimate the error that rounding leaves in the log of a mean of many weights, from `log_density_rounding`.

    Args:
        rounding: Rounding of a log density in R rounds, with shape (R, N).

    Returns:
        Size of log mean_r exp(d_r), together with its standard error, in nats, with shape (N,).
    """
    rounds = len(rounding)
    return torch.hypot(rounding.logsumexp(0) - math.log(rounds), rounding.std(0) / math.sqrt(rounds))


def _log_density(trace: ParticleTrace) -> Tensor:
    return trace.unscaled_log_density()[0].double()


def _with_changed(trace: ParticleTrace, change: Change) -> ParticleTrace:
    """Copy a trace, with changed parameters of all distributions."""
    changed = copy.copy(trace)
    changed.sites = {name: _site(site, change) for name, site in trace.sites.items()}
    changed.summed = {name: _site(site, change) for name, site in trace.summed.items()}
    return changed


def _moved(epsilons: float, parameter: Tensor) -> Tensor:
    """Move a parameter at random, by a number of epsilons of its size, unless it is whole."""
    step = epsilons * torch.finfo(parameter.dtype).eps * parameter * torch.randn_like(parameter)
    return torch.where(parameter == parameter.round(), parameter, parameter + step)


def _site(site: Site, change: Change) -> Site:
    """Change the parameters of a site's distribution, and its values if the precision changes."""
    double = change is torch.Tensor.double
    if isinstance(site.fn, Delta) and not double:
        return site
    value = site.raw_value.double() if double and site.raw_value.is_floating_point() else site.raw_value
    try:
        made = replace(site, fn=_changed(site.fn, change, {}), raw_value=value)
        made.entries()
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return site  # a distribution of another make
    return made


def _changed(value: Any, change: Change, memo: dict[int, Any]) -> Any:
    """Copy a distribution or a transform, with all of its tensors changed, and equal ones alike."""
    if id(value) in memo:
        return memo[id(value)]
    made: Any = value
    if isinstance(value, Tensor):
        made = change(value) if value.is_floating_point() else value
    elif type(value) in (list, tuple):
        made = type(value)(_changed(item, change, memo) for item in value)
    elif isinstance(value, Distribution | Transform) and not isinstance(value, nn.Module):
        made = copy.copy(value)
        memo[id(value)] = made
        for name, item in vars(value).items():
            # The inverse of a transform is made anew.
            made.__dict__[name] = None if isinstance(item, weakref.ref) else _changed(item, change, memo)
    memo[id(value)] = made
    return made
