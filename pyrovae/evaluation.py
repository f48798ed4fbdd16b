"""The closing table: ELBO and log p(x) of held-out data with their errors, and the baseline beside."""

import csv
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.densities import Program, evaluating, isolated_rng, sample_sites, take
from pyrovae.importance import evidence_lower_bound, log_weight_blocks
from pyrovae.proposals import Proposal
from pyrovae.recording import Execution
from pyrovae.stats import (
    LogMarginal,
    bits_per_dim,
    component_shares,
    mean_and_std_error,
    monte_carlo_std_error,
    summarize_log_weights,
)

KHAT_LIMIT = 0.7  # above it, the Monte Carlo error is not to be relied on (Vehtari et al. 2024, arXiv:1507.02646)

KHAT_DRAWS = 21  # fewer leave no tail to fit

ELBO_DRAWS = 100  # from the guide for each datum, at most: over the data their error is far below that of the data


@dataclass(frozen=True)
class Evaluation:
    """Held-out ELBO and log p(x), per datum, in nats.

    Attributes:
        elbo: ELBO with shape (N,), from draws of the guide's own.
        log_marginal: Estimates, errors, effective sample sizes and k-hats, each with shape (N,).
        served: Which of the proposal's components drew the largest share of the weight, with shape (N,).
        components: Their names.
        num_particles: K.
        num_dims: D, the size of one datum.
        base_measure: "counting" (probabilities) or "lebesgue" (densities).
        proposal: What log p(x)'s draws came from.
        seed: Seed of the draws.
        seconds: Time taken.
    """

    elbo: Tensor
    log_marginal: LogMarginal
    served: Tensor
    components: tuple[str, ...]
    num_particles: int
    num_dims: int
    base_measure: str
    proposal: str
    seed: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The means over data, each error apart, as evaluation.json has them."""
        value, std_error, ess, khat = self.log_marginal
        mean, over_data = mean_and_std_error(value)
        elbo_mean, elbo_error = mean_and_std_error(self.elbo)
        return {
            "num_data": len(value),
            "num_particles": self.num_particles,
            "elbo": {
                "mean": elbo_mean,
                "std_error": elbo_error,
                "num_particles": min(self.num_particles, ELBO_DRAWS),
            },
            "log_marginal": {
                "mean": mean,
                "std_error": over_data,
                "mc_std_error": monte_carlo_std_error(std_error),
                "bias_corrected_mean": (value + std_error.square() / 2).mean().item()
                if self.num_particles > 1
                else None,
            },
            "khat": {
                "max": khat.max().item(),
                "share_above_0.7": (khat > KHAT_LIMIT).double().mean().item(),
            },
            "ess": {"min": ess.min().item(), "median": ess.quantile(0.5).item()},
            "bits_per_dim": bits_per_dim(mean, self.num_dims) if self.base_measure == "counting" else None,
            "base_measure": self.base_measure,
            "proposal": self.proposal,
            "served": {
                name: (self.served == index).double().mean().item() for index, name in enumerate(self.components)
            },
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
        }

    def per_datum_csv(self, rows: Tensor) -> bytes:
        """One line per datum: its row in the source, and the values in nats."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        fields = ("log_marginal" if field == "value" else field for field in LogMarginal._fields)
        writer.writerow(["row", "elbo", *fields, "served"])
        columns = [
            rows.tolist(),
            self.elbo.tolist(),
            *(column.tolist() for column in self.log_marginal),
            [self.components[index] for index in self.served.tolist()],
        ]
        writer.writerows(zip(*columns, strict=True))
        return text.getvalue().encode()


