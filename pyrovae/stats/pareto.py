"""Pareto distribution fitted to the largest weights: its shape, and weights smoothed by it."""

import math

import torch
from torch import Tensor

_MIN_TAIL = 5  # least number of points for a fit, as in ArviZ
_MAX_CHUNK_ELEMENTS = 2**22  # float64 numbers in the largest array of pareto_khat: 32 MiB


def pareto_khat(log_w: Tensor) -> Tensor:
    """Fit a generalised Pareto distribution to the largest weights, and return its shape k.

    The M = ceil(min(K/5, 3 sqrt(K))) largest weights, less the largest weight below them, are
    fitted by

        b_j = 1/x_max + (1 - sqrt(m / (j - 1/2))) / (3 x_*),  j = 1..m,  m = 30 + floor(sqrt(M)),
        k(b) = (1/M) sum_i log(1 - b x_i),
        b_hat = sum_j b_j L_j / sum_j L_j,  log L_j = M (log(-b_j / k(b_j)) - k(b_j) - 1),
        khat = (M k(b_hat) + 5) / (M + 10),

    where x_* is the lower quartile of the excesses x, and the last line is a weak prior towards 1/2. Moments of the
    weights exist up to order 1/k: the variance is finite for k < 1/2, the mean for k < 1. Above 0.7 (or 1 - 1/log10(K),
    if that is less) the estimate of log p(x) is unreliable. Below, it is reliable if the draws cover the whole
    posterior, which the weights cannot show.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry 2024, "Pareto smoothed importance sampling", JMLR 25(72),
    https://jmlr.org/papers/v25/19-556.html; Zhang and Stephens 2009, "A new and efficient estimation method for the
    generalized Pareto distribution", Technometrics 51(3). As in ArviZ 0.23, the tail excludes weights that tie with the
    cutoff or are smaller than the largest by a factor of 1e-308. ArviZ 1.x includes ties, and rounds M down, which is
    one weight fewer if K/5 or 3 sqrt(K) is not an integer.

    Args:
        log_w: Log weights in nats, with shape (K, N); -inf is a weight of zero.

    Returns:
        The shape khat, with shape (N,), float64, never NaN. Two cases have no fit:

        - inf, unknown, hence unreliable: the tail has fewer than 5 weights. This is so for K < 21, and for larger K if
          fewer than 5 weights are non-negligible or lie above a tie at the cutoff.
        - -inf, no tail: the M + 1 largest weights are equal up to the rounding of log_w, for example if q is the exact
          posterior. The weights show no problem. (ArviZ 0.23 returns inf, 1.x raises.)

    Raises:
        ValueError: If log_w has no particle, or a log weight is NaN or +inf.

    Example:
        >>> u = (torch.arange(10_000) + 0.5) / 10_000
        >>> log_w = torch.stack([-0.2 * u.log(), -0.9 * u.log(), torch.zeros(10_000)], dim=1)
        >>> [f"{k:.1f}" for k in pareto_khat(log_w)]
        ['0.2', '0.9', '-inf']
    """
    check_log_weights(log_w)
    num_particles, data_shape = log_w.shape[0], log_w.shape[1:]
    tail = _tail_length(num_particles)
    if tail < _MIN_TAIL:
        return torch.full(data_shape, math.inf, dtype=torch.float64, device=log_w.device)
    eps = torch.finfo(log_w.dtype if log_w.is_floating_point() else torch.float64).eps
    largest = max(num_particles, tail * _num_candidates(tail))
    chunk_size = max(1, _MAX_CHUNK_ELEMENTS // largest)
    chunks = log_w.detach().reshape(num_particles, -1).split(chunk_size, dim=1)
    fits = [_fit_tail(chunk.topk(tail + 1, dim=0).values.double().T, eps)[0] for chunk in chunks]
    return torch.cat(fits).reshape(data_shape)


def pareto_smoothed_log_weights(log_w: Tensor) -> Tensor:
    """Replace the largest log weights by the expected order statistics of the fitted Pareto tail.

    The j-th smallest of the M tail weights becomes cutoff + sigma ((1 - (j - 1/2)/M)^-k - 1) / k,
    at most the largest raw weight, with k = khat and the sigma of ``pareto_khat``'s fit (Vehtari et
    al. 2024, JMLR 25(72), https://jmlr.org/papers/v25/19-556.html). Less variance, some bias.

    Args:
        log_w: Log weights in nats, with shape (K, N); -inf is a weight of zero.

    Returns:
        The smoothed log weights, with shape (K, N), float64; those of a datum without a fit are unchanged.

    Raises:
        ValueError: If log_w has no particle, or a log weight is NaN or +inf.
    """
    check_log_weights(log_w)
    log_w, eps = log_w.double(), torch.finfo(log_w.dtype).eps
    tail = _tail_length(log_w.shape[0])
    if tail < _MIN_TAIL:
        return log_w
    smoothed = log_w.clone()
    for n, column in enumerate(log_w.flatten(1).unbind(1)):
        top, where = column.topk(tail + 1)
        khat, scale = (fit.item() for fit in _fit_tail(top.unsqueeze(0), eps))
        size = int((top[:-1] > max(top[-1], top[0] + math.log(torch.finfo(top.dtype).tiny))).sum())
        if math.isfinite(khat) and math.isfinite(scale):
            p = (torch.arange(size, 0, -1, dtype=top.dtype, device=top.device) - 0.5) / size
            excess = -torch.log1p(-p) if khat == 0 else torch.expm1(-khat * torch.log1p(-p)) / khat
            values = top[-1] + torch.log1p(scale * excess)
            smoothed.flatten(1)[where[:size], n] = values.clamp(max=top[0].item())
    return smoothed


def check_log_weights(log_w: Tensor) -> None:
    """Raise ValueError unless log_w has shape (K, ...) with K >= 1 and contains neither NaN nor +inf."""
    if log_w.dim() == 0 or log_w.shape[0] == 0:
        raise ValueError(f"log weights must have shape (K, N) with K >= 1, got {tuple(log_w.shape)}; draw particles")
    largest = log_w.detach().amax(0)  # nan if one weight is
    bad = largest.isnan() | (largest == math.inf)
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"log weights must be finite or -inf, got {largest[first].item()} for datum "
            f"{', '.join(map(str, first)) or 0} (first of {int(bad.sum())}); look for data or parameters that are NaN, "
            "or for a scale that went to zero"
        )


