"""Means of log weights over draws, with the derivatives that the gradients of bounds are made of."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Mean(NamedTuple):
    """A mean L of log weights over K, and its derivatives.

    Attributes:
        value: L, with shape (N,).
        weights: dL/dlog w_k, with shape (K, N).
        slopes: dL^2/d(log w_k)^2, with shape (K, N); None where the mean has kinks.
    """

    value: Tensor
    weights: Tensor
    slopes: Tensor | None


def power_mean(log_w: Tensor, order: float = 1.0) -> Mean:
    """The log of the power mean of weights, 1/order log 1/K sum_k w_k^order, for each datum.

    Order 1 is the log of the mean, 0 the mean of the logs, and infinite ones are the largest and the smallest log w.

    Args:
        log_w: Log weights in nats, with shape (K, ...).
        order: The power.

    Example:
        >>> [round(power_mean(torch.tensor([0.0, 2.0]), order).value.item(), 3) for order in (-1.0, 0.0, 1.0, 1e9)]
        [0.566, 1.0, 1.434, 2.0]
    """
    if math.isinf(order):
        value, index = log_w.max(0, keepdim=True) if order > 0 else log_w.min(0, keepdim=True)
        return Mean(value[0], torch.zeros_like(log_w).scatter(0, index, 1.0), None)
    if order == 0:
        return Mean(log_w.mean(0), torch.full_like(log_w, 1 / len(log_w)), torch.zeros_like(log_w))
    powers = order * log_w
    weights = powers.softmax(0)
    value = (powers.logsumexp(0) - math.log(len(log_w))) / order
    return Mean(value, weights, order * weights * (1 - weights))


def without_each(log_w: Tensor, order: float = 1.0) -> Tensor:
    """The power mean with log w_k replaced by the mean of the others, for each k in turn, with shape (K, ...).

    What VIMCO compares the value with: it knows nothing of draw k (Mnih, Rezende, "Variational inference for Monte
    Carlo objectives", ICML 2016, https://arxiv.org/abs/1602.06725, eq. 10). In O(K), and without the cancellation of a
    difference from the total.
    """
    draws = len(log_w)
    stand_in = _of_others(log_w, torch.cumsum, 0.0, torch.add) / (draws - 1)
    if order == 0:
        return (_of_others(log_w, torch.cumsum, 0.0, torch.add) + stand_in) / draws
    if math.isinf(order):
        sign = math.copysign(1.0, order)
        others = _of_others(sign * log_w, _cummax, -torch.inf, torch.maximum)
        return sign * torch.maximum(others, sign * stand_in)
    others = _of_others(order * log_w, torch.logcumsumexp, -torch.inf, torch.logaddexp)
    return (torch.logaddexp(others, order * stand_in) - math.log(draws)) / order


def mean_of_groups(log_w: Tensor, num_groups: int) -> Mean:
    """The mean over M groups of the log of the mean weight within each.

    Args:
        log_w: Log weights in nats, with shape (M K, N), group by group.
        num_groups: M.
    """
    value, weights, slopes = power_mean(_grouped(log_w, num_groups))
    assert slopes is not None
    return Mean(value.mean(0), _ungrouped(weights) / num_groups, _ungrouped(slopes) / num_groups)


def without_each_in_groups(log_w: Tensor, num_groups: int) -> Tensor:
    """The mean over groups, with each draw left out of its own, with shape (M K, N)."""
    grouped = _grouped(log_w, num_groups)
    within = power_mean(grouped).value
    return _ungrouped(within.mean(0) + (without_each(grouped) - within) / num_groups)


def _grouped(log_w: Tensor, num_groups: int) -> Tensor:
    """From shape (M K, N) to (K, M, N)."""
    return log_w.reshape(num_groups, -1, *log_w.shape[1:]).transpose(0, 1)


def _ungrouped(values: Tensor) -> Tensor:
    """From shape (K, M, N) to (M K, N)."""
    return values.transpose(0, 1).flatten(0, 1)


def _of_others(log_w: Tensor, accumulate: Any, nothing: float, join: Any) -> Tensor:
    """For each k, all entries but the k-th joined, without ever taking one out of the whole."""
    edge = torch.full_like(log_w[:1], nothing)
    before = torch.cat([edge, accumulate(log_w, 0)[:-1]])
    after = torch.cat([accumulate(log_w.flip(0), 0)[:-1].flip(0), edge])
    return join(before, after)


def _cummax(x: Tensor, dim: int) -> Tensor:
    return x.cummax(dim).values
