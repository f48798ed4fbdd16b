"""log p(x) between two bounds, for data simulated from the model together with their latents."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, check_support, check_weights, num_data, take
from pyrovae.evidence.ais import (
    DEFAULT_CHUNK_SIZE,
    Path,
    Start,
    Walk,
    anneal,
    continuous_space,
    data_blocks,
    execution_of,
    quiet,
    start_of,
    transition,
    tune,
)
from pyrovae.evidence.latent_space import Latents, LatentSpace
from pyrovae.evidence.proposals import Component, Points, Proposal, default_proposal
from pyrovae.evidence.temperatures import check_betas
from pyrovae.stats import log_mean_exp, summarize_log_weights


class Bracket(NamedTuple):
    """Bounds of log p(x_n) for each datum, in nats, each with shape (N,), float64.

    Attributes:
        lower: In expectation below log p(x_n).
        lower_error: Its Monte Carlo standard error.
        upper: In expectation above log p(x_n).
        upper_error: Its Monte Carlo standard error.
        gap: upper - lower, which bounds in expectation how far either is from log p(x_n).
        gap_error: Its Monte Carlo standard error.
    """

    lower: Tensor
    lower_error: Tensor
    upper: Tensor
    upper_error: Tensor
    gap: Tensor
    gap_error: Tensor


def bracket(
    model: Program,
    guide: Program | None,
    latents: Mapping[str, Tensor],
    *args: Any,
    num_particles: int,
    proposal: Proposal | None = None,
    betas: Tensor | None = None,
    start: Start | None = None,
    num_leapfrog: int = 10,
    acceptance: float = 0.65,
    num_tuning: int = 200,
    num_equilibrium: int = 20,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> Bracket:
    r"""Bound log p(x_n) from both sides, where x_n was simulated together with its latents z_n* from the model.

    z_n* is then an exact draw from p(z|x_n). Without betas, by importance sampling with K draws from a proposal q:

    lower = log 1/K sum_k w_k,   upper = log 1/K (w* + sum_{k != j} w_k),   w = p(x, z) / q(z)

    (Brekelmans et al. 2022, "Improving mutual information estimation with annealed and energy-based bounds",
    https://arxiv.org/abs/2303.06992, for the upper one); where q is a mixture in fixed shares, slot j is one of the
    component's that z* belongs to, drawn by share_s q_s(z*) / q(z*). With betas, by bidirectional
    Monte Carlo: annealing from the start to the posterior below, and back from z_n* to the start above,

    lower = log 1/K sum_k w_k,   upper = -log 1/K sum_k 1 / w'_k

    (Grosse, Ghahramani, Adams 2015, https://arxiv.org/abs/1511.02543). The K chains back set out from z_n* by
    `num_equilibrium` transitions that leave the posterior as it is, so that each starts at an exact draw and they are
    almost independent of each other. Each datum has its z_n*; where a single one is far out its bounds may cross, and
    the mean over data is what bounds the estimator's gap.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x); None, with betas, to anneal from the prior.
        latents: The latents that the data were simulated from, by site, each with shape (N, ...).
        *args: Arguments of the programs, the simulated data first, with shape (N, ...).
        num_particles: K, the draws or chains per datum.
        proposal: What to draw from without betas: `GuideProposal()`, or another; None for `log_marginal`'s default.
        betas: Inverse temperatures for annealing, as for `ais`; None for importance sampling.
        start: A normal in u to anneal from, as for `ais`.
        num_leapfrog: Leapfrog steps of a transition.
        acceptance: Acceptance rate that step sizes are adapted to.
        num_tuning: Transitions of the preliminary run, about.
        num_equilibrium: Transitions that part the chains back from each other.
        chunk_size: Latents (K times n data) held at once; None for 8,192.
        **kwargs: Keyword arguments of the programs.

    Raises:
        ValueError: As `ais` and `log_weights`; or if latents are not those of the model, one per datum.

    Example:
        >>> import pyro
        >>> from pyrovae import MLP, VAE, NormalEncoder, NormalLikelihood, StandardNormalPrior
        >>> vae = VAE(StandardNormalPrior(1), NormalLikelihood(MLP(1, 3)), NormalEncoder(MLP(3, 2)))
        >>> sites = pyro.poutine.trace(vae.model).get_trace(size=5).nodes
        >>> latents, x = {"z": sites["z"]["value"]}, sites["x"]["value"].detach()
        >>> bracket(vae.model, vae.guide, latents, x, num_particles=100).gap.shape
        torch.Size([5])
    """
    settings: dict[str, Any] = {"num_leapfrog": num_leapfrog, "acceptance": acceptance, "num_tuning": num_tuning}
    if betas is not None:
        betas = check_betas(betas, num_particles=num_particles, num_leapfrog=num_leapfrog, num_tuning=num_tuning)
        if proposal is not None:
            raise ValueError(
                "a proposal is for importance sampling; with betas, give a guide or a start to anneal from"
            )
    elif num_particles < 2:
        raise ValueError(f"num_particles must be at least 2, one slot for the true latent, got {num_particles}")
    elif guide is None:
        raise ValueError("importance sampling needs a guide; give one, or betas to anneal from the prior")
    size = num_data(args, kwargs)
    for name, value in latents.items():
        if value.shape[:1] != (size,):
            raise ValueError(f"latent {name!r} has shape {tuple(value.shape)}; expected one for each of {size} data")
    found = []
    with quiet(model, guide):
        for rows in data_blocks(size, num_particles, chunk_size):
            part, options = take(args, kwargs, rows)
            check_support(model, *part, first=rows.start, **options)
            space = LatentSpace(model, guide, *part, **options)
            if set(latents) != set(space.supports):
                raise ValueError(f"latents are of sites {sorted(latents)}, the model's are {sorted(space.supports)}")
            true = {name: value[rows].unsqueeze(0) for name, value in latents.items()}
            if betas is None:
                found.append(_by_importance(space, true, num_particles, proposal, chunk_size, rows.start))
            else:
                inner = continuous_space(model, guide, part, options)
                path = Path(inner, start_of(start, rows), execution_of(betas, num_leapfrog, num_tuning))
                found.append(_by_annealing(path, true, num_particles, betas, num_equilibrium, settings))
    return Bracket(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _by_importance(
    space: LatentSpace,
    true: Latents,
    num_particles: int,
    proposal: Proposal | None,
    chunk_size: int | None,
    first: int,
) -> Bracket:
    chosen = default_proposal(space) if proposal is None else proposal
    component = chosen.adapt(space, chunk_size=chunk_size or DEFAULT_CHUNK_SIZE)
    at_once = min(num_particles, chunk_size or DEFAULT_CHUNK_SIZE)
    counts = [min(at_once, num_particles - done) for done in range(0, num_particles, at_once)]
    drawn, which = (torch.cat(each) for each in zip(*map(component.log_weights, counts), strict=True))
    drawn, point = drawn.double(), Points(space, true)
    true_log_w = (sum(point.log_prior_and_likelihood) - component.log_density(point)).double()
    for log_w in (drawn, true_log_w):
        check_weights(log_w, space.model, space.guide, *space.args, first=first, **space.kwargs)
    slots = drawn.scatter(0, _slot(component, point, which).to(drawn.device).unsqueeze(0), true_log_w)
    lower, upper = summarize_log_weights(drawn, which), log_mean_exp(slots)
    # Weights in units of their mean: of variance s2 under q, and by those same draws of variance t2 under p(z|x).
    w = (slots - upper).exp()
    s2 = w.var(0)
    t2 = (w**3).mean(0) - (w**2).mean(0) ** 2
    upper_error = (lower.std_error**2 + t2 / num_particles**2).sqrt()
    gap_error = (s2 + t2).sqrt() / num_particles  # the other draws are on both sides; generous for mixtures
    return Bracket(lower.value, lower.std_error, upper, upper_error, upper - lower.value, gap_error)


def _slot(component: Component, point: Points, which: Tensor) -> Tensor:
    """The slot that the true latent of each datum takes, with shape (N,): one of the component it belongs to."""
    parts = getattr(component, "parts", [component])
    shares = torch.tensor(component.shares, dtype=torch.float64).log()
    each = [part.log_density(point)[0].double().cpu() for part in parts]
    belongs = torch.distributions.Categorical(logits=(torch.stack(each, -1) + shares).nan_to_num(-math.inf)).sample()
    fits = which.cpu()[:, None] == belongs
    if not bool(fits.any(0).all()):
        raise ValueError(f"num_particles is {len(which)}, so some component of the proposal draws nothing; take more")
    return torch.multinomial(fits.double().T, 1).squeeze(-1)


def _by_annealing(
    path: Path, true: Latents, num_particles: int, betas: Tensor, num_equilibrium: int, settings: Mapping[str, Any]
) -> Bracket:
    tuning, num_leapfrog = tune(path, betas, **settings), settings["num_leapfrog"]
    order = list(range(len(betas)))

    def summary(u: Tensor, order: list[int]) -> tuple[Tensor, Tensor]:
        walk = Walk(u, path.parts(u)[1], torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device))
        *_, walk = anneal(path, walk, betas, order, tuning, num_leapfrog)
        estimate = summarize_log_weights(walk.log_w)
        return estimate.value, estimate.std_error

    lower, lower_error = summary(path.draw(num_particles), order)
    u = path.space.pack(true).expand(num_particles, -1, -1)
    if len(tuning.places):
        scale = tuning.scale[-1] if path.normal is None else path.normal.scale_tril
        for _ in range(num_equilibrium):
            u, _, _ = transition(path, u, 1.0, tuning.step[-1], scale, num_leapfrog)
    falling, upper_error = summary(u, order[::-1])
    gap_error = (lower_error**2 + upper_error**2).sqrt()
    return Bracket(lower, lower_error, -falling, upper_error, -falling - lower, gap_error)