def _tail_length(num_particles: int) -> int:
    """Return M = ceil(min(K/5, 3 sqrt(K))), in integer arithmetic."""
    return min((num_particles + 4) // 5, math.isqrt(9 * num_particles - 1) + 1)


def _num_candidates(tail: int) -> int:
    """Return the number of grid points for b, 30 + floor(sqrt(M))."""
    return 30 + math.isqrt(tail)


def _fit_tail(top: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Fit khat and sigma to the largest log weights of each datum.

    Args:
        top: The M + 1 largest log weights in nats, in descending order, with shape (N, M + 1), float64.
        eps: Machine epsilon of the dtype in which the log weights were computed.

    Returns:
        khat, with shape (N,), with the conventions of `pareto_khat`; and sigma, in units of the lowest weight of top.
    """
    peak, lowest = top[:, :1], top[:, -1:]
    cutoff = torch.maximum(lowest, peak + math.log(torch.finfo(top.dtype).tiny))
    in_tail = top[:, :-1] > cutoff
    n = in_tail.sum(1, keepdim=True)
    # k is scale-free, so the excesses are computed in units of the cutoff weight, without cancellation.
    x = torch.where(in_tail, torch.expm1(top[:, :-1] - cutoff), 0.0)
    x_max, x_star = x[:, :1], x.gather(1, n - (n + 2) // 4)

    j = torch.arange(1, _num_candidates(x.shape[1]) + 1, dtype=x.dtype, device=x.device)
    m = 30 + n.double().sqrt().floor()
    b = 1 / x_max + (1 - (m / (j - 0.5)).sqrt()) / (3 * x_star)
    eps64 = torch.finfo(x.dtype).eps
    b = torch.where(b == 0, eps64 / x_max, b)  # k(b) / b has a limit there, but 0 / 0 is NaN
    k = torch.log1p(-b.unsqueeze(-1) * x.unsqueeze(-2)).sum(-1) / n
    log_likelihood = torch.where(j <= m, n * ((-b / k).log() - k - 1), -math.inf)
    weight = log_likelihood.softmax(-1)
    weight = torch.where(weight < 10 * eps64, 0.0, weight)  # as ArviZ does
    b_hat = (b * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
    k_hat = torch.log1p(-b_hat * x).sum(-1, keepdim=True) / n
    khat = (n * k_hat + 5) / (n + 10)

    khat = torch.where((n >= _MIN_TAIL) & khat.isfinite(), khat, math.inf)
    no_tail = peak - lowest <= 8 * eps * peak.abs().clamp(min=1)
    return torch.where(no_tail, -math.inf, khat).squeeze(1), (-k_hat / b_hat).squeeze(1)
