"""Importance sampling: log p(x) per datum, with its Monte Carlo error, for any model and guide."""

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae.densities import (
    Program,
    check_support,
    check_weights,
    evaluating,
    log_weights,
    nonfinite_sites,
    num_data,
    take,
)
from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.evidence.proposals import GuideProposal, Proposal, default_proposal
from pyrovae.execution import Chunks, Execution, choose_execution
from pyrovae.stats import (
    LogMarginal,
    LowerBound,
    Rung,
    log_mean_std_error,
    pareto_smoothed_log_weights,
    summarize_log_weights,
    summarize_lower_bound,
    summarize_rungs,
)

DEFAULT_CHUNK_SIZE = 8192

# Log weights of one block of data are held together for the tail fit: 32 MiB of them at most, in float64.
_HELD_WEIGHTS = 2**22

# Chunks from which recording them, and compiling, pays.
_RECORDED_FROM = 100
_COMPILED_FROM = 400

# The first round of pilot draws where a standard error is asked for, and what is drawn beyond their word.
_FIRST_ROUND = 200
_MARGIN = 1.2


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
    target_std_error: float | None = None,
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
        num_particles: Number of draws K per datum; the maximum if `target_std_error` is given.
        proposal: A `Proposal`: `GuideProposal()` for the published protocol; or a program with the guide's arguments
            and sites to draw from in the guide's place. None for the default.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None for 8,192.
        target_std_error: Standard error in nats that every datum should reach; None for `num_particles` draws each.
            Pilot draws choose K for each block of data. The estimate does not use them: stopping by the draws that one
            averages biases the average if weights are heavy-tailed.
        pareto_smoothed: Smooth the largest weights (`pareto_smoothed_log_weights`), from which std_error, ess and khat
            are taken too: less variance, which std_error understates where a tail was missed, some bias, and no
            lower bound any more.
        execution: "eager" runs the programs for every chunk; "recorded" runs them once for each shape of a chunk and
            replays their tensor operations; "compiled" has Inductor compile these first. Equal up to rounding; "auto"
            follows from the number of chunks. What cannot be recorded runs eagerly, with a `NotRecordedWarning`.
        **kwargs: Keyword arguments of both.

    Returns:
        LogMarginal of value, std_error, ess and khat, each with shape (N,), in nats, float64.

    Raises:
        ValueError: If num_particles or chunk_size is below 1, target_std_error is not positive, data lie outside the
            support, a weight is NaN or unbounded, or a program breaks the contract of `log_weights`.
    """
    blocks = []
    for block in log_weight_blocks(
        model,
        guide,
        *args,
        num_particles=num_particles,
        proposal=proposal,
        chunk_size=chunk_size,
        target_std_error=target_std_error,
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
    for name in ("target_std_error", "pareto_smoothed"):
        if name in kwargs:
            raise ValueError(f"the ladder takes no {name}: its rungs are numbers of draws, the same for all data")
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
    skip_support_check: bool = False,
    **kwargs: Any,
) -> LowerBound:
    """Estimate the ELBO, E_q[log p(x_n, z) - log q(z | x_n)], for each datum n.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Arguments of both, the data first, with shape (N, ...).
        num_particles: K, the draws per datum.
        chunk_size: Latents (K times N) decoded at once; None for 8,192.
        skip_support_check: Whether to trust that the data lie in the support.
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
            skip_support_check=skip_support_check,
            **kwargs,
        )
    ]
    return LowerBound(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


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
    **kwargs: Any,
) -> Iterator[WeightBlock]:
    """Go through the data in blocks, adapt the proposal to each, and yield its rows and log weights.

    Memory is bounded whatever N is: at most chunk_size latents are decoded at once, and one block's weights held, which
    are K numbers at least. Args and errors are those of `log_marginal`, and skip_support_check that of
    `evidence_lower_bound`. `execution` may also be the `Chunks` of earlier calls with the same programs and proposal.
    `first` is the index of the first datum in the full data set, for error messages.
    """
    size = num_data(args, kwargs)
    chunks = chunks_of(size, size, num_particles, chunk_size, execution) if isinstance(execution, str) else execution
    chunk_size = chunk_size or DEFAULT_CHUNK_SIZE
    if target_std_error is not None and not 0 < target_std_error < math.inf:
        raise ValueError(f"target_std_error must be above 0 nats, got {target_std_error}; give 0.01, for example")
    at_once, particles_at_once = _chunk_shape(size, num_particles, chunk_size)
    for start in range(0, size, at_once):
        rows = slice(start, min(start + at_once, size))
        block_args, block_kwargs = take(args, kwargs, rows)
        if not skip_support_check:
            check_support(model, *block_args, guide=guide, first=first + rows.start, **block_kwargs)
        with evaluating(model, guide), pyro.validation_enabled(False):
            source = _WeightSampler(model, guide, proposal, chunk_size, chunks, block_args, block_kwargs)

        def draw(
            count: int, source: _WeightSampler = source, number: int = first + rows.start
        ) -> tuple[Tensor, Tensor]:
            log_w, component = source.draw(count, particles_at_once)
            check_weights(log_w, model, guide, *source.args, first=number, **source.kwargs)
            return log_w, component

        log_w, component = draw(
            num_particles if target_std_error is None else _draws_for_std_error(draw, target_std_error, num_particles)
        )
        source.warn_of_undefined(first + rows.start)
        yield WeightBlock(rows, log_w, component, source.names, source.proposal)


