"""The closing table: ELBO and log p(x) of held-out data with their errors, and the baseline beside."""

import csv
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.densities import Program, evaluating, isolated_rng, sample_sites, take
from pyrovae.evidence.importance import WeightBlock, chunks_of, log_weight_blocks
from pyrovae.evidence.proposals import GuideProposal, Proposal
from pyrovae.execution import Execution, Workers
from pyrovae.stats import (
    LogMarginal,
    Rung,
    bits_per_dim,
    component_shares,
    mean_and_std_error,
    monte_carlo_std_error,
    summarize_log_weights,
    summarize_lower_bound,
    summarize_rungs,
)

KHAT_LIMIT = 0.7  # above it, the Monte Carlo error is not to be relied on (Vehtari et al. 2024, arXiv:1507.02646)

KHAT_DRAWS = 21  # fewer leave no tail to fit

BLOCK = 256  # data between two commits, at most; each block has a seed of its own
BLOCK_DRAWS = 2**22  # draws between two commits, about


@dataclass(frozen=True)
class Estimate:
    """Log p(x) of N data by draws from one proposal.

    Attributes:
        log_marginal: Estimates, errors, effective sample sizes and k-hats, each with shape (N,), in nats.
        draws: How many draws each datum took, with shape (N,).
        served: Which of the proposal's components drew the largest share of the weight, with shape (N,).
        ladder: The estimate at K = 1, 10, 100, ... from the first of the draws, and at the number that all data took.
        components: The components' names.
        proposal: What the draws came from.
    """

    log_marginal: LogMarginal
    draws: Tensor
    served: Tensor
    ladder: tuple[Rung, ...]
    components: tuple[str, ...]
    proposal: str

    @classmethod
    def of(cls, block: WeightBlock) -> "Estimate":
        """Summarise the log weights of one block of data."""
        shares = component_shares(block.log_w, block.component, len(block.names))
        draws = torch.full((block.log_w.shape[1],), len(block.log_w))
        summary = LogMarginal(*(value.cpu() for value in summarize_log_weights(block.log_w, block.component)))
        rungs = tuple(
            Rung(rung.num_particles, *(value.cpu() for value in rung[1:]))
            for rung in summarize_rungs(block.log_w, block.component)
        )
        return cls(summary, draws, shares.argmax(0).cpu(), rungs, block.names, block.proposal)

    @classmethod
    def joined(cls, parts: "Sequence[Estimate]") -> "Estimate":
        """Put the estimates of several blocks one after the other; rungs that not all of them have fall away.

        Blocks may have had other proposals: a mask over latents, say, has the default fall back.
        """
        names = tuple(dict.fromkeys(name for part in parts for name in part.components))
        served = [torch.tensor([names.index(name) for name in part.components])[part.served] for part in parts]
        common = [rung.num_particles for rung in min((part.ladder for part in parts), key=len)]
        found = [{rung.num_particles: rung[1:] for rung in part.ladder} for part in parts]
        return cls(
            LogMarginal(*_joined([part.log_marginal for part in parts])),
            torch.cat([part.draws for part in parts]),
            torch.cat(served),
            tuple(Rung(k, *_joined([rungs[k] for rungs in found])) for k in common if all(k in r for r in found)),
            names,
            "; ".join(dict.fromkeys(part.proposal for part in parts)),
        )

    def summary(self) -> dict[str, Any]:
        """The means over data, each error apart."""
        value, std_error, ess, khat = self.log_marginal
        mean, over_data = mean_and_std_error(value)
        known = std_error.isfinite().all()
        return {
            "mean": mean,
            "std_error": over_data,
            "mc_std_error": monte_carlo_std_error(std_error),
            "bias_corrected_mean": (value + std_error.square() / 2).mean().item() if known else None,
            "num_particles": self.draws.double().mean().item() if len(self.draws.unique()) > 1 else int(self.draws[0]),
            "proposal": self.proposal,
            "khat": {"max": khat.max().item(), "share_above_0.7": (khat > KHAT_LIMIT).double().mean().item()},
            "ess": {"min": ess.min().item(), "median": ess.quantile(0.5).item()},
            "served": {
                name: (self.served == index).double().mean().item() for index, name in enumerate(self.components)
            },
            "ladder": [
                {
                    "num_particles": rung.num_particles,
                    "lower_bound": rung.lower_bound.mean().item(),
                    "bias_corrected": rung.bias_corrected.mean().item() if rung.std_error.isfinite().all() else None,
                    "mc_std_error": monte_carlo_std_error(rung.std_error),
                }
                for rung in self.ladder
            ],
        }


