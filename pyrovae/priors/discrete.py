"""Priors of discrete latents."""

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.priors.base import Prior


class CategoricalPrior(Prior):
    """Categorical prior with learned probabilities.

        p(z) = prod_d softmax(logits)_d^z_d,  z one-hot

    The latent is a one-hot vector with event_shape (Z,), so every decoder accepts it. The probabilities are initially
    equal. Draws have no gradient: train with `TraceEnum_ELBO`, which sums over the categories exactly. `Trace_ELBO`
    scores single draws, and warns.

    Args:
        latent_dim: Dimension Z of the latent, the number of categories.
    """

    support = constraints.one_hot

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.logits = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the one-hot categorical. Covariates are ignored."""
        return dist.OneHotCategorical(logits=self.logits)
