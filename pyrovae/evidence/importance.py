"""Importance sampling: log p(x) per datum, with its Monte Carlo error, for any model and guide."""

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyrovae.densities import (
    Program,
    advice_on_units,
    bad_data,
    entry,
    log_weights,
    nonfinite_sites,
    vectorize_pair,
    warn_of_missed_mass,
)
from pyrovae.evidence.blocks import (
    DataBlock,
    check_counts,
    check_memory,
    chunk_size_or_default,
    concatenate,
    data_blocks,
    evaluation_mode,
    split_count,
)
from pyrovae.evidence.proposals import GuideProposal, Proposal, default_proposal
from pyrovae.evidence.weight_blocks import WeightBlock, tell_faults
from pyrovae.execution import Chunks, Execution, choose_execution
from pyrovae.stats import (
    LogMarginal,
    LowerBound,
    Rung,
    sampling_std_error,
    summarize_lower_bound,
)

# The tail fit needs all log weights of a block of data at once: 32 MiB at most, in float64.
_HELD_WEIGHTS = 2**22
_TRIED = 1000  # numbers of chunks, for one that divides the draws

# Numbers of chunks from which recording them, and compiling, pays.
_RECORDED_FROM = 100
_COMPILED_FROM = 400

_FIRST_PILOT = 200  # draws of the first pilot for a target standard error
# Arguments of `log_weight_blocks` that reach it as keyword arguments.
_OPTIONS = (
    "plate",
    "proposal",
    "chunk_size",
    "target_std_error",
    "pareto_smoothed",
    "skip_support_check",
    "execution",
    "first",
)

_MARGIN = 1.2  # factor on the number of draws that the pilot suggests


@entry()
def log_marginal(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int,
    proposal: Proposal | Program | None = None,
    chunk_size: int | None = None,
    target_std_error: float | None = None,
    pareto_smoothed: bool = False,
    execution: Execution = "auto",
    plate: str | None = None,
    **kwargs: Any,
) -> LogMarginal:
    r"""Estimate log p(x_n) by importance sampling, for each datum n.

    log p(x_n) ~ log 1/K sum_k p(x_n, z_kn) / q_n(z_kn),   z_kn ~ q_n,

    whose expectation bounds log p(x_n) from below and rises with K (Burda, Grosse, Salakhutdinov 2016,
    https://arxiv.org/abs/1509.00519, with the guide for q). The default q is `default_proposal`: for continuous latents
    a mixture of a Student-t and a normal at the mode of p(z|x_n), the guide, and the prior, with a grid over the scale
    if the posterior is a funnel; for discrete latents a mixture of guide and prior. Modules are in evaluation mode
    meanwhile, and no gradient is kept.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...). Every tensor with leading
            length N is per datum.
        num_particles: Number of draws K per datum; the maximum if `target_std_error` is given.
        proposal: `Proposal` to draw from, such as `GuideProposal()` for the published protocol, or a Pyro program with
            the guide's arguments and sites; None for the default.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None for 8,192, or
            for 6,500,000 / D if there are more than 793 columns D.
        target_std_error: Standard error in nats that every datum should reach; None for `num_particles` draws each.
            Pilot draws choose K for each block of data. The estimate does not use them, since it would be biased for
            heavy-tailed weights if the draws that it averages also decided when to stop. One warning counts the data
            that do not reach it.
        pareto_smoothed: Whether to smooth the largest weights (`pareto_smoothed_log_weights`), also for std_error, ess
            and khat. The variance falls, but the value has some bias and is no lower bound, and std_error is too small
            if a tail was missed.
        execution: How to run the programs: "eager", "recorded", "compiled", or "auto", which chooses by the number of
            calls. "recorded" runs them once for each shape of a chunk and replays their tensor operations; "compiled"
            compiles these operations with Inductor first. Results are equal up to rounding. A program that cannot be
            recorded runs eagerly, with a `NotRecordedWarning`.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs.

    Returns:
        LogMarginal of value, std_error, ess and khat, each with shape (N,), in nats, float64. Data with a weight that
        is NaN or unbounded get NaN in all four, with a warning that says why.

    Raises:
        ValueError: If num_particles or chunk_size is below 1, target_std_error is not positive or num_particles is then
            below 2, data lie outside the support, all data have weights that are NaN or unbounded, or a program breaks
            the contract of `log_weights`.
    """
    weights = log_weight_blocks(
        model,
        guide,
        *args,
        num_particles=num_particles,
        proposal=proposal,
        chunk_size=chunk_size,
        target_std_error=target_std_error,
        execution=execution,
        plate=plate,
        nan_for_faults=True,
        **kwargs,
    )
    summaries, faults = _summarised(weights, lambda block: block.summary(pareto_smoothed))
    marginal = LogMarginal(*concatenate(summaries))
    tell_faults(faults, marginal.value)
    if target_std_error is not None:
        _warn_of_missed(marginal.std_error, target_std_error, num_particles)
    return marginal


