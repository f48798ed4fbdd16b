"""Numbers computed from log weights: log marginals, their errors, and the diagnostics of both.

Functions of log weights reduce over dim 0, the K particles, and keep every other dim, the data.
They compute and return float64 whatever the dtype that comes in. The caller averages over data.
"""

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = [
    "LogMarginal",
    "bits_per_dim",
    "effective_sample_size",
    "log_mean_exp",
    "log_mean_std_error",
    "mean_and_std_error",
    "monte_carlo_std_error",
    "pareto_khat",
    "summarize_log_weights",
]

TensorOrFloat = TypeVar("TensorOrFloat", Tensor, float)

_MIN_TAIL = 5  # fewer points than this fix no tail shape; ArviZ draws the line at the same place
_MAX_CHUNK_ELEMENTS = 2**22  # float64 numbers in the largest array of pareto_khat: 32 MiB


class LogMarginal(NamedTuple):
    """An estimate of log p(x_n) for each datum, with what is needed to judge it.

    Attributes:
        value: Log-mean-exp of the K log weights in nats, with shape (N,). In expectation a lower
            bound of log p(x_n), tighter as K grows.
        std_error: Monte Carlo standard error of value in nats, with shape (N,), by the delta
            method. Trust it only where khat is below 0.5: above, the variance of the weights is
            infinite.
        ess: Effective sample size in draws, from 1 to K (0 if all weights are zero), with shape
            (N,).
        khat: Pareto shape of the largest weights, with shape (N,). Below 0.7 the estimate is
            reliable; above, value is likely too low by more than std_error says. ``inf``: unknown.
            ``-inf``: no tail.
    """

    value: Tensor
    std_error: Tensor
    ess: Tensor
    khat: Tensor


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
    _check_log_weights(log_w)
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


def log_mean_std_error(log_w: Tensor) -> Tensor:
    """Monte Carlo standard error of log_mean_exp, sd(w) / (mean(w) sqrt(K)).

    The delta method for the log of a mean: d log(m) = dm / m, with K - 1 in the variance of w (Owen
    2013, "Monte Carlo theory, methods and examples", https://artowen.su.domains/mc/, section 2.7).
    It is no larger than 1, so a value near 1 says only that one weight outweighs all others.

    Args:
        log_w: Log weights in nats, with shape (K, N). ``-inf`` is a weight of zero.

    Returns:
        The standard error in nats, with shape (N,), float64. ``inf`` where nothing is known of it:
        for K = 1, and where all K weights are zero. Never nan.

    Raises:
        ValueError: If log_w has no particle, or a log weight is nan or ``+inf``.

    Example:
        >>> log_mean_std_error(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]))
        tensor([0., 1.], dtype=torch.float64)
    """
    w = _scaled_weights(log_w)
    num_particles, mean = w.shape[0], w.mean(0)
    if num_particles == 1:
        return torch.full_like(mean, math.inf)
    sd = ((w - mean).square().sum(0) / (num_particles - 1)).sqrt()
    return torch.where(mean > 0, sd / (mean * math.sqrt(num_particles)), math.inf)


