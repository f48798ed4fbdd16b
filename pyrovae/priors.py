"""Priors p(z) and p(z|c): modules whose forward returns a distribution of one latent."""

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn


class Prior(nn.Module):
    """Base of the priors. A new one is a constructor and a forward that returns a Pyro distribution.

    The constructor takes the latent's size first and gives everything else a default; the forward returns a
    distribution with event_shape (latent_dim,) and an empty batch_shape (the plate expands it), or, when it is
    conditional, batch_shape (N,) from covariates with shape (N, C).

    Args:
        latent_dim: Size Z of the latent.

    Example:
        >>> class LaplacePrior(Prior):
        ...     def __init__(self, latent_dim: int, scale: float = 1.0) -> None:
        ...         super().__init__(latent_dim)
        ...         self.register_buffer("loc", torch.zeros(latent_dim))
        ...         self.scale = scale
        ...
        ...     def forward(self, covariates=None):
        ...         return dist.Laplace(self.loc, self.scale).to_event(1)
        >>> LaplacePrior(3)().event_shape
        torch.Size([3])
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
        self.latent_dim = latent_dim

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(z), or p(z|c) for covariates with shape (N, C)."""
        raise NotImplementedError(f"{type(self).__name__} needs a forward that returns a distribution")


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


class MixturePrior(Prior):
    """Mixture of diagonal normals, all learned: p(z) = sum_c pi_c N(z; loc_c, diag(scale_c)^2).

    Components start with equal weight, unit scale, and locations drawn from N(0, I).

    Args:
        latent_dim: Size Z of the latent.
        num_components: Number of components.
    """

    def __init__(self, latent_dim: int, num_components: int = 10) -> None:
        super().__init__(latent_dim)
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, got {num_components}")
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the mixture; covariates do not enter."""
        components = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)
