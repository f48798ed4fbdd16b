"""Priors given by a normalising flow, trained jointly with the rest of the model."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrovae.distributions import FlowDistribution, FlowKind, autoregressive_transform
from pyrovae.priors.base import Prior


class FlowPrior(Prior):
    """Normalising flow.

        p(z) = N(f(z); 0, I) |det df/dz|

    f is a stack of autoregressive transforms (see `pyrovae.distributions.autoregressive_transform`). A density needs
    one pass of f, a draw needs Z. "nsf" transforms inside [-5, 5] only, "maf" everywhere.

    Args:
        latent_dim: Dimension Z of the latent.
        kind: Transforms of the flow: "nsf" (splines) or "maf" (affine).
        transforms: Number of transforms; the order of the dimensions reverses from one to the next.
        hidden: Sizes of the hidden layers of each transform's network.

    Raises:
        ValueError: If kind is neither "nsf" nor "maf", or transforms is below 1.
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
        """Return the flow. Covariates are ignored."""
        return FlowDistribution(self.transform(), dist.Normal(self.loc, self.scale).to_event(1))


class AutoregressivePrior(FlowPrior):
    """Autoregressive normal.

        p(z) = prod_d N(z_d; m_d(z_<d), s_d(z_<d)^2)

    One masked network computes m and s (Germain, Gregor, Murray, Larochelle, "MADE", 2015,
    https://arxiv.org/abs/1502.03509). This is a masked autoregressive flow of a single transform, with the dimensions
    in their order.

    Args:
        latent_dim: Dimension Z of the latent.
        hidden: Sizes of the hidden layers of the network.
    """

    def __init__(self, latent_dim: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__(latent_dim, kind="maf", transforms=1, hidden=hidden)
