"""Distributions of counts: the multinomial with its exact support, and zero inflation."""

from typing import Any

import pyro.distributions as dist
from pyro.distributions import constraints
from torch import Tensor

from pyrovae.distributions.expand import Shape


class _CountsWithSum(constraints.Constraint):
    """Constraint: vectors of non-negative integers whose sum is total_count."""

    is_discrete = True
    event_dim = 1

    def __init__(self, total_count: int) -> None:
        self.total_count = total_count

    def check(self, value: Tensor) -> Tensor:
        whole = (value >= 0) & (value % 1 == 0)
        return whole.all(-1) & (value.sum(-1) == self.total_count)

    def __repr__(self) -> str:
        return f"non-negative integers that sum to {self.total_count}"


class WholeMultinomial(dist.Multinomial):
    """Multinomial whose support excludes fractions and sums below total_count, which torch's admits."""

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Vectors of non-negative integers that sum to total_count."""
        return _CountsWithSum(self.total_count)


class ZeroInflated(dist.ZeroInflatedDistribution):
    """Zero-inflated distribution given by gate_logits, which can be expanded after a draw.

    Pyro's class fails to expand, and hence to mask, after its first draw. Pyro's ZeroInflatedNegativeBinomial also
    rejects log odds above 17 in float32, where their sigmoid rounds to one.
    """

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "ZeroInflated":
        """Return the distribution expanded to batch_shape."""
        self.__dict__.pop("gate", None)  # a draw caches it, and Pyro then passes both gate and gate_logits
        return super().expand(batch_shape, _instance)
