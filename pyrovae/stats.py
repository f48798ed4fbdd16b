"""Numbers computed from log weights: log marginals, their errors, and the diagnostics of both.

Functions of log weights reduce over dim 0, the K particles, and keep every other dim, the data.
They compute and return float64 whatever the dtype that comes in. The caller averages over data.
"""

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from pyrovae.pareto import check_log_weights, pareto_khat, pareto_smoothed_log_weights

__all__ = [
    "LogMarginal",
    "Rung",
    "bias_corrected_log_mean",
    "bits_per_dim",
    "component_shares",
    "crossed_mean_and_std_error",
    "effective_sample_size",
    "log_mean_exp",
    "log_mean_std_error",
    "mean_and_std_error",
    "monte_carlo_std_error",
    "pareto_khat",
    "pareto_smoothed_log_weights",
    "summarize_log_weights",
    "summarize_rungs",
]

TensorOrFloat = TypeVar("TensorOrFloat", Tensor, float)


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


def log_mean_exp(log_w: Tensor) -> Tensor:
    r"""Log of the mean weight, log (1/K) sum_k exp(log_w_k).

    With log_w_k = log p(x, z_k) - log q(z_k|x) and z_k ~ q this is the importance weighted bound on
    log p(x) (Burda, Grosse and Salakhutdinov 2016, "Importance weighted autoencoders",
    https://arxiv.org/abs/1509.00519, section 3). Gradients flow through it.

    Args:
        log_w: Log weights in nats, with shape (K, N). ``-inf`` is a weight of zero.

    Returns:
        The log-mean-exp in nats, with shape (N,), float64; ``-inf`` where all K weights are zero.

    Raises:
        ValueError: If log_w has no particle, or a log weight is nan or ``+inf``.

    Example:
        >>> w = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
        >>> log_mean_exp(w.log()).exp()
        tensor([2.0000, 4.0000], dtype=torch.float64)
    """
    check_log_weights(log_w)
    return log_w.double().logsumexp(0) - math.log(log_w.shape[0])


def effective_sample_size(log_w: Tensor) -> Tensor:
    """Effective sample size, (sum_k w_k)^2 / sum_k w_k^2.

    Source: Kong 1992, "A note on importance sampling using standardized weights"; Owen 2013, "Monte
    Carlo theory, methods and examples", https://artowen.su.domains/mc/, chapter 9.

    Args:
        log_w: Log weights in nats, with shape (K, N). ``-inf`` is a weight of zero.

    Returns:
        The number of equally weighted draws worth as much, from 1 to K, with shape (N,), float64; 0
        where all K weights are zero.

    Raises:
        ValueError: If log_w has no particle, or a log weight is nan or ``+inf``.

    Example:
        >>> effective_sample_size(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]))
        tensor([2., 1.], dtype=torch.float64)
    """
    w = _scaled_weights(log_w)
    total = w.sum(0)
    ess = torch.where(total > 0, total.square() / w.square().sum(0), 0.0)
    return ess.clamp(max=w.shape[0])  # rounding can lift it by an ulp


def log_mean_std_error(log_w: Tensor, component: Tensor | None = None) -> Tensor:
    r"""Monte Carlo standard error of log_mean_exp, sd(w) / (mean(w) sqrt(K)).

    The delta method for the log of a mean: d log(m) = dm / m, with K - 1 in the variance of w (Owen
    2013, "Monte Carlo theory, methods and examples", https://artowen.su.domains/mc/, section 2.7).
    It is no larger than 1, so a value near 1 says only that one weight outweighs all others.

    Where the draws came from several components in fixed shares, the numbers n_s do not vary, and
    only the variance within components counts: var(mean(w)) = sum_s n_s var_s(w) / K^2 (Owen 2013,
    section 8.4). If a component drew once its variance is not known, and that of all draws, which
    is larger, is taken.

    Args:
        log_w: Log weights in nats, with shape (K, N). ``-inf`` is a weight of zero.
        component: Which component drew, with shape (K,); None for one and the same.

    Returns:
        The standard error in nats, with shape (N,), float64. ``inf`` where nothing is known of it:
        for K = 1, and where all K weights are zero. Never nan.

    Raises:
        ValueError: If log_w has no particle, or a log weight is nan or ``+inf``.

    Example:
        >>> log_mean_std_error(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])).round(decimals=9)
        tensor([0., 1.], dtype=torch.float64)
    """
    w = _scaled_weights(log_w)
    num_particles, mean = w.shape[0], w.mean(0)
    if num_particles == 1:
        return torch.full_like(mean, math.inf)
    strata = [w]
    if component is not None:
        component = component.to(w.device)
        parts = [w[component == s] for s in component.unique()]
        strata = parts if min(map(len, parts)) > 1 else strata
    variance = [
        len(part) / num_particles * ((part - part.mean(0)).square().sum(0) / (len(part) - 1)) for part in strata
    ]
    sd = torch.stack(variance).sum(0).sqrt()
    return torch.where(mean > 0, sd / (mean * math.sqrt(num_particles)), math.inf)


