"""Likelihoods of data with finitely many values: unordered classes, ordered bins and ordered levels."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.distributions import DiscretizedLogistic, FloatCategorical, OrderedLogistic
from pyrovae.likelihoods.base import Likelihood, largest_count, log_of
from pyrovae.nn import bounded_exp, out_features

# Data with more values get no suggestion of this many classes: the network would need D C outputs.
_MOST_CLASSES = 1024


class CategoricalLikelihood(Likelihood):
    """Independent categorical, for data 0..C-1 such as 256-way pixels.

        p(x|z) = prod_d softmax(network(z)_d)[x_d]

    Van den Oord et al., "Pixel recurrent neural networks" (2016, https://arxiv.org/abs/1601.06759), section 3.2.

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): C blocks of D logits,
            one block per class.
        num_classes: Number C of classes; data are integers 0..C-1, stored as floats.

    Raises:
        ValueError: If num_classes is below 2.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__(network)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.num_classes = num_classes

    @classmethod
    def num_outputs(cls, num_dims: int, **arguments: Any) -> int:
        """Return D C."""
        return num_dims * int(arguments["num_classes"])

    @classmethod
    def arguments_for(cls, x: Tensor) -> dict[str, Any]:
        """Suggest num_classes, the largest class in the data plus one; 2 if the data are not integers 0..1023."""
        classes = bool(((x >= 0) & (x < _MOST_CLASSES) & (x % 1 == 0)).all())
        return {"num_classes": largest_count(x) + 1 if classes else 2}

    def intercept(self, x: Tensor) -> Tensor:
        """Return the logarithms of the share of each class in the data, all C blocks."""
        return torch.cat([log_of((x == c).to(x.dtype).mean(0)) for c in range(self.num_classes)])

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        logits = self.outputs(z, covariates).unflatten(-1, (self.num_classes, -1)).transpose(-1, -2)
        return FloatCategorical(logits=logits).to_event(1)


class DiscretizedLogisticMixtureLikelihood(Likelihood):
    """Independent mixtures of logistics rounded to bins 0..B-1, for pixels, whose bins are ordered.

        p(x_d|z) = sum_k w_dk [sigmoid((x_d + 1/2 - loc_dk)/s_dk) - sigmoid((x_d - 1/2 - loc_dk)/s_dk)]

    Bin 0 reaches down to -infinity and bin B-1 up to infinity, so the probabilities sum to one. Kingma et al. 2016,
    https://arxiv.org/abs/1606.04934, for one component; Salimans et al., "PixelCNN++", 2017,
    https://arxiv.org/abs/1701.05517, for K.

    The network outputs a, b and e: w = softmax(a_1..a_K), loc_k = c (1 + b_k) and s_k = c v(e_k), with half the range
    c = (B - 1)/2 and v near exp, between 0.001 and 1000 (see `Positive`). Initially each component lies near the middle
    with a scale of half the range.

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): K blocks a of D outputs,
            then K blocks b, then K blocks e.
        num_bins: Number B of bins; data are integers 0..B-1, stored as floats; 256 for 8-bit pixels.
        num_components: Number K of components.

    Raises:
        ValueError: If num_bins is below 2 or num_components below 1.
    """

    def __init__(self, network: nn.Module, num_bins: int, num_components: int = 10) -> None:
        super().__init__(network)
        if num_bins < 2 or num_components < 1:
            raise ValueError(
                f"num_bins must be at least 2 and num_components at least 1, got {num_bins} and {num_components}"
            )
        self.num_bins = num_bins
        self.num_components = num_components

    @classmethod
    def num_outputs(cls, num_dims: int, **arguments: Any) -> int:
        """Return 3 K D."""
        return 3 * num_dims * int(arguments.get("num_components", 10))

    @classmethod
    def arguments_for(cls, x: Tensor) -> dict[str, Any]:
        """Suggest num_bins, the largest bin in the data plus one."""
        return {"num_bins": largest_count(x) + 1}

    def output_bias(self, x: Tensor) -> Tensor:
        """Return an initial bias of the network's last layer: the data's means as the location of each component.

        Args:
            x: Training data, with shape (N, D).
        """
        loc = (2 * x.mean(0) / (self.num_bins - 1) - 1).repeat(self.num_components)
        return torch.cat([torch.zeros_like(loc), loc, torch.zeros_like(loc)])

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        blocks = self.outputs(z, covariates).unflatten(-1, (3, self.num_components, -1))
        logits, loc, raw = blocks.transpose(-1, -2).unbind(-3)
        half = (self.num_bins - 1) / 2
        scale = half * bounded_exp(raw, start=1.0, low=1e-3, high=1e3)
        components = DiscretizedLogistic(half * (1 + loc), scale, self.num_bins)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), components).to_event(1)


