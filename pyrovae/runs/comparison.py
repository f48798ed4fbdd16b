"""Comparison of finished runs by the log p(x) of each test datum."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.runs.export import to_arviz
from pyrovae.runs.run import Run
from pyrovae.stats import joint_critical, mean_and_std_error, monte_carlo_std_error

if TYPE_CHECKING:
    from xarray import DataTree


LEVEL = 0.95  # joint probability of the intervals
_NUM_EQUAL_DRAWS = 100  # enough for ArviZ to fit a tail


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Last evaluation of a run.

    Attributes:
        name: Path of the run folder, as given.
        value: log p(x) in nats, with shape (N,).
        std_error: Its Monte Carlo standard error, with shape (N,).
        rows: Rows of the data in their source, with shape (N,).
        about: Properties that comparable evaluations share: SHA-256 of the data, binarisation, split, base measure.
        protocol: Proposal and number of draws.
        weights: Case weights of the data, with shape (N,); None if there are none.
    """

    name: str
    value: Tensor
    std_error: Tensor
    rows: Tensor
    about: dict[str, str]
    protocol: str
    weights: Tensor | None = None

    @classmethod
    def of(cls, path: str | Path) -> "Evaluated":
        """Read the evaluation of a run folder.

        Raises:
            ValueError: If the folder is no finished run, or its evaluation is missing, changed, or not finite.
        """
        run = Run(path)
        summary, columns = run.evaluation()
        about = {
            "data (SHA-256)": run.manifest["data"]["sha256"][:12],
            "binarisation": summary["binarize"],
            "split": summary["split"],
            "base measure": summary["base_measure"],
        }
        marginal = summary["log_marginal"]
        protocol = f"{marginal['proposal']}, K = {marginal['num_particles']:,}"
        values = columns["log_marginal"], columns["std_error"], columns["row"]
        return cls(str(path), *values, about, protocol, columns.get("weight"))


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
    """

    mean: float
    std_error: float
    mc_std_error: float
    difference: float | None = None
    difference_std_error: float | None = None
    difference_mc_std_error: float | None = None
    interval: tuple[float, float] | None = None


def compare(runs: list[Evaluated], *, reference: str | None = None) -> dict[str, Difference]:
    """Sort runs by their mean log p(x), and compute their paired differences from a reference with joint intervals.

    If the data choose the reference, as the best of R runs, the intervals hold for all R (R - 1) / 2 pairs at once:
    otherwise the best would seem better than its equals too often. For a named reference they hold for the R - 1
    differences, and are narrower. Either way they use Student's t and Bonferroni's inequality (`joint_critical`): among
    12 equal runs at most 5 % of tables have an interval without 0 (`scripts/studies/comparisons.py`).

    Args:
        runs: Evaluations of two runs or more.
        reference: Name of the run to compare with, chosen before the evaluation; None for the best.

    Raises:
        ValueError: If the runs differ in data, binarisation, split, base measure or rows, since their log p(x) are then
            not comparable, or if no run has the name of the reference.
    """
    first = runs[0]
    for other in runs[1:]:
        for key, value in first.about.items():
            if other.about[key] != value:
                raise ValueError(
                    f"{first.name} and {other.name} are not comparable: their {key} is {value} and {other.about[key]}; "
                    "evaluate them on the same data"
                )
        if not torch.equal(first.rows, other.rows):
            raise ValueError(
                f"{first.name} and {other.name} are not comparable: their test rows differ; train both with the same "
                "--split_seed"
            )
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
    found = {}
    for run in ordered:
        mean, error = mean_and_std_error(run.value, weights)
        row = Difference(mean, error, monte_carlo_std_error(run.std_error, weights))
        if run is not base:
            gap, gap_error = mean_and_std_error(run.value - base.value, weights)
            mc_error = monte_carlo_std_error(torch.hypot(run.std_error, base.std_error), weights)
            ends = (gap - critical * gap_error, gap + critical * gap_error)
            row = replace(
                row,
                difference=gap,
                difference_std_error=gap_error,
                difference_mc_std_error=mc_error,
                interval=ends,
            )
        found[run.name] = row
    return found


def meaning_of_intervals(num_runs: int, reference: str | None = None) -> str:
    """Say in words what the intervals of `compare` mean."""
    level = f"{100 * LEVEL:.0f} %"
    if num_runs == 2:
        return f"{level} interval: Student's t over data; an interval without 0 shows a difference"
    if reference is not None:
        what = f"hold jointly for the {num_runs - 1} differences from {reference}"
    else:
        what = f"hold jointly for all {num_runs * (num_runs - 1) // 2} pairs of runs, since the data choose the best"
    return f"{level} intervals {what}; an interval without 0 shows a difference"


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
