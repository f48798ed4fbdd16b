"""Likelihoods of data that are one of a known number of values: classes without an order, bins with one."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.distributions import DiscretizedLogistic, FloatCategorical
from pyrovae.likelihoods.base import Likelihood, bounded_exp, largest_count, log_of

# With more values, the data are suggested no categorical: its network would give D C numbers.
_MOST_CLASSES = 1024


class CategoricalLikelihood(Likelihood):
    """Independent categorical, for data 0..C-1 such as 256-way pixels: p(x|z) = prod_d softmax(network(z)_d)[x_d].

    Van den Oord et al., "Pixel recurrent neural networks" (2016, https://arxiv.org/abs/1601.06759), section 3.2.

    Args:
        network: Maps z to C blocks of D logits; number c of every dimension stands in the c-th block.
        num_classes: C; data are integers 0..C-1, kept as floats.

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
        """D C."""
        return num_dims * int(arguments["num_classes"])

    @classmethod
    def arguments_for(cls, x: Tensor) -> dict[str, Any]:
        """The largest class seen and one, as num_classes; 2 where the data are no classes 0..1023."""
        classes = bool(((x >= 0) & (x < _MOST_CLASSES) & (x % 1 == 0)).all())
        return {"num_classes": largest_count(x) + 1 if classes else 2}

    def intercept(self, x: Tensor) -> Tensor:
        """Logarithms of the shares of each class among the data, all C blocks of them."""
        return torch.cat([log_of((x == c).to(x.dtype).mean(0)) for c in range(self.num_classes)])

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        logits = self.outputs(z, covariates).unflatten(-1, (self.num_classes, -1)).transpose(-1, -2)
        return FloatCategorical(logits=logits).to_event(1)


class DiscretizedLogisticMixtureLikelihood(Likelihood):
    """Independent mixtures of logistics rounded to bins 0..B-1, for pixels whose bins have an order.

    p(x_d|z) = sum_k w_dk [sigmoid((x_d + 1/2 - loc_dk)/s_dk) - sigmoid((x_d - 1/2 - loc_dk)/s_dk)], where bin 0 reaches
    down to -infinity and bin B-1 up to infinity, so that it sums to one (Kingma et al. 2016,
    https://arxiv.org/abs/1606.04934, for one; Salimans et al., "PixelCNN++", 2017, https://arxiv.org/abs/1701.05517,
    for K).

    With c = (B - 1)/2 half the range, w = softmax(a_1..a_K), loc_k = c (1 + b_k) and s_k = c v(e_k), v near exp and
    between 0.001 and 1000 (see `Positive`); so every component begins about the middle, a half-range wide.

    Args:
        network: Maps z to 3 K blocks of D numbers: K blocks a, then K blocks b, then K blocks e.
        num_bins: B; data are integers 0..B-1, kept as floats; 256 for pixels of a byte.
        num_components: K.

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
        """3 K D."""
        return 3 * num_dims * int(arguments.get("num_components", 10))

    @classmethod
    def arguments_for(cls, x: Tensor) -> dict[str, Any]:
        """The largest bin seen and one, as num_bins."""
        return {"num_bins": largest_count(x) + 1}

    def output_bias(self, x: Tensor) -> Tensor:
        """Start of the network's last bias from data with shape (N, D): the data's means as the location of each."""
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