def _summarised(blocks: Iterator[WeightBlock], summarize: Callable[[WeightBlock], Any]) -> tuple[list[Any], list[str]]:
    """Summarise each block before the next one is drawn; return the summaries, and why data have no weights."""
    found = [(summarize(block), block.fault) for block in blocks]
    return [summary for summary, _ in found], [fault for _, fault in found]


def _warn_of_missed(std_error: Tensor, target_std_error: float, num_particles: int) -> None:
    """Warn once of the data whose standard error is above the target."""
    missed = int((std_error > target_std_error).sum())
    if missed:
        worst = std_error[~std_error.isnan()].max().item()
        warnings.warn(
            f"{missed:,} of {len(std_error):,} data do not reach target_std_error={target_std_error:g} nats with at "
            f"most {num_particles:,} draws: the largest std_error is {worst:.3g}; increase num_particles, or leave "
            "out the data with std_error above the target",
            stacklevel=4,
        )


@entry(*_OPTIONS)
def ladder(model: Program, guide: Program, *args: Any, num_particles: int, **kwargs: Any) -> list[Rung]:
    """Estimate log p(x_n) at K = 1, 10, 100, ... and num_particles, from the first draws of one set.

    The components of a mixture draw in turn. The rung at K = 1 is one draw of one component, chosen at random for each
    block of data; with a share of 20 % the default's is a draw from the prior, tens of nats below log p(x). From K = 10
    on every rung has draws of each component, in about their shares. All rungs are lower bounds in expectation, but the
    first ones say more about the proposal than about log p(x): judge by the last ones.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        num_particles: Largest number of draws K per datum.
        **kwargs: proposal, chunk_size, execution and plate, as in `log_marginal`, and keyword arguments of both
            programs.

    Returns:
        A `Rung` for each K: the lower bound, the bias-corrected estimate, and the standard error.

    Raises:
        ValueError: As `log_marginal`.
    """
    for name in ("target_std_error", "pareto_smoothed"):
        if name in kwargs:
            raise ValueError(f"ladder needs the same number of draws for all data, got {name}; use log_marginal")
    weights = log_weight_blocks(model, guide, *args, num_particles=num_particles, nan_for_faults=True, **kwargs)
    summaries, faults = _summarised(weights, WeightBlock.rungs)
    ladder = [
        Rung(rungs[0].num_particles, *concatenate(rung[1:] for rung in rungs)) for rungs in zip(*summaries, strict=True)
    ]
    tell_faults(faults, ladder[-1].lower_bound)
    return ladder


