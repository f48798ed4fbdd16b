"""Normal and Student-t variables rounded to multiples of a resolution, such as ages in years or prices in cents.

    P(x) = F(x + r/2) - F(x - r/2),  x = 0, +-r, +-2r, ...

They are probabilities, with counting measure on the grid. No difference of nearly equal numbers is taken. All is
computed in double precision and returned in the dtype of the arguments.
"""

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyrovae.distributions.expand import Shape, expand_parameters
from pyrovae.distributions.interval import gaussian_mass
from pyrovae.distributions.log_gamma import result_type
from pyrovae.distributions.student_mass import (
    log_student_mass,
    log_student_survival,
    student_square_integral,
    student_survival_integral,
)

_NUM_STEPS = 24  # on each side, in sums of moments
_LOG_ROOT_2_PI = math.log(2 * math.pi) / 2


class MultiplesOf(constraints.Constraint):
    """Constraint: multiples of a resolution, to the rounding of the dtype, whose steps the dtype tells apart.

    Args:
        resolution: Distance of neighbouring values.
    """

    is_discrete = True
    point = 0.0

    def __init__(self, resolution: float) -> None:
        self.resolution = resolution

    def check(self, value: Tensor) -> Tensor:
        """Return whether each value is such a multiple, at most 2^23 steps from 0 in single precision."""
        x, eps = value.double(), torch.finfo(value.dtype).eps
        steps = (x / self.resolution).round()
        near = (x - steps * self.resolution).abs() <= 1.01 * eps * x.abs()
        return near & (steps.abs() <= 1 / eps)

    def hint(self, value: Tensor) -> str | None:
        """Return what to do about a value that is no such multiple; None if it is not finite."""
        if not bool(value.isfinite().all()):
            return None
        return (
            "give a step of which all values are multiples, by resolution=, or for a column of a table by "
            "--columns.NAME.grid 0.01, or use another likelihood"
        )

    def __repr__(self) -> str:
        return f"multiples of {self.resolution:g}"


class _Rounded(TorchDistribution):
    """Base of the rounded distributions with a location, a scale, and a symmetrical density."""

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}
    loc: Tensor
    scale: Tensor
    resolution: float

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Multiples of the resolution."""
        return MultiplesOf(self.resolution)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        scale = self.scale.double()
        x = (value.double() / self.resolution).round() * self.resolution
        log_p = self._log_mass((x - self.loc.double()) / scale, self.resolution / scale)
        return log_p.to(result_type(value, self.loc))

    def cdf(self, value: Tensor) -> Tensor:
        """Return P(X <= value), with the gradient in the parameters."""
        if self._validate_args:
            self._validate_sample(value)
        steps = value.double() / self.resolution
        steps = torch.where(MultiplesOf(self.resolution).check(value), steps.round(), steps.floor())
        t = ((steps + 0.5) * self.resolution - self.loc.double()) / self.scale.double()
        survival = self._survival(t.abs())
        return torch.where(t > 0, 1 - survival, survival).to(result_type(value, self.loc))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw and round, with shape sample_shape + batch_shape."""
        with torch.no_grad():
            noise = self._draw(self._extended_shape(sample_shape))
            x = self.loc.double() + self.scale.double() * noise
            return ((x / self.resolution).round() * self.resolution).to(self.loc.dtype)

    @property
    def mean(self) -> Tensor:
        """Mean. From a scale of two steps on, it is loc to six digits of a step; below, it is summed."""
        return self._moments()[0].to(self.loc.dtype)

    @property
    def variance(self) -> Tensor:
        """Variance. From a scale of two steps on, it is that of the density plus r^2/12; below, it is summed."""
        return self._moments()[1].to(self.loc.dtype)

    @torch.no_grad()
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Compute mean and variance from P(|k - k_0| >= j), with steps k, the middle k_0, and j up to 24.

            E[k - k_0] = sum_j [P(k >= k_0 + j) - P(k <= k_0 - j)]
            E[(k - k_0)^2] = sum_j (2 j - 1) [P(k >= k_0 + j) + P(k <= k_0 - j)]

        The rest of each sum is an integral, by the midpoint rule of Euler and Maclaurin.
        """
        loc, h = self.loc.double() / self.resolution, self.scale.double() / self.resolution
        middle = loc.round()
        mean, square = torch.zeros_like(loc), torch.zeros_like(loc)
        narrow = h.clamp(max=2)
        for sign in (1, -1):
            offset = sign * (loc - middle)
            for j in range(1, _NUM_STEPS + 1):
                beyond = self._survival((j - 0.5 - offset) / narrow)
                mean, square = mean + sign * beyond, square + (2 * j - 1) * beyond
            t = (_NUM_STEPS - offset) / narrow
            survival, density = self._survival(t), self._log_mass(t, torch.full_like(t, 1e-6)).exp() * 1e6
            first, second = self._integrals(t)
            mean = mean + sign * (narrow * first - density / (24 * narrow))
            square = square + narrow**2 * second + 2 * offset * narrow * first
            square = square + (2 * survival - 2 * _NUM_STEPS * density / narrow) / 24
        wide = h >= 2
        total = self._unit_variance() * h**2 + 1 / 12
        variance = torch.where(wide, total, square - mean**2)
        mean = torch.where(wide, loc, middle + mean)
        mean, variance = torch.where(total.isnan(), total, mean), torch.where(total.isfinite(), variance, total)
        return mean * self.resolution, variance * self.resolution**2

    def _log_mass(self, centre: Tensor, width: Tensor) -> Tensor:
        """Compute the log probability of an interval under the standard distribution."""
        raise NotImplementedError

    def _survival(self, t: Tensor) -> Tensor:
        """Compute P(T > t) of the standard distribution for t of at least 0."""
        raise NotImplementedError

    def _integrals(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Integrate P(T > v) and 2 v P(T > v) over v from t to infinity."""
        raise NotImplementedError

    def _unit_variance(self) -> Tensor:
        """Variance of the standard distribution; NaN if it has no mean."""
        raise NotImplementedError

    def _draw(self, shape: torch.Size) -> Tensor:
        """Draw from the standard distribution, in double precision."""
        raise NotImplementedError


