"""Distributions on an interval: beta, continuous Bernoulli, truncated normal."""

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from pyrovae.distributions.expand import Shape, expand_parameters
from pyrovae.distributions.log_gamma import result_type

_ROOT_2 = math.sqrt(2)


class _OpenUnitInterval(constraints.Constraint):
    """Constraint: numbers x with 0 < x < 1."""

    point = 0.5  # in place of entries that are masked out, where 0 has no density

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)

    def __repr__(self) -> str:
        return "0 < x < 1"


class LogitBeta(TorchDistribution):
    """Beta on the open interval (0, 1), given by logits l of the mean and a concentration s.

        log p(x) = (a - 1) log x + (b - 1) log(1 - x) - log B(a, b),  a = s sigmoid(l),  b = s sigmoid(-l),
        -log B(a, b) = log Gamma(1 + s) - log Gamma(1 + a) - log Gamma(1 + b) + log s + log sigmoid(l) + log sigmoid(-l)

    The ends, where the density is 0 or infinite, lie outside the support. The second line holds also if a or b
    underflows. The density is computed in double precision and returned in the dtype of its arguments.

    Args:
        logits: Logits l of the mean.
        concentration: Concentration s, a number or a tensor that broadcasts against logits.
        validate_args: Whether to check arguments and values; None for the global setting.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real, "concentration": constraints.positive}
    support = _OpenUnitInterval()
    has_rsample = True

    def __init__(self, logits: Tensor, concentration: Tensor | float, validate_args: bool | None = None) -> None:
        self._unbroadcast = torch.as_tensor(concentration, dtype=logits.dtype, device=logits.device)
        self.logits, self.concentration = torch.broadcast_tensors(logits, self._unbroadcast)
        super().__init__(self.logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "LogitBeta":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(LogitBeta, _instance)
        new._unbroadcast = self._unbroadcast
        return expand_parameters(self, new, batch_shape, "logits", "concentration")

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        s, logits, x = self._unbroadcast.double(), self.logits.double(), value.double()
        a, b = s * logits.sigmoid(), s * (-logits).sigmoid()
        log_norm = torch.lgamma(1 + s) + s.log() - torch.lgamma(1 + a) - torch.lgamma(1 + b)
        log_means = logsigmoid(logits) + logsigmoid(-logits)
        log_p = (a - 1) * x.log() + (b - 1) * torch.log1p(-x) + (log_norm + log_means)
        return log_p.to(result_type(value, self.logits))

    @property
    def mean(self) -> Tensor:
        """Mean, sigmoid(l)."""
        return self.logits.sigmoid()

    @property
    def variance(self) -> Tensor:
        """Variance, sigmoid(l) sigmoid(-l)/(s + 1)."""
        return self.mean * (-self.logits).sigmoid() / (self.concentration + 1)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw with gradients, with shape sample_shape + batch_shape, inside the ends of the interval."""
        x = self.draw_logits(sample_shape).sigmoid().to(self.logits.dtype)
        dtype = torch.finfo(x.dtype)
        return x.clamp(dtype.tiny, 1 - dtype.eps / 2)

    def draw_logits(self, sample_shape: Shape = ()) -> Tensor:
        """Draw log [x/(1 - x)] with gradients, in double precision, which holds also draws that round to 0 or 1.

        x/(1 - x) is a ratio of gamma draws G_a/G_b, and G_a = G_{a+1} U^{1/a} with a uniform U (Marsaglia and Tsang
        2000, https://doi.org/10.1145/358407.358414, section 6), whose logarithm does not underflow.
        """
        shape, s, logits = self._extended_shape(sample_shape), self.concentration.double(), self.logits.double()
        shapes = s * logits.sigmoid(), s * (-logits).sigmoid()
        log_gamma, log_gamma_rest = (draw_log_gamma(a.expand(shape)) for a in shapes)
        return log_gamma - log_gamma_rest


def draw_log_gamma(shape: Tensor) -> Tensor:
    """Draw the logarithms of gamma variables with these shapes and rate 1."""
    uniform = torch.rand_like(shape).clamp(min=torch.finfo(shape.dtype).tiny)
    return torch._standard_gamma(shape + 1).log() + uniform.log() / shape.clamp(min=torch.finfo(shape.dtype).tiny)