def evaluate(
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    num_particles: int,
    proposal: Proposal | Program | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
    on_progress: Callable[[int], Any] | None = None,
    execution: Execution = "auto",
    **kwargs: Any,
) -> Evaluation:
    """Estimate ELBO and log p(x) of held-out data: the ELBO from the guide, log p(x) from the proposal.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x).
        x: Data with shape (N, D).
        num_particles: K, the draws per datum for log p(x); the ELBO takes 100 of its own at most.
        proposal: Where they come from, as `log_marginal` has it; None for the default.
        seed: Seed of the draws; the global random state is left as it was.
        chunk_size: Latents decoded at once.
        on_progress: Called with the number of data done, after each block.
        execution: How chunks are evaluated, as `log_marginal` has it.
        **kwargs: The programs' keyword arguments, covariates say.

    Raises:
        ValueError: As `log_marginal`.
    """
    started = time.perf_counter()
    marginals, served = [], []
    with isolated_rng(seed):
        first, conditions = take((x,), kwargs, slice(0, 1))
        measure = base_measure(model, *first, **conditions)
        draws = min(num_particles, ELBO_DRAWS)
        options: dict[str, Any] = {"chunk_size": chunk_size, "execution": execution, **kwargs}
        elbo = evidence_lower_bound(model, guide, x, num_particles=draws, **options)
        for block in log_weight_blocks(
            model,
            guide,
            x,
            num_particles=num_particles,
            proposal=proposal,
            checked=True,
            **options,
        ):
            marginals.append(summarize_log_weights(block.log_w, block.component))
            shares = component_shares(block.log_w, block.component, len(block.names))
            served.append(shares.argmax(0))
            if on_progress is not None:
                on_progress(block.rows.stop - block.rows.start)
    return Evaluation(
        elbo=elbo.value,
        log_marginal=LogMarginal(*(torch.cat(parts) for parts in zip(*marginals, strict=True))),
        served=torch.cat(served),
        components=block.names,
        num_particles=num_particles,
        num_dims=math.prod(x.shape[1:]),
        base_measure=measure,
        proposal=block.proposal,
        seed=seed,
        seconds=time.perf_counter() - started,
    )


def base_measure(model: Program, *args: Any, **kwargs: Any) -> str:
    """Say whether the model gives its data probabilities ("counting") or densities ("lebesgue")."""
    with evaluating(model), isolated_rng():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    observed = [site["fn"] for site in sample_sites(trace).values() if site["is_observed"]]
    return "counting" if all(fn.support.is_discrete for fn in observed) else "lebesgue"


def table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out summaries, by name, as the closing table; log p(x) and ELBO in nats per datum."""
    header = ["", "ELBO", "log p(x)", "s.e. data", "s.e. MC", "k-hat > 0.7", "bits/dim"]
    lines = [header]
    for name, summary in summaries.items():
        marginal, khat = summary["log_marginal"], summary["khat"]
        known = khat is not None and summary["num_particles"] >= KHAT_DRAWS
        lines.append(
            [
                name,
                _number(summary["elbo"]["mean"], 2),
                _number(marginal["mean"], 2),
                _number(marginal["std_error"], 2),
                _number(marginal["mc_std_error"], 3),
                f"{100 * khat['share_above_0.7']:.1f} %" if known else "-",
                _number(summary["bits_per_dim"], 4),
            ]
        )
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lay out a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def caution(summary: Mapping[str, Any]) -> str:
    """A word on the Monte Carlo errors: whether k-hat says that they can be relied on."""
    share, draws = summary["khat"]["share_above_0.7"], summary["num_particles"]
    if draws < KHAT_DRAWS:
        return f"k-hat, which judges the Monte Carlo error, needs at least {KHAT_DRAWS} draws; these were {draws}."
    if not share:
        return "k-hat is below 0.7 for all data."
    return (
        f"k-hat is above {KHAT_LIMIT} for {100 * share:.1f} % of the data: the proposal misses part of their "
        "posterior,\nso their s.e. MC is not to be relied on and their log p(x) is likely too low."
    )


def exact_summary(log_p: Tensor, *, num_dims: int, base_measure: str) -> dict[str, Any]:
    """The table's line for a model whose log p(x), with shape (N,), is exact: a baseline without latents."""
    mean, std_error = mean_and_std_error(log_p)
    return {
        "elbo": {"mean": None, "std_error": None},
        "log_marginal": {"mean": mean, "std_error": std_error, "mc_std_error": None},
        "khat": None,
        "bits_per_dim": bits_per_dim(mean, num_dims) if base_measure == "counting" else None,
    }


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
