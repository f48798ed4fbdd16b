"""Distributions over classes 0..C-1 and over ordered bins 0..B-1."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from pyrovae.distributions.expand import Shape, expand_parameters


class FloatCategorical(dist.Categorical):
    """Categorical distribution over the floats 0..C-1, with their mean and variance."""

    @property
    def mean(self) -> Tensor:
        """Mean, sum_c c p_c."""
        return self.probs @ self._values()

    @property
    def variance(self) -> Tensor:
        """Variance, sum_c (c - mean)^2 p_c."""
        return (self.probs * (self._values() - self.mean.unsqueeze(-1)) ** 2).sum(-1)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw classes, as floats, with shape sample_shape + batch_shape."""
        return super().sample(torch.Size(sample_shape)).to(self.logits.dtype)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """List the classes, as floats."""
        return super().enumerate_support(expand).to(self.logits.dtype)

    def _values(self) -> Tensor:
        return torch.arange(self.probs.shape[-1], dtype=self.probs.dtype, device=self.probs.device)


class DiscretizedLogistic(TorchDistribution):
    """Logistic distribution rounded to bins 0..B-1.

        log P(k) = log [sigmoid(b) - sigmoid(a)]
                 = logsigmoid(b) + logsigmoid(-a) + log(1 - exp(-1/scale)),  0 < k < B-1,
        log P(0) = logsigmoid(b),  log P(B-1) = logsigmoid(-a),
        a = (k - 1/2 - loc)/scale,  b = (k + 1/2 - loc)/scale

    The first bin reaches down to -infinity, the last up to infinity. The second line subtracts no nearly equal numbers.
    Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow" (NeurIPS 2016,
    https://arxiv.org/abs/1606.04934).

    Args:
        loc: Location, in bins.
        scale: Scale, in bins.
        num_bins: Number B of bins.
        validate_args: Whether to check arguments and values; None for the global setting.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, loc: Tensor, scale: Tensor, num_bins: int, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.num_bins = num_bins
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "DiscretizedLogistic":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(DiscretizedLogistic, _instance)
        new.num_bins = self.num_bins
        return expand_parameters(self, new, batch_shape, "loc", "scale")

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Integers 0..B-1."""
        return constraints.integer_interval(0, self.num_bins - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        below_top = logsigmoid((value + 0.5 - self.loc) / self.scale)
        above_bottom = logsigmoid((self.loc - value + 0.5) / self.scale)
        inside = below_top + above_bottom + torch.log(-torch.expm1(-1 / self.scale))
        closed = torch.where(value <= 0, below_top, above_bottom)
        return torch.where((value <= 0) | (value >= self.num_bins - 1), closed, inside)

    @property
    def mean(self) -> Tensor:
        """Mean, sum_j P(k >= j)."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """Variance, sum_j (2 j - 1) P(k >= j) - mean^2."""
        mean, square = self._moments()
        return square - mean**2

    def _moments(self) -> tuple[Tensor, Tensor]:
        mean, square = torch.zeros_like(self.loc), torch.zeros_like(self.loc)
        for j in range(1, self.num_bins):  # one bin at a time: all at once would need B times the memory
            at_least = torch.sigmoid((self.loc - j + 0.5) / self.scale)
            mean, square = mean + at_least, square + (2 * j - 1) * at_least
        return mean, square

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw a logistic and round it to a bin."""
        with torch.no_grad():
            u = torch.rand(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
            x = self.loc + self.scale * torch.logit(u, eps=torch.finfo(u.dtype).eps)
            return x.round().clamp(0, self.num_bins - 1)
