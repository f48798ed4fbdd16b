"""Calibration of importance weights: SBC with the true latents among the weighted draws."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae.densities import ParticleTrace, Program, VectorizedProgram, entry, evaluating, isolated_rng, weighted_draws
from pyrovae.diagnostics.calibration import (
    Quantity,
    adjusted_p_values,
    check_counts,
    checked_pair,
    checked_quantities,
    listed,
    quantities_at,
    with_true,
)
from pyrovae.diagnostics.simulation import Simulation, simulations
from pyrovae.diagnostics.uniformity import Uniformity, check_uniform
from pyrovae.evidence import DEFAULT_CHUNK_SIZE, LatentSpace, Proposal, draws_with_true

_FEW = 2.0  # effective draws, the true latent included, below which the check sees little


class WeightedCalibration(NamedTuple):
    """Weighted ranks of true latents among the draws of a guide, for simulated data, and what they say.

    Attributes:
        values: For each quantity the weighted rank of the true value, between 0 and 1, with shape (N,), float64; fewer
            than N if masks leave latents out.
        num_draws: Number of draws K per simulation, without the true latent.
        uniformity: Test of the values of each quantity, with its own p-value.
        adjusted: p-value of each quantity, adjusted for their number (`holm`).
        p_value: Smallest adjusted p-value, which is one of all quantities together.
        true_weight: Normalised weight of the true latent among the K + 1, with shape (N,).
        ess: Effective number of draws among the K + 1, with shape (N,).
        num_outside: Number of simulations whose true latent has density 0 under the guide.
        words: What is wrong with the weights, a sentence each, or one that nothing was found.
    """

    values: dict[str, Tensor]
    num_draws: int
    uniformity: dict[str, Uniformity]
    adjusted: dict[str, float]
    p_value: float
    true_weight: Tensor
    ess: Tensor
    num_outside: int
    words: tuple[str, ...]


@entry()
def weighted_sbc(
    model: Program,
    guide: Program,
    *args: Any,
    num_simulations: int = 1000,
    num_draws: int = 99,
    proposal: Proposal | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    level: float = 0.95,
    seed: int = 0,
    chunk_size: int | None = None,
    plate: str | None = None,
    **kwargs: Any,
) -> WeightedCalibration:
    """Check the log weights of a model and a guide, on data simulated from the model.

        (z_0, x*) ~ p(z) p(x|z),  z_1, ..., z_K ~ q(z|x*),  W_k = w_k / sum_i w_i,  w = p(x*, z) / q(z|x*)
        U = sum_{k: f_k < f_0} W_k + V sum_{k: f_k = f_0} W_k,  V uniform on [0, 1]

    Of a set of K + 1 latents of which one is from p(z|x*) and the others from q(z|x*), latent k is the true one with
    probability W_k. Hence U is uniform for every guide, quantity f and K, if draws and densities are right: it tests
    `log_weights`, and not the quality of the guide. A small p-value says that a distribution's draws do not follow its
    density, or that the model scores other data than it draws. The test is exact also if the guide lacks a part of the
    posterior: then the true latent has all the weight, and is counted in `num_outside`. With few effective draws U is
    almost V, and the test has little power.

    Of x only the number of data, their shape, dtype and NaN are used, and not their values; covariates, masks and other
    arguments are (see `sbc`). The check holds for data of the model and says nothing about its fit to real data.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        num_simulations: Number of simulations.
        num_draws: Number of draws K of the guide, or the proposal, per simulation.
        proposal: `Proposal` to draw from, whose weights are tested in place of the guide's; None for the guide. For one
            with several components the true latent takes the place of a draw of the component that it may come from.
        quantities: Further quantities f by name, as in `sbc`.
        level: Probability of the bands.
        seed: Random seed; the global random state is restored at the end.
        chunk_size: Number of latents decoded at once, which bounds memory; None for 8,192.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: As `sbc`; or if a log weight is NaN, or a component of the proposal has no draw.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5))  # too narrow, but its weights are right
        >>> weighted_sbc(model, guide, torch.zeros(10), num_simulations=300, num_draws=19).words
        ('nothing wrong found with the log weights in 300 simulations',)
    """
    check_counts(num_simulations=num_simulations, num_draws=num_draws)
    pair = checked_pair(model, guide, args, kwargs, plate)
    own = checked_quantities(quantities)
    if proposal is not None and not isinstance(proposal, Proposal):
        raise ValueError(f"proposal must be a Proposal, got {proposal!r}; give an object such as LaplaceProposal()")
    values: dict[str, list[Tensor]] = {}
    weights, outside = [], 0
    at_once = max(1, (chunk_size or DEFAULT_CHUNK_SIZE) // (num_draws + 1))
    with isolated_rng(seed), evaluating(*pair), pyro.validation_enabled(False):
        for block in simulations(pair[0], args, kwargs, num_simulations, at_once):
            latents, log_w = _weighted(pair, block, num_draws, proposal, at_once * (num_draws + 1))
            outside += int((log_w[0] == torch.inf).sum())
            weight = _normalised(log_w)
            weights.append(weight)
            for name, found, seen in quantities_at(pair[0], block, latents, own):
                values.setdefault(name, []).append(_weighted_rank(found, weight)[seen])
    joined = {name: torch.cat(parts) for name, parts in values.items()}
    tests = {name: check_uniform(u, level=level) for name, u in joined.items() if len(u)}
    adjusted = adjusted_p_values(tests)
    weight = torch.cat(weights, 1)
    ess = 1 / weight.square().sum(0)
    return WeightedCalibration(
        {name: joined[name] for name in tests},
        num_draws,
        tests,
        adjusted,
        min(adjusted.values()),
        weight[0],
        ess,
        outside,
        _words(adjusted, ess, outside, 1 - level),
    )


def _weighted(
    pair: tuple[VectorizedProgram, VectorizedProgram],
    block: Simulation,
    num_draws: int,
    proposal: Proposal | None,
    chunk_size: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Draw latents, the true ones first, each with shape (K + 1, n, ...), and log weights, with shape (K + 1, n).

    A proposal makes one more draw, of weight 0, whose slot the true latent takes.
    """
    if proposal is None:
        by_guide = weighted_draws(*pair, *block.args, num_particles=num_draws, **block.kwargs)
        drawn, log_w = by_guide.latents, by_guide.log_weights
        true_log_w = _true_log_weight(*pair, block, drawn)
    else:
        space = LatentSpace(*pair, *block.args, **block.kwargs)
        true = {name: block.latents[name].unsqueeze(0) for name in space.names}
        drawn, log_w, true_log_w = draws_with_true(space, true, num_draws + 1, proposal, chunk_size)
    latents = {name: with_true(z, drawn[name]) for name, z in block.latents.items() if name in drawn}
    return latents, torch.cat([true_log_w, log_w]).detach().cpu().double()


