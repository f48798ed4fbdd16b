"""Annealing: chains that walk from a start s to the posterior, through tempered densities f_b.

Chains have coordinates v, with shape (K, N, U) for K chains of N data. They are the unconstrained coordinates u of
`LatentSpace`; from a normal start with mean m and Cholesky factor L, v of u = m + L v, in which s is N(0, I).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from pyrovae.densities import isolated_rng
from pyrovae.evidence.blocks import UndefinedGradients
from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.execution import Execution, NotRecordedError, Recorded, choose_execution, refuse

# A normal in u per datum: mean, with shape (N, U), and scale_tril, with shape (N, U, U); or a function that finds it.
Normal = tuple[Tensor, Tensor]
Start = Normal | Callable[[LatentSpace], Normal]

_JITTER = 0.2  # step sizes vary by this factor, so that no trajectory is a whole period of a normal
_LENGTH = 3.5  # of a trajectory from a normal start, in its standard deviations; about half a period of a normal
_TUNING_CHAINS = 8
_TUNING_PLACES = 50  # temperatures at which steps are adapted; others use the nearest of them
_BURN_IN = 20  # transitions at the first of these temperatures, before adaptation counts
_NUM_TUNING, _NUM_TUNING_OF_NORMAL = 200, 100  # transitions at all of them; a normal start needs no scales
# Numbers of gradients per block of data from which recording, and compiling, pays.
_RECORDED_FROM = 1000
_COMPILED_FROM = 4000


# What a NaN gradient means for chains, for `UndefinedGradients.warn`.
STUCK = "their chains do not move there, and the estimate is worse than its number of temperatures suggests"


class Position(NamedTuple):
    """Chains, and the densities and gradients there. They do not depend on the temperature.

    Attributes:
        v: Coordinates, with shape (K, N, U).
        base: Log s, with shape (K, N).
        slope: Log p(x, z) |dz/dv| - log s, with shape (K, N).
        base_gradient: Gradient of base, with shape (K, N, U).
        slope_gradient: Gradient of slope, with shape (K, N, U).
    """

    v: Tensor
    base: Tensor
    slope: Tensor
    base_gradient: Tensor
    slope_gradient: Tensor

    def value(self, beta: float) -> Tensor:
        """Log f_b, with shape (K, N)."""
        return self.base + beta * self.slope

    def gradient(self, beta: float) -> Tensor:
        """Gradient of log f_b, with shape (K, N, U)."""
        return self.base_gradient + beta * self.slope_gradient


class Path:
    """Densities f_b between a start s and the posterior, log f_b(v) = log s(v) + b slope(v).

    Args:
        space: Latents in coordinates u.
        start: Mean, with shape (N, U), and scale_tril, with shape (N, U, U), of a normal start in u, or a function that
            finds them; None for the space's guide, or the prior if the space has no guide.
        execution: How to run the gradients: "eager", "recorded" or "compiled".

    Attributes:
        normal: Mean and scale_tril of the normal start; None if the path starts from the guide or the prior.
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
            self._like = space.pack(space.from_prior(1))
        self.normal = None if start is None else _normal_start(space, start, self._like)
        self.undefined = UndefinedGradients()
        self._evaluate = Recorded(partial(_evaluate, space, self.normal), num_varying=1)

    @property
    def device(self) -> torch.device:
        """Device of the latents."""
        return self._like.device

    def draw(self, num_particles: int) -> Tensor:
        """Draw v from the start, with shape (K, N, U)."""
        if self.normal is not None:
            return torch.randn((num_particles, *self._like.shape[1:]), dtype=self._like.dtype, device=self.device)
        draw = self.space.from_prior if self.space.guide is None else self.space.from_guide
        return self.space.pack(draw(num_particles))

    def coordinates(self, u: Tensor) -> Tensor:
        """Convert coordinates u to v, with shape (K, N, U)."""
        if self.normal is None:
            return u
        mean, scale_tril = self.normal
        return torch.linalg.solve_triangular(scale_tril, (u - mean).unsqueeze(-1), upper=False).squeeze(-1)

    def at(self, v: Tensor) -> Position:
        """Evaluate densities and gradients at v, with shape (K, N, U)."""
        v = v.detach().contiguous()  # a recording holds for one memory layout
        if self.execution != "eager":
            try:
                outputs: Any = self._evaluate(v, compiled=self.execution == "compiled")
            except NotRecordedError as error:
                self.execution = "eager"
                refuse("the path's gradient", error)
            else:
                return Position(v, *outputs)
        return Position(v, *_evaluate(self.space, self.normal, v))


def _normal_start(space: LatentSpace, start: Start, like: Tensor) -> Normal:
    if space.masked:
        raise ValueError("a normal start needs all latents, but a mask leaves some out; start from the prior or guide")
    mean, scale_tril = start(space) if callable(start) else start
    shape = (space.num_data, space.size)
    if mean.shape != shape or scale_tril.shape != (*shape, space.size):
        raise ValueError(
            f"start has a mean of shape {tuple(mean.shape)} and a scale_tril of {tuple(scale_tril.shape)}; "
            f"expected {shape} and {(*shape, space.size)}, for {shape[0]} data with {shape[1]} coordinates each"
        )
    return mean.to(like), scale_tril.to(like)


