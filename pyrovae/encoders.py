"""Encoders q(z|x) and q(z|x,c): modules whose forward returns a distribution of one latent."""

from typing import Any

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.nn import join, split


class Encoder(nn.Module):
    """Base of the encoders. A new one is a forward that turns the network's numbers into a Pyro distribution.

    The distribution has event_shape (Z,) and the batch_shape of x's leading dimensions. `num_outputs` says how many
    numbers the network must give.

    Args:
        network: Maps x, with shape (..., D), to shape (..., num_outputs(Z)).

    Example:
        >>> import torch
        >>> from pyrovae.nn import MLP
        >>> class LaplaceEncoder(Encoder):
        ...     def forward(self, x, covariates=None):
        ...         loc, log_scale = self.outputs(x, covariates).chunk(2, dim=-1)
        ...         return dist.Laplace(loc, log_scale.exp()).to_event(1)
        >>> LaplaceEncoder(MLP(5, LaplaceEncoder.num_outputs(2)))(torch.zeros(3, 5)).event_shape
        torch.Size([2])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def num_outputs(cls, latent_dim: int, **arguments: Any) -> int:
        """How many numbers the network must give, under these constructor arguments: 2 Z unless overridden."""
        return 2 * latent_dim

    def outputs(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Run the network on x, with shape (..., N, D), with covariates, with shape (N, C), appended."""
        return self.network(join(x, covariates))

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return q(z|x), with the batch_shape of x's leading dimensions."""
        raise NotImplementedError(f"{type(self).__name__} needs a forward that returns a distribution")


class NormalEncoder(Encoder):
    """Diagonal normal: q(z|x) = N(z; loc, diag(exp(log_scale))^2), loc and log_scale the halves of network(x).

    Args:
        network: Maps x to Z locations and then Z log scales.
    """

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return q(z|x), with the batch_shape of x's leading dimensions."""
        loc, log_scale = split(self.outputs(x, covariates), 2)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
