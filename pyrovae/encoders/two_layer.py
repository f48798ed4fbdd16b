"""Encoder of two layers, in either direction."""

from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.distributions import HierarchicalDistribution, resolve_top_dim
from pyrovae.encoders.base import Encoder, latent_size
from pyrovae.nn import MLP, join, out_features, scale_of

Direction = Literal["bottom-up", "top-down"]


class TwoLayerEncoder(Encoder):
    """Two layers in one latent z = (z2, z1), each a diagonal normal.

        bottom-up:  q(z|x) = q(z1|x) q(z2|z1,x)
        top-down:   q(z|x) = q(z2|x) q(z1|z2,x)

    "bottom-up" follows Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders" (2016,
    https://arxiv.org/abs/1509.00519). "top-down", the order of the generative model, follows Sonderby et al., "Ladder
    variational autoencoders" (NeurIPS 2016, https://arxiv.org/abs/1602.02282). The location and log scale of the layer
    drawn second are outputs of the network plus an `MLP` of the first layer and of features of x. The latent has the
    layout of `TwoLayerPrior`, and every prior of real vectors accepts it.

    Args:
        network: Module from x (and covariates) to the parameters of q(z|x): Z locations, Z log scales,
            then the features of x.
        top_dim: Dimension of z2; None for half of Z.
        direction: Order of the layers: "bottom-up" or "top-down".
        num_features: Number of features of x.
        hidden: Sizes of the hidden layers of the network from the first layer to the second.

    Raises:
        ValueError: If a layer has no dimension, direction is neither "bottom-up" nor "top-down", or the network has
            another or an unknown number of outputs (see `pyrovae.nn.out_features`).
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
        """Return 2 Z + num_features."""
        return 2 * latent_dim + num_features

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return q(z|x), with the batch_shape of x's leading dimensions."""
        loc, log_scale, features = self.outputs(x, covariates).tensor_split((self.latent_dim, 2 * self.latent_dim), -1)
        layers = [(loc[..., part], log_scale[..., part]) for part in (slice(self.top_dim), slice(self.top_dim, None))]
        upwards = self.direction == "bottom-up"
        (first_loc, first_scale), (second_loc, second_scale) = reversed(layers) if upwards else layers

        def conditional(first: Tensor) -> TorchDistributionMixin:
            shift, stretch = self.link(join(features, first)).chunk(2, dim=-1)
            return dist.Normal(second_loc + shift, scale_of(second_scale + stretch)).to_event(1)

        q_first = dist.Normal(first_loc, scale_of(first_scale)).to_event(1)
        return HierarchicalDistribution(q_first, conditional, self.latent_dim, reverse=upwards)
