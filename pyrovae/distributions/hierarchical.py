"""Distribution of a vector in two blocks, p(a) p(b|a)."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor


class HierarchicalDistribution(TorchDistribution):
    """Distribution of a vector in two blocks, z = (a, b).

        log p(z) = log p(a) + log p(b|a)

    Args:
        base: Distribution p(a), with event_shape (A,) and the batch_shape of z.
        conditional: Function from a, with shape (..., A), to the distribution p(b|a), with event_shape (B,) and the
            leading shape of a as its batch_shape.
        size: Length A + B of z.
        reverse: Whether z is stored as (b, a).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        base: TorchDistributionMixin,
        conditional: Callable[[Tensor], TorchDistributionMixin],
        size: int,
        *,
        reverse: bool = False,
    ) -> None:
        self.base, self.conditional, self.reverse = base, conditional, reverse
        super().__init__(base.batch_shape, torch.Size([size]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "HierarchicalDistribution":
        """Return the distribution expanded to batch_shape."""
        base = self.base.expand(torch.Size(batch_shape))
        return HierarchicalDistribution(base, self.conditional, self.event_shape[0], reverse=self.reverse)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw with gradients, with shape sample_shape + batch_shape + (A + B,)."""
        a = self.base.rsample(torch.Size(sample_shape))
        b = self.conditional(a).rsample()
        return torch.cat([b, a] if self.reverse else [a, b], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats, with the leading shape of value, (..., A + B)."""
        size = self.base.event_shape[0]
        if self.reverse:
            b, a = value.tensor_split((self.event_shape[0] - size,), -1)
        else:
            a, b = value.tensor_split((size,), -1)
        return self.base.log_prob(a) + self.conditional(a).log_prob(b)


def resolve_top_dim(top_dim: int | None, latent_dim: int) -> int:
    """Return the dimension of the upper of two layers: top_dim, or half of Z if it is None.

    Raises:
        ValueError: If a layer has no dimension.
    """
    top = latent_dim // 2 if top_dim is None else top_dim
    if not 0 < top < latent_dim:
        raise ValueError(
            f"top_dim must be at least 1 and below latent_dim = {latent_dim}, got {top}; change top_dim or latent_dim"
        )
    return top
