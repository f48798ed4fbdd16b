"""Annealing: chains that walk from a start s to the posterior, through tempered densities f_b.

Everything here uses the unconstrained coordinates u of `LatentSpace`, with shape (K, N, U) for K chains of N data.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyrovae.densities import isolated_rng
from pyrovae.evidence.blocks import UndefinedGradients
from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.execution import Execution, NotRecordedError, Recorded, choose_execution, refuse

# A normal in u per datum: mean, with shape (N, U), and scale_tril, with shape (N, U, U); or a function that finds it.
Normal = tuple[Tensor, Tensor]
Start = Normal | Callable[[LatentSpace], Normal]

_JITTER = 0.2  # step sizes vary by this factor, so that no trajectory is a whole period of a normal
_TUNING_CHAINS = 8
_TUNING_PLACES = 50  # temperatures at which steps are adapted; others use the nearest of them
_BURN_IN = 20  # transitions at the first of these temperatures, before adaptation counts
# Numbers of gradients per block of data from which recording, and compiling, pays.
_RECORDED_FROM = 1000
_COMPILED_FROM = 4000


# What a NaN gradient means for chains, for `UndefinedGradients.warn`.
STUCK = "their chains do not move there, and the estimate is worse than its number of temperatures suggests"


class Path:
    """Densities f_b between a start s and the posterior, log f_b(u) = log s(u) + b slope(u).

    Args:
        space: Latents in coordinates u.
        start: Mean, with shape (N, U), and scale_tril, with shape (N, U, U), of a normal start in u, or a function that
            finds them; None for the space's guide, or the prior if the space has no guide.
        execution: How to run the gradients: "eager", "recorded" or "compiled".

    Attributes:
        normal: The normal start; None if the path starts from the guide or the prior.
        device: Device of the latents.
        undefined: Where transitions met a gradient that is NaN at a finite density.

    Raises:
        ValueError: If latents are discrete, the start has another shape, a mask leaves latents of a normal start out,
            or the guide to start from never draws a part of the posterior.
    """

    def __init__(self, space: LatentSpace, start: Start | None = None, execution: Execution = "eager") -> None:
        space.require_continuous()
        missed = None if space.guide is None or start is not None else space.guide.missed
        if missed is not None:
            raise ValueError(f"annealing reaches no latent that its start excludes, and {missed}; use guide=None")
        self.space = space
        self.execution = execution
        with isolated_rng():
            like = space.pack(space.from_prior(1))
        self.device = like.device
        self.normal = None if start is None else _normal_start(space, start, like)
        self.undefined = UndefinedGradients()
        self._tempered = Recorded(partial(_tempered, space, self.normal), num_varying=2)

    def draw(self, num_particles: int) -> Tensor:
        """Draw u from the start, with shape (K, N, U)."""
        if self.normal is not None:
            return self.normal.sample((num_particles,))
        draw = self.space.from_prior if self.space.guide is None else self.space.from_guide
        return self.space.pack(draw(num_particles))

    def parts(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate log s(u) and the slope log p(x, z(u)) |dz/du| - log s(u), each with shape (K, N)."""
        return _parts(self.space, self.normal, u)

    def tempered(self, u: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate log f_b(u) and the slope, with shape (K, N), and the gradient of log f_b, with shape (K, N, U)."""
        inputs = u.detach().contiguous(), u.new_full((), beta)  # a recording holds for one memory layout
        if self.execution != "eager":
            try:
                outputs: Any = self._tempered(*inputs, compiled=self.execution == "compiled")
            except NotRecordedError as error:
                self.execution = "eager"
                refuse("the path's gradient", error)
            else:
                value, slope, gradient = outputs
                return value, slope, gradient
        return _tempered(self.space, self.normal, *inputs)


def _normal_start(space: LatentSpace, start: Start, like: Tensor) -> MultivariateNormal:
    if space.masked:
        raise ValueError("a normal start needs all latents, but a mask leaves some out; start from the prior or guide")
    mean, scale_tril = start(space) if callable(start) else start
    shape = (space.num_data, space.size)
    if mean.shape != shape or scale_tril.shape != (*shape, space.size):
        raise ValueError(
            f"start has a mean of shape {tuple(mean.shape)} and a scale_tril of {tuple(scale_tril.shape)}; "
            f"expected {shape} and {(*shape, space.size)}, for {shape[0]} data with {shape[1]} coordinates each"
        )
    return MultivariateNormal(mean.to(like), scale_tril=scale_tril.to(like), validate_args=False)


def _parts(space: LatentSpace, normal: MultivariateNormal | None, u: Tensor) -> tuple[Tensor, Tensor]:
    latents, log_det = space.unpack(u)
    log_prior, log_lik = space.log_model(latents)
    if normal is not None:
        base = normal.log_prob(u)
        return base, log_prior + log_lik + log_det - base
    if space.guide is None:
        return log_prior + log_det, log_lik
    log_guide = space.log_guide(latents)
    return log_guide + log_det, log_prior + log_lik - log_guide


def _tempered(
    space: LatentSpace, normal: MultivariateNormal | None, u: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        base, slope = _parts(space, normal, u)
        value = base + beta * slope
        (gradient,) = torch.autograd.grad(value.sum(), u)
    return value.detach(), slope.detach(), gradient


class Walk(NamedTuple):
    """Positions and weights of chains.

    Attributes:
        u: Coordinates, with shape (K, N, U).
        slope: The path's slope there, with shape (K, N).
        log_w: Log weights so far, with shape (K, N), float64.
    """

    u: Tensor
    slope: Tensor
    log_w: Tensor

    @classmethod
    def start(cls, path: Path, u: Tensor) -> Self:
        """Start chains at u, with shape (K, N, U), with weights of one."""
        return cls(u, path.parts(u)[1], torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device))

    def to(self, device: torch.device) -> Self:
        """Move the chains to a device."""
        return self._replace(u=self.u.to(device), slope=self.slope.to(device), log_w=self.log_w.to(device))


class Tuning(NamedTuple):
    """Step sizes and scales of the transitions at G inverse temperatures.

    Attributes:
        places: The inverse temperatures, with shape (G,), on the CPU.
        step: Step sizes, with shape (G, N).
        scale: Standard deviations per dimension, with shape (G, N, U); unused with a normal start, whose scale_tril
            replaces them.
    """

    places: Tensor
    step: Tensor
    scale: Tensor

    def to(self, device: torch.device) -> Self:
        """Move step sizes and scales to a device."""
        return self._replace(step=self.step.to(device), scale=self.scale.to(device))


def anneal(
    path: Path, walk: Walk, betas: Tensor, order: Sequence[int], tuning: Tuning, num_leapfrog: int
) -> Iterator[Walk]:
    """Walk through the temperatures in this order, rising or falling, and yield the chains after each."""
    for before, now in pairwise(order):
        # The slope is infinite where f_b is zero for b > 0, and so is the weight.
        log_w = walk.log_w + (betas[now] - betas[before]).item() * walk.slope.double()
        walk = walk._replace(log_w=log_w)
        if 0 < now < len(betas) - 1:
            u, slope, _ = tuned_transition(path, walk.u, betas[now].item(), tuning, num_leapfrog)
            walk = walk._replace(u=u, slope=slope)
        yield walk


def tuned_transition(
    path: Path, u: Tensor, beta: float, tuning: Tuning, num_leapfrog: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Make a `transition` with the step size and the scale of the nearest tuned temperature."""
    place = int((tuning.places - beta).abs().argmin())
    scale = tuning.scale[place] if path.normal is None else path.normal.scale_tril
    return transition(path, u, beta, tuning.step[place], scale, num_leapfrog)


def transition(
    path: Path, u: Tensor, beta: float, step: Tensor, scale: Tensor, num_leapfrog: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Make one Hamiltonian Monte Carlo transition that leaves f_b invariant.

    Source: Neal 2011, "MCMC using Hamiltonian dynamics", https://arxiv.org/abs/1206.1901. The momentum is standard
    normal in the coordinates v of u = scale v. Trajectories that reach a non-finite value are rejected.

    Args:
        path: Densities f_b.
        u: Coordinates, with shape (K, N, U).
        beta: Inverse temperature b.
        step: Step sizes, with shape (N,).
        scale: Standard deviations, with shape (N, U), or a scale_tril, with shape (N, U, U).
        num_leapfrog: Number of leapfrog steps per transition.

    Returns:
        The next u, with shape (K, N, U), the slope there and the probability of acceptance, each with shape (K, N).
    """
    size = (step * (1 + _JITTER * (2 * torch.rand_like(u[..., 0]) - 1))).unsqueeze(-1)
    momentum = torch.randn_like(u)
    value, slope, gradient = path.tempered(u, beta)
    before = value - momentum.square().sum(-1) / 2
    undefined = value.isfinite() & gradient.isnan().any(-1)
    v, finite = u, torch.ones_like(value, dtype=torch.bool)
    for _ in range(num_leapfrog):
        momentum = momentum + size / 2 * _scale_transposed(scale, gradient)
        moved = v + size * _scale(scale, momentum)
        finite = finite & moved.isfinite().all(-1)
        v = torch.where(finite.unsqueeze(-1), moved, u)
        value, new_slope, gradient = path.tempered(v, beta)
        undefined = undefined | (finite & value.isfinite() & gradient.isnan().any(-1))
        momentum = momentum + size / 2 * _scale_transposed(scale, gradient)
    path.undefined.add(undefined)
    log_ratio = value - momentum.square().sum(-1) / 2 - before
    log_ratio = torch.where(finite & ~log_ratio.isnan(), log_ratio, -torch.inf)
    accepted = torch.rand_like(log_ratio).log() < log_ratio
    probability = log_ratio.clamp(max=0).exp()
    return torch.where(accepted.unsqueeze(-1), v, u), torch.where(accepted, new_slope, slope), probability


def tune(path: Path, betas: Tensor, *, num_leapfrog: int, acceptance: float, num_tuning: int) -> Tuning:
    """Adapt step sizes and scales per datum in a preliminary run along the temperatures, with separate chains."""
    inner = betas[1:-1]
    if not len(inner):
        return Tuning(*(torch.zeros(0) for _ in Tuning._fields))
    count = min(len(inner), _TUNING_PLACES)
    places = inner[torch.linspace(0, len(inner) - 1, count).round().long()]
    chains = AdaptiveChains(path, _TUNING_CHAINS, num_leapfrog, acceptance)
    chains.move(places[0].item(), rounds=_BURN_IN)
    steps, scales = [], []
    for place in places.tolist():
        chains.move(place, rounds=max(2, num_tuning // count))
        steps.append(chains.log_step.exp())
        scales.append(chains.variance.sqrt())
    return Tuning(places, torch.stack(steps), torch.stack(scales))


class AdaptiveChains:
    """Chains that adapt step size and scale per datum while they move.

    Args:
        path: Densities f_b.
        num_chains: Number of chains K per datum.
        num_leapfrog: Number of leapfrog steps per transition.
        acceptance: Target acceptance rate of the step sizes.

    Attributes:
        slope: The path's slope at the chains, with shape (K, N).
        log_step: Logarithms of the step sizes, with shape (N,).
        variance: Variances of u, with shape (N, U), averaged over about the last 20 transitions.
    """

    def __init__(self, path: Path, num_chains: int, num_leapfrog: int, acceptance: float) -> None:
        self.path, self.num_leapfrog, self.acceptance = path, num_leapfrog, acceptance
        self.u = path.draw(num_chains)
        self.slope = path.parts(self.u)[1]
        self.variance = path.draw(100).var(0)
        size = self.u.shape[-1]
        self.log_step = torch.full_like(self.u[0, :, 0], math.log(0.7 * size**-0.25))

    def move(self, beta: float, rounds: int) -> None:
        """Make transitions at b and adapt: log step grows by gain (accepted - target), with a gain falling to 0.15."""
        for done in range(rounds):
            scale = self.variance.sqrt() if self.path.normal is None else self.path.normal.scale_tril
            self.u, self.slope, accepted = transition(
                self.path, self.u, beta, self.log_step.exp(), scale, self.num_leapfrog
            )
            self.log_step = self.log_step + max(0.15, 1 / (done + 2)) * (accepted.mean(0) - self.acceptance)
            self.variance = torch.lerp(self.variance, self.u.var(0), 0.05)


def _scale(scale: Tensor, v: Tensor) -> Tensor:
    """Multiply v by standard deviations, with shape (N, U), or by a scale_tril, with shape (N, U, U)."""
    return scale * v if scale.dim() == 2 else (scale @ v.unsqueeze(-1)).squeeze(-1)


def _scale_transposed(scale: Tensor, gradient: Tensor) -> Tensor:
    """Turn a gradient with respect to u into the gradient with respect to v, for u = scale v."""
    return scale * gradient if scale.dim() == 2 else (scale.mT @ gradient.unsqueeze(-1)).squeeze(-1)


def rows_of(start: Start | None, rows: slice) -> Start | None:
    """Select the rows of a start."""
    return start if start is None or callable(start) else (start[0][rows], start[1][rows])


def execution_of(betas: Tensor, num_leapfrog: int, num_tuning: int, execution: Execution = "auto") -> Execution:
    """Resolve "auto" from the number of gradients along a path, including those of the preliminary run."""
    calls = (len(betas) + _BURN_IN + num_tuning) * num_leapfrog
    return choose_execution(execution, calls, recorded_from=_RECORDED_FROM, compiled_from=_COMPILED_FROM)
