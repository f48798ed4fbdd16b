"""Means over data, their standard errors, and bits per dimension."""

import math
from typing import TypeVar

import torch
from torch import Tensor

TensorOrFloat = TypeVar("TensorOrFloat", Tensor, float)


def mean_and_std_error(values: Tensor, weights: Tensor | None = None) -> tuple[float, float]:
    """Compute the mean over data and its standard error over data, sd(v) / sqrt(N).

    The error describes the variation of the mean over samples of N data, not the Monte Carlo error of the values; for
    that see `monte_carlo_std_error`. With case weights,

        m = sum_n w_n v_n / sum_n w_n,  error^2 = N / (N - 1) sum_n w_n^2 (v_n - m)^2 / (sum_n w_n)^2,

    the linearised error of a ratio for sampling weights of independent data (Särndal, Swensson and Wretman, "Model
    assisted survey sampling", 1992, sections 5.5 to 5.7, https://doi.org/10.1007/978-1-4612-4378-6; `svymean` of R's
    package survey). It does not take a datum of weight 2 for two data. Data of weight 0 do not count in N.

    Args:
        values: One value per datum, with shape (N,).
        weights: Case weights, not negative, with shape (N,); None for 1.

    Returns:
        The mean and its standard error, in the unit of values. The error is NaN if it is undefined, that is for N = 1
        or if a value is infinite.

    Raises:
        ValueError: If values is empty, or the weights are no case weights of these values.

    Example:
        >>> import torch
        >>> mean_and_std_error(torch.tensor([1.0, 3.0]))
        (2.0, 1.0)
    """
    _check_not_empty(values, "values")
    v = values.detach().double().flatten()
    if weights is not None:
        v, share = _weighed(v, weights)
        mean, n = (share * v).sum(), len(v)
        spread = (share * (v - mean)).square().sum().sqrt()
        return mean.item(), math.nan if n == 1 else spread.item() * math.sqrt(n / (n - 1))
    if len(v) == 1:
        return v.item(), math.nan
    return v.mean().item(), (v.std() / math.sqrt(len(v))).item()


def crossed_mean_and_std_error(values: Tensor) -> tuple[float, float]:
    """Compute the mean over runs and data, and its standard error over both as random samples.

        error^2 = var_s(mean over n) / S + var_n(mean over s) / N

    The sum counts the noise of single cells twice, so the error is conservative (crossed random effects: Searle,
    Casella and McCulloch, "Variance components", 1992, https://doi.org/10.1002/9780470316856).

    Args:
        values: One value per run (training seed) and datum, with shape (S, N).

    Returns:
        The mean and its standard error, in the unit of values. For one run, the error is that over data.

    Raises:
        ValueError: If values is empty.

    Example:
        >>> import torch
        >>> crossed_mean_and_std_error(torch.tensor([[1.0, 3.0], [1.0, 3.0]]))
        (2.0, 1.0)
    """
    mean, over_data = mean_and_std_error(values.double().mean(0))
    if len(values) == 1:
        return mean, over_data
    _, over_runs = mean_and_std_error(values.double().mean(1))
    return mean, math.hypot(over_data, over_runs)


def clustered_mean_and_std_error(values: Tensor, cluster: Tensor, weights: Tensor | None = None) -> tuple[float, float]:
    """Compute the mean over data and its standard error over K clusters, such as the folds of cross-validation.

        m = sum_n w_n v_n / sum_n w_n,  error^2 = K / (K - 1) sum_k (sum_{n in k} w_n (v_n - m))^2 / (sum_n w_n)^2,

    the linearised error of a ratio of cluster totals (as in `mean_and_std_error`, with clusters for data). For clusters
    of one size and no weights it is sd(cluster means) / sqrt(K). Data of one cluster may depend on each other in any
    way. With K folds of n / K data, whose values have the covariance gamma across folds, the expectation of error^2 is
    the variance of the mean less gamma: the mean over folds of n / K data has the variance V / K + (1 - 1 / K) gamma,
    with V that of a fold's mean, and the expectation of the sample variance of these means is V - gamma. No unbiased
    estimator of the variance exists (Bengio and Grandvalet, "No unbiased estimator of the variance of K-fold
    cross-validation", 2004, https://www.jmlr.org/papers/v5/grandvalet04a.html).

    Args:
        values: One value per datum, with shape (N,).
        cluster: Number of each datum's cluster, with shape (N,), int64.
        weights: Case weights, not negative, with shape (N,); None for 1.

    Returns:
        The mean and its standard error, in the unit of values. The error is NaN for a single cluster.

    Raises:
        ValueError: If values is empty, or cluster or weights do not fit it.

    Example:
        >>> import torch
        >>> mean, error = clustered_mean_and_std_error(torch.tensor([1.0, 1.0, 3.0, 3.0]), torch.tensor([0, 0, 1, 1]))
        >>> mean, round(error, 6)
        (2.0, 1.0)
    """
    _check_not_empty(values, "values")
    if tuple(cluster.shape) != (len(values),):
        raise ValueError(f"cluster must have shape ({len(values)},), one for each datum, got {tuple(cluster.shape)}")
    v = values.detach().double().flatten()
    kept = torch.ones_like(v, dtype=torch.bool) if weights is None else weights.to(v.device) > 0
    v, share = _weighed(v, torch.ones_like(v) if weights is None else weights)
    mean = (share * v).sum()
    _, place = cluster.to(v.device)[kept].unique(return_inverse=True)
    totals = v.new_zeros(int(place.max()) + 1).index_add(0, place, share * (v - mean))
    count = len(totals)
    error = math.nan if count == 1 else totals.square().sum().sqrt().item() * math.sqrt(count / (count - 1))
    return mean.item(), error