@entry(*_OPTIONS)
def evidence_lower_bound(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int,
    chunk_size: int | None = None,
    skip_support_check: bool = False,
    **kwargs: Any,
) -> LowerBound:
    """Estimate the ELBO, E_q[log p(x_n, z) - log q(z | x_n)], for each datum n.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        num_particles: Number of draws K per datum.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None for 8,192, or
            for 6,500,000 / D if there are more than 793 columns D.
        skip_support_check: Whether to trust that the data lie in the support.
        **kwargs: execution and plate, as in `log_marginal`, and keyword arguments of both programs.

    Returns:
        LowerBound of value and std_error, each with shape (N,), in nats, float64.

    Raises:
        ValueError: As `log_marginal`.
    """
    weights = log_weight_blocks(
        model,
        guide,
        *args,
        num_particles=num_particles,
        proposal=GuideProposal(),
        chunk_size=chunk_size,
        skip_support_check=skip_support_check,
        nan_for_faults=True,
        **kwargs,
    )
    summaries, faults = _summarised(weights, lambda block: block.summarize(summarize_lower_bound))
    bound = LowerBound(*concatenate(summaries))
    tell_faults(faults, bound.value)
    return bound


def log_weight_blocks(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int,
    proposal: Proposal | Program | None = None,
    chunk_size: int | None = None,
    target_std_error: float | None = None,
    skip_support_check: bool = False,
    execution: Execution | Chunks = "auto",
    first: int = 0,
    plate: str | None = None,
    nan_for_faults: bool = False,
    **kwargs: Any,
) -> Iterator[WeightBlock]:
    """Iterate over the data in blocks, adapt the proposal to each, and yield its log weights.

    Memory is bounded for any N: at most chunk_size latents are decoded at once, and only the K times n weights of one
    block are held.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        num_particles: Number of draws K per datum; the maximum if `target_std_error` is given.
        proposal: `Proposal` or Pyro program to draw from, as in `log_marginal`; None for the default.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None for 8,192, or
            for 6,500,000 / D if there are more than 793 columns D.
        target_std_error: Standard error in nats that every datum should reach; None for `num_particles` draws each.
        skip_support_check: Whether to trust that the data lie in the support.
        execution: How to run the programs: "eager", "recorded", "compiled", or "auto", which chooses by the number of
            calls; or the `Chunks` of earlier calls with the same programs and proposal.
        first: Index of the first datum in the full data set, for error messages.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        nan_for_faults: Whether data with a weight that is NaN or unbounded get NaN for all weights and a `fault`.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: As `log_marginal`, or without nan_for_faults, if any weight is NaN or unbounded.
    """
    pair = vectorize_pair(model, guide, args, kwargs, plate=plate)
    size = pair[0].num_data(args, kwargs)
    chunk_size = chunk_size_or_default(chunk_size, args, kwargs)
    chunks = chunks_of(size, size, num_particles, chunk_size, execution) if isinstance(execution, str) else execution
    if target_std_error is not None and not 0 < target_std_error < math.inf:
        raise ValueError(f"target_std_error must be above 0 nats, got {target_std_error}; give 0.01, for example")
    if target_std_error is not None and num_particles < 2:
        raise ValueError(
            f"target_std_error needs num_particles of at least 2, got {num_particles}; one draw has no standard error"
        )
    if target_std_error is None:
        check_memory(num_particles)
    at_once, particles_at_once = _chunk_shape(size, num_particles, chunk_size)
    for block in data_blocks(*pair, args, kwargs, at_once, first=first, skip_support_check=skip_support_check):
        with evaluation_mode(*pair):
            sampler = _WeightSampler(block, proposal, chunk_size, particles_at_once, chunks)
        count = num_particles
        if target_std_error is not None:
            count = _draws_for_std_error(sampler.draw, target_std_error, num_particles)
            check_memory(count)
        log_w, component = sampler.draw(count)
        fault = block.describe(log_w) if nan_for_faults else ""
        if fault:
            log_w = torch.where(bad_data(log_w), torch.nan, log_w)
        else:
            block.check(log_w)
        sampler.warn_of_undefined()
        with evaluation_mode(*pair):
            rounding = block.space.rounding
        found = log_w, component, sampler.names, sampler.proposal
        yield WeightBlock(block.rows, *found, fault, sampler.unsettled, rounding, sampler.from_prior)


