"""Exact values and gradients of bounds of K draws by quadrature, for any K."""

import math
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from torch import Tensor


def normal_nodes(size: int = 60) -> tuple[Tensor, Tensor]:
    """Return Gauss-Hermite nodes and weights of a standard normal."""
    x, w = np.polynomial.hermite_e.hermegauss(size)
    return torch.tensor(x), torch.tensor(w / math.sqrt(2 * math.pi))


def exact_bound(log_w: Tensor, probability: Tensor, num_particles: int, order: float = 1.0) -> Tensor:
    """Compute E 1/order log 1/K sum_k w_k^order of K independent draws, differentiably.

    Uses log s = int (exp(-t) - exp(-t s)) dt/t with t = e^u. Independent draws need no K-fold quadrature.

    Args:
        log_w: Log weights at the nodes, with shape (I,).
        probability: Weights of the nodes, with shape (I,).
        num_particles: Number of draws K.
        order: Power of the weights.
    """
    if order == 0:
        return (probability * log_w).sum()
    powers = order * log_w
    centre = (probability * powers).sum().detach()
    # This resolves mean weights from e^-75 to e^75 times the central one; nodes beyond have negligible probability.
    u = torch.arange(-80.0, 80.0, 0.05, dtype=log_w.dtype)
    kept = (probability * torch.exp(-torch.exp(u[:, None] + powers - centre) / num_particles)).sum(-1)
    return (centre + 0.05 * (torch.exp(-torch.exp(u)) - kept**num_particles).sum()) / order


class Copies:
    """Copies of one datum with separate parameters, of z ~ N(0, 1), x|z ~ N(a z + c, s), q = N(m, r).

    One loss gives an independent draw of the gradient for each copy.
    """

    values: ClassVar = {"a": 1.3, "c": 0.4, "m": 0.1, "log_r": -0.2}
    x, scale = 1.7, 0.8

    def __init__(self, copies: int, *, family=dist.Normal):
        self.parameters = {
            name: torch.full((copies,), value, dtype=torch.float64, requires_grad=True)
            for name, value in self.values.items()
        }
        self.data = torch.full((copies,), self.x, dtype=torch.float64)
        self.family = family

    def model(self, x):
        p = self.parameters
        with pyro.plate("copies", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(p["a"] * z + p["c"], self.scale), obs=x)

    def guide(self, x):
        p = self.parameters
        with pyro.plate("copies", len(x), dim=-1):
            pyro.sample("z", self.family(p["m"], p["log_r"].exp()))

    def gradients(self, elbo) -> dict[str, Tensor]:
        """Draw the gradient of the bound for each copy."""
        loss = elbo.differentiable_loss(self.model, self.guide, self.data)
        found = torch.autograd.grad(-loss, list(self.parameters.values()))
        return dict(zip(self.parameters, found, strict=True))

    @classmethod
    def log_w(cls, p: dict[str, Tensor], z: Tensor, weight: float = 1.0) -> Tensor:
        q = dist.Normal(p["m"], p["log_r"].exp()).log_prob(z)
        log_lik = dist.Normal(p["a"] * z + p["c"], cls.scale).log_prob(torch.tensor(cls.x, dtype=z.dtype))
        return log_lik + weight * (dist.Normal(torch.zeros_like(z), 1.0).log_prob(z) - q)

    @classmethod
    def exact(cls, bound, weight: float = 1.0) -> tuple[float, dict[str, float]]:
        """Compute the bound and its gradient.

        Args:
            bound: Function of log weights and probabilities of the nodes.
            weight: Weight of the KL divergence.
        """
        p = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in cls.values.items()}
        nodes, probability = normal_nodes()
        value = bound(cls.log_w(p, p["m"] + p["log_r"].exp() * nodes, weight), probability)
        found = torch.autograd.grad(value, list(p.values()), allow_unused=True, materialize_grads=True)
        return value.item(), {name: g.item() for name, g in zip(p, found, strict=True)}

    @classmethod
    def log_marginal(cls) -> float:
        variance = cls.values["a"] ** 2 + cls.scale**2
        return -((cls.x - cls.values["c"]) ** 2 / variance + math.log(2 * math.pi * variance)) / 2


def score_copies(copies: int) -> Copies:
    """Return copies whose draws are not reparameterised."""
    return Copies(copies, family=NonreparameterizedNormal)
