"""The step of the grid on which values lie."""

import torch
from torch import Tensor

_STEPS = [float(f"{step}e{power}") for power in range(9, -10, -1) for step in (5, 2.5, 2, 1)]
_MOST_STEPS = 2**23  # between 0 and a value that float32 tells apart
_ERRORS = 4  # of a value that was computed in float64, at most
_FEWEST_ERRORS = 64  # in a step; with fewer, a few values may lie on the grid by chance


def grid_of(values: Tensor, error: float = 0.0) -> float | None:
    """Find the largest usual step, 1, 2, 2.5 or 5 times a power of ten, of which all values are multiples.

    Args:
        values: Finite values of any shape, float32 or float64.
        error: Rounding error of one operation on the values; four of them are allowed for.

    Returns:
        The step; None if no step fits, or if it is too fine for the rounding errors or for float32.
    """
    x, eps = values.double(), torch.finfo(values.dtype).eps
    largest = x.abs().max().item()
    tolerance = _ERRORS * error + 1.01 * eps * x.abs()
    for step in _STEPS:
        is_known = step <= largest <= _MOST_STEPS * step and step > _FEWEST_ERRORS * (_ERRORS * error + eps * largest)
        if is_known and bool(((x - (x / step).round() * step).abs() <= tolerance).all()):
            return step
    return None
