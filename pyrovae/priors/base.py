"""Base class of priors."""

from typing import Self

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.bijections import bijection


class Prior(nn.Module):
    """Base class of priors p(z) and p(z|c).

    To add a prior:

    1. Subclass `Prior` with a constructor that takes `latent_dim` first, gives every other argument a default, and
       calls `super().__init__(latent_dim)`.
    2. Write `forward`. It returns a Pyro distribution with event_shape (latent_dim,) and an empty batch_shape, which
       the plate expands. A conditional prior returns batch_shape (N,) for covariates with shape (N, C).
    3. If the latent is not a real vector, set the class attribute `support`. `VAE` then maps the latents of real
       encoders to this support.
    4. If the prior needs the encoder or training data, override `attach`.

    Args:
        latent_dim: Dimension Z of the latent.

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
        """Dimension of the latent of an encoder of real vectors: Z, or Z - 1 on the simplex."""
        if self.support.is_discrete:
            return self.latent_dim
        return bijection(self.support).inverse_shape(torch.Size([self.latent_dim]))[-1]

    def attach(self, encoder: nn.Module, x: Tensor) -> Self:
        """Give the prior access to the encoder and to training data, which priors ignore unless they override this.

        Loading a run attaches zeros before it loads the weights, so the shapes of stored tensors must not depend on N.

        Args:
            encoder: Module whose forward returns q(z|x); the prior shares it and does not copy it.
            x: Training data, with shape (N, D).

        Returns:
            The prior itself.
        """
        return self

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(z), or p(z|c).

        Args:
            covariates: Covariates c, with shape (N, C); None if the model has none.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method forward; write one that returns p(z)")
