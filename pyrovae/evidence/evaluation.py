"""ELBO and log p(x) of held-out data with their errors, for evaluation.json and the closing table."""

import csv
import io
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.densities import Program, domain_of, entry, evaluating, isolated_rng, plain, sample_sites, take
from pyrovae.evidence.blocks import case_weights_of, chunk_size_or_default, concatenate, fingerprint
from pyrovae.evidence.importance import chunks_of, log_weight_blocks
from pyrovae.evidence.proposals import GuideProposal, Proposal
from pyrovae.evidence.weight_blocks import WeightBlock
from pyrovae.execution import Execution, Workers
from pyrovae.stats import (
    LogMarginal,
    Rung,
    bits_per_dim,
    effective_sample_size_of_weights,
    mean_and_std_error,
    monte_carlo_std_error,
    summarize_lower_bound,
)

KHAT_LIMIT = 0.7  # above it, the Monte Carlo error is unreliable (Vehtari et al. 2024, arXiv:1507.02646)

BLOCK = 256  # maximum number of data between two commits; each block has a separate seed
BLOCK_DRAWS = 2**22  # approximate maximum number of draws between two commits


@dataclass(frozen=True)
class Estimate:
    """Log p(x) of N data by draws from one proposal.

    Attributes:
        log_marginal: Estimates, errors, effective sample sizes and k-hats, each with shape (N,), in nats.
        draws: Number of draws per datum, with shape (N,).
        served: Index of the proposal's component with the largest share of each datum's weight, with shape (N,).
        ladder: Estimates at K = 1, 10, 100, ... from the first draws, and at the number of draws of all data.
        components: Names of the components.
        proposal: Name of the proposal.
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
        draws = torch.full((block.log_w.shape[1],), len(block.log_w))
        summary = LogMarginal(*(value.cpu() for value in block.summary()))
        rungs = tuple(Rung(rung.num_particles, *(value.cpu() for value in rung[1:])) for rung in block.rungs())
        return cls(summary, draws, block.served.cpu(), rungs, block.names, block.proposal)

    @classmethod
    def joined(cls, parts: "Sequence[Estimate]") -> "Estimate":
        """Concatenate the estimates of several blocks, with the rungs that all blocks have.

        Blocks may differ in their proposal, since the default depends, for example, on masks over latents.
        """
        names = tuple(dict.fromkeys(name for part in parts for name in part.components))
        served = [torch.tensor([names.index(name) for name in part.components])[part.served] for part in parts]
        common = [rung.num_particles for rung in min((part.ladder for part in parts), key=len)]
        found = [{rung.num_particles: rung[1:] for rung in part.ladder} for part in parts]
        return cls(
            LogMarginal(*concatenate([part.log_marginal for part in parts])),
            torch.cat([part.draws for part in parts]),
            torch.cat(served),
            tuple(Rung(k, *concatenate([rungs[k] for rungs in found])) for k in common if all(k in r for r in found)),
            names,
            "; ".join(dict.fromkeys(part.proposal for part in parts)),
        )

    def summary(self, weights: Tensor | None = None) -> dict[str, Any]:
        """Compute means over data, with separate errors over data and of Monte Carlo.

        Args:
            weights: Case weights, with shape (N,), of means and shares; None for 1. Data of weight 0 do not count, also
                in extremes and medians, which have no weights.
        """
        if weights is None:
            return self._summary(None)
        return self._at(weights > 0)._summary(weights[weights > 0])

    def _at(self, keep: Tensor) -> "Estimate":
        """Return the estimate of some of the data."""
        return replace(
            self,
            log_marginal=LogMarginal(*(value[keep] for value in self.log_marginal)),
            draws=self.draws[keep],
            served=self.served[keep],
            ladder=tuple(Rung(rung.num_particles, *(value[keep] for value in rung[1:])) for rung in self.ladder),
        )

    def _summary(self, weights: Tensor | None) -> dict[str, Any]:
        value, std_error, ess, khat = self.log_marginal
        mean, over_data = mean_and_std_error(value, weights)
        known = std_error.isfinite().all()

        def mean_of(values: Tensor) -> float:
            return values.double().mean().item() if weights is None else mean_and_std_error(values, weights)[0]

        return {
            "mean": mean,
            "std_error": over_data,
            "mc_std_error": monte_carlo_std_error(std_error, weights),
            "bias_corrected_mean": mean_of(value + std_error.square() / 2) if known else None,
            "num_particles": self.draws.double().mean().item() if len(self.draws.unique()) > 1 else int(self.draws[0]),
            "proposal": self.proposal,
            "khat": {"max": khat.max().item(), "share_above_0.7": mean_of(khat > KHAT_LIMIT)},
            "ess": {"min": ess.min().item(), "median": ess.quantile(0.5).item()},
            "served": {name: mean_of(self.served == index) for index, name in enumerate(self.components)},
            "ladder": [
                {
                    "num_particles": rung.num_particles,
                    "lower_bound": mean_of(rung.lower_bound),
                    "bias_corrected": mean_of(rung.bias_corrected) if rung.std_error.isfinite().all() else None,
                    "mc_std_error": monte_carlo_std_error(rung.std_error, weights),
                }
                for rung in self.ladder
            ],
        }


@dataclass(frozen=True)
class Evaluation:
    """Held-out ELBO and log p(x), per datum, in nats.

    Attributes:
        elbo: ELBO, with shape (N,), from draws of the guide.
        marginal: Log p(x) by the chosen proposal.
        guide: Log p(x) by the guide alone, the published protocol; equal to marginal if the guide is the proposal.
        num_dims: Number of dimensions D of a datum.
        base_measure: "counting" (probabilities), "lebesgue" (densities), or densities with points of probability, such
            as "lebesgue with mass at 0" (see `base_measure`).
        seed: Random seed.
        seconds: Duration in seconds.
        target_std_error: Standard error in nats that every datum of marginal should reach; None if there is no target.
        weights: Case weights of the means over data, with shape (N,); None for 1.
    """

    elbo: Tensor
    marginal: Estimate
    guide: Estimate
    num_dims: int
    base_measure: str
    seed: int
    seconds: float
    target_std_error: float | None = None
    weights: Tensor | None = None

    @property
    def reached(self) -> Tensor:
        """Whether the standard error of log p(x) reaches the target, with shape (N,); True without a target."""
        std_error = self.marginal.log_marginal.std_error
        return std_error <= (math.inf if self.target_std_error is None else self.target_std_error)

    def summary(self) -> dict[str, Any]:
        """Compute means over data, with separate errors over data and of Monte Carlo, for evaluation.json.

        With case weights, the means are weighted, data of weight 0 do not count, and "effective_num_data" is the number
        of equally weighted data that are worth as much (`effective_sample_size_of_weights`).
        """
        weights = self.weights
        keep = torch.ones(len(self.elbo), dtype=torch.bool) if weights is None else weights > 0
        mean, error = mean_and_std_error(self.elbo, weights)
        marginal = self.marginal.summary(weights)
        if self.target_std_error is not None:
            marginal["target_std_error"] = {
                "target": self.target_std_error,
                "missed_by": int((~self.reached[keep]).sum()),
                "largest": self.marginal.log_marginal.std_error[keep].max().item(),
            }
        bits = bits_per_dim(marginal["mean"], self.num_dims) if self.base_measure == "counting" else None
        return {
            "num_data": int(keep.sum()),
            **({} if weights is None else {"effective_num_data": effective_sample_size_of_weights(weights)}),
            "elbo": {"mean": mean, "std_error": error, "num_particles": int(self.guide.draws[0])},
            "log_marginal": marginal,
            "log_marginal_guide": self.guide.summary(weights),
            "bits_per_dim": bits,
            "base_measure": self.base_measure,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
        }

    def per_datum_csv(self, rows: Tensor) -> bytes:
        """Write one CSV line per datum: its row in the source, its values in nats, and whether it reaches the target.

        The column `reached` is empty without a target standard error. Case weights, if any, are a last column `weight`.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        fields = ["log_marginal", *LogMarginal._fields[1:]]
        guide = ["log_marginal_guide", *(f"{field}_guide" for field in LogMarginal._fields[1:])]
        header = ["row", "elbo", *fields, "num_particles", "served", *guide, "reached"]
        writer.writerow(header if self.weights is None else [*header, "weight"])
        columns = [
            rows.tolist(),
            self.elbo.tolist(),
            *(column.tolist() for column in self.marginal.log_marginal),
            self.marginal.draws.tolist(),
            [self.marginal.components[index] for index in self.marginal.served.tolist()],
            *(column.tolist() for column in self.guide.log_marginal),
            [""] * len(self.elbo) if self.target_std_error is None else self.reached.int().tolist(),
        ]
        if self.weights is not None:
            columns.append(self.weights.tolist())
        writer.writerows(zip(*columns, strict=True))
        return text.getvalue().encode()


