"""Numbers of any unit as text."""

import math
from typing import SupportsFloat

_SMALLEST, _LARGEST = 1e-4, 1e7


def in_digits(value: SupportsFloat, digits: int) -> str:
    """Write a number with some significant digits, and without an exponent from 0.0001 up to ten million.

    Args:
        value: The number.
        digits: Number of significant digits.

    Example:
        >>> in_digits(1489.6, 3), in_digits(0.012345, 2), in_digits(2e9, 2)
        ('1490', '0.012', '2e+09')
    """
    number = float(value)
    text = f"{number:.{digits}g}"
    if "e" not in text or not math.isfinite(number) or not _SMALLEST <= abs(number) < _LARGEST:
        return text
    return f"{float(text):.0f}"
