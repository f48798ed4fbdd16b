"""Problems at the edges for `coverage.py --edges`: symmetric and many modes, bounds, heavy tails, few draws.

Each has log p(x) in closed form, or as a sum of integrals over one latent on a fine grid, without code of pyrovae.
Each is estimated by `log_marginal` with its default proposal; some by `ais` with few chains too, with 100 temperatures
and with as many as forward and reverse chains need to agree on data that the model simulates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrovae import ais, linear_schedule, log_marginal
from pyrovae.evidence import adaptive_schedule, agreeing_schedule
from pyrovae.stats import LogMarginal

CHUNK = 2**17  # the models are small: larger chunks take less time, and the estimate does not depend on them
Program = Callable[[Tensor], Any]


@dataclass(frozen=True)
class EdgeProblem:
    """Model with known log p(x), a guide, and data.

    Attributes:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x).
        x: Data, with shape (N, D), float64.
        log_p: Log p(x) in nats, with shape (N,).
    """

    model: Program
    guide: Program
    x: Tensor
    log_p: Tensor


Estimator = Callable[[EdgeProblem], tuple[LogMarginal, int]]  # the estimate, and the number of temperatures if any


def program(inside: Program) -> Program:
    """Make a Pyro program of x by the sites inside its plate over data."""

    def run(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            inside(x)

    return run


def normal_guide(loc: Callable[[Tensor], Tensor], scale: float | Tensor) -> Program:
    """Make a guide of a normal z with shape (N, Z)."""
    return program(lambda x: pyro.sample("z", dist.Normal(loc(x), scale).to_event(1)))


def standard_normal(size: int) -> dist.TorchDistribution:
    """Make N(0, I) with Z = size, float64."""
    return dist.Normal(torch.zeros(size, dtype=torch.float64), 1.0).to_event(1)


def by_grid(log_joint: Callable[[Tensor], Tensor], low: float, high: float, num_points: int = 20_001) -> Tensor:
    """Integrate over one latent by the trapezoid rule; log_joint maps a grid (G, 1, 1) to (G, N, D)."""
    grid = torch.linspace(low, high, num_points, dtype=torch.float64)
    parts = []
    for piece in grid.split(500):
        parts.append(log_joint(piece[:, None, None]).logsumexp(0))
    return torch.stack(parts).logsumexp(0) + math.log((high - low) / (num_points - 1))


def normal_log_density(x: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    """Evaluate log N(x; loc, scale^2), written out."""
    scale = torch.as_tensor(scale, dtype=torch.float64)
    return -0.5 * ((x - loc) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)


def two_modes(size: int, num_data: int, noise: float = 0.7) -> EdgeProblem:
    """Make a linear decoder whose sign is unknown: p(x|z) = N(x; Wz, s^2) / 2 + N(x; -Wz, s^2) / 2; modes at z and -z.

    p(x) = N(x; 0, W W' + s^2 I). The guide is the posterior around one mode.
    """
    generator = torch.Generator().manual_seed(size)
    weight = torch.randn(max(5, 3 * size // 2), size, generator=generator, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)

    def model(x: Tensor) -> None:
        mean = pyro.sample("z", standard_normal(size)) @ weight.T
        both = dist.Normal(mean.unsqueeze(-2) * signs.unsqueeze(-1), noise).to_event(1)
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2, dtype=torch.float64)), both), obs=x)

    p_x = dist.MultivariateNormal(
        torch.zeros(len(weight), dtype=torch.float64),
        weight @ weight.T + noise**2 * torch.eye(len(weight), dtype=torch.float64),
    )
    x = p_x.sample((num_data,))
    covariance = torch.linalg.inv(torch.eye(size, dtype=torch.float64) + weight.T @ weight / noise**2)
    guide = normal_guide(lambda x: x @ weight @ covariance / noise**2, covariance.inverse().diagonal().rsqrt())
    return EdgeProblem(program(model), guide, x, p_x.log_prob(x))


def squares(size: int, num_data: int, noise: float = 0.3) -> EdgeProblem:
    """Make x = z^2 + noise in each of Z entries: 2^Z modes. The guide lies on the positive ones."""
    x = torch.randn(num_data, size, dtype=torch.float64).square()
    x = x + noise * torch.randn(num_data, size, dtype=torch.float64)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", standard_normal(size))
        pyro.sample("x", dist.Normal(z.square(), noise).to_event(1), obs=x)

    def joint(z: Tensor) -> Tensor:
        return normal_log_density(z, 0.0, 1.0) + normal_log_density(x, z.square(), noise)

    guide = normal_guide(lambda x: x.clamp(min=0.05).sqrt(), 0.3)
    return EdgeProblem(program(model), guide, x, by_grid(joint, -12, 12).sum(-1))


def waves(num_data: int, noise: float = 0.2) -> EdgeProblem:
    """Make x = sin(3z) + noise: about ten modes. The guide is the prior's half around one of them."""
    z = torch.randn(num_data, 1, dtype=torch.float64)
    x = (3 * z).sin() + noise * torch.randn(num_data, 1, dtype=torch.float64)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", standard_normal(1))
        pyro.sample("x", dist.Normal((3 * z).sin(), noise).to_event(1), obs=x)

    def joint(z: Tensor) -> Tensor:
        return normal_log_density(z, 0.0, 1.0) + normal_log_density(x, (3 * z).sin(), noise)

    guide = normal_guide(lambda x: x.clamp(-0.95, 0.95).asin() / 3, 0.2)
    return EdgeProblem(program(model), guide, x, by_grid(joint, -12, 12).sum(-1))


def scales(size: int, num_data: int) -> EdgeProblem:
    """Make J normal entries whose scale is half-Cauchy: tau ~ C+(1), theta_j ~ N(0, tau^2), x_j ~ N(theta_j, 1)."""
    tau = dist.HalfCauchy(torch.ones(num_data, 1, dtype=torch.float64)).sample()
    x = torch.randn(num_data, size, dtype=torch.float64) * (1 + tau.square()).sqrt()

    def model(x: Tensor) -> None:
        tau = pyro.sample("tau", dist.HalfCauchy(torch.ones((), dtype=torch.float64)))
        theta = pyro.sample("theta", dist.Normal(0.0, tau.unsqueeze(-1).expand(*tau.shape, size)).to_event(1))
        pyro.sample("x", dist.Normal(theta, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        spread = (x.square().mean(-1) - 1).clamp(min=0.1).sqrt()
        pyro.sample("tau", dist.LogNormal(spread.log(), 0.5))
        shrink = spread.square() / (1 + spread.square())
        pyro.sample("theta", dist.Normal(x * shrink.unsqueeze(-1), shrink.sqrt().unsqueeze(-1)).to_event(1))

    def joint(log_tau: Tensor) -> Tensor:
        tau = log_tau.exp()
        prior = math.log(2 / math.pi) - torch.log1p(tau.square()) + log_tau
        return prior + normal_log_density(x, 0.0, (1 + tau.square()).sqrt()).sum(-1, keepdim=True)

    return EdgeProblem(program(model), program(guide), x, by_grid(joint, -25, 25).squeeze(-1))


def half_normals(size: int, num_data: int, noise: float = 0.5) -> EdgeProblem:
    """Make x = z + noise with half-normal z in each of Z entries; the guide is log-normal."""
    x = torch.randn(num_data, size, dtype=torch.float64).abs()
    x = x + noise * torch.randn(num_data, size, dtype=torch.float64)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.HalfNormal(torch.ones(size, dtype=torch.float64)).to_event(1))
        pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)

    def joint(z: Tensor) -> Tensor:
        # Trapezoids need half of the first point.
        at_zero = torch.where(z == 0, math.log(0.5), 0.0)
        return at_zero + math.log(2) + normal_log_density(z, 0.0, 1.0) + normal_log_density(x, z, noise)

    guide = program(lambda x: pyro.sample("z", dist.LogNormal(x.clamp(min=0.2).log(), 0.5).to_event(1)))
    return EdgeProblem(program(model), guide, x, by_grid(joint, 0, 12).sum(-1))


def uniforms(size: int, num_data: int, noise: float = 0.3) -> EdgeProblem:
    """Make x = z + noise with uniform z in each of Z entries, so that many posteriors lie at the edges."""
    x = torch.rand(num_data, size, dtype=torch.float64) + noise * torch.randn(num_data, size, dtype=torch.float64)
    zero = torch.zeros(size, dtype=torch.float64)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Uniform(zero, zero + 1).to_event(1))
        pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        mean = x.clamp(0.1, 0.9)
        pyro.sample("z", dist.Beta(6 * mean, 6 * (1 - mean)).to_event(1))

    log_p = (torch.special.ndtr(x / noise) - torch.special.ndtr((x - 1) / noise)).log().sum(-1)
    return EdgeProblem(program(model), program(guide), x, log_p)


