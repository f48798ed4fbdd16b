"""Pyro distributions that neither torch nor Pyro has, or has in a form that a likelihood cannot use."""

from typing import Any

import pyro.distributions as dist
from pyro.distributions import constraints
from torch import Tensor

from pyrovae.distributions.expand import Shape


class _Whole(constraints.Constraint):
    """Vectors of whole numbers from 0 whose sum is total_count."""

    is_discrete = True
    event_dim = 1

    def __init__(self, total_count: int) -> None:
        self.total_count = total_count

    def check(self, value: Tensor) -> Tensor:
        whole = (value >= 0) & (value % 1 == 0)
        return whole.all(-1) & (value.sum(-1) == self.total_count)

    def __repr__(self) -> str:
        return f"whole numbers that sum to {self.total_count}"


class WholeMultinomial(dist.Multinomial):
    """Multinomial whose support is what has a probability; torch's lets fractions and smaller sums pass."""

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Vectors of whole numbers that sum to total_count."""
        return _Whole(self.total_count)


class ZeroInflated(dist.ZeroInflatedDistribution):
    """Zero inflation by gate_logits. Pyro's own cannot be expanded (masked, so) once it has been drawn from.

    Its ZeroInflatedNegativeBinomial also refuses log odds above 17 in float32, where their sigmoid rounds to one.
    """

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "ZeroInflated":
        """Expand to this batch_shape."""
        self.__dict__.pop("gate", None)  # cached by a draw, and then a second argument where one is allowed
        return super().expand(batch_shape, _instance)
