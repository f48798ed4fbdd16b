"""Evaluation, figures and draws for ArviZ, which the scripts write into a run folder."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyrovae.baselines import Comparison, compare_with_baselines, fit_baselines, paired_difference
from pyrovae.columns import shown
from pyrovae.data import Data, Table
from pyrovae.densities import evaluating, isolated_rng, take, vectorize, weighted_draws
from pyrovae.diagnostics import replicate
from pyrovae.evidence import PROPOSALS, Evaluation, ProposalName, base_measure_of, classify, evaluate, exact_summary
from pyrovae.execution import Execution, Progress, Workers
from pyrovae.plots import (
    figure_of,
    is_image,
    num_per_figure,
    plot_grids,
    plot_history,
    plot_reconstructions,
    plot_samples,
    prior_samples,
    reconstructions,
    to_png,
)
from pyrovae.programs import ProgramPair
from pyrovae.runs.build import likelihood_maker
from pyrovae.runs.cli import out_of_memory
from pyrovae.runs.export import to_arviz, write_netcdf
from pyrovae.runs.files import sha256_of, write_json, write_whole
from pyrovae.runs.fitting import device_of
from pyrovae.runs.partial import StoppedEvaluation, own_sources
from pyrovae.runs.registry import describe
from pyrovae.runs.run import CONFIG, EVALUATION, POSTERIOR, VALUES, WEIGHTS, Run
from pyrovae.runs.versions import all_versions
from pyrovae.stats import summarize_log_weights
from pyrovae.training import History

POSTERIOR_DATA = 1000  # maximum number of test data in posterior.nc
CLASS_DRAWS = 200  # per datum and class, at most, for the classification error
POSTERIOR_DRAWS = 100  # draws per datum
_FEW_VALUES = 0.02  # gap relative to the spread, above which a floor of scales may matter
PREDICTIVE_BYTES = 1_000_000  # of draws from the prior, and of predictive draws, uncompressed
MISSING_AT_RANDOM = (
    "some cells are missing: log p(x) is that of the observed ones, and all numbers hold if cells are missing at random"
)


SPLIT_WORDS = {
    "train": "the model was trained on these rows: the numbers are transductive, and no measure of held-out data",
    "validation": "the model was not trained on these rows, but the epoch was chosen by them",
    "test": "held out: the model was not trained on these rows, and no epoch was chosen by them",
}
"""What an evaluation of each split says of new data."""


def split_of(data: Data, split: str) -> tuple[Tensor, Tensor]:
    """Return the values, with shape (N, D), and the source rows, with shape (N,), of a split."""
    return getattr(data, split), getattr(data, f"{split}_index")


def describe_columns(table: Table) -> str:
    """Describe the columns of a table, and say which rows the values and the missing cells are counted in."""
    count = int((table.splits == 0).sum())
    return f"{table.columns}\nvalues and missing cells: of the {count:,} training rows of {len(table):,}"


def describe_table(table: Table) -> str:
    """Describe the columns of a table, the questions about their kinds, and what is assumed of missing cells."""
    lines = [describe_columns(table), ""]
    lines += [f"?  {question}" for question in table.questions]
    lines += unseen_lines(table)
    if bool((~table.mask).any()):
        lines.append(MISSING_AT_RANDOM)
    return "\n".join(lines).rstrip()


def unseen_lines(table: Table) -> list[str]:
    """Say which levels the columns do not name, and how often they occur, one line per column."""
    lines = []
    for name, levels in table.unseen.items():
        counts = ", ".join(f"{shown(level)} ({count:,})" for level, count in levels.items())
        lines.append(f"column {name}: levels that the columns do not name are treated as missing: {counts}")
    return lines


def describe_floors(likelihood: nn.Module) -> str:
    """Say which columns of an array have few values, so that their learned scales have a floor; empty if none has.

    Args:
        likelihood: Likelihood of a model for an array.
    """
    units, scale = getattr(likelihood, "units", None), getattr(likelihood, "scale", None)
    if units is None or not isinstance(getattr(scale, "choice", None), str):
        return ""
    floor = units.floor.expand(units.spread.shape)
    few = floor > _FEW_VALUES * units.spread
    if not bool(few.any()):
        return ""
    low, high = floor[few].min().item(), floor[few].max().item()
    return (
        f"{int(few.sum()):,} of {len(few):,} columns have few values, on which a density has no maximum: their learned "
        f"scales are at least the smallest gap of the values, but at most their standard deviation ({low:.3g} to "
        f"{high:.3g}); independent columns have the same floors"
    )


def evaluate_run(
    run: Run,
    vae: ProgramPair,
    data: Data,
    *,
    split: str,
    num_particles: int,
    proposal: ProposalName = "default",
    target_std_error: float | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
    execution: Execution = "auto",
    fresh: bool = False,
) -> tuple[Evaluation, dict[str, Any]]:
    """Evaluate a run and show progress, and write evaluation.json and the values per datum in evaluation.csv.

    A second call with the same arguments resumes a stopped evaluation, which the user's cache keeps (see `partial`).
    If torch.distributed is initialised, the processes share the data, all return the whole evaluation, and rank 0
    writes the files.

    Args:
        run: Run folder, with its weights.
        vae: Trained model.
        data: Data of the run.
        split: "train", "validation" or "test".
        num_particles: Number of draws K per datum; the maximum if `target_std_error` is given.
        proposal: Name of the proposal, a key of `PROPOSALS`.
        target_std_error: Standard error in nats that every datum should reach; None for `num_particles` draws each.
        seed: Random seed.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None for 8,192, or
            for 6,500,000 / D if there are more than 793 columns D.
        execution: How to run the programs: "eager", "recorded", "compiled", or "auto", which chooses by the number of
            calls.
        fresh: Whether to start anew, although a stopped evaluation could be resumed.

    Returns:
        The evaluation, with values per datum, and the content of evaluation.json.
    """
    device = device_of(vae)
    x, rows = split_of(data, split)
    workers = Workers.current()
    stopped = None
    if workers.rank == 0:
        flags = {
            "split": split,
            "num_particles": num_particles,
            "proposal": proposal,
            "target_std_error": target_std_error,
            "seed": seed,
            "chunk_size": chunk_size,
            "execution": execution,
            "device": device.type,
        }
        stopped = StoppedEvaluation(_about(run, vae, data, flags))
    resume = workers.from_first(lambda: _resumed(stopped, fresh=fresh, num_data=len(x)))
    with Progress(len(x), "datum", "log p(x)", shown=workers.rank == 0) as progress:
        evaluation = evaluate(
            vae.model,
            vae.guide,
            x.to(device),
            num_particles=num_particles,
            guide_particles=num_particles,
            target_std_error=target_std_error,
            seed=seed,
            chunk_size=chunk_size,
            execution=execution,
            proposal=PROPOSALS[proposal],
            on_progress=progress.update,
            commit=None if stopped is None else stopped.write,
            resume=resume,
            plate=None,
            weights=data.weights(split),
            **data.conditions(split, device),
        )
    summary = {"split": split, **evaluation.summary(), "binarize": run.manifest["data"]["binarize"]}
    if data.labelled:
        summary["classification"] = classification(vae, data, split=split, num_particles=num_particles, seed=seed)
    if stopped is not None:
        write_whole(run.path / VALUES, evaluation.per_datum_csv(rows))
        write_json(run.path / EVALUATION, summary)
        run.record_evaluation()
        stopped.remove()
        with suppress(OSError):  # of an earlier version; it is not read
            (run.path / "evaluation.partial.safetensors").unlink(missing_ok=True)
    return evaluation, summary


def classification(vae: ProgramPair, data: Data, *, split: str, num_particles: int, seed: int) -> dict[str, Any]:
    """Compute the error rate of the most probable classes of a split, whose labels are hidden from the model.

    It has the case weights of the data, if any.
    """
    assert data.labels is not None
    device = device_of(vae)
    conditions: dict[str, Any] = {**data.conditions(split, device)}
    options: dict[str, Any] = {"labels": data.labels[split], "num_particles": min(num_particles, CLASS_DRAWS)}
    options["weights"] = data.weights(split)
    with isolated_rng(seed), evaluating(vae):
        found = classify(vae.model, vae.guide, getattr(data, split).to(device), **options, **conditions).error
    assert found is not None
    known = found.size > 0
    return {
        "error": found.value if known else None,
        "std_error": found.std_error if known and math.isfinite(found.std_error) else None,
        "num_data": found.size,
    }


def classification_line(summary: Mapping[str, Any]) -> str:
    """Say the error rate of an evaluation in words; an empty text if there is none."""
    found = summary.get("classification")
    if not found:
        return ""
    if found["error"] is None:
        return f"no {summary['split']} row has a label, so there is no classification error"
    error = "-" if found["std_error"] is None else f"{100 * found['std_error']:.1f}"
    weighted = ", by case weights" if "effective_num_data" in summary else ""
    return (
        f"classification error, labels hidden: {100 * found['error']:.1f} % (s.e. {error}) of {found['num_data']:,} "
        f"{summary['split']} rows with a label{weighted}"
    )


def _about(run: Run, vae: ProgramPair, data: Data, flags: dict[str, Any]) -> dict[str, Any]:
    """Return all that the numbers of an evaluation depend on."""
    return {
        "weights": sha256_of(run.path / WEIGHTS),
        "config": run.manifest["files"][CONFIG],
        "data": data.sha256,
        "binarize": data.binarize,
        "flags": flags,
        "versions": all_versions(),
        "sources": own_sources(vae),
    }


def _resumed(stopped: StoppedEvaluation | None, *, fresh: bool, num_data: int) -> dict[str, Any] | None:
    """Return the state of a stopped evaluation, and say on stderr from which datum it goes on."""
    assert stopped is not None
    if fresh:
        stopped.remove()
    state = stopped.read()
    if state is not None:
        done = sum(len(block["elbo"]) for block in state["blocks"])
        message = f"going on from datum {done:,} of {num_data:,}, where an earlier call with the same flags stopped"
        print(f"{message}; evaluate.py --fresh true starts anew", file=sys.stderr)
    return state


def _measure_of(maker: Any, num_dims: int) -> str:
    """Name the base measure of a likelihood."""
    part, given = maker.func, maker.keywords
    with isolated_rng(), torch.no_grad():
        return base_measure_of(maker(nn.Linear(1, part.num_outputs(num_dims, **given)))(torch.zeros(1, 1)))


def compare_to_baselines(config: Namespace, data: Data, log_p: Tensor, *, base_measure: str, split: str) -> Comparison:
    """Fit the baselines of the likelihood to the training data, and compare the model with them on a split.

    There are none, which the words say, if the model has another base measure than the likelihood, as a program of the
    user may have it, or if they cannot be fitted, as to a distribution of the user.

    Args:
        config: Resolved configuration.
        data: Data of the run.
        log_p: Estimates of log p(x) of the split by the model, in nats, with shape (N,).
        base_measure: Base measure of the model, as in evaluation.json.
        split: "train", "validation" or "test".
    """
    columns = None if data.table is None else data.table.columns
    x, _ = split_of(data, split)
    weights = data.weights(split)
    maker = likelihood_maker(config, columns)
    try:
        measure = _measure_of(maker, x.shape[1])
        fitted = fit_baselines(data.train, maker, weights=data.weights("train"))
    except Exception as error:  # parts of the user may raise anything
        if out_of_memory(error):
            raise
        return Comparison({}, f"there are no baselines: {describe(error)}", {})
    if measure != base_measure:
        return Comparison({}, f"there are no baselines for the base measure {base_measure}", {})
    found = {name: baseline.log_prob(x) for name, baseline in fitted.items()}
    rows = {
        name: exact_summary(values, num_dims=x.shape[1], base_measure=base_measure, weights=weights)
        for name, values in found.items()
    }
    words = compare_with_baselines(log_p, found, weights=weights)
    differences = {name: paired_difference(log_p, values, weights) for name, values in found.items()}
    if data.has_holes and "multivariate Student-t" in rows:
        words += "\nno Gaussian mixture is fitted, since it needs complete rows"
    return Comparison(rows, words, differences)


def write_training_figure(run: Run, history: History) -> None:
    """Write training.png: the ELBO over the epochs."""
    write_whole(run.path / "training.png", to_png(figure_of(plot_history(history))))


def write_sample_figures(run: Run, vae: ProgramPair, data: Data, *, size: int, seed: int) -> list[str]:
    """Write samples.png, draws from the model, and reconstructions.png, of the first test data.

    Data that are no images are shown by column, draws beside test data, reconstructions over test data.

    Both are given the covariates of the test data, if any. Data that one figure cannot show go to further figures,
    samples-2.png and so on, which are drawn one after the other in bounded memory.

    Returns:
        The names of the files.
    """
    device, at_once = device_of(vae), num_per_figure(data.shape)
    test, given = (data.test.to(device),), data.conditions("test", device)
    starts = {"samples": range(0, size, at_once), "reconstructions": range(0, min(size, len(data.test)), at_once)}
    names = []
    with Progress(sum(map(len, starts.values())), "figure", shown=size > at_once) as progress:
        for kind, firsts in starts.items():
            for page, start in enumerate(firsts):
                rows = torch.arange(start, min(start + at_once, firsts.stop)) % len(data.test)
                (x,), conditions = take(test, given, rows)
                figure = _figure(kind, vae, x, conditions, data.shape, seed=_seed_of_page(seed, page))
                names.append(f"{kind}-{page + 1}.png" if page else f"{kind}.png")
                write_whole(run.path / names[-1], to_png(figure))
                figure.clear()  # its reference cycles would keep the data of many figures in memory
                progress.update()
    for path in run.path.iterdir():
        if re.fullmatch(r"(samples|reconstructions)-\d+\.png", path.name) and path.name not in names:
            path.unlink(missing_ok=True)  # of an earlier call with more data
    return names


def _figure(
    kind: str, vae: ProgramPair, x: Tensor, conditions: dict[str, Tensor], shape: Sequence[int], *, seed: int
) -> Figure:
    """Draw the figure of "samples" or "reconstructions", for data x with shape (N, D)."""
    if kind == "samples":
        draws, means = prior_samples(vae.model, x, seed=seed, **conditions)
        if not is_image(shape):
            return plot_samples(x.cpu(), draws.cpu())
        return plot_grids([("draws x ~ p(x|z), z ~ p(z)", draws), ("means E[x|z] at the same z", means)], shape)
    decoded = reconstructions(vae.model, vae.guide, x, seed=seed, **conditions)
    if not is_image(shape):
        return plot_reconstructions(x.cpu(), decoded.cpu())
    return plot_grids([("data x", x), ("reconstructions E[x|z], z ~ q(z|x)", decoded)], shape)


def _seed_of_page(seed: int, page: int) -> int:
    return int(np.random.SeedSequence([seed, page]).generate_state(1)[0]) if page else seed


def write_posterior(run: Run, vae: ProgramPair, data: Data, *, seed: int) -> None:
    """Write posterior.nc: draws from the guide for the first test data, with their weights, for ArviZ.

    Its log p(x), standard errors, effective sample sizes and k-hats are computed from these draws. Draws from the prior
    and of the data, x ~ p(x|z) with z from the prior and the guide, have at most 1 MB each, uncompressed, or one draw.

    Args:
        run: Run folder.
        vae: Trained model.
        data: Data of the run.
        seed: Random seed.
    """
    device = device_of(vae)
    x, rows = data.test[:POSTERIOR_DATA].to(device), data.test_index[:POSTERIOR_DATA]
    covariates = {name: value[:POSTERIOR_DATA] for name, value in data.conditions("test", device).items()}
    parts = []
    with isolated_rng(seed), evaluating(vae):
        for start in range(0, len(x), 64):
            block, conditions = take((x,), covariates, slice(start, start + 64))
            drawn = weighted_draws(vae.model, vae.guide, *block, num_particles=POSTERIOR_DRAWS, **conditions)
            parts.append(drawn)
    log_w = torch.cat([part.log_weights for part in parts], 1).cpu()
    tree = to_arviz(
        {name: torch.cat([part.latents[name] for part in parts], 1).cpu() for name in parts[0].latents},
        observed={"x": x.cpu()},
        log_likelihood={"x": torch.cat([part.log_likelihood for part in parts], 1).cpu()},
        log_weights=log_w,
        stats=summarize_log_weights(log_w),
        **_drawn_groups(vae, x, covariates, seed=seed),
        data_index=rows,
        attrs={"data": run.manifest["data"]["name"], "binarize": run.manifest["data"]["binarize"]},
    )
    write_netcdf(tree, run.path / POSTERIOR)


def _drawn_groups(vae: ProgramPair, x: Tensor, conditions: dict[str, Any], *, seed: int) -> dict[str, Any]:
    """Draw latents from the prior, and data from the prior and from the guide, for `to_arviz`."""
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((x,), conditions)
    model, _ = vectorize(vae.model, None, *arguments)
    with isolated_rng(seed), evaluating(vae):
        one = model.trace(1, *arguments).latents
        size = sum(site.value.numel() * site.value.element_size() for site in one.values())
        draws = model.trace(_num_draws(size), *arguments).latents
    found: dict[str, Any] = {"prior": {name: site.value.cpu() for name, site in draws.items()}}
    for name, guide in (("prior_predictive", None), ("posterior_predictive", vae.guide)):
        try:
            first = replicate(vae.model, x, guide=guide, num_replicates=1, seed=seed, **conditions).get("x")
            if first is None or first.shape[1:] != x.shape or _as_bytes(first).nbytes > 4 * PREDICTIVE_BYTES:
                continue
            count = _num_draws(_as_bytes(first).nbytes)
            drawn = replicate(vae.model, x, guide=guide, num_replicates=count, seed=seed, **conditions)["x"]
        except ValueError:  # a program of the user that draws its data from the data, or sums latents out
            continue
        found[name] = {"x": _as_bytes(drawn.cpu())}
    return found


def _num_draws(size: int) -> int:
    """Compute the number of draws of some bytes each."""
    return max(1, min(POSTERIOR_DRAWS, PREDICTIVE_BYTES // max(1, size)))


def _as_bytes(x: Tensor) -> Tensor:
    """Convert whole numbers from 0 to 255 to bytes; leave other numbers as they are."""
    return x.byte() if bool(((x >= 0) & (x <= 255) & (x % 1 == 0)).all()) else x