class ContinuousBernoulli(TorchDistribution):
    """Continuous Bernoulli given by logits l, accurate for all of them.

        log p(x) = l (x - 1/2) + log [(l/2) / sinh(l/2)],  0 <= x <= 1

    Loaiza-Ganem and Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational autoencoders"
    (NeurIPS 2019, https://arxiv.org/abs/1907.06845). Torch's class clamps sigmoid(l), so its float32 density has mass
    0.8 at l = 20 and 0.3 at l = 50.

    Args:
        logits: Logits l.
        validate_args: Whether to check arguments and values; None for the global setting.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "ContinuousBernoulli":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(ContinuousBernoulli, _instance)
        return expand_parameters(self, new, batch_shape, "logits")

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        size, square, small = self._series_arguments()
        large = size.log() - size / 2 - torch.log(-torch.expm1(-size))
        series = square * (-1 / 24 + square * (1 / 2880 + square * (-1 / 181_440 + square / 9_676_800)))
        return self.logits * (value - 0.5) + torch.where(small, series, large)

    @property
    def mean(self) -> Tensor:
        """Mean, 1/2 + coth(l/2)/2 - 1/l."""
        size, square, small = self._series_arguments()
        large = self.logits.sign() * (0.5 / torch.tanh(size / 2) - 1 / size)
        series = self.logits * (1 / 12 + square * (-1 / 720 + square * (1 / 30_240 - square / 1_209_600)))
        return 0.5 + torch.where(small, series, large)

    @property
    def variance(self) -> Tensor:
        """Variance, 1/l^2 - 1/(4 sinh(l/2)^2)."""
        size, square, small = self._series_arguments()
        large = 1 / size**2 - torch.exp(-size) / torch.expm1(-size) ** 2
        series = 1 / 12 + square * (-1 / 240 + square * (1 / 6048 - square / 172_800))
        return torch.where(small, series, large)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw by the inverse distribution function, with gradients; the shape is sample_shape + batch_shape."""
        u = torch.rand(self._extended_shape(sample_shape), dtype=self.logits.dtype, device=self.logits.device)
        size = self.logits.abs().clamp(min=1e-6)  # for smaller l the draw is u to six digits
        distance = (-torch.log1p(u * torch.expm1(-size)) / size).clamp(max=1)
        return torch.where(self.logits > 0, 1 - distance, distance)

    def _series_arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return |l| (1 near 0), l^2 (0 away from 0), and whether l is near 0, where a series is used."""
        small = self.logits.abs() < 0.3
        square = torch.where(small, self.logits, torch.zeros_like(self.logits)) ** 2
        return torch.where(small, torch.ones_like(self.logits), self.logits.abs()), square, small


class TruncatedNormal(TorchDistribution):
    """Normal distribution truncated to [low, high], accurate also if its location lies outside.

        log p(x) = -t^2/2 - log scale - log I,
        I = sqrt(pi/2) [erf((alpha + w)/sqrt2) - erf(alpha/sqrt2)]

    Here x = loc +- scale t with t in [alpha, alpha + w], counted from the end nearest to loc; alpha > 0 if loc lies
    outside. If alpha > 1, both terms are computed relative to that end, where nothing overflows or cancels:

        -(t^2 - alpha^2)/2,
        I = sqrt(pi/2) [erfcx(alpha/sqrt2) - exp(-w (2 alpha + w)/2) erfcx((alpha + w)/sqrt2)],

    with erfcx(x) = exp(x^2) erfc(x). The relative error is about loc/(high - low) roundings.

    Args:
        loc: Location before truncation.
        scale: Standard deviation before truncation.
        low: Lower end.
        high: Upper end.
        validate_args: Whether to check arguments and values; None for the global setting.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor | float,
        low: float = 0.0,
        high: float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.low, self.high = low, high
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "TruncatedNormal":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(TruncatedNormal, _instance)
        new.low, new.high = self.low, self.high
        return expand_parameters(self, new, batch_shape, "loc", "scale")

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Interval [low, high]."""
        return constraints.interval(self.low, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        end, _, alpha, width = self._from_the_end()
        base = torch.where(alpha > 1, end, self.loc)
        exponent = (value - base) / self.scale * ((value - self.loc + (base - self.loc)) / self.scale) / 2
        return -exponent - self.scale.log() - gaussian_mass(alpha, width).log()

    @property
    def mean(self) -> Tensor:
        """Mean, loc +- scale (exp(-alpha^2/2) - exp(-(alpha + w)^2/2)) / I, in the notation of the class."""
        _, sign, alpha, width = self._from_the_end()
        outer = torch.where(alpha > 1, torch.zeros_like(alpha), alpha)
        fall = -torch.expm1(-width * (2 * alpha + width) / 2)
        t = torch.exp(-(outer**2) / 2) * fall / gaussian_mass(alpha, width)
        return (self.loc + sign * self.scale * t).clamp(self.low, self.high)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw by the inverse distribution function, with shape sample_shape + batch_shape."""
        with torch.no_grad():
            end, sign, alpha, width = self._from_the_end()
            u = torch.rand(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
            near, far = alpha.clamp(max=1), alpha.clamp(min=1)
            bottom, top = torch.erf(near / _ROOT_2), torch.erf((near + width) / _ROOT_2)
            inside = self.loc + sign * self.scale * _ROOT_2 * torch.erfinv(bottom + u * (top - bottom))
            outside = end + sign * self.scale * _tail_quantile(u, far, width)
            return torch.where(alpha > 1, outside, inside).clamp(self.low, self.high)

    def _from_the_end(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the end nearest to loc, the direction inwards (1 or -1), alpha and w."""
        right = self.loc > (self.low + self.high) / 2
        end = torch.where(right, torch.full_like(self.loc, self.high), torch.full_like(self.loc, self.low))
        sign = 1 - 2 * right.to(self.loc.dtype)
        return end, sign, sign * (end - self.loc) / self.scale, (self.high - self.low) / self.scale


def gaussian_mass(alpha: Tensor, width: Tensor) -> Tensor:
    """Integrate exp(-t^2/2) over [alpha, alpha + width], or exp(-(t^2 - alpha^2)/2) if alpha > 1."""
    near, far = _split(alpha, 1.0)
    inside = torch.erf((near + width) / _ROOT_2) - torch.erf(near / _ROOT_2)
    rest = torch.exp(-width * (2 * far + width) / 2) * _erfcx((far + width) / _ROOT_2)
    outside = _erfcx(far / _ROOT_2) - rest
    return math.sqrt(math.pi / 2) * torch.where(alpha > 1, outside, inside)


def _split(x: Tensor, at: float) -> tuple[Tensor, Tensor]:
    """Return min(x, at) with the gradient of x also at x = at, where `clamp` has none, and max(x, at)."""
    beyond, end = x > at, torch.full_like(x, at)
    return torch.where(beyond, end, x), torch.where(beyond, x, end)


def _tail_quantile(u: Tensor, alpha: Tensor, width: Tensor) -> Tensor:
    """Return the y with mass u on [alpha, alpha + y] under a standard normal truncated to [alpha, alpha + width].

    Solves log S(alpha + y) - log S(alpha) = log r by Newton's method for alpha > 0, with S the survival function. S is
    log-concave, so the iterates decrease to the solution. The start omits the slowly varying factor of S, and five
    steps reach full precision.
    """
    floor = _log_survival_ratio(width, alpha)
    log_r = torch.log1p(u * torch.expm1(floor))
    y = -2 * log_r / (alpha + torch.sqrt(alpha**2 - 2 * log_r))
    for _ in range(5):
        hazard = math.sqrt(2 / math.pi) / _erfcx((alpha + y) / _ROOT_2)
        y = (y + (_log_survival_ratio(y, alpha) - log_r) / hazard).clamp(min=0)
    return torch.minimum(y, width)


def _log_survival_ratio(y: Tensor, alpha: Tensor) -> Tensor:
    ratio = _erfcx((alpha + y) / _ROOT_2) / _erfcx(alpha / _ROOT_2)
    return -y * (2 * alpha + y) / 2 + ratio.log()


def _erfcx(x: Tensor) -> Tensor:
    """Compute exp(x^2) erfc(x) with an accurate gradient.

    Torch's gradient 2 x erfcx(x) - 2/sqrt(pi) cancels for large x. From x = 25 the asymptotic series (Abramowitz and
    Stegun 7.1.23) is used, whose first five terms leave an error below 1e-12.
    """
    near, far = _split(x, 25.0)
    y = far**-2
    series = (1 - y / 2 * (1 - 3 * y / 2 * (1 - 5 * y / 2 * (1 - 7 * y / 2)))) / (far * math.sqrt(math.pi))
    return torch.where(x > 25, series, torch.special.erfcx(near))
