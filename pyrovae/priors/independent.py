"""Priors with independent dimensions: normal, Laplace and Student-t."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.priors.base import Prior


class StandardNormalPrior(Prior):
    """Standard normal.

        p(z) = N(z; 0, I)

    Args:
        latent_dim: Dimension Z of the latent.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return N(0, I). Covariates are ignored."""
        return dist.Normal(self.loc, self.scale).to_event(1)


class _LocationScalePrior(Prior):
    """Base of the priors with a learned location and scale per dimension, initially 0 and 1."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))


class NormalPrior(_LocationScalePrior):
    """Diagonal normal with learned location and scale.

        p(z) = N(z; loc, diag(exp(log_scale))^2)

    It is initially N(0, I).

    Args:
        latent_dim: Dimension Z of the latent.
    """

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the normal. Covariates are ignored."""
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class LaplacePrior(_LocationScalePrior):
    """Laplace with learned location and scale.

        p(z) = prod_d exp(-|z_d - loc_d| / b_d) / (2 b_d),  b = exp(log_scale)

    Initially loc is 0 and b is 1, hence the variance 2.

    Args:
        latent_dim: Dimension Z of the latent.
    """

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the Laplace. Covariates are ignored."""
        return dist.Laplace(self.loc, self.log_scale.exp()).to_event(1)


class StudentTPrior(_LocationScalePrior):
    """Student-t with learned location, scale and degrees of freedom.

        p(z) = prod_d t(z_d; df_d, loc_d, scale_d),  df = 2 + exp(log_excess),  scale = exp(log_scale)

    Each dimension has its own df, above 2, so the variance is finite. Initially loc is 0 and scale is 1.

    Args:
        latent_dim: Dimension Z of the latent.
        df: Initial degrees of freedom, above 2.

    Raises:
        ValueError: If df is not above 2.
    """

    def __init__(self, latent_dim: int, df: float = 5.0) -> None:
        super().__init__(latent_dim)
        if not 2 < df < math.inf:
            raise ValueError(f"df must be a number above 2, got {df}")
        self.log_excess = nn.Parameter(torch.full((latent_dim,), math.log(df - 2)))

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the Student-t. Covariates are ignored."""
        return dist.StudentT(2 + self.log_excess.exp(), self.loc, self.log_scale.exp()).to_event(1)
