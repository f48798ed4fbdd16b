"""Distributions of a vector in two blocks, the second given the first."""

from collections.abc import Callable, Sequence

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor


class Chain(TorchDistribution):
    """Density of z = (a, b) by the chain rule: log p(z) = log p(a) + log p(b | a).

    Args:
        first: Distribution of a, with event_shape (A,), whose batch_shape is the chain's.
        then: Function from a, with shape (..., A), to the distribution of b, with event_shape (B,) and batch_shape
            that of a.
        size: A + B.
        reverse: Write the vector as (b, a).
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  # torch's name and kind, read only
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        first: TorchDistributionMixin,
        then: Callable[[Tensor], TorchDistributionMixin],
        size: int,
        *,
        reverse: bool = False,
    ) -> None:
        self.first, self.then, self.reverse = first, then, reverse
        super().__init__(first.batch_shape, torch.Size([size]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Chain":
        """The same chain with this batch_shape."""
        first = self.first.expand(torch.Size(batch_shape))
        return Chain(first, self.then, self.event_shape[0], reverse=self.reverse)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw with gradients; the shape is sample_shape + batch_shape + (A + B,)."""
        a = self.first.rsample(torch.Size(sample_shape))
        b = self.then(a).rsample()
        return torch.cat([b, a] if self.reverse else [a, b], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, with the leading shape of value, (..., A + B)."""
        size = self.first.event_shape[0]
        if self.reverse:
            b, a = value.tensor_split((self.event_shape[0] - size,), -1)
        else:
            a, b = value.tensor_split((size,), -1)
        return self.first.log_prob(a) + self.then(a).log_prob(b)


def checked_top(top_dim: int | None, latent_dim: int) -> int:
    """Size of the upper of two layers: half of Z, or the one asked for.

    Raises:
        ValueError: If no layer of at least one dimension is left below or above.
    """
    top = latent_dim // 2 if top_dim is None else top_dim
    if not 0 < top < latent_dim:
        raise ValueError(f"top_dim must be at least 1 and below latent_dim = {latent_dim}, got {top}")
    return top
