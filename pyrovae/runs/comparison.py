"""Comparison of finished runs by the log p(x) of each test datum."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.runs.export import to_arviz
from pyrovae.runs.files import read_json
from pyrovae.runs.run import Run
from pyrovae.stats import mean_and_std_error, monte_carlo_std_error

if TYPE_CHECKING:
    from xarray import DataTree


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
    """

    name: str
    value: Tensor
    std_error: Tensor
    rows: Tensor
    about: dict[str, str]
    protocol: str

    @classmethod
    def of(cls, path: str | Path) -> "Evaluated":
        """Read the evaluation of a run folder.

        Raises:
            ValueError: If the folder is no finished run, or has no valid evaluation.
        """
        run = Run(path)
        where = run.path / "evaluation.csv"
        if not run.finished or not where.is_file():
            raise ValueError(f"{path} has no evaluation; finish it with train.py --resume, or run evaluate.py")
        summary: dict[str, Any] = read_json(run.path / "evaluation.json")
        try:
            with where.open(newline="") as file:
                lines = list(csv.DictReader(file))
            columns = {
                key: torch.tensor([float(line[key]) for line in lines], dtype=torch.float64)
                for key in ("row", "log_marginal", "std_error")
            }
            about = {
                "data (SHA-256)": run.manifest["data"]["sha256"][:12],
                "binarisation": summary["binarize"],
                "split": summary["split"],
                "base measure": summary["base_measure"],
            }
            marginal = summary["log_marginal"]
            protocol = f"{marginal['proposal']}, K = {marginal['num_particles']:,}"
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where} is damaged or from another version; write it again with evaluate.py") from error
        return cls(str(path), columns["log_marginal"], columns["std_error"], columns["row"].long(), about, protocol)


@dataclass(frozen=True)
class Difference:
    """Mean log p(x) of a run and its difference from the best run, in nats per datum.

    Attributes:
        mean: Mean log p(x).
        std_error: Standard error of the mean over data.
        mc_std_error: Monte Carlo standard error of the mean.
        difference: Mean over data of the paired difference from the best run; None for the best.
        difference_std_error: Standard error of the difference over data, which includes the Monte Carlo error.
        difference_mc_std_error: Monte Carlo standard error of the difference, with the data fixed.
    """

    mean: float
    std_error: float
    mc_std_error: float
    difference: float | None = None
    difference_std_error: float | None = None
    difference_mc_std_error: float | None = None


def compare(runs: list[Evaluated]) -> dict[str, Difference]:
    """Sort runs by their mean log p(x), and compute their paired differences from the best.

    Raises:
        ValueError: If the runs differ in data, binarisation, split, base measure or rows, since their log p(x) are then
            not comparable.
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
    ordered = sorted(runs, key=lambda run: -run.value.mean().item())
    best, found = ordered[0], {}
    for run in ordered:
        mean, error = mean_and_std_error(run.value)
        numbers: dict[str, float] = {}
        if run is not best:
            gap, gap_error = mean_and_std_error(run.value - best.value)
            mc_error = monte_carlo_std_error(torch.hypot(run.std_error, best.std_error))
            numbers = {"difference": gap, "difference_std_error": gap_error, "difference_mc_std_error": mc_error}
        found[run.name] = Difference(mean, error, monte_carlo_std_error(run.std_error), **numbers)
    return found


def plot_comparison(found: dict[str, Difference]) -> Figure:
    """Plot the paired difference of each run from the best, with two standard errors on each side."""
    figure = Figure(figsize=(6.4, 1.4 + 0.4 * len(found)), layout="constrained")
    axes = figure.subplots()
    names = list(found)
    values = [row.difference or 0.0 for row in found.values()]
    errors = [2 * (row.difference_std_error or 0.0) for row in found.values()]
    axes.errorbar(values, range(len(names)), xerr=errors, fmt="o", color="C0", capsize=3)
    axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the best on top
    axes.set_xlabel("log p(x) less that of the best run\n(nats per datum, 2 s.e. over data)")
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
