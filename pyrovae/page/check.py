"""Result of one check of a fit."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pyrovae.page.fit import Fit

Subject = Literal["model", "guide", "number"]

P_VALUE = "(p-value)"
"""Unit of p-values."""


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: Name of what is checked, a few words.
        fault: Name of the fault if the check fails, a few words.
        subject: What it is about: the "model", the "guide", or the "number" log p(x).
        value: Measured value; None if there is none.
        error: Standard error of the value; None if it has none.
        unit: Unit of value and limit, such as "nats".
        threshold: Limit in words, such as "at most 0.01".
        passed: Whether the value keeps the limit; None if it was not measured.
        sentence: What was found, in a sentence without a full stop.
        advice: What to try if the check fails.
    """

    name: str
    fault: str
    subject: Subject
    value: float | None
    error: float | None
    unit: str
    threshold: str
    passed: bool | None
    sentence: str
    advice: str

    @property
    def state(self) -> str:
        """State in one word: "passed", "warning" or "not measured"."""
        return {True: "passed", False: "warning", None: "not measured"}[self.passed]

    @property
    def measured(self) -> str:
        """Value with error and unit, or a dash."""
        if self.value is None or not math.isfinite(self.value):
            return "-"
        if self.unit == P_VALUE:
            return f"p = {self.value:.2g}" if self.value >= 1e-4 else "p < 0.0001"
        digits = 0 if self.value == int(self.value) and self.error is None else 2
        error = "" if self.error is None or not math.isfinite(self.error) else f" ± {self.error:.2f}"
        return f"{self.value:.{digits}f}{error} {self.unit}".rstrip()


CheckFunction = Callable[[Fit], Check]
