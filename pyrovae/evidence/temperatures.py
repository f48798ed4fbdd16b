"""Schedules of inverse temperatures, from a start at 0 to the posterior at 1."""

import math
from typing import Any

import torch
from torch import Tensor

from pyrovae.densities import Program, entry, vectorize
from pyrovae.evidence.annealing import AdaptiveChains, Path, Start
from pyrovae.evidence.blocks import check_counts, evaluation_mode
from pyrovae.evidence.latent_space import LatentSpace


def linear_schedule(num_temperatures: int) -> Tensor:
    """Inverse temperatures b_t = t / T, with shape (T + 1,)."""
    check_counts(num_temperatures=num_temperatures)
    return torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64)


def sigmoidal_schedule(num_temperatures: int, steepness: float = 4.0) -> Tensor:
    """Inverse temperatures that are dense at both ends, with shape (T + 1,).

    b_t = (s_t - s_0) / (s_T - s_0),   s_t = sigmoid(d (2 t / T - 1)),

    with steepness d (Grosse, Ghahramani, Adams 2015, https://arxiv.org/abs/1511.02543, section 6).
    """
    check_counts(num_temperatures=num_temperatures)
    if not steepness > 0:
        raise ValueError(f"steepness must be positive, got {steepness}")
    s = torch.sigmoid(steepness * (2 * linear_schedule(num_temperatures) - 1))
    betas = (s - s[0]) / (s[-1] - s[0])
    betas[-1] = 1.0
    return betas


@entry()
def adaptive_schedule(
    num_temperatures: int,
    model: Program,
    *args: Any,
    guide: Program | None = None,
    start: Start | None = None,
    num_particles: int = 16,
    num_leapfrog: int = 10,
    acceptance: float = 0.65,
    plate: str | None = None,
    **kwargs: Any,
) -> Tensor:
    """Inverse temperatures with steps of equal conditional effective sample size, with shape (T + 1,).

    CESS(b, b') = (sum_k v_k)^2 / (K sum_k v_k^2),   v_k = f_b'(u_k) / f_b(u_k),   u_k ~ f_b

    (Zhou, Johansen, Aston 2016, https://arxiv.org/abs/1303.3123, section 3.2). A preliminary run chooses each b' such
    that the mean of CESS over the data is 1/2. Each of these steps is then divided into equal parts. A hundred data
    like those to be evaluated suffice; the draws of the run are not used elsewhere.

    Args:
        num_temperatures: Number of temperatures T.
        model: Pyro program p(z) p(x|z) with continuous latents.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        guide: Pyro program q(z|x) to start from; None for the prior.
        start: A normal in u to start from, as in `ais`.
        num_particles: Number of chains K per datum in the preliminary run.
        num_leapfrog: Number of leapfrog steps per transition; from a normal start, the largest number.
        acceptance: Target acceptance rate of the step sizes.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: As `ais`.
    """
    check_counts(num_temperatures=num_temperatures)
    if num_particles < 4:
        raise ValueError(f"num_particles must be at least 4 for a conditional sample size, got {num_particles}")
    model, guide = vectorize(model, guide, args, kwargs, plate=plate)
    with evaluation_mode(model, guide):
        path = Path(LatentSpace(model, guide, *args, **kwargs), start)
        chains = AdaptiveChains(path, num_particles, num_leapfrog, acceptance)
        found = [0.0]
        while found[-1] < 1:
            found.append(_next_beta(chains.position.slope, found[-1]))
            chains.move(found[-1], rounds=5)
    index = torch.linspace(0, len(found) - 1, num_temperatures + 1, dtype=torch.float64)
    below = index.long().clamp(max=len(found) - 2)
    known = torch.tensor(found, dtype=torch.float64)
    betas = known[below] + (index - below) * (known[below + 1] - known[below])
    betas[-1] = 1.0
    return betas


def _next_beta(slope: Tensor, beta: float) -> float:
    """Find b' > b where the mean over data of CESS(b, b') falls to 1/2, by bisection; 1 if it stays above."""

    def sample_size(step: float) -> float:
        log_v = step * slope.double()
        log_v = log_v - log_v.amax(0)
        return (log_v.logsumexp(0) * 2 - (2 * log_v).logsumexp(0) - math.log(len(slope))).exp().mean().item()

    low, high = 0.0, 1 - beta
    if sample_size(high) >= 0.5:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sample_size(middle) >= 0.5 else (low, middle)
    return beta + high


def check_betas(betas: Tensor) -> Tensor:
    """Convert inverse temperatures to float64 on the CPU, and check that they increase from 0 to 1."""
    betas = torch.as_tensor(betas, dtype=torch.float64)
    if not (
        betas.dim() == 1 and len(betas) > 1 and betas[0] == 0 and betas[-1] == 1 and bool((betas.diff() > 0).all())
    ):
        raise ValueError(
            "betas must increase strictly from 0 to 1; use linear_schedule(T), sigmoidal_schedule(T) or "
            "adaptive_schedule(T, ...)"
        )
    return betas.cpu()
