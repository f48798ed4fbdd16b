"""Student-t on the real line, log-normal on the positive one."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.distributions.expand import Shape
from pyrovae.distributions.log_gamma import log_gamma_half_step, result_type
from pyrovae.distributions.student_mass import log_student_survival


class StudentT(dist.StudentT):
    """Student-t that evaluates the gamma functions once per degree of freedom, not once per value.

    Torch's class broadcasts the degrees of freedom first and spends four fifths of the density's time on them.
    """

    def __init__(
        self, df: Tensor | float, loc: Tensor, scale: Tensor | float, validate_args: bool | None = None
    ) -> None:
        super().__init__(df, loc, scale, validate_args=validate_args)
        self._unbroadcast = [value if isinstance(value, Tensor) else loc.new_full((), value) for value in (df, scale)]

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "StudentT":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(StudentT, _instance)
        new._unbroadcast = self._unbroadcast
        return super().expand(batch_shape, new)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        df, scale = self._unbroadcast
        log_norm = log_gamma_half_step(0.5 * df) - 0.5 * (math.pi * df).log() - scale.log()
        return log_norm - 0.5 * (df + 1) * torch.log1p(((value - self.loc) / scale).square() / df)

    def cdf(self, value: Tensor) -> Tensor:
        """Return P(X <= value), by quadrature (`log_student_survival`), which torch lacks."""
        if self._validate_args:
            self._validate_sample(value)
        t = (value.double() - self.loc.double()) / self.scale.double()
        above = log_student_survival(*torch.broadcast_tensors(self.df.double(), t.abs())).exp()
        return torch.where(t > 0, 1 - above, above).to(result_type(value, self.loc))


class LogNormal(dist.LogNormal):
    """Log-normal whose density is computed in double precision and returned in the dtype of its arguments.

        log p(x) = log N(log x; loc, scale^2) - log x

    In single precision the rounding of log x counts as often as the scale is small against it.
    """

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "LogNormal":
        """Return the distribution expanded to batch_shape."""
        return super().expand(batch_shape, self._get_checked_instance(LogNormal, _instance))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        log_x, loc, scale = value.double().log(), self.loc.double(), self.scale.double()
        log_p = -((log_x - loc) / scale).square() / 2 - (scale.log() + math.log(2 * math.pi) / 2) - log_x
        return log_p.to(result_type(value, self.loc))

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw, with shape sample_shape + batch_shape.

        Draws beyond the dtype's range of normal numbers are moved to its ends, which lie in the support.
        """
        log_x: Tensor = self.base_dist.rsample(torch.Size(sample_shape))
        dtype = torch.finfo(log_x.dtype)
        return log_x.clamp(math.log(dtype.tiny) + 1e-5, math.log(dtype.max) - 1e-5).exp()

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw without gradients, as `rsample`."""
        with torch.no_grad():
            return self.rsample(sample_shape)
