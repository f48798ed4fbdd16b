"""Functions that Inductor computes slowly, of operations that it vectorises.

It calls torch's gamma functions entry by entry. The logarithms of a Bernoulli take half of the time of its log density.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

_ATEN = torch.ops.aten
_JOINED = 16  # factors between 1 and 2 of which one logarithm is taken
_SERIES_FROM = 8
_CONSTANT = (math.log(2 * math.pi) - 1) / 2
# B_2n/(2n(2n-1)) and B_2n/(2n), of Stirling's series of log Gamma and of its derivative.
_LOG_GAMMA = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_DIGAMMA = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12)
# Taylor's series of sin(pi t)/t and of cos(pi t) in t^2, enough for |t| <= 1/2: a third of the time of sin and cos,
# which care for large arguments.
_SINE = tuple((-1) ** k * math.pi ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(11))
_COSINE = tuple((-1) ** k * math.pi ** (2 * k) / math.factorial(2 * k) for k in range(12))


def with_fast_functions(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a graph that computes by the functions of this module.

    Args:
        graph: Graph of ATen operations, as recorded by make_fx.
    """
    return _WithFastFunctions(graph).transform()


class _WithFastFunctions(fx.Transformer):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.garbage_collect_values = False  # a sum is computed from what its terms are of

    def run_node(self, n: fx.Node) -> Any:
        of_bernoulli = _logits_and_bits(n)
        if of_bernoulli is None:
            return super().run_node(n)
        return super().call_function(bernoulli_log_prob, tuple(self.env[node] for node in of_bernoulli), {})

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(_PLAIN.get(target, target), args, kwargs)


def _logits_and_bits(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Find logits and bits if a node sums log densities of Bernoulli variables over the last dimension."""
    if node.target is not _ATEN.sum.dim_IntList or list(node.args[1:]) != [[-1]] or node.kwargs:
        return None
    negative: Any = node.args[0]
    if negative.target is not _ATEN.neg.default or len(negative.users) > 1:
        return None
    entries = negative.args[0]
    if entries.target is not _ATEN.binary_cross_entropy_with_logits.default or len(entries.users) > 1:
        return None
    logits, bits, *options = entries.args
    value = logits.meta.get("val")
    if options not in ([], [None, None, 0]) or entries.kwargs or not isinstance(value, Tensor):
        return None
    fits = value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64) and value.shape[-1] >= _JOINED
    return (logits, bits) if fits else None


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Compute the log density of independent Bernoulli variables, without a gradient, up to rounding.

    log p = -sum_d [(1 - x_d) l_d - min(l_d, 0)] - sum_d log(1 + exp(-|l_d|)). Sixteen factors of the last sum, which
    lie between 1 and 2, are multiplied before their logarithm is taken.

    Args:
        logits: Logits l, with shape (..., D).
        x: Values x, with the shape of the logits.

    Returns:
        Log densities, with shape (...).
    """
    linear = (1 - x) * logits - logits.clamp(max=0)
    factors = 1 + (-logits.abs()).exp()
    whole = factors.shape[-1] // _JOINED * _JOINED
    joined = factors[..., :whole].unflatten(-1, (-1, _JOINED)).prod(-1)
    logs = joined.log().sum(-1)
    if whole < factors.shape[-1]:
        logs = logs + factors[..., whole:].log().sum(-1)
    return -linear.sum(-1) - logs


def log_gamma(x: Tensor) -> Tensor:
    """Compute log |Gamma(x)| like `torch.lgamma`, without a gradient, with an error of a few roundings.

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
    return torch.where(reflected, -stirling, stirling) + factor.log()


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
    return of_positive - torch.where(shifted, slope / product, 0.0) - torch.where(reflected, math.pi * cotangent, 0.0)


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


_PLAIN = {_ATEN.lgamma.default: log_gamma, _ATEN.digamma.default: digamma}