@entry()
def evaluate(
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    num_particles: int,
    guide_particles: int | None = None,
    proposal: Proposal | Program | None = None,
    target_std_error: float | None = None,
    weights: Tensor | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
    execution: Execution = "auto",
    on_progress: Callable[[int], Any] | None = None,
    commit: Callable[[dict[str, Any]], None] | None = None,
    resume: Mapping[str, Any] | None = None,
    plate: str | None = None,
    **kwargs: Any,
) -> Evaluation:
    """Estimate ELBO and log p(x) of held-out data: the ELBO from the guide, log p(x) from the proposal and the guide.

    Each block of data has a separate seed, so that an interrupted evaluation resumes to bit-identical results. If
    torch.distributed is initialised, the processes share the blocks; all must call `evaluate` alike.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        x: Data, with shape (N, D).
        num_particles: Number of draws K per datum for log p(x); the maximum if `target_std_error` is given.
        guide_particles: Number of draws of the guide per datum, for the ELBO and the published protocol; None for K.
        proposal: `Proposal` or Pyro program to draw from, as in `log_marginal`; None for the default.
        target_std_error: Standard error in nats that every datum should reach; None for `num_particles` draws each.
        weights: Case weights of the data, not negative, with shape (N,), such as sampling weights; None for 1. They
            enter the means over data and their errors (`Evaluation.summary`), not the values of single data.
        seed: Random seed; the global random state is restored at the end.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None for 8,192, or
            for 6,500,000 / D if there are more than 793 columns D.
        execution: How to run the programs: "eager", "recorded", "compiled", or "auto", which chooses by the number of
            calls.
        on_progress: Called with the number of finished data, after each block.
        commit: Called on rank 0 with the state, nested dicts and lists of tensors and plain values, after each block
            but the last.
        resume: A state that `commit` received, to resume from.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs, such as covariates.

    Raises:
        ValueError: As `log_marginal`, if the state to resume is of another evaluation, or if the weights are no case
            weights of these data, or a program has an argument of their name.
    """
    weights = case_weights_of("evaluate", weights, len(x), model, guide)
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
        "inputs": 0 if commit is None and resume is None else fingerprint((model, guide), (x,), kwargs),
    }
    blocks = [] if resume is None else _finished_blocks(resume, about)
    if on_progress is not None:
        on_progress(min(len(x), size * len(blocks)))
    with isolated_rng(seed):
        first, conditions = take((x,), kwargs, slice(0, 1))
        measure = base_measure(model, *first, **conditions)

    chunk = chunk_size_or_default(chunk_size, (x,), kwargs)

    def weigh(count: int, **options: Any) -> Callable[..., Iterator[WeightBlock]]:
        chunks = chunks_of(len(x), size, count, chunk, execution)  # the same for any number of processes
        options |= {"num_particles": count, "chunk_size": chunk, "execution": chunks, "plate": plate}
        return partial(log_weight_blocks, model, guide, **options)

    weighers = [weigh(num_particles, proposal=proposal, target_std_error=target_std_error)]
    if not isinstance(proposal, GuideProposal) or target_std_error is not None or draws != num_particles:
        weighers.append(weigh(draws, proposal=GuideProposal(), skip_support_check=True))
    workers = Workers.current()
    while len(blocks) * size < len(x):
        # One round: the next block of each process.
        start = size * (len(blocks) + workers.rank)
        part, conditions = take((x,), kwargs, slice(start, min(start + size, len(x))))
        with isolated_rng(int(np.random.SeedSequence([seed, start]).generate_state(1)[0])):
            weighed = [list(each(*part, first=start, **conditions)) for each in weighers] if start < len(x) else None
            mine = None if weighed is None else _summaries(weighed)
        done = [block for block in workers.gathered(mine) if block is not None]
        blocks.extend(done)
        if commit is not None and len(blocks) * size < len(x) and workers.rank == 0:
            commit({"about": about, "blocks": blocks})
        if on_progress is not None:
            on_progress(sum(len(block["elbo"]) for block in done))
    return Evaluation(
        elbo=torch.cat([block["elbo"] for block in blocks]),
        marginal=Estimate.joined([_estimate_of(block["marginal"]) for block in blocks]),
        guide=Estimate.joined([_estimate_of(block["guide"]) for block in blocks]),
        num_dims=math.prod(x.shape[1:]),
        base_measure=measure,
        seed=seed,
        seconds=time.perf_counter() - started,
        target_std_error=target_std_error,
        weights=weights,
    )