def _draws_for_std_error(draw: Callable[[int], tuple[Tensor, Tensor]], target_std_error: float, most: int) -> int:
    """Find the number of draws for a standard error, by pilot draws that are discarded.

    Few draws are no reliable sample of heavy tails: the pilot grows until its own error is twice the target, or its
    size a quarter of the maximum. From there the error falls as K^-1/2.
    """
    log_w, component = draw(min(_FIRST_PILOT, most))
    while True:
        known = log_w[:, ~bad_data(log_w)]
        worst, done = sampling_std_error(known, component).max().item() if known.numel() else 0.0, len(log_w)
        if worst <= 2 * target_std_error or done >= most // 4:
            factor = min(worst / target_std_error, math.sqrt(most))  # whose square is no more than a float holds
            return max(2, min(most, math.ceil(_MARGIN * done * factor**2)))
        more = draw(min(3 * done, most // 4 - done))
        log_w, component = torch.cat([log_w, more[0]]), torch.cat([component, more[1]])


def chunks_of(num_data: int, block: int, num_particles: int, chunk_size: int, execution: Execution) -> Chunks:
    """Choose how calls of `log_weight_blocks` run the programs.

    Args:
        num_data: Number of data N of all calls.
        block: Number of data of one call.
        num_particles: Number of draws K per datum.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.
        execution: How to run the programs: "eager", "recorded", "compiled", or "auto", which chooses by the number of
            calls.

    Raises:
        ValueError: If num_particles or chunk_size is below 1.
    """
    check_counts(num_particles=num_particles, chunk_size=chunk_size)
    at_once, particles_at_once = _chunk_shape(min(block, num_data), num_particles, chunk_size)
    count = math.ceil(num_data / at_once) * math.ceil(num_particles / particles_at_once)
    how = choose_execution(execution, count, recorded_from=_RECORDED_FROM, compiled_from=_COMPILED_FROM)
    return Chunks(how, (particles_at_once, at_once))


def _chunk_shape(size: int, num_particles: int, chunk_size: int) -> tuple[int, int]:
    """Compute the numbers of data and of draws per chunk; many draws of few data run the encoder seldom.

    A chunk of another size runs without the record. So the number of draws divides K if that takes at most twice as
    many chunks; otherwise the last chunk is little smaller than the others.
    """
    # 64 data still fill the matrix products.
    at_once = max(1, min(size, chunk_size, max(64, chunk_size // num_particles), _HELD_WEIGHTS // num_particles))
    fewest = math.ceil(num_particles / max(1, chunk_size // at_once))
    tried = range(fewest, min(2 * fewest, fewest + _TRIED) + 1)  # K may be beyond all use, which is refused later
    counts = (count for count in tried if num_particles % count == 0)
    return at_once, math.ceil(num_particles / next(counts, fewest))


class _WeightSampler:
    """Source of one block's log weights: draws of a program, or of an adapted proposal.

    Args:
        block: Block of data.
        proposal: `Proposal` or Pyro program to draw from; None for the default.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.
        at_once: Number of draws per datum and chunk.
        chunks: Replays the programs, chunk by chunk.

    Attributes:
        names: Names of the proposal's components.
        proposal: Name of the proposal.
        unsettled: Whether the proposal knows that it misses a part of the posterior, with shape (n,); None without a
            check.
        from_prior: Whether the datum has no observed entry and is drawn from the prior, with shape (n,); None if no
            datum is.
    """

    def __init__(
        self, block: DataBlock, proposal: Proposal | Program | None, chunk_size: int, at_once: int, chunks: Chunks
    ) -> None:
        if isinstance(proposal, str | type):
            raise ValueError(
                f"proposal must be an object, got {proposal!r}; give an object such as GuideProposal(), or a program"
            )
        chunks.start_block()
        self.block, self.at_once, self.chunks = block, at_once, chunks
        self.program = None if proposal is None or isinstance(proposal, Proposal) else proposal
        self.names: tuple[str, ...] = ("program",)
        self.proposal = "program"
        self.unsettled: Tensor | None = None
        self.from_prior: Tensor | None = None
        drawn_by_guide = isinstance(proposal, GuideProposal) or self.program is not None
        if not drawn_by_guide and not block.space.names:  # all latents are summed out, so there is nothing to draw
            proposal = GuideProposal()
            self.from_prior = block.space.unobserved
        if isinstance(proposal, GuideProposal):
            self.program, self.names, self.proposal = block.guide, (proposal.name,), proposal.name
            warn_of_missed_mass(block.guide)
        if self.program is not None:
            self.pair = vectorize_pair(block.model, self.program, block.args, block.kwargs)
        else:
            chosen = default_proposal(block.space, chunk_size) if proposal is None else proposal
            assert isinstance(chosen, Proposal)
            self.component = chosen.adapt(block.space, chunk_size=chunk_size)
            block.space.chunks = chunks  # from here on all chunks have one shape
            self.names, self.proposal = self.component.names, chosen.name
            self.unsettled, self.from_prior = self.component.unsettled, self.component.from_prior

    def draw(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Draw log weights, with shape (K, N), and the index of the component of each draw, (K,), chunk by chunk."""
        held: tuple[Tensor, Tensor] | None = None
        done = 0
        for count in split_count(num_particles, self.at_once):
            with evaluation_mode(self.block.model, self.block.guide):
                drawn = self._draw_chunk(count)
            if held is None:  # one allocation: small results that stay between large temporaries fragment the heap
                held = drawn[0].new_empty(num_particles, drawn[0].shape[1]), drawn[1].new_empty(num_particles)
            for whole, part in zip(held, drawn, strict=True):
                whole[done : done + count] = part
            done += count
        assert held is not None
        return held

    def _draw_chunk(self, num_particles: int) -> tuple[Tensor, Tensor]:
        if self.program is None:
            return self.component.log_weights(num_particles)
        args, kwargs = self.block.args, self.block.kwargs
        function, size = partial(_log_weights, *self.pair, num_particles), self.pair[0].num_data(args, kwargs)
        log_w = self.chunks("log w", function, (num_particles, size), {}, args, kwargs)[0]
        assert log_w is not None
        return log_w, torch.zeros(len(log_w), dtype=torch.long)

    def warn_of_undefined(self) -> None:
        """Warn if the density is NaN at draws from the prior or the guide: by overflow, or by a mistake."""
        lost = None if self.program is not None else self.component.lost
        if lost is not None:
            lost = lost & self.component.defined
        if lost is not None and bool(lost.any()):
            datum = int(lost.nonzero()[0])
            warnings.warn(
                f"log p(x, z) or log q(z|x) is NaN at draws of the guide for {int(lost.sum()):,} of {len(lost):,} "
                f"data, the first of them datum {self.block.first + datum}, so that the guide loses its share of the "
                f"proposal there{advice_on_units(self.block.args, self.block.kwargs)}",
                stacklevel=2,
            )
        counts = None if self.program is not None else self.component.undefined
        if counts is None:
            return
        counts = counts * self.component.defined  # data without any value have a fault, which says more
        if not bool(counts.any()):
            return
        datum = int(counts.argmax())
        sites = nonfinite_sites(self.block.model, None, self.block.args, self.block.kwargs, datum)
        warnings.warn(
            f"log p(x, z) is NaN at {int(counts[datum]):,} draws of datum {self.block.first + datum} from the prior "
            f"({int((counts > 0).sum()):,} of {len(counts):,} data have such draws), which get density 0; "
            f"{' and '.join(sites) or 'some site, which fresh draws do not reveal,'} is not finite there; unless this "
            "is overflow far from the data, log p(x) is too low",
            stacklevel=2,
        )


def _log_weights(
    model: Program,
    program: Program,
    num_particles: int,
    latents: dict[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[Tensor]:
    return [log_weights(model, program, *args, num_particles=num_particles, **kwargs)]