def _draws_for_std_error(draw: Callable[[int], tuple[Tensor, Tensor]], target_std_error: float, most: int) -> int:
    """How many draws the standard error takes, by pilot draws that are thrown away.

    What few draws say of heavy tails is not certain: the pilot grows until its own error is twice the one that is asked
    for, or it has a quarter of what may be drawn. From there the error falls as K^-1/2.
    """
    log_w, component = draw(min(_FIRST_ROUND, most))
    while True:
        worst, done = log_mean_std_error(log_w, component).max().item(), len(log_w)
        if worst <= 2 * target_std_error or done >= most // 4:
            return max(2, min(most, math.ceil(min(_MARGIN * done * (worst / target_std_error) ** 2, most))))
        more = draw(min(3 * done, most // 4 - done))
        log_w, component = torch.cat([log_w, more[0]]), torch.cat([component, more[1]])


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
        if not isinstance(given, int) or given < 1:
            raise ValueError(f"{name} must be a whole number, at least 1, got {given}")
    at_once, particles_at_once = _chunk_shape(min(block, num_data), num_particles, chunk_size)
    count = math.ceil(num_data / at_once) * math.ceil(num_particles / particles_at_once)
    how = choose_execution(execution, count, recorded_from=_RECORDED_FROM, compiled_from=_COMPILED_FROM)
    return Chunks(how, (particles_at_once, at_once))


def _chunk_shape(size: int, num_particles: int, chunk_size: int) -> tuple[int, int]:
    """Data and particles of a whole chunk: a block as tall as the chunk allows runs the encoder seldom."""
    # 64 data fill the matrix products all the same.
    at_once = max(1, min(size, chunk_size, max(64, chunk_size // num_particles), _HELD_WEIGHTS // num_particles))
    return at_once, min(num_particles, max(1, chunk_size // at_once))


class _WeightSampler:
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
        if isinstance(proposal, str | type):
            raise ValueError(f"proposal is {proposal!r}; give an object, such as GuideProposal(), or a program")
        chunks.start_block()
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
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs

    def draw(self, num_particles: int, at_once: int) -> tuple[Tensor, Tensor]:
        """Log weights, with shape (K, N), and which component drew, (K,), chunk by chunk."""
        held: tuple[Tensor, Tensor] | None = None
        for done in range(0, num_particles, at_once):
            with evaluating(self.model, self.guide), pyro.validation_enabled(False):
                found = self.log_weights(min(at_once, num_particles - done))
            if held is None:  # one piece: small ones that stay, among large ones that go, would break the heap up
                held = found[0].new_empty(num_particles, found[0].shape[1]), found[1].new_empty(num_particles)
            for whole, part in zip(held, found, strict=True):
                whole[done : done + at_once] = part
        assert held is not None
        return held

    def warn_of_undefined(self, first: int) -> None:
        """Say where the density is NaN at draws of the prior, which far ones may be, and a mistake too."""
        counts = None if self.program is not None else self.component.undefined
        if counts is None or not bool(counts.any()):
            return
        datum = int(counts.argmax())
        sites = nonfinite_sites(self.model, None, self.args, self.kwargs, datum)
        warnings.warn(
            f"log p(x, z) is NaN at {int(counts[datum]):,} draws of datum {first + datum} from the prior "
            f"({int((counts > 0).sum()):,} of {len(counts):,} data have some), which count as of density 0; "
            f"{' and '.join(sites) or 'draws of now do not show where, some site'} is not finite there; if not by "
            "overflow far from all data, log p(x) is too low",
            stacklevel=2,
        )

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
