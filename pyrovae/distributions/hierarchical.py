"""Distributions of a vector in two blocks, p(a) p(b | a)."""

from collections.abc import Callable, Sequence

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor


class HierarchicalDistribution(TorchDistribution):
    """Distribution of z = (a, b) with log p(z) = log p(a) + log p(b | a).

    Args:
        base: Distribution p(a), with event_shape (A,) and the batch_shape of z.
        conditional: Function from a, with shape (..., A), to the distribution p(b | a), with event_shape (B,) and the
            leading shape of a as its batch_shape.
        size: Length of z, A + B.
        reverse: Whether z is written as (b, a).
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  # torch's name and kind, read only
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
        """Expand to this batch_shape."""
        base = self.base.expand(torch.Size(batch_shape))
        return HierarchicalDistribution(base, self.conditional, self.event_shape[0], reverse=self.reverse)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw with gradients; the shape is sample_shape + batch_shape + (A + B,)."""
        a = self.base.rsample(torch.Size(sample_shape))
        b = self.conditional(a).rsample()
        return torch.cat([b, a] if self.reverse else [a, b], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, with the leading shape of value, (..., A + B)."""
        size = self.base.event_shape[0]
        if self.reverse:
            b, a = value.tensor_split((self.event_shape[0] - size,), -1)
        else:
            a, b = value.tensor_split((size,), -1)
        return self.base.log_prob(a) + self.conditional(a).log_prob(b)


def checked_top(top_dim: int | None, latent_dim: int) -> int:
    """Size of the upper of two layers: half of Z, or the one asked for.

    Raises:
        ValueError: If no layer of at least one dimension is left below or above.
    """
    top = latent_dim // 2 if top_dim is None else top_dim
    if not 0 < top < latent_dim:
        raise ValueError(f"top_dim must be at least 1 and below latent_dim = {latent_dim}, got {top}")
    return top