def monte_carlo_std_error(std_error: Tensor, weights: Tensor | None = None) -> float:
    """Compute the Monte Carlo error of the mean over data, sqrt(sum_n s_n^2) / N.

    The errors of different data are independent, since each datum has its own particles. With case weights the error is
    sqrt(sum_n w_n^2 s_n^2) / sum_n w_n.

    Args:
        std_error: Monte Carlo standard error of each value, with shape (N,), such as `LogMarginal.std_error`.
        weights: Case weights, not negative, with shape (N,); None for 1.

    Returns:
        The standard error of the mean, in the unit of std_error.

    Raises:
        ValueError: If std_error is empty, or the weights are no case weights of these values.

    Example:
        >>> import torch
        >>> monte_carlo_std_error(torch.tensor([3.0, 4.0]))
        2.5
    """
    _check_not_empty(std_error, "std_error")
    if weights is not None:
        s, share = _weighed(std_error.detach().double().flatten(), weights)
        return (share * s).square().sum().sqrt().item()
    return std_error.detach().double().square().sum().sqrt().item() / std_error.numel()


def bits_per_dim(log_p: TensorOrFloat, num_dims: int) -> TensorOrFloat:
    """Compute bits per dimension, -log p / (D ln 2).

    Lower is better. The literature on images reports the probability of integers 0..255. For a density of pixels
    divided by 256, add log2(256) = 8 (Theis, van den Oord and Bethge, "A note on the evaluation of generative models",
    2016, https://arxiv.org/abs/1511.01844).

    Args:
        log_p: Log probability in nats, a number or a tensor of any shape.
        num_dims: Dimension D of one datum, such as 784.

    Returns:
        The bits per dimension, with the shape of log_p; float64 if it is a tensor.

    Raises:
        ValueError: If num_dims is below 1.

    Example:
        >>> bits_per_dim(-784 * math.log(2), 784)
        1.0
    """
    if num_dims < 1:
        raise ValueError(f"num_dims must be at least 1, got {num_dims}; give the dimension of one datum")
    if isinstance(log_p, Tensor):
        log_p = log_p.double()
    return -log_p / (num_dims * math.log(2))


def effective_sample_size_of_weights(weights: Tensor) -> float:
    """Compute the number of equally weighted data whose mean has the same variance, (sum_n w_n)^2 / sum_n w_n^2.

    Kish, "Survey sampling" (1965), section 11.7. The variance is that of values that do not depend on the weights.

    Args:
        weights: Case weights, not negative, with shape (N,).

    Raises:
        ValueError: If they are no case weights.

    Example:
        >>> import torch
        >>> effective_sample_size_of_weights(torch.tensor([3.0, 1.0, 0.0]))
        1.6
    """
    _, share = _weighed(weights, weights)
    return 1 / share.square().sum().item()


def check_case_weights(weights: Tensor, size: int) -> None:
    """Check that there is a weight for each datum, none is negative or not finite, and their sum is positive.

    Args:
        weights: Case weights.
        size: Number of data N.

    Raises:
        ValueError: If there is not, or one is.
    """
    if tuple(weights.shape) != (size,):
        raise ValueError(f"weights must have shape ({size},), one for each datum, got {tuple(weights.shape)}")
    if not bool((weights.isfinite() & (weights >= 0)).all() & (weights.sum() > 0)):
        raise ValueError("weights must be finite and not negative, with a positive sum; look for missing weights")


def _weighed(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of positive weight, and the share of each in the sum of weights, both float64."""
    check_case_weights(weights, len(values))
    w = weights.detach().to(values.device, torch.float64)
    return values[w > 0], w[w > 0] / w.sum()


def _check_not_empty(values: Tensor, name: str) -> None:
    """Raise ValueError if values is empty."""
    if values.numel() == 0:
        raise ValueError(f"{name} must have shape (N,) with N >= 1, got {tuple(values.shape)}; give at least one datum")
