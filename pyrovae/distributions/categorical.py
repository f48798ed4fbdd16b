"""Distributions over classes 0..C-1 and over ordered bins 0..B-1."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from pyrovae.distributions.expand import Shape, expand_parameters
from pyrovae.distributions.log_gamma import result_type


class FloatCategorical(dist.Categorical):
    """Categorical distribution over the floats 0..C-1, with their mean and variance."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats, with the shape of value: -inf of other numbers, NaN of NaN."""
        if self._validate_args:
            self._validate_sample(value)
        unknown = value.isnan()
        level = torch.where(unknown, 0, value).long().clamp(0, self.logits.shape[-1] - 1)
        index, logits = torch.broadcast_tensors(level.unsqueeze(-1), self.logits)
        log_p = logits.gather(-1, index[..., :1]).squeeze(-1)
        return torch.where(unknown, torch.nan, torch.where(level == value, log_p, -torch.inf))

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


class OrderedLogistic(TorchDistribution):
    """Levels 0..L-1 of a logistic variable with location eta, cut at increasing points c_1 < ... < c_{L-1}.

        P(k) = sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(-(b - a))),  a = c_k - eta,  b = c_{k+1} - eta

    c_0 is -infinity and c_L infinity. The second form subtracts no nearly equal numbers. It is computed in double
    precision and returned in the dtype of the value and eta. McCullagh, "Regression models for ordinal data", JRSS B
    1980, https://doi.org/10.1111/j.2517-6161.1980.tb01109.x.

    Args:
        predictor: Location eta.
        cutpoints: Cut points, increasing along the last dimension, with shape (..., L - 1), whose leading dimensions
            broadcast against predictor.
        validate_args: Whether to check arguments and values; None for the global setting.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "predictor": constraints.real,
        "cutpoints": constraints.ordered_vector,
    }
    natural_centre: ClassVar[str] = "median"  # of imputed levels

    def __init__(self, predictor: Tensor, cutpoints: Tensor, validate_args: bool | None = None) -> None:
        self.num_levels = cutpoints.shape[-1] + 1
        # Never broadcast, since the gradient of a look-up is as large as the table.
        self.cutpoints = cutpoints
        batch_shape = torch.broadcast_shapes(predictor.shape, cutpoints.shape[:-1])
        self.predictor = predictor.expand(batch_shape)
        super().__init__(batch_shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "OrderedLogistic":
        """Return the distribution expanded to batch_shape."""
        new = self._get_checked_instance(OrderedLogistic, _instance)
        new.num_levels, new.cutpoints = self.num_levels, self.cutpoints
        return expand_parameters(self, new, batch_shape, "predictor")

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Integers 0..L-1."""
        return constraints.integer_interval(0, self.num_levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        value, eta = value.expand(shape), self.predictor.double().expand(shape)
        level = torch.where(value.isnan(), 0, value).long().clamp(0, self.num_levels - 1)
        first, last = level == 0, level == self.num_levels - 1
        lower, upper = self._cut(level - 1), self._cut(level)
        at_most, at_least = logsigmoid(upper - eta), logsigmoid(eta - lower)
        width = torch.where(first | last, 1.0, upper - lower)
        inside = at_most + at_least + torch.log(-torch.expm1(-width))
        log_p = torch.where(first, at_most, torch.where(last, at_least, inside))
        return torch.where(value.isnan(), value.double(), log_p).to(result_type(value, self.predictor))

    def cdf(self, value: Tensor) -> Tensor:
        """Return P(k <= value)."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        value = value.expand(shape)
        level = torch.where(value.isnan(), 0, value).floor().clamp(-1, self.num_levels - 1).long()
        below = torch.sigmoid(self._cut(level) - self.predictor.double().expand(shape))
        below = torch.where(level < 0, 0.0, torch.where(level == self.num_levels - 1, 1.0, below))
        return torch.where(value.isnan(), value.double(), below).to(result_type(value, self.predictor))

    def _cut(self, index: Tensor) -> Tensor:
        """Look cut points up, with the shape of index; the nearest one if the index lies outside."""
        count = self.num_levels - 1
        rows = torch.arange(self.cutpoints.shape[:-1].numel(), device=index.device).view(self.cutpoints.shape[:-1])
        where = rows * count + index.clamp(0, count - 1)
        return self.cutpoints.double().flatten().index_select(0, where.flatten()).view(where.shape)

    @property
    def mean(self) -> Tensor:
        """Mean, sum_j P(k >= j)."""
        return self._moments()[0].to(self.predictor.dtype)

    @property
    def variance(self) -> Tensor:
        """Variance, sum_j (2 j - 1) P(k >= j) - mean^2."""
        mean, square = self._moments()
        return (square - mean**2).to(self.predictor.dtype)

    def _moments(self) -> tuple[Tensor, Tensor]:
        eta = self.predictor.double()
        mean, square = torch.zeros_like(eta), torch.zeros_like(eta)
        for j in range(1, self.num_levels):  # one level at a time: all at once would need L times the memory
            at_least = torch.sigmoid(eta - self.cutpoints[..., j - 1].double())
            mean, square = mean + at_least, square + (2 * j - 1) * at_least
        return mean, square

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw a logistic and count the cut points below it."""
        with torch.no_grad():
            eta = self.predictor.double().expand(self._extended_shape(sample_shape))
            x = eta + torch.logit(torch.rand_like(eta), eps=torch.finfo(eta.dtype).tiny)
            level = torch.zeros_like(x)
            for j in range(1, self.num_levels):
                level += x > self.cutpoints[..., j - 1].double()
            return level.to(self.predictor.dtype)
