"""Encoders of discrete latents."""

from typing import Any

import pyro.distributions as dist
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrovae.encoders.base import Encoder


class CategoricalEncoder(Encoder):
    """Categorical encoder, for `CategoricalPrior`.

        q(z|x) = prod_d softmax(network(x))_d^z_d,  z one-hot

    Draws have no gradient: train with `TraceEnum_ELBO`, which sums over the categories exactly. `Trace_ELBO` scores
    single draws, and warns.

    Args:
        network: Module from x (and covariates) to the parameters of q(z|x): Z logits.
    """

    support = constraints.one_hot

    @classmethod
    def num_outputs(cls, latent_dim: int, **arguments: Any) -> int:
        """Return Z."""
        return latent_dim

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return q(z|x), with the batch_shape of x's leading dimensions."""
        return dist.OneHotCategorical(logits=self.outputs(x, covariates))
