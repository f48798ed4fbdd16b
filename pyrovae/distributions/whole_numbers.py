"""Constraints of counts: whole numbers that the dtype of their tensor tells apart."""

import torch
from pyro.distributions import constraints
from torch import Tensor


class WholeNumbers(constraints.Constraint):
    """Constraint: whole numbers from 0 to the largest whose successor the dtype still holds, 2^24 in single precision.

    Args:
        lower_bound: Smallest number.
    """

    is_discrete = True

    def __init__(self, lower_bound: int = 0) -> None:
        self.lower_bound = lower_bound

    def check(self, value: Tensor) -> Tensor:
        """Return whether each value is such a number."""
        return (value % 1 == 0) & (value >= self.lower_bound) & (value <= largest_whole_number(value))

    def hint(self, worst: Tensor) -> str | None:
        """Say what to do about a number that is too large for its dtype."""
        largest = largest_whole_number(worst)
        if not bool((worst > largest).any()):
            return None
        return (
            f"{str(worst.dtype).removeprefix('torch.')} tells whole numbers apart only up to {largest:,.0f}; give "
            "model and data in double precision (model.double(), x.double()), or smaller units"
        )


class WholeNumbersTo(WholeNumbers):
    """Constraint: whole numbers from 0 to upper_bound, and to the largest of the dtype, as `WholeNumbers`."""

    def __init__(self, upper_bound: int) -> None:
        super().__init__()
        self.upper_bound = upper_bound

    def check(self, value: Tensor) -> Tensor:
        """Return whether each value is such a number."""
        return super().check(value) & (value <= self.upper_bound)

    def __repr__(self) -> str:
        return f"whole numbers from 0 to {self.upper_bound}"


class CountsWithSum(WholeNumbers):
    """Constraint: vectors of non-negative integers whose sum is total_count."""

    event_dim = 1

    def __init__(self, total_count: int) -> None:
        super().__init__()
        self.total_count = total_count

    def check(self, value: Tensor) -> Tensor:
        """Return whether each vector has such entries and this sum."""
        return super().check(value).all(-1) & (value.double().sum(-1) == self.total_count)

    def __repr__(self) -> str:
        return f"non-negative integers that sum to {self.total_count}"


def largest_whole_number(value: Tensor) -> float:
    """Return the largest n for which the dtype of a tensor holds all whole numbers up to n: 2^24 for float32."""
    return 2 / torch.finfo(value.dtype).eps if value.is_floating_point() else float(torch.iinfo(value.dtype).max)
