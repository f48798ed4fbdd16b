"""Functions that end in log(1 + e^x), whose logarithm takes Inductor half of their time or more."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

JOINED = 16  # factors between 1 and 2 of which one logarithm is taken
_FLAT = 20  # from which softplus is its argument to a rounding of single precision
# Terms of the series of the logarithm up to rounding.
_TERMS = {torch.float32: 7, torch.float64: 16}


def is_slow(x: Tensor) -> bool:
    """Return whether torch's functions of these numbers are slower than those here."""
    return x.dtype in _TERMS and x.device.type == "cpu"


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """Compute log(1 + exp(x)) like `torch.nn.functional.softplus`, also above the threshold.

    Args:
        x: Real numbers. Torch's own function computes all but single and double precision on a processor.
        beta: Factor of the argument. Torch's own function computes all but 1.
        threshold: Number from which torch's own function returns x. It computes all with a threshold below 20.
    """
    if not is_slow(x) or beta != 1 or threshold < _FLAT:
        return functional.softplus(x, beta, threshold)
    return x.clamp(min=0) + _log1p((-x.abs()).exp())


def log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute log 1 / (1 + exp(-x)), and exp(-|x|), which the derivative of torch's function uses."""
    if not is_slow(x):
        output, buffer = torch.ops.aten.log_sigmoid_forward.default(x)
        return output, buffer
    power = (-x.abs()).exp()
    return x.clamp(max=0) - _log1p(power), power


def logaddexp(one: Tensor, other: Tensor) -> Tensor:
    """Compute log(exp(a) + exp(b)) like `torch.logaddexp`."""
    if not is_slow(one) or one.dtype != other.dtype:
        return torch.logaddexp(one, other)
    total = torch.maximum(one, other) + _log1p((-(one - other).abs()).exp())
    return torch.where(one == other, one + math.log(2), total)  # infinities differ by NaN


def binary_cross_entropy_with_logits(logits: Tensor, x: Tensor, *options: Any) -> Tensor:
    """Compute the negative log density of Bernoulli variables like `torch.nn.functional`'s function of this name.

    Args:
        logits: Logits, with shape (..., D).
        x: Values, with the shape of the logits.
        *options: Weights and reduction, as ATen takes them. Torch's own function computes all with weights or a
            reduction.
    """
    if not is_slow(logits) or logits.dtype != x.dtype or list(options) != [None, None, 0]:
        return torch.ops.aten.binary_cross_entropy_with_logits.default(logits, x, *options)
    return (1 - x) * logits - logits.clamp(max=0) + _log1p((-logits.abs()).exp())


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Compute the log density of independent Bernoulli variables, without a gradient.

    log p = -sum_d [(1 - x_d) l_d - min(l_d, 0)] - sum_d log(1 + exp(-|l_d|)). Sixteen factors of the last sum, which
    lie between 1 and 2, are multiplied before their logarithm is taken. The absolute error is up to D/2 roundings of 1:
    a factor nearer to 1 than a rounding counts as 1.

    Args:
        logits: Logits l, with shape (..., D).
        x: Values x, with the shape of the logits.

    Returns:
        Log densities, with shape (...).
    """
    linear = (1 - x) * logits - logits.clamp(max=0)
    factors = 1 + (-logits.abs()).exp()
    whole = factors.shape[-1] // JOINED * JOINED
    joined = factors[..., :whole].unflatten(-1, (-1, JOINED)).prod(-1)
    logs = joined.log().sum(-1)
    if whole < factors.shape[-1]:
        logs = logs + factors[..., whole:].log().sum(-1)
    return -linear.sum(-1) - logs


def _log1p(t: Tensor) -> Tensor:
    """Compute log(1 + t) for 0 <= t <= 1, as 2 artanh(s) of s = t / (2 + t) <= 1/3, by its series (DLMF 4.38.2)."""
    s = t / (2 + t)
    square = s * s
    total: Any = 1 / (2 * _TERMS[t.dtype] - 1)
    for odd in range(2 * _TERMS[t.dtype] - 3, 0, -2):
        total = total * square + 1 / odd
    return 2 * s * total
