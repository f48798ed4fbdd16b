"""The base of the priors."""

from typing import Self

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.bijections import bijection


class Prior(nn.Module):
    """Base of the priors. A new one is a constructor and a forward that returns a Pyro distribution.

    The constructor takes the latent's size first and gives everything else a default; the forward returns a
    distribution with event_shape (latent_dim,) and an empty batch_shape (the plate expands it), or, when it is
    conditional, batch_shape (N,) from covariates with shape (N, C). A prior on another space than the real vectors
    says so by the class attribute `support`; `VAE` carries a real encoder there.

    Args:
        latent_dim: Size Z of the latent.

    Raises:
        ValueError: If latent_dim is below 1.

    Example:
        >>> import pyro.distributions as dist
        >>> class CauchyPrior(Prior):
        ...     def __init__(self, latent_dim: int, scale: float = 1.0) -> None:
        ...         super().__init__(latent_dim)
        ...         self.register_buffer("loc", torch.zeros(latent_dim))
        ...         self.scale = scale
        ...
        ...     def forward(self, covariates=None):
        ...         return dist.Cauchy(self.loc, self.scale).to_event(1)
        >>> CauchyPrior(3)().event_shape
        torch.Size([3])
    """

    support: constraints.Constraint = constraints.real_vector

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
        self.latent_dim = latent_dim

    @property
    def encoder_dim(self) -> int:
        """Size of the latent that an encoder must give: Z, or Z - 1 real numbers where Z entries sum to one."""
        if self.support.is_discrete:
            return self.latent_dim
        return bijection(self.support).inverse_shape(torch.Size([self.latent_dim]))[-1]

    def attach(self, encoder: nn.Module, x: Tensor) -> Self:
        """Take what the prior needs of the encoder and of training data; nothing, unless overridden.

        A run that is loaded attaches zeros before its weights come, so what is taken must have a shape of its own.

        Args:
            encoder: Module whose forward returns q(z|x); what the prior keeps of it is shared, not copied.
            x: Training data, with shape (N, D).

        Returns:
            The prior itself.
        """
        return self

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(z), or p(z|c) for covariates with shape (N, C)."""
        raise NotImplementedError(f"{type(self).__name__} needs a forward that returns a distribution")
