"""Numbers computed from log weights: log marginals, their errors, and the diagnostics of both.

Functions of log weights reduce over dim 0, the K particles, and keep every other dim, the data.
They compute and return float64 whatever the dtype that comes in. The caller averages over data.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.stats.log_weights import bias_corrected_log_mean, effective_sample_size, log_mean_exp, log_mean_std_error
from pyrovae.stats.pareto import check_log_weights, pareto_khat


class LogMarginal(NamedTuple):
    """An estimate of log p(x_n) for each datum, with what is needed to judge it.

    Attributes:
        value: Log-mean-exp of the K log weights in nats, with shape (N,). In expectation a lower
            bound of log p(x_n), tighter as K grows.
        std_error: Monte Carlo standard error of value in nats, with shape (N,), by the delta
            method. Where khat is above 0.5 the variance of the weights may be infinite, and it is
            not to be trusted; a small khat does not prove the contrary, for a tail may be missed.
        ess: Effective sample size in draws, from 1 to K (0 if all weights are zero), with shape
            (N,).
        khat: Pareto shape of the largest weights, with shape (N,). Above 0.7 value is likely too
            low by more than std_error says; below, no such thing shows, which proves nothing, for
            a tail may be missed. ``inf``: unknown. ``-inf``: no tail.
    """

    value: Tensor
    std_error: Tensor
    ess: Tensor
    khat: Tensor


class LowerBound(NamedTuple):
    """The ELBO per datum, in nats, each of shape (N,).

    Attributes:
        value: Mean of log w over the particles.
        std_error: Monte Carlo standard error of that mean; nan for one particle.
    """

    value: Tensor
    std_error: Tensor


class Rung(NamedTuple):
    """Estimates of log p(x_n) from the first K draws.

    Attributes:
        num_particles: K.
        lower_bound: Log-mean-exp of K log weights in nats, with shape (N,).
        bias_corrected: The same plus half its variance, with shape (N,); see
            ``bias_corrected_log_mean``. No lower bound any more.
        std_error: Monte Carlo standard error of both in nats, with shape (N,); inf for K = 1.
    """

    num_particles: int
    lower_bound: Tensor
    bias_corrected: Tensor
    std_error: Tensor


def summarize_lower_bound(log_w: Tensor) -> LowerBound:
    """Reduce log weights, with shape (K, N), to their mean and its Monte Carlo standard error, over K.

    Raises:
        ValueError: If a weight is NaN or unbounded.
    """
    check_log_weights(log_w)
    log_w = log_w.double()
    draws = log_w.shape[0]
    spread = log_w.std(0) if draws > 1 else torch.full_like(log_w[0], torch.nan)
    return LowerBound(log_w.mean(0), spread / draws**0.5)


def summarize_rungs(log_w: Tensor, component: Tensor | None = None) -> list[Rung]:
    """The ladder: estimates from the first 1, 10, 100, ... and all K log weights.

    Args and raises as ``log_mean_std_error``.
    """
    draws = log_w.shape[0]
    sizes = [10**power for power in range(len(str(draws))) if 10**power < draws] + [draws]
    rungs = []
    for size in sizes:
        first, which = log_w[:size], None if component is None else component[:size]
        error = log_mean_std_error(first, which)
        rungs.append(Rung(size, log_mean_exp(first), bias_corrected_log_mean(first, which), error))
    return rungs


def summarize_log_weights(log_w: Tensor, component: Tensor | None = None) -> LogMarginal:
    """All that K log weights say of log p(x): the estimate, its error, and both diagnostics.

    Args:
        log_w: Log weights in nats, with shape (K, N). ``-inf`` is a weight of zero.
        component: Which component of a proposal drew, with shape (K,); None for one and the same.

    Returns:
        A LogMarginal of ``log_mean_exp``, ``log_mean_std_error``, ``effective_sample_size`` and
        ``pareto_khat``, each with shape (N,), float64. Where all K weights are zero: (-inf, inf, 0,
        inf).

    Raises:
        ValueError: If log_w has no particle, or a log weight is nan or ``+inf``.

    Example:
        >>> summarize_log_weights(torch.zeros(100, 1))
        LogMarginal(value=tensor([0.], dtype=torch.float64),
                    std_error=tensor([0.], dtype=torch.float64),
                    ess=tensor([100.], dtype=torch.float64),
                    khat=tensor([-inf], dtype=torch.float64))
    """
    return LogMarginal(
        value=log_mean_exp(log_w),
        std_error=log_mean_std_error(log_w, component),
        ess=effective_sample_size(log_w),
        khat=pareto_khat(log_w),
    )
