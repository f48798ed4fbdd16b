"""Data, weights and guides that several programs of the zoo share."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

N = 6


def noise(seed: int, *shape: int) -> Tensor:
    """Draw standard normal numbers that depend on the seed alone, in double precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_normal(x: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    """Compute the normal log density in nats."""
    scale = torch.as_tensor(scale, dtype=torch.float64)
    return -0.5 * ((x - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


def log_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """Compute the log probability of 0 or 1 in nats."""
    return x * logits - torch.nn.functional.softplus(logits)


def normal_guide(dim: int, width: int, name: str = "z"):
    """Make a guide q(z|x) = N(x A, 1.2), of a data plate at dim -1."""
    start = 0.1 * noise(50, width, dim)

    def guide(x, *args, **kwargs):
        a = pyro.param("a", start.clone())
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample(name, dist.Normal(x @ a, 1.2).to_event(1))

    return guide


def standard_normal(dim: int):
    """Make the distribution N(0, I)."""
    return dist.Normal(torch.zeros(dim), 1.0).to_event(1)