class OrderedLogisticLikelihood(Likelihood):
    """Independent ordered logistic, for few ordered levels 0..L-1 such as grades, with a distance learned for each.

        P(x_d <= k|z) = sigmoid(c_{d,k+1} - network(z)_d),  c_{d,1} < ... < c_{d,L-1}

    McCullagh, "Regression models for ordinal data", JRSS B 1980,
    https://doi.org/10.1111/j.2517-6161.1980.tb01109.x. The cut points c are learned, with one vector per dimension:

        c_1 = t_1 + b,  c_{k+1} - c_k = (t_{k+1} - t_k) v(a_k),  t_k = logit(k/L)

    with v near exp, between 0.001 and 1000 (see `Positive`), so they increase by construction. a and b are initially 0,
    and all levels are then equally likely for a network output of 0. A bias of the network's last layer and b are one
    parameter twice.

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D locations. Its number of
            outputs must be known, as `out_features`.
        num_levels: Number L of levels; data are integers 0..L-1, stored as floats.

    Raises:
        ValueError: If num_levels is below 2, or the number of outputs of the network is unknown.
    """

    first: Tensor
    gaps: Tensor

    def __init__(self, network: nn.Module, num_levels: int) -> None:
        super().__init__(network)
        if num_levels < 2:
            raise ValueError(f"num_levels must be at least 2, got {num_levels}")
        self.num_levels = num_levels
        even = torch.tensor([math.log(k / (num_levels - k)) for k in range(1, num_levels)], dtype=torch.float64)
        self.register_buffer("first", even[:1].float(), persistent=False)
        self.register_buffer("gaps", even.diff().float(), persistent=False)
        num_dims = out_features(network)
        self.shift = nn.Parameter(torch.zeros(num_dims, 1))
        self.raw_gaps = nn.Parameter(torch.zeros(num_dims, num_levels - 2)) if num_levels > 2 else None

    @classmethod
    def arguments_for(cls, x: Tensor) -> dict[str, Any]:
        """Suggest num_levels, the largest level in the data plus one; 2 if the data are not integers 0..1023."""
        return {"num_levels": CategoricalLikelihood.arguments_for(x)["num_classes"]}

    @property
    def cutpoints(self) -> Tensor:
        """Cut points, with shape (D, L - 1), float64."""
        first = self.first.double() + self.shift.double()
        if self.raw_gaps is None:
            return first
        gaps = self.gaps.double() * bounded_exp(self.raw_gaps.double(), start=1.0, low=1e-3, high=1e3)
        return torch.cat([first, first + gaps.cumsum(-1)], -1)

    def intercept(self, x: Tensor) -> Tensor:
        """Return the locations with the data's means, by bisection in [-1000, 1000]."""
        last = self.num_levels - 1
        mean = x.mean(0).double().clamp(1e-3 * last, (1 - 1e-3) * last)
        cutpoints = self.cutpoints.detach().to(x.device)
        low, high = torch.full_like(mean, -1e3), torch.full_like(mean, 1e3)
        for _ in range(60):
            middle = (low + high) / 2
            below = OrderedLogistic(middle, cutpoints).mean < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return ((low + high) / 2).to(x.dtype)

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return OrderedLogistic(self.outputs(z, covariates), self.cutpoints).to_event(1)
