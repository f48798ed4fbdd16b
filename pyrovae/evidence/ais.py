"""Annealed importance sampling: log p(x) per datum, by chains that walk from a start to the posterior.

All of it happens in the unconstrained coordinates u of `LatentSpace`, with shape (K, N, U), for K chains of N data.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from pyrovae.densities import Program, check_support, check_weights, evaluating, isolated_rng, num_data, take
from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.evidence.temperatures import check_betas, check_count
from pyrovae.execution import Execution, NotRecordedError, Recorded, choose_execution, refuse
from pyrovae.stats import LogMarginal, summarize_log_weights

DEFAULT_CHUNK_SIZE = 8192

# A normal in u, per datum: mean, with shape (N, U), and scale_tril, with shape (N, U, U); or what finds it.
Normal = tuple[Tensor, Tensor]
Start = Normal | Callable[[LatentSpace], Normal]

_JITTER = 0.2  # step sizes are drawn from 1 -+ this, so that no trajectory is a whole period of a normal
_TUNING_CHAINS = 8
_TUNING_PLACES = 50  # temperatures at which steps are adapted; the others take those of the nearest
_SETTLING = 20  # transitions at the first of them, before
_COMMIT_EVERY = 100  # temperatures
# Gradients of a block of data from which recording, and compiling, pays.
_RECORDED_FROM = 1000
_COMPILED_FROM = 4000


def adaptive_schedule(
    num_temperatures: int,
    model: Program,
    *args: Any,
    guide: Program | None = None,
    start: Start | None = None,
    num_particles: int = 16,
    num_leapfrog: int = 10,
    acceptance: float = 0.65,
    **kwargs: Any,
) -> Tensor:
    """Inverse temperatures with steps of equal conditional effective sample size, with shape (T + 1,).

    CESS(b, b') = (sum_k v_k)^2 / (K sum_k v_k^2),   v_k = f_b'(u_k) / f_b(u_k),   u_k ~ f_b

    (Zhou, Johansen, Aston 2016, https://arxiv.org/abs/1303.3123, section 3.2). A preliminary run takes each b' where
    the mean of CESS over the data is 1/2, and each of these steps is then divided alike. Give data like those to be
    evaluated (a hundred will do); the draws are the run's own.

    Args:
        num_temperatures: T.
        model: As for `ais`, and so are the other arguments.
        *args: Arguments of the programs, the data first.
        guide: Where the path starts; None for the prior.
        start: A normal in u to start from in the guide's place.
        num_particles: K, the chains per datum of the preliminary run.
        num_leapfrog: Leapfrog steps of a transition.
        acceptance: Acceptance rate that step sizes are adapted to.
        **kwargs: Keyword arguments of the programs.

    Raises:
        ValueError: As `ais`.
    """
    check_count("num_temperatures", num_temperatures)
    if num_particles < 4:
        raise ValueError(f"num_particles must be at least 4 for a conditional sample size, got {num_particles}")
    with quiet(model, guide):
        path = Path(continuous_space(model, guide, args, kwargs), start)
        chains = _Chains(path, num_particles, num_leapfrog, acceptance)
        found = [0.0]
        while found[-1] < 1:
            found.append(_next_beta(chains.slope, found[-1]))
            chains.settle(found[-1], rounds=5)
    index = torch.linspace(0, len(found) - 1, num_temperatures + 1, dtype=torch.float64)
    below = index.long().clamp(max=len(found) - 2)
    known = torch.tensor(found, dtype=torch.float64)
    betas = known[below] + (index - below) * (known[below + 1] - known[below])
    betas[-1] = 1.0
    return betas


def ais(
    model: Program,
    *args: Any,
    guide: Program | None = None,
    num_particles: int,
    betas: Tensor,
    start: Start | None = None,
    num_leapfrog: int = 10,
    acceptance: float = 0.65,
    num_tuning: int = 200,
    chunk_size: int | None = None,
    execution: Execution = "auto",
    progress: bool = False,
    commit: Callable[[dict[str, Any]], None] | None = None,
    resume: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> LogMarginal:
    r"""Estimate log p(x_n) by annealed importance sampling, for each datum n.

    log w_kn = sum_t (b_t - b_{t-1}) (log p(x_n, z_{t-1}) - log s(z_{t-1})),   f_b = s^(1-b) p(x_n, z)^b,

    where z_0 is drawn from s and z_t by a Hamiltonian Monte Carlo transition that leaves f_{b_t} as it is (Neal 2001,
    "Annealed importance sampling", https://arxiv.org/abs/physics/9803008; for decoders Wu, Burda, Salakhutdinov, Grosse
    2017, https://arxiv.org/abs/1611.04273). The start s is the prior (then f_b = p(z) p(x|z)^b), the guide, or a normal
    in u. The mean of w is p(x_n) without bias, so the value is a bound from below in expectation.

    Transitions are preconditioned by the covariance of a normal start, else by standard deviations per dimension. They
    and the step sizes, one per datum and temperature, come from a preliminary run with 8 chains of its own and stay
    as they are afterwards, so that the estimate stays unbiased.

    Args:
        model: Pyro program p(z) p(x|z) with continuous latents.
        *args: Arguments of the programs, the data first, with shape (N, ...); what has leading length N is per datum.
        guide: Pyro program q(z|x) to start from; None for the prior.
        num_particles: K, the chains per datum.
        betas: Inverse temperatures, rising from 0 to 1, with shape (T + 1,), such as `linear_schedule(1000)`.
        start: Mean, with shape (N, U), and scale_tril, with shape (N, U, U), of a normal in u to start from in place of
            the guide and the prior; or a function that finds them in the `LatentSpace` of model and guide.
        num_leapfrog: Leapfrog steps of a transition.
        acceptance: Acceptance rate that step sizes are adapted to.
        num_tuning: Transitions of the preliminary run, about; more are made where 50 temperatures need them.
        chunk_size: Chains (K times n data) run at once, which bounds the memory; None for 8,192.
        execution: As `log_marginal` has it, of the path's gradients; "auto" follows from their number.
        progress: Show a progress bar over temperatures.
        commit: Called with the whole state, tensors and plain values, after every 100 temperatures and every block of
            data.
        resume: A state that `commit` was given; the run goes on from it, to the same numbers on CPU.
        **kwargs: Keyword arguments of the programs.

    Returns:
        LogMarginal of value, std_error, ess and khat of the K weights, each with shape (N,), in nats, float64.

    Raises:
        ValueError: If betas do not rise from 0 to 1, a count is below 1, execution is another word, latents are
            discrete, data lie outside the support, a weight is NaN, the state to resume is of another run, or a program
            breaks the contract of `log_weights`.
    """
    betas = check_betas(betas, num_particles=num_particles, num_leapfrog=num_leapfrog, num_tuning=num_tuning)
    if not 0 < acceptance < 1:
        raise ValueError(f"acceptance must lie between 0 and 1, got {acceptance}")
    how = execution_of(betas, num_leapfrog, num_tuning, execution)
    size = num_data(args, kwargs)
    blocks = list(data_blocks(size, num_particles, chunk_size))
    run = {"num_data": size, "num_particles": num_particles, "blocks": len(blocks), "betas": betas}
    run |= {"num_leapfrog": num_leapfrog, "acceptance": acceptance, "num_tuning": num_tuning}
    run |= {"guide": guide is not None, "start": start is not None}
    state: dict[str, Any] = {"run": run, "block": 0, "temperature": 0, "done": []}
    if resume is not None:
        same = {key: torch.equal(torch.as_tensor(resume["run"].get(key, -1)), torch.as_tensor(run[key])) for key in run}
        if not all(same.values()):
            raise ValueError(f"the state to resume is of another run: {resume['run']}, and this one is {run}")
        state |= {**resume, "done": list(resume["done"])}
        _set_generators(resume["generators"])
    bar = tqdm(total=len(blocks) * (len(betas) - 1), unit="step", disable=not progress, dynamic_ncols=True)
    bar.update(state["block"] * (len(betas) - 1) + state["temperature"])

    def save() -> None:
        if commit is not None:
            commit({**state, "done": list(state["done"]), "generators": _generators()})

    with bar, quiet(model, guide):
        for index in range(state["block"], len(blocks)):
            part, options = take(args, kwargs, blocks[index])
            check_support(model, *part, first=blocks[index].start, **options)
            space = continuous_space(model, guide, part, options)
            path = Path(space, start_of(start, blocks[index]), how)
            if not state["temperature"]:
                tuning = tune(path, betas, num_leapfrog=num_leapfrog, acceptance=acceptance, num_tuning=num_tuning)
                u = path.draw(num_particles)
                walk = Walk(u, path.parts(u)[1], torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device))
            else:
                places, *held = state["tuning"]
                tuning = Tuning(places, *(value.to(path.device) for value in held))
                walk = Walk(*(value.to(path.device) for value in state["walk"]))
            order = list(range(state["temperature"], len(betas)))
            steps = anneal(path, walk, betas, order, tuning, num_leapfrog)
            for done, walk in enumerate(steps, state["temperature"] + 1):
                bar.update()
                if done % _COMMIT_EVERY == 0 and done < len(betas) - 1:
                    state |= {"temperature": done, "tuning": tuple(tuning), "walk": tuple(walk)}
                    save()
            check_weights(walk.log_w, model, guide, *part, first=blocks[index].start, **options)
            state["done"].append(tuple(summarize_log_weights(walk.log_w)))
            state |= {"block": index + 1, "temperature": 0, "tuning": (), "walk": ()}
            save()
    return LogMarginal(*(torch.cat(parts) for parts in zip(*state["done"], strict=True)))


class Path:
    """The densities f_b between a start s and the posterior, log f_b(u) = log s(u) + b slope(u).

    Args:
        space: The latents, in coordinates u.
        normal: Mean, with shape (N, U), and scale_tril, with shape (N, U, U), of s; None for the space's guide, or the
            prior where it has none.
        execution: How gradients are taken: "eager", "recorded" or "compiled".
    """

    def __init__(self, space: LatentSpace, normal: Start | None = None, execution: Execution = "eager") -> None:
        self.space = space
        self.execution = execution
        with isolated_rng():
            like = space.pack(space.from_prior(1))
        self.device = like.device
        self.normal: torch.distributions.MultivariateNormal | None = None
        if normal is not None:
            if space.masked:
                raise ValueError("a mask leaves latents out, which a normal start would count; start from the prior")
            mean, scale_tril = normal(space) if callable(normal) else normal
            shape = (space.num_data, space.size)
            if mean.shape != shape or scale_tril.shape != (*shape, space.size):
                raise ValueError(
                    f"start has a mean of shape {tuple(mean.shape)} and a scale_tril of {tuple(scale_tril.shape)}; "
                    f"expected {shape} and {(*shape, space.size)}, for {shape[0]} data with {shape[1]} coordinates each"
                )
            self.normal = torch.distributions.MultivariateNormal(
                mean.to(like), scale_tril=scale_tril.to(like), validate_args=False
            )
        self._tempered = Recorded(partial(_tempered, space, self.normal), num_varying=2)

    def draw(self, num_particles: int) -> Tensor:
        """Draw u from the start, with shape (K, N, U)."""
        if self.normal is not None:
            return self.normal.sample((num_particles,))
        drawn = self.space.from_prior if self.space.guide is None else self.space.from_guide
        return self.space.pack(drawn(num_particles))

    def parts(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log s(u), and the slope log p(x, z(u)) |dz/du| - log s(u), each with shape (K, N)."""
        return _parts(self.space, self.normal, u)

    def tempered(self, u: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Log f_b(u) and the slope, each with shape (K, N), and the gradient of log f_b, with shape (K, N, U)."""
        given = u.detach().contiguous(), u.new_full((), beta)  # a record holds for one layout
        if self.execution != "eager":
            try:
                found: Any = self._tempered(*given, compiled=self.execution == "compiled")
            except NotRecordedError as error:
                self.execution = "eager"
                refuse("the path's gradient", error)
            else:
                value, slope, gradient = found
                return value, slope, gradient
        return _tempered(self.space, self.normal, *given)


def _parts(
    space: LatentSpace, normal: torch.distributions.MultivariateNormal | None, u: Tensor
) -> tuple[Tensor, Tensor]:
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
    space: LatentSpace, normal: torch.distributions.MultivariateNormal | None, u: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        base, slope = _parts(space, normal, u)
        value = base + beta * slope
        (gradient,) = torch.autograd.grad(value.sum(), u)
    return value.detach(), slope.detach(), gradient


class Walk(NamedTuple):
    """Where chains are.

    Attributes:
        u: Coordinates, with shape (K, N, U).
        slope: The path's slope there, with shape (K, N).
        log_w: Log weights so far, with shape (K, N), float64.
    """

    u: Tensor
    slope: Tensor
    log_w: Tensor


class Tuning(NamedTuple):
    """What transitions take at each of G inverse temperatures, adapted in a preliminary run.

    Attributes:
        places: Inverse temperatures, with shape (G,).
        step: Step sizes, with shape (G, N).
        scale: Standard deviations per dimension, with shape (G, N, U); a normal start has a scale_tril in their place.
    """

    places: Tensor
    step: Tensor
    scale: Tensor


def anneal(
    path: Path, walk: Walk, betas: Tensor, order: list[int], tuning: Tuning, num_leapfrog: int
) -> Iterator[Walk]:
    """Walk through the temperatures in this order (rising or falling), and yield the chains after each."""
    for before, now in pairwise(order):
        # Where the slope is infinite, f_b is zero beyond b = 0, and so is the weight.
        log_w = walk.log_w + (betas[now] - betas[before]).item() * walk.slope.double()
        walk = walk._replace(log_w=log_w)
        if 0 < now < len(betas) - 1:
            place = int((tuning.places - betas[now]).abs().argmin())
            scale = tuning.scale[place] if path.normal is None else path.normal.scale_tril
            u, slope, _ = transition(path, walk.u, betas[now].item(), tuning.step[place], scale, num_leapfrog)
            walk = walk._replace(u=u, slope=slope)
        yield walk


def transition(
    path: Path, u: Tensor, beta: float, step: Tensor, scale: Tensor, num_leapfrog: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Make one Hamiltonian Monte Carlo transition that leaves f_b as it is.

    Source: Neal 2011, "MCMC using Hamiltonian dynamics", https://arxiv.org/abs/1206.1901. The momentum is standard
    normal in the coordinates v of u = scale v. A trajectory that meets a number that is not finite is rejected.

    Args:
        path: The densities.
        u: Coordinates, with shape (K, N, U).
        beta: b.
        step: Step sizes, with shape (N,).
        scale: Standard deviations, with shape (N, U), or a scale_tril, with shape (N, U, U).
        num_leapfrog: Leapfrog steps.

    Returns:
        The next u, with shape (K, N, U), the slope there and the probability of acceptance, each with shape (K, N).
    """
    size = (step * (1 + _JITTER * (2 * torch.rand_like(u[..., 0]) - 1))).unsqueeze(-1)
    momentum = torch.randn_like(u)
    value, slope, gradient = path.tempered(u, beta)
    before = value - momentum.square().sum(-1) / 2
    v, sound = u, torch.ones_like(value, dtype=torch.bool)
    for _ in range(num_leapfrog):
        momentum = momentum + size / 2 * _across(scale, gradient)
        moved = v + size * _along(scale, momentum)
        sound = sound & moved.isfinite().all(-1)
        v = torch.where(sound.unsqueeze(-1), moved, u)
        value, new_slope, gradient = path.tempered(v, beta)
        momentum = momentum + size / 2 * _across(scale, gradient)
    log_ratio = value - momentum.square().sum(-1) / 2 - before
    log_ratio = torch.where(sound & ~log_ratio.isnan(), log_ratio, -torch.inf)
    accepted = torch.rand_like(log_ratio).log() < log_ratio
    probability = log_ratio.clamp(max=0).exp()
    return torch.where(accepted.unsqueeze(-1), v, u), torch.where(accepted, new_slope, slope), probability


def tune(path: Path, betas: Tensor, *, num_leapfrog: int, acceptance: float, num_tuning: int) -> Tuning:
    """Adapt step sizes and scales per datum in a preliminary run along the temperatures, with chains of its own."""
    inner = betas[1:-1]
    if not len(inner):
        return Tuning(*(torch.zeros(0) for _ in Tuning._fields))
    count = min(len(inner), _TUNING_PLACES)
    places = inner[torch.linspace(0, len(inner) - 1, count).round().long()]
    chains = _Chains(path, _TUNING_CHAINS, num_leapfrog, acceptance)
    chains.settle(places[0].item(), rounds=_SETTLING)
    steps, scales = [], []
    for place in places.tolist():
        chains.settle(place, rounds=max(2, num_tuning // count))
        steps.append(chains.log_step.exp())
        scales.append(chains.variance.sqrt())
    return Tuning(places, torch.stack(steps), torch.stack(scales))


class _Chains:
    """Chains that adapt their step size and scale per datum while they move."""

    def __init__(self, path: Path, num_chains: int, num_leapfrog: int, acceptance: float) -> None:
        self.path, self.num_leapfrog, self.acceptance = path, num_leapfrog, acceptance
        self.u = path.draw(num_chains)
        self.slope = path.parts(self.u)[1]
        self.variance = path.draw(100).var(0)
        size = self.u.shape[-1]
        self.log_step = torch.full_like(self.u[0, :, 0], math.log(0.7 * size**-0.25))

    @property
    def scale(self) -> Tensor:
        """What preconditions: the start's scale_tril, or standard deviations seen in the last 20 transitions or so."""
        return self.variance.sqrt() if self.path.normal is None else self.path.normal.scale_tril

    def settle(self, beta: float, rounds: int) -> None:
        """Make transitions at b; log step rises by gain (accepted - asked), the gain falling to 0.15."""
        for done in range(rounds):
            self.u, self.slope, accepted = transition(
                self.path, self.u, beta, self.log_step.exp(), self.scale, self.num_leapfrog
            )
            self.log_step = self.log_step + max(0.15, 1 / (done + 2)) * (accepted.mean(0) - self.acceptance)
            self.variance = torch.lerp(self.variance, self.u.var(0), 0.05)


def _next_beta(slope: Tensor, beta: float) -> float:
    """The b' > b where the mean over data of CESS(b, b') falls to 1/2, by bisection; 1 where it stays above."""

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


def _along(scale: Tensor, momentum: Tensor) -> Tensor:
    """Scale v, for standard deviations with shape (N, U) or a scale_tril with shape (N, U, U)."""
    return scale * momentum if scale.dim() == 2 else (scale @ momentum.unsqueeze(-1)).squeeze(-1)


def _across(scale: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with respect to v of u = scale v."""
    return scale * gradient if scale.dim() == 2 else (scale.mT @ gradient.unsqueeze(-1)).squeeze(-1)


def continuous_space(
    model: Program, guide: Program | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> LatentSpace:
    """The latents of these data, or a refusal where they are discrete."""
    space = LatentSpace(model, guide, *args, **kwargs)
    if not space.continuous:
        raise ValueError(
            f"latents {sorted(space.supports)} are discrete, or of a support without unconstrained coordinates, and "
            "this needs gradients; take log_marginal"
        )
    return space


def start_of(start: Start | None, rows: slice) -> Start | None:
    """The start of these data."""
    return start if start is None or callable(start) else (start[0][rows], start[1][rows])


@contextmanager
def quiet(model: Program, guide: Program | None) -> Iterator[None]:
    """Modules in evaluation mode, no gradients but those asked for, and Pyro's checks off."""
    with evaluating(*(p for p in (model, guide) if p is not None)), pyro.validation_enabled(False):
        yield


def execution_of(betas: Tensor, num_leapfrog: int, num_tuning: int, execution: Execution = "auto") -> Execution:
    """How the gradients along a path are taken, by their number, those of the preliminary run among them."""
    calls = (len(betas) + _SETTLING + num_tuning) * num_leapfrog
    return choose_execution(execution, calls, recorded_from=_RECORDED_FROM, compiled_from=_COMPILED_FROM)


def data_blocks(size: int, num_particles: int, chunk_size: int | None) -> Iterator[slice]:
    """The rows of blocks that hold as many chains as chunk_size says, or those of one datum."""
    chunk_size = DEFAULT_CHUNK_SIZE if chunk_size is None else chunk_size
    check_count("chunk_size", chunk_size)
    at_once = max(1, chunk_size // num_particles)
    return (slice(start, min(start + at_once, size)) for start in range(0, size, at_once))


def _generators() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_generators(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
