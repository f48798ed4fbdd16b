"""Hierarchical prior of two layers."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrovae.distributions import HierarchicalDistribution, resolve_top_dim
from pyrovae.nn import MLP, scale_of
from pyrovae.priors.base import Prior


class TwoLayerPrior(Prior):
    """Two layers in one latent z = (z2, z1).

        p(z) = N(z2; 0, I) N(z1; loc(z2), diag(scale(z2))^2)

    The density is explicit, so every encoder and likelihood accepts this prior. The likelihood depends on both layers;
    for p(x|z1), with one site per layer, see `TwoLayerVAE`. Layers after Burda, Grosse and Salakhutdinov, "Importance
    weighted autoencoders" (2016, https://arxiv.org/abs/1509.00519).

    Args:
        latent_dim: Dimension Z of the latent, both layers together.
        top_dim: Dimension of z2; None for half of Z.
        hidden: Sizes of the hidden layers of the network from z2 to location and log scale of z1.

    Raises:
        ValueError: If a layer has no dimension.
    """

    loc: Tensor

    def __init__(self, latent_dim: int, top_dim: int | None = None, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__(latent_dim)
        top = resolve_top_dim(top_dim, latent_dim)
        self.network = MLP(top, 2 * (latent_dim - top), hidden=hidden)
        self.register_buffer("loc", torch.zeros(top), persistent=False)

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the two layers as one distribution. Covariates are ignored."""
        top = dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)
        return HierarchicalDistribution(top, self._conditional, self.latent_dim)

    def _conditional(self, z2: Tensor) -> TorchDistributionMixin:
        loc, log_scale = self.network(z2).chunk(2, dim=-1)
        return dist.Normal(loc, scale_of(log_scale)).to_event(1)
