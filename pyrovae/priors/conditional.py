"""Priors p(z|c) that depend on covariates."""

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.nn import MLP, scale_of, split
from pyrovae.priors.base import Prior


class ConditionalNormalPrior(Prior):
    """Diagonal normal given covariates.

        p(z|c) = N(z; loc, diag(exp(log_scale))^2),  (loc, log_scale) = network(c)

    Args:
        latent_dim: Dimension Z of the latent.
        num_covariates: Number C of covariates.
        network: Module from covariates, with shape (N, C), to Z locations, then Z log scales; None for an `MLP`.

    Raises:
        ValueError: On a call without covariates.
    """

    def __init__(self, latent_dim: int, num_covariates: int = 1, network: nn.Module | None = None) -> None:
        super().__init__(latent_dim)
        self.network = MLP(num_covariates, 2 * latent_dim) if network is None else network

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(z|c), with batch_shape (N,), for covariates with shape (N, C)."""
        if covariates is None:
            raise ValueError("ConditionalNormalPrior needs covariates, got None; give covariates with shape (N, C)")
        loc, log_scale = split(self.network(covariates), 2)
        return dist.Normal(loc, scale_of(log_scale)).to_event(1)
