"""Logarithms of factorials and of ratios of gamma functions, where torch's lgamma is slower or less accurate."""

import math

import torch
from torch import Tensor

_HALF_LOG_2_PI = math.log(2 * math.pi) / 2
_NUM_TABULATED = 1024
# Of log Gamma(y + 1/2) - log Gamma(y) - log(y)/2 in 1/y, 1/y^3, ..., with an error below 3e-10 from y = 4 on.
_HALF_STEP = (-1 / 8, 1 / 192, -1 / 640, 17 / 14336, -31 / 18432, 691 / 180224)

# y (log k! - [y log y - y + log(2 pi)/2]) with y = k + 1/2, which tends to -1/24. See `log_factorial`.
_HALVES = torch.arange(_NUM_TABULATED, dtype=torch.float64) + 0.5
_TABLE = _HALVES * (torch.lgamma(_HALVES + 0.5) - (_HALVES * _HALVES.log() - _HALVES + _HALF_LOG_2_PI))
_tables: dict[torch.device, Tensor] = {_TABLE.device: _TABLE}


@torch.no_grad()
def log_factorial(count: Tensor) -> Tensor:
    """Compute log k! in float64, without a gradient, for whole numbers k of any dtype.

        log k! = y log y - y + log(2 pi)/2 + c(k)/y,  y = k + 1/2,  c(k) = -1/24 + 7/(2880 y^2) - ...

    c(k) comes from a table of k = 0..1023, whose last entry serves larger k with an error below 1e-12 nats. Stirling's
    series about k + 1/2 has these terms (Luke 1969, "The special functions and their approximations", section 2.11). A
    table and one logarithm take half the time of torch's lgamma in float64.

    Args:
        count: Counts k. The result is NaN where k is NaN.
    """
    if count.device not in _tables:
        _tables[count.device] = _TABLE.to(count.device)
    y = count.double() + 0.5
    # 32 bits, of which a processor clamps several at once; beyond them any row serves, since its share vanishes. In
    # place, since fresh memory costs more than the arithmetic.
    rows = count.int().clamp_(0, _NUM_TABULATED - 1)
    correction = _tables[count.device].index_select(0, rows.flatten()).view_as(rows)
    return y.log().sub_(1).mul_(y).add_(correction.div_(y)).add_(_HALF_LOG_2_PI)


def log_binomial(total_count: int, count: Tensor) -> Tensor:
    """Compute log C(n, k) in float64, without a gradient.

    Args:
        total_count: Number of trials n.
        count: Counts k.
    """
    ways: Tensor = math.lgamma(total_count + 1) - log_factorial(count) - log_factorial(total_count - count)
    return ways


def log_gamma_half_step(x: Tensor) -> Tensor:
    """Compute log Gamma(x + 1/2) - log Gamma(x) for x > 0 in the dtype of x, error 3e-10 nats or rounding.

        log Gamma(y + 1/2) - log Gamma(y) = log(y)/2 - 1/(8 y) + 1/(192 y^3) - 1/(640 y^5) + ...

    at y = x + 4, and a product for the step to y (Luke 1969, "The special functions and their approximations", section
    2.11). No large terms cancel, as they do between two values of lgamma, so the dtype of x is enough.

    Args:
        x: Positive numbers.
    """
    y = x + 4
    steps = [(x + place) / (x + (place + 0.5)) for place in range(4)]
    product = (steps[0] * steps[1]) * (steps[2] * steps[3])
    inverse = y.reciprocal()
    square = inverse * inverse
    series: Tensor = square * _HALF_STEP[-1]
    for factor in _HALF_STEP[-2:0:-1]:
        series = (series + factor) * square
    return (y.sqrt() * product).log() + (series + _HALF_STEP[0]) * inverse


def result_type(*tensors: Tensor) -> torch.dtype:
    """Return the floating dtype of a density of these parameters and values."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype if dtype.is_floating_point else torch.get_default_dtype()
