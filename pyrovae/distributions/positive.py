"""Gamma on the positive line, given by its mean."""

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyrovae.distributions.expand import Shape, expand_parameters
from pyrovae.distributions.interval import draw_log_gamma
from pyrovae.distributions.log_gamma import result_type

_SLOPE_BEYOND = 1e30


class MeanGamma(TorchDistribution):
    """Gamma given by the logarithm a of its mean m and the concentration s.

        log p(x) = s log s - log Gamma(s) + s log(x/m) - log x - s x/m

    The variance is m^2/s. The density is computed in double precision and returned in the dtype of its arguments. A
    value below the range of that dtype, as for x/m = exp(100), is returned as the lowest number, and its gradient is
    finite and has the right sign.

    Args:
        log_mean: Logarithm a of the mean.
        concentration: Concentration s, a number or a tensor that broadcasts against log_mean.
        validate_args: Whether to check arguments and values; None for the global setting.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_mean": constraints.real, "concentration": constraints.positive}
    support = constraints.positive

    def __init__(self, log_mean: Tensor, concentration: Tensor | float, validate_args: bool | None = None) -> None:
        self._unbroadcast = torch.as_tensor(concentration, dtype=log_mean.dtype, device=log_mean.device)
        self.log_mean, self.concentration = torch.broadcast_tensors(log_mean, self._unbroadcast)
        super().__init__(self.log_mean.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "MeanGamma":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(MeanGamma, _instance)
        new._unbroadcast = self._unbroadcast
        return expand_parameters(self, new, batch_shape, "log_mean", "concentration")

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        s, x, log_mean = self._unbroadcast.double(), value.double(), self.log_mean.double()
        dtype = result_type(value, self.log_mean)
        log_ratio = x.log() - log_mean
        log_norm = s * s.log() - torch.lgamma(s)
        return (log_norm + s * log_ratio - x.log() - _scaled_ratio(s, x, log_mean, dtype)).to(dtype)

    def cdf(self, value: Tensor) -> Tensor:
        """Return P(X <= value), the regularised incomplete gamma function, without a gradient in the parameters."""
        if self._validate_args:
            self._validate_sample(value)
        with torch.no_grad():
            s = self.concentration.double()
            rate = (s.log() - self.log_mean.double()).exp()
            return torch.special.gammainc(s, rate * value.double()).to(result_type(value, self.log_mean))

    @property
    def mean(self) -> Tensor:
        """Mean m."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Variance, m^2/s."""
        return self.mean**2 / self.concentration

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw, with shape sample_shape + batch_shape; draws below the smallest normal number are moved to it."""
        with torch.no_grad():
            s = self.concentration.double()
            log_x = draw_log_gamma(s.expand(self._extended_shape(sample_shape))) - s.log() + self.log_mean.double()
            dtype = torch.finfo(self.log_mean.dtype)
            return log_x.clamp(math.log(dtype.tiny) + 1e-5, math.log(dtype.max) - 1e-5).exp().to(self.log_mean.dtype)


def _scaled_ratio(s: Tensor, x: Tensor, log_mean: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute s x/m up to the largest number of a dtype. Beyond, its slope in log(s x/m) is 1e30, not infinite."""
    log_ratio = s.log() + x.log() - log_mean
    bound = math.log(torch.finfo(dtype).max) - 0.05
    beyond, far = log_ratio > bound, log_mean < -700
    near = s * x * torch.where(far | beyond, 0.0, -log_mean).exp()  # exp(log_ratio) rounds more
    ratio = torch.where(far, torch.where(beyond, bound, log_ratio).exp(), near)
    return torch.where(beyond, math.exp(bound) + _SLOPE_BEYOND * (log_ratio - log_ratio.detach()), ratio)
