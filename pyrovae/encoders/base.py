"""Base class of encoders."""

from typing import Any

from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.nn import join


class Encoder(nn.Module):
    """Base class of encoders q(z|x) and q(z|x,c).

    To add an encoder:

    1. Subclass `Encoder`. A constructor with further arguments takes `network` first, gives every other argument a
       default, and calls `super().__init__(network)`.
    2. Write `forward`. It calls `outputs`, and returns a Pyro distribution with event_shape (Z,) and the batch_shape of
       x's leading dimensions.
    3. If the network needs another number of outputs than 2 Z, override `num_outputs`.
    4. If the latent is not a real vector, set the class attribute `support`.

    Args:
        network: Module from x (and covariates) to the parameters of q(z|x), with shape (..., num_outputs(Z)).

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
        """Return the number of outputs that the network needs, 2 Z unless overridden.

        Args:
            latent_dim: Dimension Z of the latent.
            **arguments: Constructor arguments of the encoder.
        """
        return 2 * latent_dim

    def outputs(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Run the network on x with covariates appended.

        Args:
            x: Data, with shape (..., N, D).
            covariates: Covariates c, with shape (N, C); None if the model has none.
        """
        return self.network(join(x, covariates))

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return q(z|x), with the batch_shape of x's leading dimensions.

        Args:
            x: Data, with shape (..., N, D).
            covariates: Covariates c, with shape (N, C); None if the model has none.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method forward; write one that returns q(z|x)")


def latent_size(num_outputs: int, per_dim: int, rest: int, formula: str) -> int:
    """Return the Z for which num_outputs = per_dim * Z + rest.

    Args:
        num_outputs: Number of outputs of the network.
        per_dim: Number of outputs per dimension of the latent.
        rest: Number of further outputs.
        formula: The expected number of outputs in Z, for the message.

    Raises:
        ValueError: If no such Z exists.
    """
    size, left = divmod(num_outputs - rest, per_dim)
    if left or size < 1:
        raise ValueError(
            f"the encoder's network must have {formula} outputs for a latent of dimension Z, got {num_outputs}; give "
            "it num_outputs(Z) of them"
        )
    return size
