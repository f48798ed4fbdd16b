"""Distributions of counts, accurate in single precision for counts to 2^24 and for extreme parameters.

Each density is computed in double precision, from parameters on the scale on which a network gives them, and returned
in the dtype of its arguments.
"""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from pyrovae.distributions.expand import Shape, expand_parameters
from pyrovae.distributions.interval import LogitBeta
from pyrovae.distributions.log_gamma import log_binomial, log_factorial, result_type
from pyrovae.distributions.whole_numbers import CountsWithSum, WholeNumbers, WholeNumbersTo

_NORMAL_FROM = 1e12  # rate of a Poisson


class LogPoisson(TorchDistribution):
    """Poisson given by the logarithm a of its rate.

        log p(k) = k a - exp(a) - log k!

    The gradient, k - exp(a), is finite in single precision for a up to 88. `Poisson(exp(a))` has none below -104.

    Args:
        log_rate: Logarithm a of the rate.
        validate_args: Whether to check arguments and values; None for the global setting.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_rate": constraints.real}
    support = WholeNumbers()

    def __init__(self, log_rate: Tensor, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "LogPoisson":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(LogPoisson, _instance)
        return expand_parameters(self, new, batch_shape, "log_rate")

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        a = self.log_rate.double()
        return (value.double() * a - a.exp() - log_factorial(value)).to(result_type(value, self.log_rate))

    @property
    def rate(self) -> Tensor:
        """Rate exp(a)."""
        return self.log_rate.exp()

    @property
    def mean(self) -> Tensor:
        """Mean, the rate."""
        return self.rate

    @property
    def variance(self) -> Tensor:
        """Variance, the rate."""
        return self.rate

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw counts, with shape sample_shape + batch_shape."""
        with torch.no_grad():
            return draw_poisson(self.rate.expand(self._extended_shape(sample_shape)))


def draw_poisson(rate: Tensor) -> Tensor:
    """Draw Poisson counts, with the shape of the rates; NaN for a rate that is NaN.

    Beyond a rate of 1e12 the draw is normal with the same mean and variance, rounded, since torch's counts overflow at
    9.2e18. An infinite rate gives the largest number.
    """
    known = rate.nan_to_num(nan=0.0)  # and the largest number for infinity
    drawn = torch.poisson(known.clamp(max=_NORMAL_FROM))
    normal = (known + known.sqrt() * (drawn - _NORMAL_FROM) / _NORMAL_FROM**0.5).round()
    return torch.where(rate.isnan(), rate, torch.where(known > _NORMAL_FROM, normal, drawn))


class MeanNegativeBinomial(TorchDistribution):
    """Negative binomial given by the logarithm of its mean m and the inverse dispersion r.

        log p(k) = log Gamma(k + r) - log Gamma(r) - log k! + k log sigmoid(l) + r log sigmoid(-l),  l = log m - log r

    The variance is m + m^2/r.

    Args:
        log_mean: Logarithm of the mean.
        total_count: Inverse dispersion r, a number or a tensor that broadcasts against log_mean.
        validate_args: Whether to check arguments and values; None for the global setting.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_mean": constraints.real, "total_count": constraints.positive}
    support = WholeNumbers()

    def __init__(self, log_mean: Tensor, total_count: Tensor | float, validate_args: bool | None = None) -> None:
        # Gamma functions of r cost as much as the rest, so r is kept as small as it came.
        self._unbroadcast = torch.as_tensor(total_count, dtype=log_mean.dtype, device=log_mean.device)
        self.log_mean, self.total_count = torch.broadcast_tensors(log_mean, self._unbroadcast)
        super().__init__(self.log_mean.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "MeanNegativeBinomial":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(MeanNegativeBinomial, _instance)
        new._unbroadcast = self._unbroadcast
        return expand_parameters(self, new, batch_shape, "log_mean", "total_count")

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        r, count = self._unbroadcast.double(), value.double()
        logits = self.log_mean.double() - r.log()
        given = (count + r) * logsigmoid(logits) - r * logits  # log sigmoid(-l) = log sigmoid(l) - l
        ways = torch.lgamma(count + r) - torch.lgamma(r) - log_factorial(value)
        return (given + ways).to(result_type(value, self.log_mean))

    @property
    def mean(self) -> Tensor:
        """Mean m."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Variance, m + m^2/r."""
        return self.mean + self.mean**2 / self.total_count

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw from the Poisson whose rate is gamma distributed, with shape sample_shape + batch_shape."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            gamma = torch._standard_gamma(self.total_count.double().expand(shape))
            rate = gamma / self.total_count * self.log_mean.double().exp()
            return draw_poisson(rate).clamp(max=torch.finfo(self.log_mean.dtype).max).to(self.log_mean.dtype)