@dataclass(frozen=True)
class Evaluation:
    """Held-out ELBO and log p(x), per datum, in nats.

    Attributes:
        elbo: ELBO with shape (N,), from draws of the guide.
        marginal: Log p(x) by the proposal asked for.
        guide: Log p(x) by the guide alone, the published protocol; the same as marginal where that was asked for.
        num_dims: D, the size of one datum.
        base_measure: "counting" (probabilities) or "lebesgue" (densities).
        seed: Seed of the draws.
        seconds: Time taken.
    """

    elbo: Tensor
    marginal: Estimate
    guide: Estimate
    num_dims: int
    base_measure: str
    seed: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The means over data, each error apart, as evaluation.json has them."""
        mean, error = mean_and_std_error(self.elbo)
        marginal = self.marginal.summary()
        bits = bits_per_dim(marginal["mean"], self.num_dims) if self.base_measure == "counting" else None
        return {
            "num_data": len(self.elbo),
            "elbo": {"mean": mean, "std_error": error, "num_particles": int(self.guide.draws[0])},
            "log_marginal": marginal,
            "log_marginal_guide": self.guide.summary(),
            "bits_per_dim": bits,
            "base_measure": self.base_measure,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
        }

    def per_datum_csv(self, rows: Tensor) -> bytes:
        """One line per datum: its row in the source, and the values in nats."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        fields = ["log_marginal", *LogMarginal._fields[1:]]
        guide = ["log_marginal_guide", *(f"{field}_guide" for field in LogMarginal._fields[1:])]
        writer.writerow(["row", "elbo", *fields, "num_particles", "served", *guide])
        columns = [
            rows.tolist(),
            self.elbo.tolist(),
            *(column.tolist() for column in self.marginal.log_marginal),
            self.marginal.draws.tolist(),
            [self.marginal.components[index] for index in self.marginal.served.tolist()],
            *(column.tolist() for column in self.guide.log_marginal),
        ]
        writer.writerows(zip(*columns, strict=True))
        return text.getvalue().encode()


