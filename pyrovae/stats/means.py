"""Numbers computed from log weights: log marginals, their errors, and the diagnostics of both.

Functions of log weights reduce over dim 0, the K particles, and keep every other dim, the data.
They compute and return float64 whatever the dtype that comes in. The caller averages over data.
"""

import math
from typing import TypeVar

from torch import Tensor

TensorOrFloat = TypeVar("TensorOrFloat", Tensor, float)


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
        >>> import torch
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