class _KnownTotal(TorchDistribution):
    """Base of the distributions of counts 0..n that are given by logits and perhaps by a concentration."""

    has_enumerate_support = True
    total_count: int
    logits: Tensor

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Whole numbers 0..n."""
        return WholeNumbersTo(self.total_count)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """List the counts 0..n along a new first dimension."""
        values = torch.arange(self.total_count + 1, dtype=self.logits.dtype, device=self.logits.device)
        values = values.view(-1, *[1] * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values


class LogitBinomial(_KnownTotal):
    """Binomial given by logits l.

        log p(k) = log C(n, k) + k log sigmoid(l) + (n - k) log sigmoid(-l)

    Args:
        total_count: Number of trials n.
        logits: Logits l of the probability of a success.
        validate_args: Whether to check arguments and values; None for the global setting.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}

    def __init__(self, total_count: int, logits: Tensor, validate_args: bool | None = None) -> None:
        self.total_count, self.logits = total_count, logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "LogitBinomial":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(LogitBinomial, _instance)
        new.total_count = self.total_count
        return expand_parameters(self, new, batch_shape, "logits")

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        logits = self.logits.double()
        given = value.double() * logits + self.total_count * logsigmoid(-logits)  # log sigmoid(l) = l + log sigmoid(-l)
        return (given + log_binomial(self.total_count, value)).to(result_type(value, self.logits))

    @property
    def probs(self) -> Tensor:
        """Probability of a success, sigmoid(l)."""
        return self.logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        """Mean, n sigmoid(l)."""
        return self.total_count * self.probs

    @property
    def variance(self) -> Tensor:
        """Variance, n sigmoid(l) sigmoid(-l)."""
        return self.mean * (-self.logits).sigmoid()

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw counts, with shape sample_shape + batch_shape."""
        with torch.no_grad():
            probs = self.probs.expand(self._extended_shape(sample_shape))
            return torch.binomial(torch.full_like(probs, self.total_count), probs)


class LogitBetaBinomial(_KnownTotal):
    """Beta-binomial given by logits l of the mean and a concentration s.

        p(k) = C(n, k) B(a + k, b + n - k) / B(a, b),  a = s sigmoid(l),  b = s sigmoid(-l)

    Gamma(a + k)/Gamma(a) is evaluated as a Gamma(a + k)/Gamma(a + 1) for k > 0, with log a = log s + log sigmoid(l),
    which does not underflow.

    Args:
        total_count: Number of trials n.
        logits: Logits l of the mean.
        concentration: Concentration s, a number or a tensor that broadcasts against logits.
        validate_args: Whether to check arguments and values; None for the global setting.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real, "concentration": constraints.positive}

    def __init__(
        self, total_count: int, logits: Tensor, concentration: Tensor | float, validate_args: bool | None = None
    ) -> None:
        self._unbroadcast = torch.as_tensor(concentration, dtype=logits.dtype, device=logits.device)
        self.total_count = total_count
        self.logits, self.concentration = torch.broadcast_tensors(logits, self._unbroadcast)
        super().__init__(self.logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "LogitBetaBinomial":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(LogitBetaBinomial, _instance)
        new.total_count, new._unbroadcast = self.total_count, self._unbroadcast
        return expand_parameters(self, new, batch_shape, "logits", "concentration")

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        s, logits, count = self._unbroadcast.double(), self.logits.double(), value.double()
        total = torch.lgamma(s) - torch.lgamma(s + self.total_count)
        rising = _log_rising(s, logits, count) + _log_rising(s, -logits, self.total_count - count)
        ways = log_binomial(self.total_count, value)
        return (rising + total + ways).to(result_type(value, self.logits))

    @property
    def mean(self) -> Tensor:
        """Mean, n sigmoid(l)."""
        return self.total_count * self.logits.sigmoid()

    @property
    def variance(self) -> Tensor:
        """Variance, n sigmoid(l) sigmoid(-l) (s + n)/(s + 1)."""
        spread = (self.concentration + self.total_count) / (self.concentration + 1)
        return self.mean * (-self.logits).sigmoid() * spread

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw a beta, then a binomial, with shape sample_shape + batch_shape."""
        with torch.no_grad():
            logits = LogitBeta(self.logits.double(), self.concentration.double()).draw_logits(sample_shape)
            return LogitBinomial(self.total_count, logits).sample().to(self.logits.dtype)


def _log_rising(s: Tensor, logits: Tensor, count: Tensor) -> Tensor:
    """Compute log Gamma(a + k) - log Gamma(a) for a = s sigmoid(l) and counts k, which is 0 for k = 0."""
    a, log_a = logits.sigmoid() * s, s.log() + logsigmoid(logits)
    return torch.lgamma(count.clamp(min=1) + a) - torch.lgamma(1 + a) + (count > 0) * log_a


class WholeMultinomial(dist.Multinomial):
    """Multinomial given by logits, whose support excludes fractions and sums below total_count, which torch's admits.

        log p(x) = log n! + sum_d [x_d log softmax(l)_d - log x_d!]

    Args:
        total_count: Sum n of the counts.
        logits: Logits l, with shape (..., D).
        validate_args: Whether to check arguments and values; None for the global setting.
    """

    def __init__(self, total_count: int, logits: Tensor, validate_args: bool | None = None) -> None:
        self._logits = logits
        super().__init__(total_count, logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "WholeMultinomial":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(WholeMultinomial, _instance)
        new._logits = self._logits.expand(*batch_shape, *self.event_shape)
        return super().expand(torch.Size(batch_shape), new)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Vectors of non-negative integers that sum to total_count."""
        return CountsWithSum(self.total_count)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats, with the leading shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        log_probs = self._logits.double().log_softmax(-1)
        # 0 times -infinity is 0: a class that cannot occur did not.
        given = torch.where(value == 0, 0.0, value.double() * log_probs)
        total = log_factorial(value.new_full((), self.total_count, dtype=torch.float64))
        return ((given - log_factorial(value)).sum(-1) + total).to(result_type(value, self._logits))


class ZeroInflated(dist.ZeroInflatedDistribution):
    """Zero-inflated distribution given by gate_logits g, which can be expanded after a draw.

        log p(0) = log [sigmoid(g) + sigmoid(-g) p_base(0)],  log p(k) = log sigmoid(-g) + log p_base(k),  k > 0

    Pyro's class fails to expand, and hence to mask, after its first draw, and adds g to subtract it again. Pyro's
    ZeroInflatedNegativeBinomial also rejects log odds above 17 in float32, where their sigmoid rounds to one.
    """

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "ZeroInflated":
        """Return the distribution expanded to batch_shape."""
        self.__dict__.pop("gate", None)  # a draw caches it, and Pyro then passes both gate and gate_logits
        return super().expand(batch_shape, _instance)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        gate_logits, value = broadcast_all(self.gate_logits, value)
        counted = logsigmoid(-gate_logits) + self.base_dist.log_prob(value)
        return torch.where(value == 0, torch.logaddexp(logsigmoid(gate_logits), counted), counted)
