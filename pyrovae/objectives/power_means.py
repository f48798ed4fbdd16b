"""Means of log weights over draws, with their derivatives, and their leave-one-out versions."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Mean(NamedTuple):
    """A mean L of K log weights, and its derivatives.

    Attributes:
        value: L, with shape (N,).
        gradient: dL/dlog w_k, with shape (K, N).
        curvature: d^2L/d(log w_k)^2, with shape (K, N); None if the mean has kinks.
    """

    value: Tensor
    gradient: Tensor
    curvature: Tensor | None


def power_mean(log_w: Tensor, order: float = 1.0) -> Mean:
    """Compute the log of the power mean of weights, 1/order log 1/K sum_k w_k^order, for each datum.

    Order 1 gives the log of the mean, order 0 the mean of the logs, orders inf and -inf the largest and smallest log w.

    Args:
        log_w: Log weights in nats, with shape (K, ...).
        order: Power of the weights.

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
    """Compute the power mean with log w_k replaced by the mean of the other log weights, for each k.

    It is VIMCO's leave-one-out baseline, independent of draw k (Mnih, Rezende, "Variational inference for Monte Carlo
    objectives", ICML 2016, https://arxiv.org/abs/1602.06725, eq. 10). The cost is O(K). Nothing is subtracted from a
    total, so nothing cancels.

    Args:
        log_w: Log weights in nats, with shape (K, ...).
        order: Power of the weights.

    Returns:
        Power means, with the shape of `log_w`.
    """
    draws = len(log_w)
    stand_in = _combine_others(log_w, torch.cumsum, 0.0, torch.add) / (draws - 1)
    if order == 0:
        return (_combine_others(log_w, torch.cumsum, 0.0, torch.add) + stand_in) / draws
    if math.isinf(order):
        sign = math.copysign(1.0, order)
        others = _combine_others(sign * log_w, _cummax, -torch.inf, torch.maximum)
        return sign * torch.maximum(others, sign * stand_in)
    others = _combine_others(order * log_w, torch.logcumsumexp, -torch.inf, torch.logaddexp)
    return (torch.logaddexp(others, order * stand_in) - math.log(draws)) / order


def mean_of_groups(log_w: Tensor, num_groups: int) -> Mean:
    """Average over M groups the log of each group's mean weight.

    Args:
        log_w: Log weights in nats, with shape (M K, N), group by group.
        num_groups: Number of groups M.
    """
    value, gradient, curvature = power_mean(_grouped(log_w, num_groups))
    assert curvature is not None
    return Mean(value.mean(0), _ungrouped(gradient) / num_groups, _ungrouped(curvature) / num_groups)


def without_each_in_groups(log_w: Tensor, num_groups: int) -> Tensor:
    """Compute the mean of groups with log w_k replaced by the mean of the other log weights of its group, for each k.

    Args:
        log_w: Log weights in nats, with shape (M K, N), group by group.
        num_groups: Number of groups M.

    Returns:
        Means of all groups, with shape (M K, N).
    """
    grouped = _grouped(log_w, num_groups)
    within = power_mean(grouped).value
    return _ungrouped(within.mean(0) + (without_each(grouped) - within) / num_groups)


def _grouped(log_w: Tensor, num_groups: int) -> Tensor:
    """Reshape (M K, N) to (K, M, N)."""
    return log_w.reshape(num_groups, -1, *log_w.shape[1:]).transpose(0, 1)


def _ungrouped(values: Tensor) -> Tensor:
    """Reshape (K, M, N) to (M K, N)."""
    return values.transpose(0, 1).flatten(0, 1)


def _combine_others(log_w: Tensor, accumulate: Any, neutral: float, combine: Any) -> Tensor:
    """Combine, for each k, all entries but the k-th, from the accumulated entries before it and after it.

    Args:
        log_w: Log weights, with shape (K, ...).
        accumulate: Cumulative version of `combine`.
        neutral: Neutral element of `combine`.
        combine: Associative function of two tensors.
    """
    edge = torch.full_like(log_w[:1], neutral)
    before = torch.cat([edge, accumulate(log_w, 0)[:-1]])
    after = torch.cat([accumulate(log_w.flip(0), 0)[:-1].flip(0), edge])
    return combine(before, after)


def _cummax(x: Tensor, dim: int) -> Tensor:
    return x.cummax(dim).values
