"""Priors on the simplex of Z positive entries that sum to one. `VAE` maps encoders of Z - 1 real numbers to it."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.bijections import bijection
from pyrovae.priors.base import Prior


class DirichletPrior(Prior):
    """Dirichlet on the simplex.

        p(z) ~ prod_d z_d^(a_d - 1),  a = concentration * exp(log_ratio)

    Draws are reparameterised by implicit differentiation.

    Args:
        latent_dim: Dimension Z of the latent, the number of entries.
        concentration: Positive concentration a of all entries; the initial one if it is learned.
        learned: Whether to learn one concentration per entry.

    Raises:
        ValueError: If latent_dim is below 2, or the concentration is not positive.
    """

    support = constraints.simplex
    log_ratio: Tensor

    def __init__(self, latent_dim: int, concentration: float = 1.0, learned: bool = False) -> None:
        super().__init__(latent_dim)
        _check_entries(latent_dim)
        if not 0 < concentration < math.inf:
            raise ValueError(f"concentration must be a positive number, got {concentration}")
        self.concentration = concentration
        if learned:
            self.log_ratio = nn.Parameter(torch.zeros(latent_dim))
        else:
            self.register_buffer("log_ratio", torch.zeros(latent_dim), persistent=False)

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the Dirichlet. Covariates are ignored."""
        return dist.Dirichlet(self.concentration * self.log_ratio.exp())


class LogisticNormalPrior(Prior):
    """Logistic normal on the simplex.

        z = f(y),  y ~ N(loc, diag(exp(log_scale))^2) with Z - 1 entries

    f is `StickBreaking`, which maps 0 to equal entries. loc and log_scale are learned, initially 0. `VAE` maps the
    encoder to the simplex by the same f, so with a normal encoder the KL divergence has a closed form.

    Args:
        latent_dim: Dimension Z of the latent, the number of entries.

    Raises:
        ValueError: If latent_dim is below 2.
    """

    support = constraints.simplex

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        _check_entries(latent_dim)
        self.loc = nn.Parameter(torch.zeros(latent_dim - 1))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim - 1))

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the logistic normal. Covariates are ignored."""
        normal = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return dist.TransformedDistribution(normal, bijection(self.support))


def _check_entries(latent_dim: int) -> None:
    if latent_dim < 2:
        raise ValueError(f"latent_dim must be at least 2 on the simplex, got {latent_dim}; give the number of shares")
