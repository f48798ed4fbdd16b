"""Draws of the latents, with cached densities."""

from functools import cached_property

import torch
from torch import Tensor

from pyrovae.evidence.latent_space import Latents, LatentSpace


class Points:
    """Draws of the latents, with the quantities that components and estimates share, each computed once.

    Args:
        space: Space of the latents.
        latents: Values by site, each with shape (K, N, ...); None to compute them from u.
        u: Coordinates, with shape (K, N, U); None to compute them from the latents.
        component: Index of the mixture component of each draw, with shape (K,); None if there is only one.
    """

    def __init__(
        self,
        space: LatentSpace,
        latents: Latents | None = None,
        u: Tensor | None = None,
        component: Tensor | None = None,
    ) -> None:
        self.space = space
        if latents is not None:
            self.latents = latents
        if u is not None:
            self.u = u
        if component is not None:
            self.component = component

    @cached_property
    def latents(self) -> Latents:
        """Values by site, each with shape (K, N, ...)."""
        return self.space.unpack(self.u)[0]

    @cached_property
    def u(self) -> Tensor:
        """Coordinates, with shape (K, N, U)."""
        return self.space.pack(self.latents)

    @cached_property
    def component(self) -> Tensor:
        """Index of the mixture component of each draw, with shape (K,)."""
        return torch.zeros(len(self), dtype=torch.long)

    @cached_property
    def log_det(self) -> Tensor:
        """Log |det dz/du|, with shape (K, N)."""
        return self.space.unpack(self.u)[1]

    @cached_property
    def log_prior_and_likelihood(self) -> tuple[Tensor, Tensor]:
        """Log p(z) and log p(x|z) in nats, each with shape (K, N)."""
        return self.space.log_model(self.latents)

    def __len__(self) -> int:
        return len(next(iter(self.latents.values())) if "latents" in self.__dict__ else self.u)
