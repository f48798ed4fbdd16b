"""Priors by normalising flow, trained jointly with the rest."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrovae.distributions import FlowDistribution, FlowKind, autoregressive_transform
from pyrovae.priors.base import Prior


class FlowPrior(Prior):
    """Normalising flow: p(z) = N(f(z); 0, I) |det df/dz|, f a stack of autoregressive transforms (see `flows`).

    A density takes one pass of f, a draw takes Z. "nsf" bends space inside [-5, 5] only, "maf" everywhere.

    Args:
        latent_dim: Size Z of the latent.
        kind: "nsf", splines, or "maf", affine.
        transforms: Number of transforms; the order of the dimensions turns round from one to the next.
        hidden: Sizes of the hidden layers in each.

    Raises:
        ValueError: If the kind is neither of these, or transforms is below 1.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self, latent_dim: int, kind: FlowKind = "nsf", transforms: int = 3, hidden: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__(latent_dim)
        self.transform = autoregressive_transform(kind, latent_dim, transforms=transforms, hidden=hidden)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the flow; covariates do not enter."""
        return FlowDistribution(self.transform(), dist.Normal(self.loc, self.scale).to_event(1))


class AutoregressivePrior(FlowPrior):
    """Autoregressive normal: p(z) = prod_d N(z_d; m_d(z_<d), s_d(z_<d)^2), m and s by one masked network.

    A masked autoregressive flow of a single transform (Germain, Gregor, Murray, Larochelle, "MADE", 2015,
    https://arxiv.org/abs/1502.03509), the dimensions in their order.

    Args:
        latent_dim: Size Z of the latent.
        hidden: Sizes of the hidden layers.
    """

    def __init__(self, latent_dim: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__(latent_dim, kind="maf", transforms=1, hidden=hidden)