def _finished_blocks(resume: Mapping[str, Any], about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Take the finished blocks from a saved state; raise a ValueError if it is of another evaluation."""
    if resume["about"] != about:
        raise ValueError(
            f"the state to resume is of another evaluation, {dict(resume['about'])}, but must be of this one, "
            f"{dict(about)}; resume with its settings"
        )
    return list(resume["blocks"])


def _summaries(weighed: Sequence[Sequence[WeightBlock]]) -> dict[str, Any]:
    """Summarise weights as ELBO and both estimates of log p(x), in plain values; the last weights are the guide's."""
    marginal, by_guide = weighed[0], weighed[-1]
    return {
        "elbo": torch.cat([summarize_lower_bound(block.log_w).value.cpu() for block in by_guide]),
        "marginal": asdict(Estimate.joined([Estimate.of(block) for block in marginal])),
        "guide": asdict(Estimate.joined([Estimate.of(block) for block in by_guide])),
    }


def _estimate_of(plain: Mapping[str, Any]) -> Estimate:
    """Rebuild an estimate from a state, which has plain tuples instead of named ones."""
    ladder = tuple(Rung(*rung) for rung in plain["ladder"])
    return Estimate(**{**plain, "log_marginal": LogMarginal(*plain["log_marginal"]), "ladder": ladder})


def base_measure(model: Program, *args: Any, **kwargs: Any) -> str:
    """Name the base measure of the data: "counting" (probabilities), "lebesgue" (densities), or a mixture.

    A support with an attribute `atoms`, a tuple of points that have a probability beside a density, gives
    "lebesgue with mass at 0" or "lebesgue with mass at 0, 1": Lebesgue measure plus point masses of size one. A support
    with an attribute `entries`, those of its columns, that are not all of one measure gives, in the order of the
    columns, "by column: 2 lebesgue; 1 counting". Distributions without a support are taken for densities.
    """
    args, kwargs = plain(args, kwargs)
    with evaluating(model), isolated_rng():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    return base_measure_of(*(site["fn"] for site in sample_sites(trace).values() if site["is_observed"]))


def base_measure_of(*distributions: Any) -> str:
    """Name the base measure of values with given distributions together, as `base_measure` does for a model."""
    sites = [domain_of(fn) for fn in distributions]
    by_column = [[_measure([entry]) for entry in getattr(site, "entries", ())] for site in sites]
    if any(len(set(measures)) > 1 for measures in by_column):
        columns = []
        for measures, site in zip(by_column, sites, strict=True):
            columns += measures or [_measure([site])]
        return "by column: " + "; ".join(f"{len(list(run))} {measure}" for measure, run in itertools.groupby(columns))
    return _measure([entry for site in sites for entry in getattr(site, "entries", (site,))])


def _measure(domains: Sequence[Any]) -> str:
    """Name the base measure of observed values, given their supports; None for an unknown one."""
    if all(domain is not None and domain.is_discrete for domain in domains):
        return "counting"
    atoms = [f"{atom:g}" for atom in sorted({atom for domain in domains for atom in getattr(domain, "atoms", ())})]
    return f"lebesgue with mass at {', '.join(atoms)}" if atoms else "lebesgue"


def exact_summary(log_p: Tensor, *, num_dims: int, base_measure: str, weights: Tensor | None = None) -> dict[str, Any]:
    """Summarise exact values of log p(x), with shape (N,), such as those of a baseline without latents.

    Args:
        log_p: Values in nats, with shape (N,).
        num_dims: Number of dimensions D of a datum.
        base_measure: Base measure of the data (see `base_measure`).
        weights: Case weights, with shape (N,); None for 1.
    """
    mean, std_error = mean_and_std_error(log_p, weights)
    return {
        "elbo": {"mean": None, "std_error": None},
        "log_marginal": {"mean": mean, "std_error": std_error, "mc_std_error": None, "khat": None},
        "bits_per_dim": bits_per_dim(mean, num_dims) if base_measure == "counting" else None,
    }