def _evaluate(space: LatentSpace, normal: Normal | None, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute base, slope and their gradients at v."""
    with torch.enable_grad():
        v = v.detach().requires_grad_()
        if normal is None:
            u, base = v, v.new_zeros(())
        else:
            mean, scale_tril = normal
            u = mean + torch.einsum("nij,knj->kni", scale_tril, v)
            log_volume = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            base = -v.square().sum(-1) / 2 - v.shape[-1] / 2 * math.log(2 * math.pi) - log_volume
        latents, log_det = space.unpack(u)
        log_prior, log_lik = space.log_model(latents)
        if normal is None and space.guide is None:
            base = log_prior + log_det
            return base.detach(), log_lik.detach(), _gradient(base, v), _gradient(log_lik, v)
        joint = log_prior + log_lik + log_det
        if normal is None:
            base = space.log_guide(latents) + log_det
        base_gradient = _gradient(base, v) if normal is None else -v.detach()
        return base.detach(), (joint - base).detach(), base_gradient, _gradient(joint, v) - base_gradient


def _gradient(value: Tensor, v: Tensor) -> Tensor:
    """Compute the gradient of each chain's value, and keep the graph; zero where the value does not depend on v."""
    if not value.requires_grad:
        return torch.zeros_like(v)
    (gradient,) = torch.autograd.grad(value.sum(), v, retain_graph=True, allow_unused=True, materialize_grads=True)
    return gradient


class Walk(NamedTuple):
    """Chains and their weights.

    Attributes:
        position: The chains.
        log_w: Log weights so far, with shape (K, N), float64.
    """

    position: Position
    log_w: Tensor

    @classmethod
    def start(cls, path: Path, v: Tensor) -> Self:
        """Start chains at v, with shape (K, N, U), with weights of one."""
        return cls(path.at(v), torch.zeros(v.shape[:2], dtype=torch.float64, device=v.device))

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, for a saved state."""
        return (*self.position, self.log_w)

    @classmethod
    def of(cls, tensors: Sequence[Tensor], device: torch.device) -> Self:
        """Make chains on a device from the result of `tensors`."""
        *position, log_w = (tensor.to(device) for tensor in tensors)
        return cls(Position(*position), log_w)


class Tuning(NamedTuple):
    """Step sizes, their numbers and scales of the transitions at G inverse temperatures.

    Attributes:
        places: The inverse temperatures, with shape (G,), on the CPU.
        num_leapfrog: Numbers of leapfrog steps, with shape (G,), on the CPU.
        step: Step sizes, with shape (G, N).
        scale: Standard deviations of v, with shape (G, N, U); ones with a normal start.
    """

    places: Tensor
    num_leapfrog: Tensor
    step: Tensor
    scale: Tensor

    def to(self, device: torch.device) -> Self:
        """Move step sizes and scales to a device."""
        return self._replace(step=self.step.to(device), scale=self.scale.to(device))


def anneal(path: Path, walk: Walk, betas: Tensor, order: Sequence[int], tuning: Tuning) -> Iterator[Walk]:
    """Walk through the temperatures in this order, rising or falling, and yield the chains after each."""
    for before, now in pairwise(order):
        # The slope is infinite where f_b is zero for b > 0, and so is the weight.
        log_w = walk.log_w + (betas[now] - betas[before]).item() * walk.position.slope.double()
        walk = walk._replace(log_w=log_w)
        if 0 < now < len(betas) - 1:
            position, _ = tuned_transition(path, walk.position, betas[now].item(), tuning)
            walk = walk._replace(position=position)
        yield walk


def tuned_transition(path: Path, position: Position, beta: float, tuning: Tuning) -> tuple[Position, Tensor]:
    """Make a `transition` with the steps and the scale of the nearest tuned temperature."""
    place = int((tuning.places - beta).abs().argmin())
    num_leapfrog = int(tuning.num_leapfrog[place])
    return transition(path, position, beta, tuning.step[place], tuning.scale[place], num_leapfrog)


def transition(
    path: Path, position: Position, beta: float, step: Tensor, scale: Tensor, num_leapfrog: int
) -> tuple[Position, Tensor]:
    """Make one Hamiltonian Monte Carlo transition that leaves f_b invariant.

    Source: Neal 2011, "MCMC using Hamiltonian dynamics", https://arxiv.org/abs/1206.1901. The momentum is standard
    normal in the coordinates v / scale. Trajectories that reach a non-finite value are rejected.

    Args:
        path: Densities f_b.
        position: The chains.
        beta: Inverse temperature b.
        step: Step sizes, with shape (N,).
        scale: Standard deviations of v, with shape (N, U).
        num_leapfrog: Number of leapfrog steps per transition.

    Returns:
        The next position, and the probability of acceptance, with shape (K, N).
    """
    jitter = 1 + _JITTER * (2 * torch.rand_like(position.base) - 1)
    stride = (step * jitter).unsqueeze(-1) * scale
    momentum = torch.randn_like(position.v)
    value, gradient = position.value(beta), position.gradient(beta)
    before = value - momentum.square().sum(-1) / 2
    undefined = value.isfinite() & gradient.sum(-1).isnan()
    there, finite = position, torch.ones_like(value, dtype=torch.bool)
    momentum = momentum + stride / 2 * gradient
    for left in reversed(range(num_leapfrog)):
        moved = there.v + stride * momentum
        finite = finite & moved.sum(-1).isfinite()
        there = path.at(torch.where(finite.unsqueeze(-1), moved, position.v))
        value, gradient = there.value(beta), there.gradient(beta)
        undefined = undefined | (finite & value.isfinite() & gradient.sum(-1).isnan())
        momentum = momentum + (stride if left else stride / 2) * gradient  # two half steps, but one at the end
    path.undefined.add(undefined)
    log_ratio = value - momentum.square().sum(-1) / 2 - before
    log_ratio = torch.where(finite & ~log_ratio.isnan(), log_ratio, -torch.inf)
    accepted = torch.rand_like(log_ratio).log() < log_ratio
    pairs = zip(there, position, strict=True)
    chosen = (torch.where(accepted if old.dim() == 2 else accepted.unsqueeze(-1), new, old) for new, old in pairs)
    return Position(*chosen), log_ratio.clamp(max=0).exp()


def tune(path: Path, betas: Tensor, *, num_leapfrog: int, acceptance: float, num_tuning: int) -> Tuning:
    """Adapt step sizes and scales per datum in a preliminary run along the temperatures, with separate chains."""
    inner = betas[1:-1]
    if not len(inner):
        return Tuning(*(torch.zeros(0) for _ in Tuning._fields))
    count = min(len(inner), _TUNING_PLACES)
    places = inner[torch.linspace(0, len(inner) - 1, count).round().long()]
    chains = AdaptiveChains(path, _TUNING_CHAINS, num_leapfrog, acceptance)
    chains.move(places[0].item(), rounds=_BURN_IN)
    counts, steps, scales = [], [], []
    for place in places.tolist():
        chains.move(place, rounds=max(2, num_tuning // count))
        counts.append(chains.num_leapfrog)
        steps.append(chains.log_step.exp())
        scales.append(chains.scale)
    return Tuning(places, torch.tensor(counts), torch.stack(steps), torch.stack(scales))


class AdaptiveChains:
    """Chains that adapt step size and scale per datum while they move.

    Args:
        path: Densities f_b.
        num_chains: Number of chains K per datum.
        num_leapfrog: Largest number of leapfrog steps per transition.
        acceptance: Target acceptance rate of the step sizes.

    Attributes:
        position: The chains.
        log_step: Logarithms of the step sizes, with shape (N,).
        scale: Standard deviations of v, with shape (N, U): ones with a normal start, and otherwise of the chains,
            averaged over about the last 20 transitions.
    """

    def __init__(self, path: Path, num_chains: int, num_leapfrog: int, acceptance: float) -> None:
        self.path, self.most_leapfrog, self.acceptance = path, num_leapfrog, acceptance
        self.position = path.at(path.draw(num_chains))
        self.scale = torch.ones_like(self.position.v[0]) if path.normal else path.draw(100).std(0)
        self.log_step = torch.full_like(self.position.base[0], math.log(0.7 * self.scale.shape[-1] ** -0.25))

    @property
    def num_leapfrog(self) -> int:
        """Number of leapfrog steps: as many as trajectories of `_LENGTH` need at three of four data."""
        if self.path.normal is None:
            return self.most_leapfrog
        step = self.log_step.quantile(0.25).exp().item()  # zero where chains never moved
        return max(1, round(_LENGTH / max(step, _LENGTH / self.most_leapfrog)))

    def move(self, beta: float, rounds: int) -> None:
        """Make transitions at b and adapt: log step grows by gain (accepted - target), with a gain falling to 0.15."""
        for done in range(rounds):
            self.position, accepted = transition(
                self.path, self.position, beta, self.log_step.exp(), self.scale, self.num_leapfrog
            )
            self.log_step = self.log_step + max(0.15, 1 / (done + 2)) * (accepted.mean(0) - self.acceptance)
            if self.path.normal is None:
                self.scale = torch.lerp(self.scale.square(), self.position.v.var(0), 0.05).sqrt()


def rows_of(start: Start | None, rows: slice) -> Start | None:
    """Select the rows of a start."""
    return start if start is None or callable(start) else (start[0][rows], start[1][rows])


def transitions_of(num_tuning: int | None, start: Start | None) -> int:
    """Return the number of transitions of the preliminary run; the default, for None, depends on the start."""
    default = _NUM_TUNING if start is None else _NUM_TUNING_OF_NORMAL
    return default if num_tuning is None else num_tuning


def execution_of(betas: Tensor, num_leapfrog: int, num_tuning: int, execution: Execution = "auto") -> Execution:
    """Resolve "auto" from the number of gradients along a path, including those of the preliminary run."""
    calls = (len(betas) + _BURN_IN + num_tuning) * num_leapfrog
    return choose_execution(execution, calls, recorded_from=_RECORDED_FROM, compiled_from=_COMPILED_FROM)
