"""Comparison of finished runs, or of cross-validations, by the log p(x) of each test datum."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.runs.evaluated import Evaluated
from pyrovae.runs.export import to_arviz
from pyrovae.runs.tables import aligned
from pyrovae.stats import clustered_mean_and_std_error, joint_critical, mean_and_std_error, monte_carlo_std_error

if TYPE_CHECKING:
    from xarray import DataTree


LEVEL = 0.95  # joint probability of the intervals
_NUM_EQUAL_DRAWS = 100  # enough for ArviZ to fit a tail


@dataclass(frozen=True)
class Difference:
    """Mean log p(x) of a run and its difference from the reference, in nats per datum.

    Attributes:
        mean: Mean log p(x).
        std_error: Standard error of the mean over data.
        mc_std_error: Monte Carlo standard error of the mean.
        difference: Mean over data of the paired difference from the reference; None for the reference.
        difference_std_error: Standard error of the difference over data, which includes the Monte Carlo error.
        difference_mc_std_error: Monte Carlo standard error of the difference, with the data fixed.
        interval: Ends of the 95 % interval of the difference, which holds jointly with those of the other runs; NaN if
            the error is unknown.
        fold_std_error: Standard error of the mean over the folds of a cross-validation; None for a single split.
        difference_fold_std_error: That of the difference.
    """

    mean: float
    std_error: float
    mc_std_error: float
    difference: float | None = None
    difference_std_error: float | None = None
    difference_mc_std_error: float | None = None
    interval: tuple[float, float] | None = None
    fold_std_error: float | None = None
    difference_fold_std_error: float | None = None


def compare(runs: list[Evaluated], *, reference: str | None = None) -> dict[str, Difference]:
    """Sort runs by their mean log p(x), and compute their paired differences from a reference with joint intervals.

    If the data choose the reference, as the best of R runs, the intervals hold for all R (R - 1) / 2 pairs at once:
    otherwise the best would seem better than its equals too often. For a named reference they hold for the R - 1
    differences, and are narrower. Either way they use Student's t and Bonferroni's inequality (`joint_critical`): among
    12 equal runs at most 5 % of tables have an interval without 0 (`scripts/studies/comparisons.py`).

    Cross-validations are compared in the same way, each datum by the model that was not trained on it. An interval is
    then the wider of Student's over N data, which takes the data as independent, and Student's over K folds, which also
    includes what the data of a fold share: the training set, its seed, and groups. The latter counts the K trainings as
    independent, although their training sets overlap, and no unbiased estimator knows better (see
    `clustered_mean_and_std_error`).

    Args:
        runs: Evaluations of two runs or more, or of two cross-validations or more.
        reference: Name of the run to compare with, chosen before the evaluation; None for the best.

    Raises:
        ValueError: If the runs differ in folds, data, binarisation, split, base measure or rows, since their log p(x)
            are then not comparable, or if no run has the name of the reference.
    """
    first = runs[0]
    for other in runs[1:]:
        if problem := _difference_of_data(first, other):
            raise ValueError(f"{first.name} and {other.name} are not comparable: {problem}")
    weights = first.weights  # equal for equal data
    ordered = sorted(runs, key=lambda run: -mean_and_std_error(run.value, weights)[0])
    names = [run.name for run in ordered]
    if reference is not None and reference not in names:
        given = ", ".join(run.name for run in runs)
        raise ValueError(f"the reference must be one of the runs {given}, got {reference}; name one of them")
    base = ordered[0 if reference is None else names.index(reference)]
    num_others = max(1, len(runs) - 1)
    pairs = num_others * len(runs) // 2 if reference is None else num_others
    critical = joint_critical(LEVEL, len(first.value), max(1, pairs))
    fold_critical = None if first.folds is None else joint_critical(LEVEL, _num_folds(first), max(1, pairs))
    found = {}
    for run in ordered:
        mean, error = mean_and_std_error(run.value, weights)
        row = Difference(mean, error, monte_carlo_std_error(run.std_error, weights))
        if first.folds is not None:
            row = replace(row, fold_std_error=clustered_mean_and_std_error(run.value, first.folds, weights)[1])
        if run is not base:
            gap, gap_error = mean_and_std_error(run.value - base.value, weights)
            mc_error = monte_carlo_std_error(torch.hypot(run.std_error, base.std_error), weights)
            half, fold_error = critical * gap_error, None
            if first.folds is not None and fold_critical is not None:
                _, fold_error = clustered_mean_and_std_error(run.value - base.value, first.folds, weights)
                half = math.nan if math.isnan(fold_error) else max(half, fold_critical * fold_error)
            row = replace(
                row,
                difference=gap,
                difference_std_error=gap_error,
                difference_mc_std_error=mc_error,
                interval=(gap - half, gap + half),
                difference_fold_std_error=fold_error,
            )
        found[run.name] = row
    return found


def _difference_of_data(first: Evaluated, other: Evaluated) -> str:
    """Say why two evaluations are not comparable; an empty text if they are."""
    if (first.folds is None) != (other.folds is None):
        single = first.name if first.folds is None else other.name
        return f"{single} is a run on a single split, the other a cross-validation; give one kind alone"
    if first.folds is not None and other.folds is not None and not torch.equal(first.folds, other.folds):
        return "their folds differ; train both with the same data, --folds, --split_seed and --group"
    for key, value in first.about.items():
        if other.about[key] != value:
            return f"their {key} is {value} and {other.about[key]}; evaluate them on the same data"
    if not torch.equal(first.rows, other.rows):
        return "their test rows differ; train both with the same --split_seed, and the same fold if any"
    return ""


def _num_folds(run: Evaluated) -> int:
    """Count the folds with data of positive weight."""
    assert run.folds is not None
    return len((run.folds if run.weights is None else run.folds[run.weights > 0]).unique())


def comparison_lines(found: Mapping[str, Difference], protocols: Mapping[str, str] | None = None) -> list[list[str]]:
    """Write the rows of `compare` as lines of a table, with a header; with the proposal of each run if given."""
    folds = any(row.fold_std_error is not None for row in found.values())
    errors = ["s.e. data", *["s.e. folds"] * folds, "s.e. MC"]
    lines = [["", "log p(x)", *errors, "difference", "95 % interval", *errors, *["proposal"] * bool(protocols)]]
    for name, row in found.items():
        numbers = [f"{row.mean:.2f}", *_errors(row.std_error, row.fold_std_error, row.mc_std_error)]
        differences = [""] * (2 + len(errors))
        if row.interval is not None:
            own = _errors(row.difference_std_error, row.difference_fold_std_error, row.difference_mc_std_error)
            differences = [f"{row.difference:+.2f}", "{:+.2f} to {:+.2f}".format(*row.interval), *own]
        lines.append([name, *numbers, *differences, *([protocols[name]] if protocols else [])])
    return lines


def _errors(over_data: float | None, over_folds: float | None, monte_carlo: float | None) -> list[str]:
    return [f"{over_data:.2f}", *([] if over_folds is None else [f"{over_folds:.2f}"]), f"{monte_carlo:.3f}"]


def compare_folds(folders: Mapping[str, Path], reference: str) -> tuple[dict[str, Difference], str]:
    """Compare cross-validations with a reference: return the rows of `compare` and a table of them with its meaning.

    Args:
        folders: Folder of the runs of each model by its name, as `Evaluated.of` reads it.
        reference: Name of the model to compare with.

    Raises:
        ValueError: As `compare` and `Evaluated.of`.
    """
    models = [replace(Evaluated.of(folder), name=name) for name, folder in folders.items()]
    found = compare(models, reference=reference)
    lines = [
        f"{data_of(models[0])}; nats per datum; differences from {reference}",
        "",
        aligned(comparison_lines(found, protocols_of(models))),
        *([meaning_of_intervals(len(models), reference, folds=True)] if len(models) > 1 else []),
        proposals_in_words(models),
    ]
    return found, "\n".join(lines)


def protocols_of(runs: Sequence[Evaluated]) -> dict[str, str] | None:
    """Return the proposals of runs by name; None if all have the same, with one number of draws."""
    protocols = {run.name: run.protocol for run in runs}
    return protocols if len(set(protocols.values())) > 1 or any(run.mixed for run in runs) else None


def proposals_in_words(runs: Sequence[Evaluated]) -> str:
    """Name the proposal of all runs, or warn that they differ."""
    if protocols_of(runs) is None:
        return f"proposal of all: {runs[0].protocol}"
    return "the proposals differ, so small differences may come from them; evaluate all runs with the same proposal"


def data_of(run: Evaluated) -> str:
    """Say in words which data an evaluation is of."""
    if run.folds is None:
        return f"{len(run.value):,} {run.about['split']} data"
    return f"{len(run.folds):,} data, each held out by one of {len(run.folds.unique())} folds"


def meaning_of_intervals(num_runs: int, reference: str | None = None, *, folds: bool = False) -> str:
    """Say in words what the intervals of `compare` mean.

    Args:
        num_runs: Number of runs or cross-validations.
        reference: Name of the one to compare with, chosen before the evaluation; None for the best.
        folds: Whether they are cross-validations.
    """
    level, shows = f"{100 * LEVEL:.0f} %", "an interval without 0 shows a difference"
    wider = "the wider of Student's t over data and over folds, whose training sets overlap"
    if num_runs == 2:
        kind = wider if folds else "Student's t over data"
        return f"{level} interval: {kind}; {shows}"
    if reference is not None:
        what = f"hold jointly for the {num_runs - 1} differences from {reference}"
    else:
        what = f"hold jointly for all {num_runs * (num_runs - 1) // 2} pairs of runs, since the data choose the best"
    return f"{level} intervals{f', {wider},' if folds else ''} {what}; {shows}"


def plot_comparison(found: dict[str, Difference]) -> Figure:
    """Plot the paired difference of each run from the reference, with its joint 95 % interval."""
    figure = Figure(figsize=(6.4, 1.4 + 0.4 * len(found)), layout="constrained")
    axes = figure.subplots()
    names = list(found)
    values = [row.difference or 0.0 for row in found.values()]
    errors = [0.0 if row.interval is None else (row.interval[1] - row.interval[0]) / 2 for row in found.values()]
    axes.errorbar(values, range(len(names)), xerr=errors, fmt="o", color="C0", capsize=3)
    axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the best on top
    base = next(name for name, row in found.items() if row.difference is None)
    axes.set_xlabel(f"log p(x) less that of {base}\n(nats per datum, joint {100 * LEVEL:.0f} % intervals)")
    return figure


def marginal_to_arviz(log_p: Tensor, data: Tensor) -> "DataTree":
    """Build ArviZ data from which `loo` and `compare` compute with the marginal log p(x), not log p(x|z).

    All draws of a datum have the same value. So `arviz.loo` returns the sum of log p(x) and its standard error over
    data, which for held-out data is the held-out log score, and `arviz.compare` the paired differences. ArviZ's k-hat
    of equal draws has no meaning.

    Args:
        log_p: log p(x) in nats, with shape (N,).
        data: Data, with shape (N, D).
    """
    # ArviZ 1.x fits a tail, which needs some spread: a millionth of a nat.
    spread = torch.linspace(-1e-6, 1e-6, _NUM_EQUAL_DRAWS, dtype=torch.float64)
    equal = log_p.double() + spread[:, None]
    return to_arviz({"z": equal.new_zeros(*equal.shape, 1)}, observed={"x": data}, log_likelihood={"x": equal})