def far_cauchy(num_data: int) -> EdgeProblem:
    """Make x = z + noise with a Cauchy z, data between 20 and 2,000, and a guide near zero."""
    x = 20 * 100 ** torch.rand(num_data, 1, dtype=torch.float64)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Cauchy(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def joint(away: Tensor) -> Tensor:
        prior = -math.log(math.pi) - torch.log1p((x + away).square())
        return prior + normal_log_density(away, 0.0, 1.0)

    return EdgeProblem(program(model), normal_guide(torch.zeros_like, 1.0), x, by_grid(joint, -12, 12).sum(-1))


def linear(size: int, num_data: int, noise: float = 0.7) -> EdgeProblem:
    """Make a linear-Gaussian model with one normal mode, and the best diagonal normal as guide."""
    generator = torch.Generator().manual_seed(size)
    weight = torch.randn(max(5, 3 * size // 2), size, generator=generator, dtype=torch.float64)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", standard_normal(size))
        pyro.sample("x", dist.Normal(z @ weight.T, noise).to_event(1), obs=x)

    covariance = weight @ weight.T + noise**2 * torch.eye(len(weight), dtype=torch.float64)
    p_x = dist.MultivariateNormal(torch.zeros(len(weight), dtype=torch.float64), covariance)
    precision = torch.eye(size, dtype=torch.float64) + weight.T @ weight / noise**2
    to_mean = torch.linalg.solve(precision, weight.T).T / noise**2
    guide = normal_guide(lambda x: x @ to_mean, precision.diagonal().rsqrt())
    x = p_x.sample((num_data,))
    return EdgeProblem(program(model), guide, x, p_x.log_prob(x))


def by_importance(num_particles: int) -> Estimator:
    """Make the estimator `log_marginal` with its default proposal."""

    def estimate(problem: EdgeProblem) -> tuple[LogMarginal, int]:
        settings = {"num_particles": num_particles, "chunk_size": CHUNK}
        return log_marginal(problem.model, problem.guide, problem.x, **settings), 0

    return estimate


def by_annealing(problem: EdgeProblem, start: str, agreeing: bool) -> tuple[LogMarginal, int]:
    """Estimate by `ais` with 16 chains from the prior or the guide: T = 100, or T found on 400 simulated data."""
    guide = None if start == "prior" else problem.guide
    settings: dict[str, Any] = {"num_leapfrog": 5, "guide": guide}
    betas = linear_schedule(100)
    if agreeing:
        drawn = poutine.trace(poutine.uncondition(problem.model)).get_trace(problem.x[:400])
        z, x = (drawn.nodes[name]["value"] for name in ("z", "x"))
        betas = agreeing_schedule(
            problem.model,
            guide,
            {"z": z},
            x,
            schedule=lambda num: adaptive_schedule(num, problem.model, x[:100], **settings),
            num_leapfrog=5,
            chunk_size=CHUNK,
        )
    return ais(problem.model, problem.x, num_particles=16, betas=betas, chunk_size=CHUNK, **settings), len(betas) - 1


# Name, number of draws K and maker of each problem for N data, estimated by `log_marginal` with its default proposal.
_BY_IMPORTANCE: dict[str, tuple[int, Callable[[int], EdgeProblem]]] = {
    **{f"two modes, Z = {size}": (1000, lambda n, size=size: two_modes(size, n)) for size in (2, 6, 8, 20, 256)},
    **{f"x = z^2, Z = {size}": (1000, lambda n, size=size: squares(size, n)) for size in (1, 2, 3, 5, 8)},
    "x = sin(3z)": (100, waves),
    "half-Cauchy scale, J = 30": (1000, lambda n: scales(30, n)),
    "half-normal, Z = 20": (1000, lambda n: half_normals(20, n)),
    "uniform edges, Z = 20": (1000, lambda n: uniforms(20, n)),
    "Cauchy prior, far x": (1000, far_cauchy),
    **{f"linear, Z = {size}": (100, lambda n, size=size: linear(size, n)) for size in (1, 2, 6, 20)},
}

# Name, number of chains or draws K, maker and estimator of each problem.
EDGE_PROBLEMS: dict[str, tuple[int, Callable[[int], EdgeProblem], Estimator]] = {
    **{name: (num, make, by_importance(num)) for name, (num, make) in _BY_IMPORTANCE.items()},
    **{
        f"ais from {start}, {name}{', T found' if agreeing else ''}": (
            16,
            make,
            partial(by_annealing, start=start, agreeing=agreeing),
        )
        for start in ("prior", "guide")
        for name, (_, make) in _BY_IMPORTANCE.items()
        for agreeing in (False, True)
        if name in ("linear, Z = 2", "linear, Z = 6") or (name == "two modes, Z = 2" and not agreeing)
    },
}
