"""Comparing finished runs by the log p(x) of the same test data, datum by datum."""

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


_NUM_EQUAL_DRAWS = 100  # enough for the tail that ArviZ fits


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A run's last evaluation.

    Attributes:
        name: The run's folder, as it was given.
        value: Log p(x) in nats, with shape (N,).
        std_error: Its Monte Carlo standard error, with shape (N,).
        rows: Rows of the data in their source, with shape (N,).
        about: What makes evaluations comparable: the data's SHA-256, binarisation, split, base measure.
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
            ValueError: If it is no finished run, or has no evaluation.
        """
        run = Run(path)
        where = run.path / "evaluation.csv"
        if not run.finished or not where.is_file():
            raise ValueError(f"{path}: there is no evaluation; finish it with train.py --resume, or run evaluate.py")
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
            raise ValueError(f"{where}: damaged or of another version; make it again with evaluate.py") from error
        return cls(str(path), columns["log_marginal"], columns["std_error"], columns["row"].long(), about, protocol)


@dataclass(frozen=True)
class Difference:
    """A run beside the best one, in nats per datum.

    Attributes:
        mean: Mean log p(x).
        std_error: Its standard error over data.
        mc_std_error: Its Monte Carlo standard error.
        difference: Mean over data of the paired difference from the best run; None for the best.
        difference_std_error: Its standard error: over data, whose spread holds the Monte Carlo error of the values.
        difference_mc_std_error: Monte Carlo standard error of the difference alone, as if these data were all there is.
    """

    mean: float
    std_error: float
    mc_std_error: float
    difference: float | None = None
    difference_std_error: float | None = None
    difference_mc_std_error: float | None = None


def compare(runs: list[Evaluated]) -> dict[str, Difference]:
    """Sort runs by their mean log p(x), and take each one's paired difference from the best.

    Raises:
        ValueError: If two runs are about different data, binarisation, split, base measure or rows, since then their
            numbers are not of the same thing.
    """
    first = runs[0]
    for other in runs[1:]:
        for key, value in first.about.items():
            if other.about[key] != value:
                raise ValueError(
                    f"{first.name} and {other.name} cannot be compared: {key} is {value} there and {other.about[key]} "
                    "here; evaluate them on the same data"
                )
        if not torch.equal(first.rows, other.rows):
            raise ValueError(
                f"{first.name} and {other.name} cannot be compared: they were split otherwise (other test rows); train "
                "them with one --split_seed"
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
    """Draw each run's paired difference from the best, with two standard errors to either side."""
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
    """ArviZ data in which `loo` and `compare` find log p(x), the marginal, in place of log p(x|z), the conditional.

    The one value of each datum stands for all draws, so that `arviz.loo` gives its sum, with its standard error over
    data, and `arviz.compare` the paired differences. ArviZ's k-hat of equal draws means nothing. For held-out data
    that sum is the held-out log score; leave-one-out weights do not enter.

    Args:
        log_p: Log p(x) in nats, with shape (N,).
        data: The data, with shape (N, D).
    """
    # A spread of a millionth of a nat: ArviZ 1.x fits a tail, and refuses one without any.
    spread = torch.linspace(-1e-6, 1e-6, _NUM_EQUAL_DRAWS, dtype=torch.float64)
    equal = log_p.double() + spread[:, None]
    return to_arviz({"z": equal.new_zeros(*equal.shape, 1)}, observed={"x": data}, log_likelihood={"x": equal})