def pareto_khat(log_w: Tensor) -> Tensor:
    r"""Shape k of the generalised Pareto distribution fitted to the largest weights.

    The M = ceil(min(K/5, 3 sqrt(K))) largest weights, less the largest weight below them, are
    fitted by

        b_j = 1/x_max + (1 - sqrt(m / (j - 1/2))) / (3 x_*),  j = 1..m,  m = 30 + floor(sqrt(M)),
        k(b) = (1/M) sum_i log(1 - b x_i),
        b_hat = sum_j b_j L_j / sum_j L_j,  log L_j = M (log(-b_j / k(b_j)) - k(b_j) - 1),
        khat = (M k(b_hat) + 5) / (M + 10),

    where x_* is the lower quartile of the excesses x, and the last line is a weak prior towards
    1/2. Moments of the weights exist up to order 1/k: k < 1/2 a finite variance, k < 1 a finite
    mean. Below 0.7 (or 1 - 1/log10(K), if that is less) the estimate of log p(x) is reliable.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry 2024, "Pareto smoothed importance sampling",
    JMLR 25(72), https://jmlr.org/papers/v25/19-556.html; Zhang and Stephens 2009, "A new and
    efficient estimation method for the generalized Pareto distribution", Technometrics 51(3).
    Weights that tie with the cutoff, or fall short of the largest by a factor of 1e-308, stay out
    of the tail, as in ArviZ 0.23. ArviZ 1.x keeps ties, and takes the floor for M, which is one
    weight fewer where K/5 or 3 sqrt(K) is no integer.

    Args:
        log_w: Log weights in nats, with shape (K, N). ``-inf`` is a weight of zero.

    Returns:
        khat, with shape (N,), float64. Two cases have no fit, and none gives nan:

        - ``inf``, unknown, hence not to be trusted: fewer than 5 weights in the tail. So it is for
          K < 21 always, and for larger K where fewer than 5 weights are not negligible, or stand
          above a tie at the cutoff.
        - ``-inf``, no tail: the M + 1 largest weights are equal up to the rounding of log_w, as
          when q is the posterior itself. Nothing is wrong that weights could show. (ArviZ 0.23
          says ``inf``, 1.x raises.)

    Raises:
        ValueError: If log_w has no particle, or a log weight is nan or ``+inf``.

    Example:
        >>> u = (torch.arange(10_000) + 0.5) / 10_000
        >>> log_w = torch.stack([-0.2 * u.log(), -0.9 * u.log(), torch.zeros(10_000)], dim=1)
        >>> [f"{k:.1f}" for k in pareto_khat(log_w)]
        ['0.2', '0.9', '-inf']
    """
    _check_log_weights(log_w)
    num_particles, data_shape = log_w.shape[0], log_w.shape[1:]
    tail = _tail_length(num_particles)
    if tail < _MIN_TAIL:
        return torch.full(data_shape, math.inf, dtype=torch.float64, device=log_w.device)
    eps = torch.finfo(log_w.dtype if log_w.is_floating_point() else torch.float64).eps
    largest = max(num_particles, tail * _num_candidates(tail))
    chunk_size = max(1, _MAX_CHUNK_ELEMENTS // largest)
    chunks = log_w.detach().reshape(num_particles, -1).split(chunk_size, dim=1)
    fits = [_fit_tail(chunk.topk(tail + 1, dim=0).values.double().T, eps) for chunk in chunks]
    return torch.cat(fits).reshape(data_shape)


def summarize_log_weights(log_w: Tensor) -> LogMarginal:
    """All that K log weights say of log p(x): the estimate, its error, and both diagnostics.

    Args:
        log_w: Log weights in nats, with shape (K, N). ``-inf`` is a weight of zero.

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
        std_error=log_mean_std_error(log_w),
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


def _check_log_weights(log_w: Tensor) -> None:
    """Raise ValueError unless log_w has shape (K, ...), K >= 1, without nan and ``+inf``."""
    if log_w.dim() == 0 or log_w.shape[0] == 0:
        raise ValueError(f"expected log weights of shape (K, N) with K >= 1 particles, got {tuple(log_w.shape)}")
    largest = log_w.detach().amax(0)  # nan if one weight is
    bad = largest.isnan() | (largest == math.inf)
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            "expected log weights that are finite or -inf, "
            f"got {largest[first].item()} for datum {', '.join(map(str, first)) or 0} "
            f"(first of {int(bad.sum())}); "
            "look there at log_prob of the model and of the guide: nan comes from data or "
            "parameters that are nan, +inf from a scale that went to zero"
        )


def _check_not_empty(values: Tensor, name: str) -> None:
    """Raise ValueError if there is no datum to average over."""
    if values.numel() == 0:
        raise ValueError(f"expected {name} of shape (N,) with N >= 1 data, got {tuple(values.shape)}")


def _scaled_weights(log_w: Tensor) -> Tensor:
    """Weights divided by the largest of their datum, with shape (K, N); nan if all are zero."""
    _check_log_weights(log_w)
    log_w = log_w.double()
    return (log_w - log_w.amax(0)).exp()


def _tail_length(num_particles: int) -> int:
    """M = ceil(min(K/5, 3 sqrt(K))), in integers."""
    return min((num_particles + 4) // 5, math.isqrt(9 * num_particles - 1) + 1)


def _num_candidates(tail: int) -> int:
    """Grid points for b, 30 + floor(sqrt(M))."""
    return 30 + math.isqrt(tail)


def _fit_tail(top: Tensor, eps: float) -> Tensor:
    """Fit khat to the largest log weights of each datum.

    Args:
        top: The M + 1 largest log weights in nats, in descending order, with shape (N, M + 1),
            float64.
        eps: Machine epsilon of the dtype in which they were computed.

    Returns:
        khat, with shape (N,), with the conventions of ``pareto_khat``.
    """
    peak, lowest = top[:, :1], top[:, -1:]
    cutoff = torch.maximum(lowest, peak + math.log(torch.finfo(top.dtype).tiny))
    in_tail = top[:, :-1] > cutoff
    n = in_tail.sum(1, keepdim=True)
    # k has no scale: in units of the cutoff weight the excesses come without cancellation.
    x = torch.where(in_tail, torch.expm1(top[:, :-1] - cutoff), 0.0)
    x_max, x_star = x[:, :1], x.gather(1, n - (n + 2) // 4)

    j = torch.arange(1, _num_candidates(x.shape[1]) + 1, dtype=x.dtype, device=x.device)
    m = 30 + n.double().sqrt().floor()
    b = 1 / x_max + (1 - (m / (j - 0.5)).sqrt()) / (3 * x_star)
    eps64 = torch.finfo(x.dtype).eps
    b = torch.where(b == 0, eps64 / x_max, b)  # k(b) / b has a limit there, but 0 / 0 is nan
    k = torch.log1p(-b.unsqueeze(-1) * x.unsqueeze(-2)).sum(-1) / n
    log_likelihood = torch.where(j <= m, n * ((-b / k).log() - k - 1), -math.inf)
    weight = log_likelihood.softmax(-1)
    weight = torch.where(weight < 10 * eps64, 0.0, weight)  # as ArviZ does
    b_hat = (b * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
    k_hat = torch.log1p(-b_hat * x).sum(-1, keepdim=True) / n
    khat = (n * k_hat + 5) / (n + 10)

    khat = torch.where((n >= _MIN_TAIL) & khat.isfinite(), khat, math.inf)
    no_tail = peak - lowest <= 8 * eps * peak.abs().clamp(min=1)
    return torch.where(no_tail, -math.inf, khat).squeeze(1)