def bias_corrected_log_mean(log_w: Tensor, component: Tensor | None = None) -> Tensor:
    """Log-mean-exp plus half its variance, which takes out the first term of its bias.

    E log(mean w) = log E w - var(mean w) / (2 (E w)^2) + ..., by the delta method (Nowozin 2018,
    "Debiasing evidence approximations", ICLR, https://openreview.net/forum?id=HyZoi-WRb, takes the
    jackknife to the same end). Less biased than the lower bound, and a lower bound no more.

    Args and raises as ``log_mean_std_error``.

    Returns:
        The estimate in nats, with shape (N,), float64; the lower bound where the variance is not
        known.
    """
    std_error = log_mean_std_error(log_w, component)
    return log_mean_exp(log_w) + torch.where(std_error.isfinite(), std_error, 0.0).square() / 2


def component_shares(log_w: Tensor, component: Tensor, num_components: int) -> Tensor:
    """Share of the weight that each component's draws carry, with shape (S, N); nan if all are zero.

    Args:
        log_w: Log weights in nats, with shape (K, N). ``-inf`` is a weight of zero.
        component: Which component drew, with shape (K,).
        num_components: S.

    Raises:
        ValueError: If log_w has no particle, or a log weight is nan or ``+inf``.
    """
    w = _scaled_weights(log_w)
    total = w.new_zeros(num_components, *w.shape[1:]).index_add_(0, component.to(w.device), w)
    return total / total.sum(0)


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


def mean_and_std_error(values: Tensor) -> tuple[float, float]:
    """Mean over data and its standard error over data, sd(v) / sqrt(N).

    The error says how far the mean over another N data might lie, not how well each value is known;
    for that see ``monte_carlo_std_error``.

    Args:
        values: One value per datum, with shape (N,).

    Returns:
        The mean and its standard error, in the unit of values. The error is nan where it is not
        defined: for N = 1, or where a value is infinite.

    Raises:
        ValueError: If values is empty.

    Example:
        >>> mean_and_std_error(torch.tensor([1.0, 3.0]))
        (2.0, 1.0)
    """
    _check_not_empty(values, "values")
    v = values.detach().double().flatten()
    if len(v) == 1:
        return v.item(), math.nan
    return v.mean().item(), (v.std() / math.sqrt(len(v))).item()


def crossed_mean_and_std_error(values: Tensor) -> tuple[float, float]:
    """Mean over runs and data, and its standard error over both, each as a random sample.

    The squared error is the sum of var_s(mean over n)/S and var_n(mean over s)/N, which counts the noise of single
    cells twice, and so errs on the safe side (crossed random effects: Searle, Casella and McCulloch, "Variance
    components", 1992, https://doi.org/10.1002/9780470316856).

    Args:
        values: One value per run (training seed) and datum, with shape (S, N).

    Returns:
        The mean and its standard error, in the unit of values. With one run the error is over data alone.

    Raises:
        ValueError: If values is empty.

    Example:
        >>> crossed_mean_and_std_error(torch.tensor([[1.0, 3.0], [1.0, 3.0]]))
        (2.0, 1.0)
    """
    mean, over_data = mean_and_std_error(values.double().mean(0))
    if len(values) == 1:
        return mean, over_data
    _, over_runs = mean_and_std_error(values.double().mean(1))
    return mean, math.hypot(over_data, over_runs)


def monte_carlo_std_error(std_error: Tensor) -> float:
    """Monte Carlo error of the mean over data, sqrt(sum_n s_n^2) / N.

    The errors of different data are independent, for each has particles of its own.

    Args:
        std_error: Monte Carlo standard error of each value, with shape (N,), such as
            ``LogMarginal.std_error``.

    Returns:
        The standard error of the mean, in the unit of std_error.

    Raises:
        ValueError: If std_error is empty.

    Example:
        >>> monte_carlo_std_error(torch.tensor([3.0, 4.0]))
        2.5
    """
    _check_not_empty(std_error, "std_error")
    return std_error.detach().double().square().sum().sqrt().item() / std_error.numel()


def bits_per_dim(log_p: TensorOrFloat, num_dims: int) -> TensorOrFloat:
    """Bits per dimension, -log p / (D ln 2).

    Lower is better. Literature on images means the probability of integers 0..255: for a density of
    pixels that were divided by 256, add log2(256) = 8 (Theis, van den Oord and Bethge 2016, "A note
    on the evaluation of generative models", https://arxiv.org/abs/1511.01844).

    Args:
        log_p: Log probability in nats, of any shape, or a number.
        num_dims: The number D of dimensions of one datum, such as 784.

    Returns:
        Bits per dimension, with the shape of log_p; a tensor is float64.

    Raises:
        ValueError: If num_dims is less than 1.

    Example:
        >>> bits_per_dim(-784 * math.log(2), 784)
        1.0
    """
    if num_dims < 1:
        raise ValueError(f"num_dims is the size of one datum, at least 1, but it is {num_dims}")
    if isinstance(log_p, Tensor):
        log_p = log_p.double()
    return -log_p / (num_dims * math.log(2))


def _check_not_empty(values: Tensor, name: str) -> None:
    """Raise ValueError if there is no datum to average over."""
    if values.numel() == 0:
        raise ValueError(f"expected {name} of shape (N,) with N >= 1 data, got {tuple(values.shape)}")


def _scaled_weights(log_w: Tensor) -> Tensor:
    """Weights divided by the largest of their datum, with shape (K, N); nan if all are zero."""
    check_log_weights(log_w)
    log_w = log_w.double()
    return (log_w - log_w.amax(0)).exp()
