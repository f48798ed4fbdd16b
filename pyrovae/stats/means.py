"""Means over data, their standard errors, and bits per dimension."""

import math
from typing import TypeVar

from torch import Tensor

TensorOrFloat = TypeVar("TensorOrFloat", Tensor, float)


def mean_and_std_error(values: Tensor) -> tuple[float, float]:
    """Compute the mean over data and its standard error over data, sd(v) / sqrt(N).

    The error describes the variation of the mean over samples of N data, not the Monte Carlo error of the values; for
    that see `monte_carlo_std_error`.

    Args:
        values: One value per datum, with shape (N,).

    Returns:
        The mean and its standard error, in the unit of values. The error is NaN if it is undefined, that is for N = 1
        or if a value is infinite.

    Raises:
        ValueError: If values is empty.

    Example:
        >>> import torch
        >>> mean_and_std_error(torch.tensor([1.0, 3.0]))
        (2.0, 1.0)
    """
    _check_not_empty(values, "values")
    v = values.detach().double().flatten()
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


def monte_carlo_std_error(std_error: Tensor) -> float:
    """Compute the Monte Carlo error of the mean over data, sqrt(sum_n s_n^2) / N.

    The errors of different data are independent, since each datum has its own particles.

    Args:
        std_error: Monte Carlo standard error of each value, with shape (N,), such as `LogMarginal.std_error`.

    Returns:
        The standard error of the mean, in the unit of std_error.

    Raises:
        ValueError: If std_error is empty.

    Example:
        >>> import torch
        >>> monte_carlo_std_error(torch.tensor([3.0, 4.0]))
        2.5
    """
    _check_not_empty(std_error, "std_error")
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


def _check_not_empty(values: Tensor, name: str) -> None:
    """Raise ValueError if values is empty."""
    if values.numel() == 0:
        raise ValueError(f"{name} must have shape (N,) with N >= 1, got {tuple(values.shape)}; give at least one datum")
