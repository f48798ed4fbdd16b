"""Per-datum results computed from log weights: `LogMarginal`, `LowerBound` and the ladder of `Rung`s."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.stats.log_weights import (
    Rounding,
    bias_corrected_log_mean,
    effective_sample_size,
    log_mean_exp,
    log_mean_std_error,
)
from pyrovae.stats.pareto import check_log_weights, pareto_khat


class LogMarginal(NamedTuple):
    """Estimate of log p(x_n) for each datum, with its error and diagnostics.

    Attributes:
        value: Log-mean-exp of the K log weights in nats, with shape (N,). In expectation it is a lower bound of
            log p(x_n), which tightens as K grows.
        std_error: Monte Carlo standard error of value in nats, with shape (N,), by the delta method, with
            the error of rounding. If khat is above 0.5, the variance of the weights may be infinite and the error is
            unreliable. A small khat does not prove that the variance is finite, since the draws may miss a tail.
        ess: Effective sample size in draws, from 1 to K (0 if all weights are zero), with shape (N,).
        khat: Pareto shape of the largest weights, with shape (N,). Above 0.7, value is probably too low by more than
            std_error. A value below does not prove the contrary, since the draws may miss a tail. -inf means no tail.
            inf means unknown: fewer than five weights in the tail, or a search for modes that still found some when it
            ended.
    """

    value: Tensor
    std_error: Tensor
    ess: Tensor
    khat: Tensor


class LowerBound(NamedTuple):
    """ELBO of each datum.

    Attributes:
        value: Mean of the log weights over particles in nats, with shape (N,).
        std_error: Monte Carlo standard error of value in nats, with shape (N,); NaN for one particle.
    """

    value: Tensor
    std_error: Tensor


class Rung(NamedTuple):
    """Estimates of log p(x_n) from the first K draws.

    Attributes:
        num_particles: Number of draws K per datum.
        lower_bound: Log-mean-exp of the K log weights in nats, with shape (N,).
        bias_corrected: `lower_bound` plus half its variance in nats, with shape (N,), which is not a lower bound (see
            `bias_corrected_log_mean`).
        std_error: Monte Carlo standard error of both estimates in nats, with shape (N,); inf for K = 1.
    """

    num_particles: int
    lower_bound: Tensor
    bias_corrected: Tensor
    std_error: Tensor


def summarize_lower_bound(log_w: Tensor) -> LowerBound:
    """Compute the mean of log weights over particles, and its Monte Carlo standard error.

    Args:
        log_w: Log weights in nats, with shape (K, N); -inf is a weight of zero.

    Raises:
        ValueError: If log_w has no particle, or a log weight is NaN or +inf.
    """
    check_log_weights(log_w)
    log_w = log_w.double()
    draws = log_w.shape[0]
    spread = log_w.std(0) if draws > 1 else torch.full_like(log_w[0], torch.nan)
    return LowerBound(log_w.mean(0), spread / draws**0.5)


def summarize_rungs(log_w: Tensor, component: Tensor | None = None, rounding: Rounding | None = None) -> list[Rung]:
    """Compute the ladder, estimates from the first 1, 10, 100, ... and all K log weights.

    Args:
        log_w: Log weights in nats, with shape (K, N); -inf is a weight of zero.
        component: Index of the proposal component that drew each particle, with shape (K,); None if there is one.
        rounding: Rounding of the log weights; None for the epsilon of their dtype.

    Raises:
        ValueError: If log_w has no particle, or a log weight is NaN or +inf.
    """
    draws = log_w.shape[0]
    sizes = [10**power for power in range(len(str(draws))) if 10**power < draws] + [draws]
    rungs = []
    for size in sizes:
        first, drawn_by = log_w[:size], None if component is None else component[:size]
        error = log_mean_std_error(first, drawn_by, rounding)
        rungs.append(Rung(size, log_mean_exp(first), bias_corrected_log_mean(first, drawn_by), error))
    return rungs


def summarize_log_weights(
    log_w: Tensor, component: Tensor | None = None, rounding: Rounding | None = None
) -> LogMarginal:
    """Summarise K log weights by the estimate of log p(x), its error, and both diagnostics.

    Args:
        log_w: Log weights in nats, with shape (K, N); -inf is a weight of zero.
        component: Index of the proposal component that drew each particle, with shape (K,); None if there is one.
        rounding: Rounding of the log weights; None for the epsilon of their dtype.

    Returns:
        The results of `log_mean_exp`, `log_mean_std_error`, `effective_sample_size` and `pareto_khat`, each with shape
        (N,), float64. If all K weights are zero, they are (-inf, inf, 0, inf).

    Raises:
        ValueError: If log_w has no particle, or a log weight is NaN or +inf.

    Example:
        >>> summarize_log_weights(torch.zeros(100, 1))
        LogMarginal(value=tensor([0.], dtype=torch.float64),
                    std_error=tensor([0.], dtype=torch.float64),
                    ess=tensor([100.], dtype=torch.float64),
                    khat=tensor([-inf], dtype=torch.float64))
    """
    return LogMarginal(
        value=log_mean_exp(log_w),
        std_error=log_mean_std_error(log_w, component, rounding),
        ess=effective_sample_size(log_w),
        khat=pareto_khat(log_w),
    )