def evaluate(
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    num_particles: int,
    guide_particles: int | None = None,
    proposal: Proposal | Program | None = None,
    target_std_error: float | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
    execution: Execution = "auto",
    on_progress: Callable[[int], Any] | None = None,
    commit: Callable[[dict[str, Any]], None] | None = None,
    resume: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Evaluation:
    """Estimate ELBO and log p(x) of held-out data: the ELBO from the guide, log p(x) from the proposal and the guide.

    Data are taken in blocks, each with a seed of its own, so that an evaluation that was stopped goes on to the same
    numbers, and where torch.distributed is initialised the processes, called alike, share the blocks.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x).
        x: Data with shape (N, D).
        num_particles: K, the draws per datum for log p(x); with target_std_error, at most.
        guide_particles: Draws of the guide per datum, for the ELBO and the published protocol; None for K.
        proposal: Where the draws come from, as `log_marginal` has it; None for the default.
        target_std_error: Standard error that every datum's log p(x) is to reach, in nats, as `log_marginal` has it.
        seed: Seed of the draws; the global random state is left as it was.
        chunk_size: Latents decoded at once.
        execution: How chunks are evaluated, as `log_marginal` has it.
        on_progress: Called with the number of data done, after each block.
        commit: Called, on rank 0, after each block but the last with the state so far: nested dicts and lists of
            tensors and plain values.
        resume: A state that `commit` was given.
        **kwargs: The programs' keyword arguments, covariates say.

    Raises:
        ValueError: As `log_marginal`, and if the state to resume is of another evaluation.
    """
    started = time.perf_counter()
    draws = guide_particles or num_particles
    size = max(1, min(BLOCK, BLOCK_DRAWS // max(1, num_particles, draws)))
    about = {
        "num_data": len(x),
        "num_particles": num_particles,
        "guide_particles": draws,
        "proposal": "default" if proposal is None else getattr(proposal, "name", "program"),
        "target_std_error": target_std_error,
        "seed": seed,
    }
    if resume is not None and resume["about"] != about:
        raise ValueError(f"the state to resume is of another evaluation: {resume['about']}, and this one is {about}")
    blocks: list[dict[str, Any]] = [] if resume is None else list(resume["blocks"])
    if on_progress is not None:
        on_progress(min(len(x), size * len(blocks)))
    with isolated_rng(seed):
        first, conditions = take((x,), kwargs, slice(0, 1))
        measure = base_measure(model, *first, **conditions)
    workers = Workers.current()
    weighed = [(num_particles, proposal, target_std_error)]
    if not isinstance(proposal, GuideProposal) or target_std_error is not None or draws != num_particles:
        weighed.append((draws, GuideProposal(), None))
    weigh = [
        partial(
            log_weight_blocks,
            model,
            guide,
            num_particles=count,
            proposal=source,
            target_std_error=error,
            chunk_size=chunk_size,
            skip_support_check=index > 0,
            execution=chunks_of(len(x), size, count, chunk_size, execution),  # whatever the number of processes
        )
        for index, (count, source, error) in enumerate(weighed)
    ]
    while len(blocks) * size < len(x):
        # A round: the next blocks, one for each process.
        start = size * (len(blocks) + workers.rank)
        part, conditions = take((x,), kwargs, slice(start, min(start + size, len(x))))
        with isolated_rng(int(np.random.SeedSequence([seed, start]).generate_state(1)[0])):
            mine = _block([list(each(*part, first=start, **conditions)) for each in weigh]) if start < len(x) else None
        done = [block for block in workers.gathered(mine) if block is not None]
        blocks.extend(done)
        if commit is not None and len(blocks) * size < len(x) and workers.rank == 0:
            commit({"about": about, "blocks": blocks})
        if on_progress is not None:
            on_progress(sum(len(block["elbo"]) for block in done))
    return Evaluation(
        elbo=torch.cat([block["elbo"] for block in blocks]),
        marginal=Estimate.joined([_restored(block["marginal"]) for block in blocks]),
        guide=Estimate.joined([_restored(block["guide"]) for block in blocks]),
        num_dims=math.prod(x.shape[1:]),
        base_measure=measure,
        seed=seed,
        seconds=time.perf_counter() - started,
    )


def _block(weighed: Sequence[Sequence[WeightBlock]]) -> dict[str, Any]:
    """The ELBO and both estimates of log p(x), in plain values; the last weights are the guide's."""
    marginal, by_guide = weighed[0], weighed[-1]
    return {
        "elbo": torch.cat([summarize_lower_bound(block.log_w).value.cpu() for block in by_guide]),
        "marginal": asdict(Estimate.joined([Estimate.of(block) for block in marginal])),
        "guide": asdict(Estimate.joined([Estimate.of(block) for block in by_guide])),
    }


def _joined(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _restored(plain: Mapping[str, Any]) -> Estimate:
    """An estimate from a state, where named tuples have become plain ones."""
    ladder = tuple(Rung(*rung) for rung in plain["ladder"])
    return Estimate(**{**plain, "log_marginal": LogMarginal(*plain["log_marginal"]), "ladder": ladder})


def base_measure(model: Program, *args: Any, **kwargs: Any) -> str:
    """Say whether the model gives its data probabilities ("counting") or densities ("lebesgue")."""
    with evaluating(model), isolated_rng():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    observed = [site["fn"] for site in sample_sites(trace).values() if site["is_observed"]]
    return "counting" if all(fn.support.is_discrete for fn in observed) else "lebesgue"


def table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out summaries, by name, as the closing table; log p(x) and ELBO in nats per datum.

    Where log p(x) was estimated by the guide alone too, that has a line of its own.
    """
    lines = [["", "ELBO", "log p(x)", "s.e. data", "s.e. MC", "k-hat > 0.7", "bits/dim"]]
    for name, summary in summaries.items():
        marginal, published = summary["log_marginal"], summary.get("log_marginal_guide")
        lines.append(
            [name, _number(summary["elbo"]["mean"], 2), *_marginal(marginal), _number(summary["bits_per_dim"], 4)]
        )
        if published and published["proposal"] != marginal["proposal"]:
            lines.append([f"  L_{published['num_particles']:,}, guide alone", "-", *_marginal(published), "-"])
    return aligned(lines)


def ladder_lines(summary: Mapping[str, Any]) -> str:
    """The ladder: what log p(x) comes to with fewer of the same draws, in nats per datum."""
    lines = [["K", "lower bound", "bias corrected", "s.e. MC"]]
    for rung in summary["log_marginal"]["ladder"]:
        numbers = (_number(rung["lower_bound"], 3), _number(rung["bias_corrected"], 3))
        lines.append([f"{rung['num_particles']:,}", *numbers, _number(rung["mc_std_error"], 3)])
    return aligned(lines)


def _marginal(marginal: Mapping[str, Any]) -> list[str]:
    khat = marginal["khat"]
    known = khat is not None and marginal["num_particles"] >= KHAT_DRAWS
    return [
        _number(marginal["mean"], 2),
        _number(marginal["std_error"], 2),
        _number(marginal["mc_std_error"], 3),
        f"{100 * khat['share_above_0.7']:.1f} %" if known else "-",
    ]


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lay out a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def caution(summary: Mapping[str, Any]) -> str:
    """A word on the Monte Carlo errors: what k-hat says of the weights of log p(x)'s own proposal."""
    marginal = summary["log_marginal"]
    share, draws = marginal["khat"]["share_above_0.7"], marginal["num_particles"]
    if draws < KHAT_DRAWS:
        return f"k-hat, which judges the Monte Carlo error, needs at least {KHAT_DRAWS} draws; these were {draws:g}."
    if not share:
        return "k-hat is below 0.7 for all data; that alone proves nothing, for a tail may be missed."
    return (
        f"k-hat is above {KHAT_LIMIT} for {100 * share:.1f} % of the data: few draws carry most of their "
        "weight,\nso their s.e. MC is not to be relied on and their log p(x) may be too low."
    )


def exact_summary(log_p: Tensor, *, num_dims: int, base_measure: str) -> dict[str, Any]:
    """The table's line for a model whose log p(x), with shape (N,), is exact: a baseline without latents."""
    mean, std_error = mean_and_std_error(log_p)
    return {
        "elbo": {"mean": None, "std_error": None},
        "log_marginal": {"mean": mean, "std_error": std_error, "mc_std_error": None, "khat": None},
        "bits_per_dim": bits_per_dim(mean, num_dims) if base_measure == "counting" else None,
    }


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
