"""Comparison of a model with its baselines, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

_LIMIT = 2.0  # standard errors beyond which two means differ


class Comparison(NamedTuple):
    """Baselines of a model.

    Attributes:
        rows: Summary of each baseline by name, rows of the table.
        words: What the paired differences say, one sentence a line.
        differences: Mean of log p(x) of the model less that of each baseline over the same data, and its standard
            error, in nats per datum, by name.
    """

    rows: dict[str, dict[str, Any]]
    words: str
    differences: dict[str, tuple[float, float]]


def compare_with_baselines(
    log_p: Tensor, baselines: Mapping[str, Tensor], *, weights: Tensor | None = None, limit: float = _LIMIT
) -> str:
    """Say which baselines have a higher mean of log p(x) than a model, with the paired difference and its error.

    The standard error is that of the mean of log p(x_n) - log b(x_n) over data, which is smaller than that of either
    mean. If the model is above all baselines, the best of them is named.

    Args:
        log_p: Values log p(x) of the model in nats, with shape (N,).
        baselines: Values log b(x) of each baseline by name, for the same data, each with shape (N,).
        weights: Case weights, with shape (N,); None for equal ones.
        limit: Number of standard errors beyond which the model differs from a baseline.

    Returns:
        One sentence a line; "" if there are no baselines.

    Raises:
        ValueError: If the values have different shapes, or there are none.

    Example:
        >>> log_p = torch.tensor([-3.0, -4.0, -5.0, -4.0])
        >>> print(compare_with_baselines(log_p, {"a normal": torch.tensor([-2.0, -2.9, -4.1, -3.0])}))
        the model is BELOW its baseline "a normal" by 1.00 +- 0.04 nats per datum
    """
    if log_p.dim() != 1 or len(log_p) == 0:
        raise ValueError(f"log_p must have shape (N,) with N >= 1, got {tuple(log_p.shape)}")
    found = []
    for name, values in baselines.items():
        if values.shape != log_p.shape:
            raise ValueError(f"baseline {name!r} must have shape {tuple(log_p.shape)}, got {tuple(values.shape)}")
        mean, error = paired_difference(log_p, values, weights)
        found.append((mean, error, name))
    lines = []
    for mean, error, name in sorted(found):
        if mean < 0 and not mean >= -limit * error and not math.isnan(error):
            lines.append(f'the model is BELOW its baseline "{name}" by {_size(mean, error)}')
        elif not abs(mean) > limit * error:
            lines.append(f'the model does not differ from its baseline "{name}": {_size(mean, error, sign=True)}')
    if found and not lines:
        mean, error, name = min(found)
        lines.append(f'the model is above its baselines, and above the best of them, "{name}", by {_size(mean, error)}')
    return "\n".join(lines)


def paired_difference(log_p: Tensor, values: Tensor, weights: Tensor | None = None) -> tuple[float, float]:
    """Compute the mean of log p(x_n) - log b(x_n) over data, and its standard error, in nats.

    Args:
        log_p: Values log p(x) of the model, with shape (N,).
        values: Values log b(x) of a baseline for the same data, with shape (N,).
        weights: Case weights, with shape (N,); None for equal ones.

    Returns:
        The mean, and its error: 0 if the mean is infinite, NaN for one datum. Data of weight 0 do not count.
    """
    one, other = log_p.detach().cpu().double(), values.detach().cpu().double()
    difference = torch.where(one == other, 0.0, one - other)  # -inf on both sides is no difference
    w = torch.ones_like(difference) if weights is None else weights.detach().cpu().double()
    difference, w = difference[w > 0], w[w > 0]
    mean = float((w * difference).sum() / w.sum())
    if math.isinf(mean):
        return mean, 0.0
    if len(difference) == 1:
        return mean, math.nan
    correction = len(difference) / (len(difference) - 1)
    error = float((correction * (w * (difference - mean)).square().sum()).sqrt() / w.sum())
    return mean, error


def _size(mean: float, error: float, *, sign: bool = False) -> str:
    number = f"{mean:+.2f}" if sign else f"{abs(mean):.2f}"
    return f"{number} nats per datum" if math.isnan(error) or error == 0 else f"{number} +- {error:.2f} nats per datum"
