"""Numbers computed from log weights: log marginals, their errors, and the diagnostics of both.

Functions of log weights reduce over dim 0, the K particles, and keep every other dim, the data.
They compute and return float64 whatever the dtype that comes in. The caller averages over data.
"""

import math

import torch
from torch import Tensor

from pyrovae.stats.pareto import check_log_weights


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


def _scaled_weights(log_w: Tensor) -> Tensor:
    """Weights divided by the largest of their datum, with shape (K, N); nan if all are zero."""
    check_log_weights(log_w)
    log_w = log_w.double()
    return (log_w - log_w.amax(0)).exp()
