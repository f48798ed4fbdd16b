"""Likelihoods of data with finitely many values: unordered classes and ordered bins."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.distributions import DiscretizedLogistic, FloatCategorical
from pyrovae.likelihoods.base import Likelihood, largest_count, log_of
from pyrovae.likelihoods.positive import bounded_exp

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
