"""Importance sampling: log p(x) per datum, with its Monte Carlo error, for any model and guide."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae.densities import Program, check_support, evaluating, log_weights, num_data, take
from pyrovae.latents import LatentSpace
from pyrovae.proposals import GuideProposal, Proposal, default_proposal
from pyrovae.recording import Chunks, Execution, choose_execution
from pyrovae.stats import (
    LogMarginal,
    Rung,
    log_mean_std_error,
    pareto_smoothed_log_weights,
    summarize_log_weights,
    summarize_rungs,
)

DEFAULT_CHUNK_SIZE = 8192

# Log weights of one block of data are held together for the tail fit: 32 MiB of them at most, in float64.
_HELD_WEIGHTS = 2**22

# Chunks from which recording them, and compiling, pays.
_RECORDED_FROM = 100
_COMPILED_FROM = 400

# The first round of draws where a standard error is asked for: enough to know it by.
_FIRST_ROUND = 200


class LowerBound(NamedTuple):
    """The ELBO per datum, in nats, each of shape (N,).

    Attributes:
        value: Mean of log w over the particles.
        std_error: Monte Carlo standard error of that mean; nan for one particle.
    """

    value: Tensor
    std_error: Tensor


class WeightBlock(NamedTuple):
    """Log weights of some of the data.

    Attributes:
        rows: Which data.
        log_w: Log weights in nats, with shape (K, n).
        component: Which component of the proposal drew, with shape (K,).
        names: The components' names.
        proposal: The proposal's name.
    """

    rows: slice
    log_w: Tensor
    component: Tensor
    names: tuple[str, ...]
    proposal: str


def log_marginal(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int,
    proposal: Proposal | Program | None = None,
    chunk_size: int | None = None,
    until: float | None = None,
    pareto_smoothed: bool = False,
    execution: Execution = "auto",
    **kwargs: Any,
) -> LogMarginal:
    r"""Estimate log p(x_n) by importance sampling, for each datum n.

    log p(x_n) ~ log 1/K sum_k p(x_n, z_kn) / q_n(z_kn),   z_kn ~ q_n,

    whose expectation bounds log p(x_n) from below and rises with K (Burda, Grosse, Salakhutdinov 2016,
    https://arxiv.org/abs/1509.00519, with the guide for q). By default q is `default_proposal`: where the latents are
    continuous a mixture of a Student-t and a normal at the mode of p(z|x_n), the guide, and the prior; where one is
    discrete, of guide and prior. Modules are put into evaluation mode meanwhile, and no gradient is kept.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Arguments of both, the data first, with shape (N, ...). Every tensor of leading length N is per datum.
        num_particles: K, the draws per datum; with until, at most.
        proposal: A `Proposal`: `GuideProposal()` for the published protocol; or a program with the guide's arguments
            and sites to draw from in the guide's place. None for the default.
        chunk_size: Latents (K times N) decoded at once, which bounds the memory; None for 8,192.
        until: Draw in rounds until the standard error of every datum is at most this, in nats, or K is reached.
        pareto_smoothed: Smooth the largest weights (`pareto_smoothed_log_weights`): less variance, some bias, and no
            lower bound any more.
        execution: "eager" runs the programs for every chunk; "recorded" runs them once for each shape of a chunk and
            replays their tensor operations; "compiled" has Inductor compile these first. Equal up to rounding; "auto"
            follows from the number of chunks. What cannot be recorded runs eagerly, with a `NotRecordedWarning`.
        **kwargs: Keyword arguments of both.

    Returns:
        LogMarginal of value, std_error, ess and khat, each with shape (N,), in nats, float64.

    Raises:
        ValueError: If num_particles or chunk_size is below 1, until is not positive, data lie outside the support, a
            weight is NaN or unbounded, or a program breaks the contract of `log_weights`.
    """
    blocks = []
    for block in log_weight_blocks(
        model,
        guide,
        *args,
        num_particles=num_particles,
        proposal=proposal,
        chunk_size=chunk_size,
        until=until,
        execution=execution,
        **kwargs,
    ):
        log_w = pareto_smoothed_log_weights(block.log_w) if pareto_smoothed else block.log_w
        blocks.append(summarize_log_weights(log_w, block.component))
    return LogMarginal(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def ladder(model: Program, guide: Program, *args: Any, num_particles: int, **kwargs: Any) -> list[Rung]:
    """Estimate log p(x_n) at K = 1, 10, 100, ... and num_particles, from the first draws of one set.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Arguments of both, the data first, with shape (N, ...).
        num_particles: The largest K.
        **kwargs: proposal, chunk_size and execution, as `log_marginal` takes them; the rest are the programs'.

    Returns:
        A `Rung` for each K: the lower bound, the same with its bias corrected, and the standard error.

    Raises:
        ValueError: As `log_marginal`.
    """
    blocks = [
        summarize_rungs(block.log_w, block.component)
        for block in log_weight_blocks(model, guide, *args, num_particles=num_particles, **kwargs)
    ]
    return [
        Rung(rungs[0].num_particles, *(torch.cat(parts) for parts in zip(*(r[1:] for r in rungs), strict=True)))
        for rungs in zip(*blocks, strict=True)
    ]


def evidence_lower_bound(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int,
    chunk_size: int | None = None,
    checked: bool = False,
    **kwargs: Any,
) -> LowerBound:
    """Estimate the ELBO, E_q[log p(x_n, z) - log q(z | x_n)], for each datum n.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Arguments of both, the data first, with shape (N, ...).
        num_particles: K, the draws per datum.
        chunk_size: Latents (K times N) decoded at once; None for 8,192.
        checked: The data are known to lie in the support, and are not checked again.
        **kwargs: execution, as `log_marginal` takes it; the rest are keyword arguments of both.

    Returns:
        LowerBound of value and std_error, each with shape (N,), in nats, float64.

    Raises:
        ValueError: As `log_marginal`.
    """
    blocks = [
        summarize_lower_bound(block.log_w)
        for block in log_weight_blocks(
            model,
            guide,
            *args,
            num_particles=num_particles,
            proposal=GuideProposal(),
            chunk_size=chunk_size,
            checked=checked,
            **kwargs,
        )
    ]
    return LowerBound(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def summarize_lower_bound(log_w: Tensor) -> LowerBound:
    """Reduce log weights, with shape (K, N), to their mean and its Monte Carlo standard error, over K.

    Raises:
        ValueError: If a weight is NaN or unbounded.
    """
    log_w = log_w.double()
    bad = (log_w.isnan() | (log_w == torch.inf)).any(0)
    if bool(bad.any()):
        datum = int(bad.nonzero()[0])
        raise ValueError(f"the log weights of datum {datum} are NaN or +inf; look for a scale that is 0 or not finite")
    draws = log_w.shape[0]
    spread = log_w.std(0) if draws > 1 else torch.full_like(log_w[0], torch.nan)
    return LowerBound(log_w.mean(0), spread / draws**0.5)


def log_weight_blocks(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int,
    proposal: Proposal | Program | None = None,
    chunk_size: int | None = None,
    until: float | None = None,
    checked: bool = False,
    execution: Execution | Chunks = "auto",
    **kwargs: Any,
) -> Iterator[WeightBlock]:
    """Go through the data in blocks, adapt the proposal to each, and yield its rows and log weights.

    Memory is bounded whatever N is: at most chunk_size latents are decoded at once, and one block's weights held, which
    are K numbers at least. Args and errors are those of `log_marginal`, with checked as of `evidence_lower_bound`; in
    the place of an execution stand the `Chunks` of earlier calls with the same programs and proposal.
    """
    size = num_data(args, kwargs)
    chunks = chunks_of(size, size, num_particles, chunk_size, execution) if isinstance(execution, str) else execution
    chunk_size = chunk_size or DEFAULT_CHUNK_SIZE
    if until is not None and not until > 0:
        raise ValueError(f"until is a standard error in nats, above 0, but it is {until}; give 0.01, say")
    at_once, particles_at_once = _shape(size, num_particles, chunk_size)
    for start in range(0, size, at_once):
        rows = slice(start, min(start + at_once, size))
        block_args, block_kwargs = take(args, kwargs, rows)
        if not checked:
            try:
                check_support(model, *block_args, guide=guide, **block_kwargs)
            except ValueError as error:
                raise ValueError(f"data {rows.start} to {rows.stop - 1}: {error}") from error
        with evaluating(model, guide), pyro.validation_enabled(False):
            source = _Source(model, guide, proposal, chunk_size, chunks, block_args, block_kwargs)
        held: tuple[Tensor, Tensor] | None = None
        done, target = 0, num_particles if until is None else min(_FIRST_ROUND, num_particles)
        while done < target:
            draws = min(particles_at_once, target - done)
            with evaluating(model, guide), pyro.validation_enabled(False):
                found = source.log_weights(draws)
            if held is None:  # one piece: small ones that stay, among large ones that go, would break the heap up
                held = found[0].new_empty(num_particles, len(found[0].T)), found[1].new_empty(num_particles)
            for whole, part in zip(held, found, strict=True):
                whole[done : done + draws] = part
            done += draws
            if done == target and until is not None:
                worst = log_mean_std_error(held[0][:done], held[1][:done]).max().item()
                # The error falls as K^-1/2; what the first draws say of it is not certain, hence in rounds.
                wanted = done * min(4.0, 1.1 * (worst / until) ** 2)
                target = done if worst <= until else min(num_particles, max(int(wanted), done + 1))
        assert held is not None
        log_w, component = held[0][:done], held[1][:done]
        yield WeightBlock(rows, log_w, component, source.names, source.proposal)


def chunks_of(num_data: int, block: int, num_particles: int, chunk_size: int | None, execution: Execution) -> Chunks:
    """How the chunks of calls of `log_weight_blocks` are evaluated.

    Args:
        num_data: The data of all calls.
        block: The data of one call.
        num_particles: K.
        chunk_size: Latents decoded at once; None for 8,192.
        execution: As `log_marginal` has it; "auto" follows from the number of chunks.

    Raises:
        ValueError: If num_particles or chunk_size is below 1.
    """
    chunk_size = DEFAULT_CHUNK_SIZE if chunk_size is None else chunk_size
    for name, given in (("num_particles", num_particles), ("chunk_size", chunk_size)):
        if given < 1:
            raise ValueError(f"{name} must be at least 1, got {given}")
    at_once, particles_at_once = _shape(min(block, num_data), num_particles, chunk_size)
    count = math.ceil(num_data / at_once) * math.ceil(num_particles / particles_at_once)
    how = choose_execution(execution, count, recorded_from=_RECORDED_FROM, compiled_from=_COMPILED_FROM)
    return Chunks(how, (particles_at_once, at_once))


def _shape(size: int, num_particles: int, chunk_size: int) -> tuple[int, int]:
    """Data and particles of a whole chunk: a block as tall as the chunk allows runs the encoder seldom."""
    # 64 data fill the matrix products all the same.
    at_once = max(1, min(size, chunk_size, max(64, chunk_size // num_particles), _HELD_WEIGHTS // num_particles))
    return at_once, min(num_particles, max(1, chunk_size // at_once))


class _Source:
    """Where one block's log weights come from: a program's own draws, or an adapted proposal's."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        proposal: Proposal | Program | None,
        chunk_size: int,
        chunks: Chunks,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.chunks = chunks
        self.program = None if proposal is None or isinstance(proposal, Proposal) else proposal
        self.names: tuple[str, ...] = ("program",)
        self.proposal = "program"
        if isinstance(proposal, GuideProposal):
            self.program, self.names, self.proposal = guide, (proposal.name,), proposal.name
        if self.program is None:
            space = LatentSpace(model, guide, *args, **kwargs)
            chosen = default_proposal(space) if proposal is None else proposal
            assert isinstance(chosen, Proposal)
            self.component = chosen.adapt(space, chunk_size=chunk_size)
            space.chunks = chunks  # from here on all chunks have one shape
            self.names, self.proposal = self.component.names, chosen.name
        self.model, self.args, self.kwargs = model, args, kwargs

    def log_weights(self, num_particles: int) -> tuple[Tensor, Tensor]:
        if self.program is None:
            return self.component.log_weights(num_particles)
        shape = num_particles, num_data(self.args, self.kwargs)
        function = partial(_log_weights, self.model, self.program, num_particles)
        log_w = self.chunks("log w", function, shape, {}, self.args, self.kwargs)[0]
        assert log_w is not None
        return log_w, torch.zeros(len(log_w), dtype=torch.long)


def _log_weights(
    model: Program,
    program: Program,
    num_particles: int,
    latents: dict[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[Tensor]:
    return [log_weights(model, program, *args, num_particles=num_particles, **kwargs)]
