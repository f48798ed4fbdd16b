"""Distributions with point masses beside a density: hurdle distributions on [0, inf), inflated ones on [0, 1].

Their base measure is mixed: Lebesgue measure plus a point mass of size one at each of the points. log_prob is a log
probability at a point and a log density elsewhere. The attribute `atoms` of the support lists the points. An evaluation
names them with its base measure, so that only log p(x) of the same measure are compared.
"""

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyrovae.distributions.expand import Shape, expand_parameters
from pyrovae.distributions.interval import LogitBeta


class _ZeroOrPositive(constraints.Constraint):
    """Constraint: 0, a point with mass, or numbers above 0."""

    atoms = (0.0,)
    point = 0.0

    def check(self, value: Tensor) -> Tensor:
        return value >= 0


class _UnitIntervalWithEnds(constraints.Constraint):
    """Constraint: numbers between 0 and 1, or 0 or 1, points with mass."""

    atoms = (0.0, 1.0)
    point = 0.0

    def check(self, value: Tensor) -> Tensor:
        return (value >= 0) & (value <= 1)


class Hurdle(TorchDistribution):
    """Point mass at 0 beside a distribution of positive numbers.

        log p(0) = log sigmoid(g),  log p(x) = log sigmoid(-g) + log p_base(x),  x > 0

    p is a density with respect to Lebesgue measure plus a point mass at 0. Cragg, "Some statistical models for limited
    dependent variables with application to the demand for durable goods", Econometrica 1971,
    https://doi.org/10.2307/1909582.

    Args:
        base_dist: Distribution of the positive numbers.
        gate_logits: Logits g of the probability of 0.
        validate_args: Whether to check arguments and values; None for the global setting.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"gate_logits": constraints.real}
    support = _ZeroOrPositive()

    def __init__(self, base_dist: Any, gate_logits: Tensor, validate_args: bool | None = None) -> None:
        batch_shape = torch.broadcast_shapes(base_dist.batch_shape, gate_logits.shape)
        self.base_dist = base_dist.expand(batch_shape)
        self.gate_logits = gate_logits.expand(batch_shape)
        super().__init__(batch_shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "Hurdle":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(Hurdle, _instance)
        new.base_dist = self.base_dist.expand(torch.Size(batch_shape))
        return expand_parameters(self, new, batch_shape, "gate_logits")

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of 0, or the log density elsewhere, in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        zero = value == 0
        positive = logsigmoid(-self.gate_logits) + self.base_dist.log_prob(torch.where(zero, 1.0, value))
        return torch.where(zero, logsigmoid(self.gate_logits).to(positive.dtype), positive)

    def cdf(self, value: Tensor) -> Tensor:
        """Return P(X <= value), which jumps at 0."""
        if self._validate_args:
            self._validate_sample(value)
        above = self.base_dist.cdf(torch.where(value <= 0, 1.0, value))
        above = torch.where(value <= 0, 0.0, above)
        below = self.gate_logits.sigmoid() + (-self.gate_logits).sigmoid() * above
        return torch.where(value < 0, torch.zeros_like(below), below)

    @property
    def mean(self) -> Tensor:
        """Mean, sigmoid(-g) times the mean of the positive numbers."""
        mean: Tensor = (-self.gate_logits).sigmoid() * self.base_dist.mean
        return mean

    @property
    def variance(self) -> Tensor:
        """Variance, q (v + (1 - q) m^2) with q = sigmoid(-g), and m and v of the positive numbers."""
        q, zero = (-self.gate_logits).sigmoid(), self.gate_logits.sigmoid()
        variance: Tensor = q * (self.base_dist.variance + zero * self.base_dist.mean**2)
        return variance

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw, with shape sample_shape + batch_shape."""
        with torch.no_grad():
            x = self.base_dist.sample(torch.Size(sample_shape))
            return torch.where(torch.bernoulli(self.gate_logits.sigmoid().expand(x.shape)) > 0, 0.0, x)


class ZeroOneInflatedBeta(TorchDistribution):
    """Point masses at 0 and 1 beside a beta on the open interval (0, 1).

        p(0) = exp(u)/n,  p(1) = exp(v)/n,  p(x) = Beta(x; m s, (1 - m) s)/n,  0 < x < 1,
        n = 1 + exp(u) + exp(v),  m = sigmoid(l)

    p is a density with respect to Lebesgue measure plus point masses at 0 and 1. Ospina and Ferrari, "Inflated beta
    distributions", Statistical Papers 2010, https://doi.org/10.1007/s00362-008-0125-4.

    Args:
        logits: Logits l of the mean m of the beta.
        concentration: Concentration s of the beta, a number or a tensor that broadcasts against logits.
        zero_logits: Log odds u of 0 against the interval.
        one_logits: Log odds v of 1 against the interval.
        validate_args: Whether to check arguments and values; None for the global setting.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"zero_logits": constraints.real, "one_logits": constraints.real}
    support = _UnitIntervalWithEnds()

    def __init__(
        self,
        logits: Tensor,
        concentration: Tensor | float,
        zero_logits: Tensor,
        one_logits: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        beta = LogitBeta(logits, concentration, validate_args=validate_args)
        batch_shape = torch.broadcast_shapes(beta.batch_shape, zero_logits.shape, one_logits.shape)
        self.base_dist = beta.expand(batch_shape)
        self.zero_logits, self.one_logits = zero_logits.expand(batch_shape), one_logits.expand(batch_shape)
        super().__init__(batch_shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "ZeroOneInflatedBeta":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(ZeroOneInflatedBeta, _instance)
        new.base_dist = self.base_dist.expand(batch_shape)
        return expand_parameters(self, new, batch_shape, "zero_logits", "one_logits")

    @property
    def log_shares(self) -> Tensor:
        """Log probabilities of 0, of the open interval, and of 1, with shape (3, ...)."""
        between = torch.zeros_like(self.zero_logits)
        return torch.stack([self.zero_logits, between, self.one_logits]).log_softmax(0)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of 0 and of 1, or the log density between, in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        zero, one = value == 0, value == 1
        log_zero, log_between, log_one = self.log_shares
        between = log_between + self.base_dist.log_prob(torch.where(zero | one, 0.5, value))
        return torch.where(zero, log_zero.to(between.dtype), torch.where(one, log_one.to(between.dtype), between))

    @property
    def mean(self) -> Tensor:
        """Mean, p(1) + P(0 < x < 1) m."""
        _, between, one = self.log_shares.exp()
        return one + between * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """Variance, q v + p(1) (1 - mean)^2 + p(0) mean^2 + q (m - mean)^2 with q = P(0 < x < 1), and v of the beta."""
        zero, between, one = self.log_shares.exp()
        mean, inner = self.mean, self.base_dist.mean
        return between * (self.base_dist.variance + (inner - mean) ** 2) + one * (1 - mean) ** 2 + zero * mean**2

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw, with shape sample_shape + batch_shape."""
        with torch.no_grad():
            x = self.base_dist.sample(torch.Size(sample_shape))
            zero, between, _ = self.log_shares.exp()
            u = torch.rand_like(x)
            return torch.where(u < zero, 0.0, torch.where(u < zero + between, x, 1.0))
