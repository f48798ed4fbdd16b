"""Priors whose dimensions are independent: normal, Laplace and Student-t."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.priors.base import Prior


class StandardNormalPrior(Prior):
    """Standard normal: p(z) = N(z; 0, I).

    Args:
        latent_dim: Size Z of the latent.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return N(0, I); covariates do not enter."""
        return dist.Normal(self.loc, self.scale).to_event(1)


class NormalPrior(Prior):
    """Diagonal normal with learned location and scale: p(z) = N(z; loc, diag(exp(log_scale))^2).

    It starts at N(0, I).

    Args:
        latent_dim: Size Z of the latent.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the learned normal; covariates do not enter."""
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class LaplacePrior(Prior):
    """Laplace with learned location and scale: p(z) = prod_d exp(-|z_d - loc_d| / b_d) / (2 b_d), b = exp(log_scale).

    It starts at loc 0 and b 1, variance 2.

    Args:
        latent_dim: Size Z of the latent.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the learned Laplace; covariates do not enter."""
        return dist.Laplace(self.loc, self.log_scale.exp()).to_event(1)


class StudentTPrior(Prior):
    """Student-t with learned location, scale and degrees of freedom: p(z) = prod_d t(z_d; df_d, loc_d, scale_d).

    df = 2 + exp(log_excess), one per dimension, so that the variance is finite; scale = exp(log_scale). It starts at
    loc 0, scale 1 and the given df.

    Args:
        latent_dim: Size Z of the latent.
        df: Degrees of freedom to start from, above 2.

    Raises:
        ValueError: If df is not above 2.
    """

    def __init__(self, latent_dim: int, df: float = 5.0) -> None:
        super().__init__(latent_dim)
        if not 2 < df < math.inf:
            raise ValueError(f"df must be a number above 2, got {df}")
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))
        self.log_excess = nn.Parameter(torch.full((latent_dim,), math.log(df - 2)))

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the learned Student-t; covariates do not enter."""
        return dist.StudentT(2 + self.log_excess.exp(), self.loc, self.log_scale.exp()).to_event(1)