def _true_log_weight(
    model: VectorizedProgram, guide: VectorizedProgram, block: Simulation, drawn: Mapping[str, Tensor]
) -> Tensor:
    """Evaluate the log weights of the true latents in nats, with shape (1, n); inf where q(z|x) is 0."""
    latents = {name: block.latents[name].unsqueeze(0).to(value.dtype) for name, value in drawn.items()}
    guide_trace = guide.trace(1, block.args, block.kwargs, latents)
    log_q = _where_supported(guide_trace, guide_trace.log_densities()[0])
    return model.trace(1, block.args, block.kwargs, latents).log_densities()[0] - log_q


def _where_supported(trace: ParticleTrace, log_q: Tensor) -> Tensor:
    for site in trace.latents.values():
        log_q = torch.where(site.in_support(), log_q, -torch.inf)
    return log_q


def _normalised(log_w: Tensor) -> Tensor:
    """Normalise weights of K + 1 latents, the true one first, with shape (K + 1, n)."""
    if bool(log_w.isnan().any()):
        raise ValueError(
            f"the log weights of {int(log_w.isnan().any(0).sum()):,} simulations of this block are NaN; look for "
            "parameters that are NaN, or a scale that went to zero"
        )
    alone = log_w[0] == torch.inf
    log_w = torch.where(alone, torch.where(log_w == torch.inf, 0.0, -torch.inf), log_w)
    return log_w.softmax(0)


def _weighted_rank(values: Tensor, weight: Tensor) -> Tensor:
    """Sum the weights of latents below the true one, the first, and a random share of those equal to it."""
    below = torch.where(values < values[0], weight, 0.0).sum(0)
    equal = torch.where(values == values[0], weight, 0.0).sum(0)
    return (below + torch.rand(below.shape, dtype=torch.float64) * equal).clamp(0, 1)


def _words(adjusted: Mapping[str, float], ess: Tensor, outside: int, alpha: float) -> tuple[str, ...]:
    rejected = [name for name, p in adjusted.items() if p <= alpha]
    words = []
    if rejected:
        words.append(
            f"the log weights are wrong, as {listed(rejected)} {'show' if len(rejected) > 1 else 'shows'}: draws of a "
            "distribution do not follow its density, or the model scores other data than it draws"
        )
    if outside:
        words.append(f"the guide never draws {outside:,} of {len(ess):,} true latents, so log p(x) by it is too low")
    if not rejected:
        words.append(f"nothing wrong found with the log weights in {len(ess):,} simulations")
        if ess.median() < _FEW:
            words.append(f"this test has little power: {ess.median().item():.1f} draws count (median); use more draws")
    return tuple(words)
