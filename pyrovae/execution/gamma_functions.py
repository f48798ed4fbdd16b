"""Gamma functions for Inductor, which calls torch's entry by entry, of operations that it vectorises."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_SERIES_FROM = 8
_CONSTANT = (math.log(2 * math.pi) - 1) / 2
# B_2n/(2n(2n-1)) and B_2n/(2n), of Stirling's series of log Gamma and of its derivative.
_LOG_GAMMA = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_DIGAMMA = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12)
# Taylor's series of sin(pi t)/t and of cos(pi t) in t^2, enough for |t| <= 1/2: a third of the time of sin and cos,
# which care for large arguments.
_SINE = tuple((-1) ** k * math.pi ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(11))
_COSINE = tuple((-1) ** k * math.pi ** (2 * k) / math.factorial(2 * k) for k in range(12))


def log_gamma(x: Tensor) -> Tensor:
    """Compute log |Gamma(x)| like `torch.lgamma`, without a gradient.

    The error is a few roundings of the value, or of 1 where the value is smaller, as beside its zeros at 1 and 2.

    From 8 on by Stirling's series, below by the recurrence to x + 8, and for negative x by reflection (DLMF 5.11.1,
    5.5.1 and 5.5.3).

    Args:
        x: Real numbers. Other than in double precision on a processor, torch's own function computes them.
    """
    if not _is_slow(x):
        return torch.lgamma(x)
    reflected, positive, shifted, y = _to_series(x)
    inverse = y.reciprocal()
    stirling = (y - 0.5) * (y.log() - 1) + _CONSTANT + _polynomial(_LOG_GAMMA, inverse * inverse) * inverse
    product = torch.where(shifted, _product(positive)[0], 1.0)
    fraction = x - x.round()
    sine = (_polynomial(_SINE, fraction * fraction) * fraction).abs()
    factor = torch.where(reflected, product * (math.pi / sine), product.reciprocal())
    return torch.where(x.isinf(), torch.inf, torch.where(reflected, -stirling, stirling) + factor.log())


def digamma(x: Tensor) -> Tensor:
    """Compute the derivative of `log_gamma` like `torch.digamma`, without a gradient (DLMF 5.11.2, 5.5.2 and 5.5.4).

    Args:
        x: Real numbers. Other than in double precision on a processor, torch's own function computes them.
    """
    if not _is_slow(x):
        return torch.digamma(x)
    reflected, positive, shifted, y = _to_series(x)
    inverse = y.reciprocal()
    square = inverse * inverse
    product, slope = _product(positive)
    of_positive = y.log() - inverse * 0.5 - _polynomial(_DIGAMMA, square) * square
    fraction = x - x.round()
    squared = fraction * fraction
    cotangent = _polynomial(_COSINE, squared) / (_polynomial(_SINE, squared) * fraction)
    value = of_positive - torch.where(shifted, slope / product, 0.0) - torch.where(reflected, math.pi * cotangent, 0.0)
    at_poles = torch.where(x == 0, -x.reciprocal(), torch.nan)  # of -0.0 the limit from the left
    return torch.where((x <= 0) & (fraction == 0), at_poles, value)


def _is_slow(x: Tensor) -> bool:
    """Whether the functions here are faster than torch's."""
    return x.dtype == torch.float64 and x.device.type == "cpu"


def _to_series(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return where x is reflected, the positive x or 1 - x, where that is below 8, and the y >= 8 of the series."""
    reflected = x <= 0
    positive = torch.where(reflected, 1 - x, x)
    shifted = positive < _SERIES_FROM
    return reflected, positive, shifted, torch.where(shifted, positive + _SERIES_FROM, positive)


def _product(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x (x + 1) ... (x + 7) and its derivative, by the pairs x (x + 7), (x + 1) (x + 6), ..."""
    pair = x * (x + 7)
    first, second = pair * (pair + 6), (pair + 10) * (pair + 12)
    slope = (2 * pair + 6) * second + first * (2 * pair + 22)
    return first * second, slope * (2 * x + 7)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Return the polynomial of these coefficients, lowest first."""
    total = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = total * x + coefficient
    return total