class RoundedNormal(_Rounded):
    """Normal rounded to multiples of a resolution r.

        log P(x) = log [Phi(b) - Phi(a)],  a = c - w/2,  b = c + w/2,  c = (x - loc)/scale,  w = r/scale

    By symmetry c >= 0. The mass is that of `TruncatedNormal`, relative to its value at a if a > 1. For w below 0.001 it
    is a density times a width, log [phi(c) w sinh(c w/2)/(c w/2)], with an error below w^2/8 = 1.3e-7 nats.

    Args:
        loc: Mean before rounding.
        scale: Standard deviation before rounding.
        resolution: Distance r of neighbouring values.
        validate_args: Whether to check arguments and values; None for the global setting.
    """

    def __init__(
        self, loc: Tensor, scale: Tensor | float, resolution: float, validate_args: bool | None = None
    ) -> None:
        scale = torch.as_tensor(scale, dtype=loc.dtype, device=loc.device)
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.resolution = resolution
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "RoundedNormal":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(RoundedNormal, _instance)
        new.resolution = self.resolution
        return expand_parameters(self, new, batch_shape, "loc", "scale")

    def _log_mass(self, centre: Tensor, width: Tensor) -> Tensor:
        c, narrow = centre.abs(), width < 1e-3
        wide = torch.where(narrow, 1.0, width)
        a = c - wide / 2
        exponent = torch.where(a > 1, a, 0.0).square() / 2
        in_wide = gaussian_mass(a, wide).log() - exponent
        product = c * width
        some = torch.where(product < 1e-6, 1.0, product)
        log_sinhc = torch.where(product < 1e-6, 0.0, some / 2 + (-torch.expm1(-some) / some).log())
        in_narrow = width.log() - c.square() / 2 + log_sinhc
        return torch.where(narrow, in_narrow, in_wide) - _LOG_ROOT_2_PI

    def _survival(self, t: Tensor) -> Tensor:
        return torch.special.ndtr(-t)

    def _integrals(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.zeros_like(t)  # below exp(-69)

    def _unit_variance(self) -> Tensor:
        return torch.ones_like(self.loc, dtype=torch.float64)

    def _draw(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, device=self.loc.device)


class RoundedStudentT(_Rounded):
    """Student-t rounded to multiples of a resolution r.

        P(x) = F(b) - F(a),  a = c - w/2,  b = c + w/2,  c = (x - loc)/scale,  w = r/scale

    F is the standard Student-t distribution function. Torch has no incomplete beta function, so the mass of an interval
    is a quadrature with an error below 1e-6 nats for df of at least 0.5 (see `log_student_mass`).

    Args:
        df: Degrees of freedom.
        loc: Location before rounding.
        scale: Scale before rounding.
        resolution: Distance r of neighbouring values.
        validate_args: Whether to check arguments and values; None for the global setting.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {**_Rounded.arg_constraints, "df": constraints.positive}

    def __init__(
        self,
        df: Tensor | float,
        loc: Tensor,
        scale: Tensor | float,
        resolution: float,
        validate_args: bool | None = None,
    ) -> None:
        df, scale = (torch.as_tensor(value, dtype=loc.dtype, device=loc.device) for value in (df, scale))
        self.df, self.loc, self.scale = torch.broadcast_tensors(df, loc, scale)
        self.resolution = resolution
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "RoundedStudentT":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(RoundedStudentT, _instance)
        new.resolution = self.resolution
        return expand_parameters(self, new, batch_shape, "df", "loc", "scale")

    def _log_mass(self, centre: Tensor, width: Tensor) -> Tensor:
        return log_student_mass(*torch.broadcast_tensors(self.df.double(), centre, width))

    def _survival(self, t: Tensor) -> Tensor:
        return log_student_survival(*torch.broadcast_tensors(self.df.double(), t)).exp()

    def _integrals(self, t: Tensor) -> tuple[Tensor, Tensor]:
        df = self.df.double()
        return student_survival_integral(df, t), student_square_integral(df, t)

    def _unit_variance(self) -> Tensor:
        df = self.df.double()
        return torch.where(df > 2, df / (df - 2), torch.where(df > 1, math.inf, math.nan))

    def _draw(self, shape: torch.Size) -> Tensor:
        df = self.df.double().expand(shape)
        return torch.randn_like(df) * (df / 2 / torch._standard_gamma(df / 2)).sqrt()
