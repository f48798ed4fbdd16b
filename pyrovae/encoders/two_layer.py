"""The encoder of two layers, upwards and downwards."""

from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.distributions import HierarchicalDistribution, resolve_top_dim
from pyrovae.encoders.base import Encoder, latent_size
from pyrovae.nn import MLP, join, out_features

Direction = Literal["bottom-up", "top-down"]


class TwoLayerEncoder(Encoder):
    """Two layers in one latent z = (z2, z1), each a diagonal normal, the second to be drawn given the first.

    "bottom-up": q(z1|x) q(z2|z1,x), as in Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders" (2016,
    https://arxiv.org/abs/1509.00519). "top-down": q(z2|x) q(z1|z2,x), in the generative model's own order, as in
    Sonderby et al., "Ladder variational autoencoders" (NeurIPS 2016, https://arxiv.org/abs/1602.02282). Location and
    log scale of the second are those that the network gives plus an `MLP` of the first layer and of features of x. The
    latent is laid out as that of `TwoLayerPrior`, and any prior of real vectors takes it.

    Args:
        network: Maps x to Z locations, Z log scales, and the features.
        top_dim: Size of z2; None for half of Z.
        direction: "bottom-up" or "top-down".
        num_features: Number of features of x.
        hidden: Sizes of the hidden layers of the network from the first layer to the second.

    Raises:
        ValueError: If one of the layers has no dimension, the direction is neither of these, or the network gives
            another number of outputs, or does not say how many (see `nn.out_features`).
    """

    def __init__(
        self,
        network: nn.Module,
        top_dim: int | None = None,
        direction: Direction = "bottom-up",
        num_features: int = 16,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(network)
        if direction not in ("bottom-up", "top-down"):
            raise ValueError(f'direction must be "bottom-up" or "top-down", got {direction!r}')
        formula = f"2 Z + num_features, num_features {num_features},"
        self.latent_dim = latent_size(out_features(network), 2, num_features, formula)
        self.top_dim = resolve_top_dim(top_dim, self.latent_dim)
        self.direction = direction
        first = self.top_dim if direction == "top-down" else self.latent_dim - self.top_dim
        self.link = MLP(num_features + first, 2 * (self.latent_dim - first), hidden=hidden)

    @classmethod
    def num_outputs(cls, latent_dim: int, *, num_features: int = 16, **arguments: Any) -> int:
        """2 Z + num_features."""
        return 2 * latent_dim + num_features

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return q(z|x), with the batch_shape of x's leading dimensions."""
        loc, log_scale, features = self.outputs(x, covariates).tensor_split((self.latent_dim, 2 * self.latent_dim), -1)
        layers = [(loc[..., part], log_scale[..., part]) for part in (slice(self.top_dim), slice(self.top_dim, None))]
        upwards = self.direction == "bottom-up"
        (first_loc, first_scale), (second_loc, second_scale) = reversed(layers) if upwards else layers

        def then(first: Tensor) -> TorchDistributionMixin:
            shift, stretch = self.link(join(features, first)).chunk(2, dim=-1)
            return dist.Normal(second_loc + shift, (second_scale + stretch).exp()).to_event(1)

        q_first = dist.Normal(first_loc, first_scale.exp()).to_event(1)
        return HierarchicalDistribution(q_first, then, self.latent_dim, reverse=upwards)
