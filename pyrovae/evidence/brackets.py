"""Lower and upper bounds of log p(x), for data simulated with their latents."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, entry, num_data, vectorize
from pyrovae.evidence.ais import summarize_chains
from pyrovae.evidence.annealing import (
    STUCK,
    Path,
    Start,
    Walk,
    anneal,
    execution_of,
    rows_of,
    transitions_of,
    tune,
    tuned_transition,
)
from pyrovae.evidence.blocks import (
    DataBlock,
    check_counts,
    chunk_size_or_default,
    concatenate,
    data_at_once,
    data_blocks,
    evaluation_mode,
    split_count,
)
from pyrovae.evidence.latent_space import Latents, LatentSpace
from pyrovae.evidence.points import Points
from pyrovae.evidence.proposal_components import Component
from pyrovae.evidence.proposals import Proposal, default_proposal
from pyrovae.evidence.temperatures import check_betas, linear_schedule
from pyrovae.stats import log_mean_exp, mean_and_std_error, summarize_log_weights

_LARGEST_ERROR = 0.3  # pooled error in nats up to which the delta method and the average over data are reliable


class Bracket(NamedTuple):
    """Bounds of log p(x_n) for each datum, in nats, each with shape (N,), float64.

    The errors are NaN if importance sampling could not determine them, and inf if chains could not; the bounds hold in
    expectation nevertheless.

    Attributes:
        lower: Lower bound of log p(x_n) in expectation.
        lower_error: Monte Carlo standard error of lower.
        upper: Upper bound of log p(x_n) in expectation.
        upper_error: Monte Carlo standard error of upper.
        gap: upper - lower, which bounds the distance of either from log p(x_n) in expectation.
        gap_error: Monte Carlo standard error of gap.
    """

    lower: Tensor
    lower_error: Tensor
    upper: Tensor
    upper_error: Tensor
    gap: Tensor
    gap_error: Tensor


@entry()
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
    num_tuning: int | None = None,
    num_equilibrium: int = 20,
    chunk_size: int | None = None,
    plate: str | None = None,
    **kwargs: Any,
) -> Bracket:
    r"""Bound log p(x_n) from both sides, where x_n was simulated together with its latents z_n* from the model.

    z_n* is then an exact draw from p(z|x_n). Without betas, importance sampling with K draws from a proposal q gives

    lower = log 1/K sum_k w_k,   upper = log 1/K (w* + sum_{k != j} w_k),   w = p(x, z) / q(z)

    (Brekelmans et al. 2022, "Improving mutual information estimation with annealed and energy-based bounds",
    https://arxiv.org/abs/2303.06992, for the upper bound). If q is a mixture in fixed shares, the component s of z* is
    drawn with probability share_s q_s(z*) / q(z*), and slot j is drawn among the slots of that component. With betas,
    bidirectional Monte Carlo anneals from the start to the posterior, and back from z_n* to the start:

    lower = log 1/K sum_k w_k,   upper = -log 1/K sum_k 1 / w'_k

    (Grosse, Ghahramani, Adams 2015, https://arxiv.org/abs/1511.02543), with weights w' of the reverse chains. The K
    reverse chains start from z_n* and first make `num_equilibrium` transitions that leave the posterior invariant, so
    that each starts at an exact draw, almost independent of the other chains. The bounds of a single datum may cross if
    its z_n* is far out; the mean gap over data bounds the estimator's gap.

    The draws of one datum do not show a tail of the weights that they miss, but the true latents of all data do: the
    relative variance of a weight is E w*/p(x) - 1, an average over exact draws. The errors of importance sampling are
    the larger of each datum's own and this average over all data. On linear-Gaussian models with mean-field, narrow and
    shifted guides, +- 1.96 errors of lower and upper cover log p(x) for a share of 0.95 to 1 of 1,000 data where errors
    are given; with each datum's own error the share was 0.76 to 0.96 (`scripts/studies/brackets.py`). If the average is
    above 0.3 nats, no error is reliable, and all are NaN, with a warning. It needs a hundred data or more.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments; None, with betas, to anneal from the prior.
        latents: Latents that the data were simulated from, by site, each with shape (N, ...). Those of discrete sites
            that are summed out are ignored.
        *args: Positional arguments of both programs, the simulated data first, with shape (N, ...).
        num_particles: Number of draws or chains K per datum.
        proposal: `Proposal` to draw from, without betas; None for the default of `log_marginal`.
        betas: Inverse temperatures, increasing from 0 to 1, with shape (T + 1,); None for importance sampling.
        start: A normal in u to anneal from, as in `ais`.
        num_leapfrog: Number of leapfrog steps per transition; from a normal start, the largest number.
        acceptance: Target acceptance rate of the step sizes.
        num_tuning: Approximate number of transitions of the preliminary run; None for the default of `ais`.
        num_equilibrium: Number of transitions that separate the reverse chains.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None for 8,192, or
            for 6,500,000 / D if there are more than 793 columns D.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: As `ais` and `log_weights`, or if latents are not the model's, one per datum.

    Example:
        >>> import pyro
        >>> from pyrovae import MLP, VAE, NormalEncoder, NormalLikelihood, StandardNormalPrior
        >>> vae = VAE(StandardNormalPrior(1), NormalLikelihood(MLP(1, 3)), NormalEncoder(MLP(3, 2)))
        >>> sites = pyro.poutine.trace(vae.model).get_trace(size=5).nodes
        >>> latents, x = {"z": sites["z"]["value"]}, sites["x"]["value"].detach()
        >>> bracket(vae.model, vae.guide, latents, x, num_particles=100).gap.shape
        torch.Size([5])
    """
    num_tuning = transitions_of(num_tuning, start)
    settings: dict[str, Any] = {"num_leapfrog": num_leapfrog, "acceptance": acceptance, "num_tuning": num_tuning}
    if betas is not None:
        check_counts(num_particles=num_particles, num_leapfrog=num_leapfrog, num_tuning=num_tuning)
        betas = check_betas(betas)
        if proposal is not None:
            raise ValueError("bracket needs either a proposal or betas, got both; give a guide or a start with betas")
    elif num_particles < 2:
        raise ValueError(f"num_particles must be at least 2, one slot for the true latent, got {num_particles}")
    elif guide is None:
        raise ValueError("importance sampling needs a guide; give one, or betas to anneal from the prior")
    model, guide = vectorize(model, guide, args, kwargs, plate=plate)
    size, chunk_size = num_data(args, kwargs), chunk_size_or_default(chunk_size, args, kwargs)
    for name, value in latents.items():
        if value.shape[:1] != (size,):
            raise ValueError(f"latent {name!r} has shape {tuple(value.shape)}; expected one for each of {size} data")
    found, true_weights = [], []
    with evaluation_mode(model, guide):
        for block in data_blocks(model, guide, args, kwargs, data_at_once(num_particles, chunk_size)):
            latents = {name: value for name, value in latents.items() if name not in block.model.summed}
            if set(latents) != set(block.space.names):
                expected = sorted(block.space.names)
                raise ValueError(
                    f"latents are of sites {sorted(latents)}, but the model's are {expected}; give a tensor for each"
                )
            true = {name: value[block.rows].unsqueeze(0) for name, value in latents.items()}
            if betas is None:
                bounds, weights = _by_importance(block, true, num_particles, proposal, chunk_size)
                found.append(bounds)
                true_weights.append(weights)
            else:
                path = Path(block.space, rows_of(start, block.rows), execution_of(betas, num_leapfrog, num_tuning))
                found.append(_by_annealing(path, true, num_particles, betas, num_equilibrium, settings))
                path.undefined.warn(block.first, STUCK)
    bounds = Bracket(*concatenate(found))
    return (
        _with_pooled_errors(bounds, *concatenate(true_weights), num_particles=num_particles) if true_weights else bounds
    )


def _by_importance(
    block: DataBlock, true: Latents, num_particles: int, proposal: Proposal | None, chunk_size: int
) -> tuple[Bracket, tuple[Tensor, Tensor]]:
    """Compute the bounds, and w* / p(x) and the mean square of the components' means for `_with_pooled_errors`."""
    chosen = default_proposal(block.space, chunk_size) if proposal is None else proposal
    component = chosen.adapt(block.space, chunk_size=chunk_size)
    drawn, which = concatenate(map(component.log_weights, split_count(num_particles, chunk_size)))
    drawn, point = drawn.double(), Points(block.space, true)
    true_log_w = (sum(point.log_prior_and_likelihood) - component.log_density(point)).double()
    for log_w in (drawn, true_log_w):
        block.check(log_w)
    slots = drawn.scatter(0, _slot(component, point, which).to(drawn.device).unsqueeze(0), true_log_w)
    lower, upper = summarize_log_weights(drawn, which, block.space.rounding), log_mean_exp(slots)
    # Weights divided by their mean have variance s2 under q, and variance t2 under p(z|x), both from the same draws.
    w = (slots - upper).exp()
    s2 = w.var(0)
    t2 = (w**3).mean(0) - (w**2).mean(0) ** 2
    upper_error = (lower.std_error**2 + t2 / num_particles**2).sqrt()
    gap_error = (s2 + t2).sqrt() / num_particles  # all other draws are on both sides; too large for mixtures
    bounds = Bracket(lower.value, lower.std_error, upper, upper_error, upper - lower.value, gap_error)
    parts = [w[which.to(w.device) == index] for index in which.unique()]
    means = torch.stack([len(part) / num_particles * part.mean(0).square() for part in parts]).sum(0)
    return bounds, ((true_log_w[0] - upper).exp(), means)


def _with_pooled_errors(bounds: Bracket, true_weights: Tensor, means: Tensor, *, num_particles: int) -> Bracket:
    """Raise the errors of importance sampling to those that the true latents of all data show.

    With w the weights divided by p(x), E over q of w^2 is E over p(z|x) of w, so that the variance of the lower bound
    is (E w* - sum_s share_s m_s^2) / K, where m_s is the mean weight of the proposal's component s. The true latent in
    its slot adds var(w*) / K^2 to the upper bound's. The gap's error is at least its standard deviation over data.

    Args:
        bounds: Bounds with each datum's own errors.
        true_weights: w* / p(x), with shape (N,).
        means: sum_s share_s m_s^2, with shape (N,).
        num_particles: Number of draws K per datum.
    """
    if len(true_weights) < 2:
        return bounds
    variance = (true_weights.mean() - means.mean()).clamp(min=0) / num_particles
    slot = true_weights.var() / num_particles**2
    if not variance.sqrt() <= _LARGEST_ERROR:
        unknown = torch.full_like(bounds.lower, math.nan)
        warnings.warn(
            f"the errors of the bracket are unknown (NaN): by the true latents, {num_particles:,} draws leave "
            f"{variance.sqrt().item():.2f} nats, and the weights have a tail that most draws miss; the mean gap over "
            "data still bounds the gap; increase num_particles, or use a better proposal (the default) or betas",
            stacklevel=4,
        )
        return bounds._replace(lower_error=unknown, upper_error=unknown, gap_error=unknown)

    def at_least(error: Tensor, pooled: Tensor) -> Tensor:
        return torch.maximum(error, pooled.sqrt())

    return bounds._replace(
        lower_error=at_least(bounds.lower_error, variance),
        upper_error=at_least(bounds.upper_error, variance + slot),
        gap_error=at_least(bounds.gap_error, bounds.gap.var()),
    )


def draws_with_true(
    space: LatentSpace, true: Latents, num_slots: int, proposal: Proposal, chunk_size: int
) -> tuple[Latents, Tensor, Tensor]:
    r"""Draw latents from a proposal, with one slot of each datum left to its true latent.

    The slot j is drawn as by `bracket`. Given all latents together, slot j holds the true one with probability
    proportional to w_j share_s / n_s, with the share and the number of slots of the component s of slot j.

    Args:
        space: Latents of a model and a guide at N simulated data; programs must be in evaluation mode.
        true: Latents that the data were simulated from, by site, each with shape (1, N, ...).
        num_slots: Number of slots K.
        proposal: `Proposal` to draw from.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.

    Returns:
        The draws by site, with shape (K, N, ...); the logarithms of w share_s / n_s in nats, with shape (K, N), -inf in
        the slot of the true latent; and that of the true latent, with shape (1, N); float64, on the CPU.

    Raises:
        ValueError: If a component of the proposal has no slot, or the proposal does not support the latents.
    """
    component = proposal.adapt(space, chunk_size=chunk_size)
    points = component.draw(num_slots)
    point = Points(space, {name: value.to(points.latents[name].dtype) for name, value in true.items()})
    log_w, which = component.weigh(points).double().cpu(), points.component.cpu()
    true_log_w = (sum(point.log_prior_and_likelihood) - component.log_density(point)).double().cpu()
    shares = torch.tensor(component.shares, dtype=torch.float64)
    correction = (shares / which.bincount(minlength=len(shares))).log()[which].unsqueeze(-1)
    slot = _slot(component, point, which).unsqueeze(0)
    true_log_w = true_log_w + correction.expand_as(log_w).gather(0, slot)
    return points.latents, (log_w + correction).scatter(0, slot, -torch.inf), true_log_w


def _slot(component: Component, point: Points, which: Tensor) -> Tensor:
    """Draw the slot of each datum's true latent, with shape (N,), among the slots of the latent's component."""
    parts = getattr(component, "parts", [component])
    shares = torch.tensor(component.shares, dtype=torch.float64).log()
    each = [part.log_density(point)[0].double().cpu() for part in parts]
    belongs = torch.distributions.Categorical(logits=(torch.stack(each, -1) + shares).nan_to_num(-math.inf)).sample()
    fits = which.cpu()[:, None] == belongs
    if not bool(fits.any(0).all()):
        raise ValueError(
            f"num_particles must give every component of the proposal a draw, got {len(which)}; increase it"
        )
    return torch.multinomial(fits.double().T, 1).squeeze(-1)


def _by_annealing(
    path: Path, true: Latents, num_particles: int, betas: Tensor, num_equilibrium: int, settings: Mapping[str, Any]
) -> Bracket:
    tuning = tune(path, betas, **settings)
    rising = range(len(betas))

    def estimate(walk: Walk, order: range) -> tuple[Tensor, Tensor]:
        *_, walk = anneal(path, walk, betas, order, tuning)
        summary = summarize_chains(walk.log_w, path.space.rounding)
        return summary.value, summary.std_error

    lower, lower_error = estimate(Walk.start(path, path.draw(num_particles)), rising)
    walk = Walk.start(path, path.coordinates(path.space.pack(true)).expand(num_particles, -1, -1))
    if len(tuning.places):
        for _ in range(num_equilibrium):
            walk = walk._replace(position=tuned_transition(path, walk.position, 1.0, tuning)[0])
    reverse, upper_error = estimate(walk, rising[::-1])
    gap_error = (lower_error**2 + upper_error**2).sqrt()
    return Bracket(lower, lower_error, -reverse, upper_error, -reverse - lower, gap_error)


def agreeing_schedule(
    model: Program,
    guide: Program | None,
    latents: Mapping[str, Tensor],
    *args: Any,
    gap: float = 0.05,
    num_particles: int = 16,
    num_temperatures: int = 50,
    most: int = 6400,
    schedule: Callable[[int], Tensor] = linear_schedule,
    **kwargs: Any,
) -> Tensor:
    """Find enough temperatures for `ais`: double their number until forward and reverse chains agree on simulated data.

    The mean gap of `bracket` over data bounds the bias of either end. Give a few hundred simulated data like those to
    be evaluated: the error of the mean counts too. `adaptive_schedule` needs fewer temperatures than a linear schedule,
    from the prior a quarter:

        schedule=lambda num_temperatures: adaptive_schedule(num_temperatures, model, x, guide=guide)

    Args:
        model: Pyro program p(z) p(x|z) with continuous latents.
        guide: Pyro program q(z|x) to start from; None for the prior.
        latents: Latents that the data were simulated from, as in `bracket`.
        *args: Positional arguments of both programs, the simulated data first, with shape (N, ...).
        gap: Mean gap in nats, with two standard errors over data, that suffices.
        num_particles: Number of chains K per datum.
        num_temperatures: Number of temperatures T to begin with.
        most: Largest number of temperatures to try.
        schedule: Function from T to inverse temperatures, such as `sigmoidal_schedule`.
        **kwargs: start, num_leapfrog and other arguments of `bracket`, and keyword arguments of both programs.

    Returns:
        Inverse temperatures, with shape (T + 1,).

    Raises:
        ValueError: As `bracket`, or if the gap is still larger with the largest number of temperatures.
    """
    if not gap > 0:
        raise ValueError(f"gap must be above 0 nats, got {gap}; give 0.05, for example")
    check_counts(num_temperatures=num_temperatures, most=most)
    while True:
        betas = schedule(num_temperatures)
        found = bracket(model, guide, latents, *args, num_particles=num_particles, betas=betas, **kwargs)
        mean, error = mean_and_std_error(found.gap)
        if mean + 2 * error <= gap:
            return betas
        if 2 * num_temperatures > most:
            raise ValueError(
                f"forward and reverse chains must agree within {gap:g} nats, but {num_temperatures:,} temperatures "
                f"leave a mean gap of {mean:.3g} +- {error:.2g}; raise most or num_leapfrog, or use a better guide"
            )
        num_temperatures *= 2
