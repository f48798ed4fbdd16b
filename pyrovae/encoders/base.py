"""The base of the encoders."""

from typing import Any

from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.nn import join


class Encoder(nn.Module):
    """Base of the encoders. A new one is a forward that turns the network's numbers into a Pyro distribution.

    The distribution has event_shape (Z,) and the batch_shape of x's leading dimensions. `num_outputs` says how many
    numbers the network must give. One whose latents are not real vectors says so by the class attribute `support`.

    Args:
        network: Maps x, with shape (..., D), to shape (..., num_outputs(Z)).

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyrovae.nn import MLP
        >>> class LaplaceEncoder(Encoder):
        ...     def forward(self, x, covariates=None):
        ...         loc, log_scale = self.outputs(x, covariates).chunk(2, dim=-1)
        ...         return dist.Laplace(loc, log_scale.exp()).to_event(1)
        >>> LaplaceEncoder(MLP(5, LaplaceEncoder.num_outputs(2)))(torch.zeros(3, 5)).event_shape
        torch.Size([2])
    """

    support: constraints.Constraint = constraints.real_vector

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


def latent_size(num_outputs: int, per_dim: int, rest: int, formula: str) -> int:
    """Z, where a network gives num_outputs = per_dim * Z + rest numbers.

    Raises:
        ValueError: If there is no such Z; the message quotes the formula.
    """
    size, left = divmod(num_outputs - rest, per_dim)
    if left or size < 1:
        raise ValueError(
            f"the encoder's network gives {num_outputs} numbers, expected {formula} for a latent of size Z; give it "
            "num_outputs(Z)"
        )
    return size
