"""Pictures of predictive checks: statistics of the data beside replicates, typicality, and foreign data."""

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyrovae.diagnostics import ForeignData, PredictiveCheck, Typicality
from pyrovae.plots.base import COLOURS, legend_above, new_axes, p_text, short_name

_LONGEST, _FEW_LETTERS = 28, 18  # letters of a name, at most and in full size
_MOST_NAMED = 40  # elements with a row of their own
_FARTHEST = 2.5  # end of the axis, times the simultaneous limit
_SOURCES = {"prior": "z from the prior", "guide": "z from q(z|x): conservative"}


def plot_statistic(result: PredictiveCheck, axes: Axes | None = None, *, element: int = 0) -> Axes:
    """Plot one statistic of the data, a line, against the histogram of its replicates.

    How to read it: a line inside the histogram says that the model makes such data in this respect. The p-value is
    two-sided, with its Monte Carlo error. Its smallest value is 2 / (S + 1) with S replicates.

    Source: Gelman, Meng and Stern 1996, Statistica Sinica 6.

    Args:
        result: Predictive check.
        axes: Axes to draw in; None for new ones.
        element: Number of the element in `names`.

    Returns:
        The axes.
    """
    axes = new_axes(2.9) if axes is None else axes
    replicated = result.replicated[:, element].numpy()
    axes.hist(replicated, bins=min(30, max(5, len(replicated) // 15)), color="0.75", label="replicates")
    axes.axvline(float(result.observed[element]), color=COLOURS[2], linewidth=2, label="data")
    error = f"{float(result.std_error[element]):.1g}"
    axes.set_title(f"{p_text(float(result.p_value[element]))} ± {error} ({_SOURCES[result.source]})", fontsize=10)
    axes.set(xlabel=short_name(result.names[element], 28), ylabel="replicates")
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=9)
    return axes


def plot_predictive(result: PredictiveCheck, axes: Axes | None = None) -> Axes:
    """Plot all statistics of a predictive check in standard deviations of their replicates.

    How to read it: a bar is the range of 95 % of the replicates, a dot the data. The dashed lines hold all elements of
    95 % of the replicated data sets at once: a red dot beyond them is a misfit also when all elements are regarded
    together, as the joint p-value is. Triangles are dots beyond the axis. Up to 40 elements have a row each; more have
    a row for each statistic, in which its elements run from top to bottom.

    Source: as `plot_statistic`; the limit is the 95 % quantile of the largest |z| of a replicate.

    Args:
        result: Predictive check.
        axes: Axes to draw in; None for new ones.

    Returns:
        The axes.
    """
    rows, labels = _rows(result)
    axes = new_axes(1.3 + 0.21 * len(labels)) if axes is None else axes
    z, limit = result.replicated_z, result.limit
    ranges = torch.quantile(z, torch.tensor([0.025, 0.975], dtype=z.dtype), dim=0).numpy()
    few = len(labels) == len(rows)
    axes.hlines(rows, *ranges, color="0.75", linewidth=4 if few else 1.2, label="95 % of replicates")
    end = max(1.1 * limit, min(1.1 * float(result.z.abs().max()), _FARTHEST * limit), 1.0)
    observed = result.z.numpy()
    shown, outside = observed.clip(-0.97 * end, 0.97 * end), np.abs(observed) > limit
    beyond = np.abs(observed) > end
    for some, colour, marker, name in (
        (~outside, COLOURS[0], "o", "data"),
        (outside & ~beyond, COLOURS[2], "D", "beyond the limit"),
        (beyond & (observed > 0), COLOURS[2], ">", "beyond the axis"),
        (
            beyond & (observed < 0),
            COLOURS[2],
            "<",
            None if (beyond & (observed > 0)).any() else "beyond the axis",
        ),
    ):
        if some.any():
            size = 20 if few else 8
            axes.scatter(shown[some], rows[some], s=size, color=colour, marker=marker, label=name, zorder=3)
    for side in (-limit, limit):
        axes.axvline(
            side, color="0.3", linewidth=0.9, linestyle="--", label="95 % limit, all at once" if side > 0 else None
        )
    axes.axvline(0, color="0.6", linewidth=0.8)
    texts = [short_name(label, _LONGEST) for label in labels]
    axes.set_yticks(range(len(labels)), texts, fontsize=9 if max(map(len, texts)) <= _FEW_LETTERS else 8)
    axes.set(xlim=(-end, end), ylim=(len(labels) - 0.4, -0.6))
    axes.set_xlabel(f"z; joint {p_text(result.joint_p_value)}")
    legend_above(axes)
    return axes


def _rows(result: PredictiveCheck) -> tuple[np.ndarray, list[str]]:
    """Return the place of each element, and the label of each row: an element, or a statistic if there are many."""
    if len(result.names) <= _MOST_NAMED:
        return np.arange(len(result.names), dtype=float), list(result.names)
    labels = list(dict.fromkeys(result.statistics))
    places = np.zeros(len(result.names))
    for row, label in enumerate(labels):
        members = [place for place, name in enumerate(result.statistics) if name == label]
        places[members] = row + (np.linspace(-0.35, 0.35, len(members)) if len(members) > 1 else 0.0)
    return places, labels


def plot_typicality(result: Typicality, axes: Axes | None = None, *, bins: int = 20) -> Axes:
    """Plot the histogram of the ranks of log p(x) of data among the model's own draws.

    How to read it: flat if the data are typical draws of the model. High bars on the left are data less probable than
    the model's draws; high bars on the right are data more probable than nearly all draws, which is a misfit too. The
    grey band is about where 95 % of the bars lie, each by itself, if the model is right.

    Source: Nalisnick et al. 2019, https://arxiv.org/abs/1906.02994.

    Args:
        result: Typicality ranks of N data.
        axes: Axes to draw in; None for new ones.
        bins: Number of bars.

    Returns:
        The axes.
    """
    axes = new_axes(2.9) if axes is None else axes
    value = result.value[~result.value.isnan()].numpy()
    size, share = len(value), 1 / bins
    # Bars of ranks among M common draws vary with the draws, too
    effective = 1 / size + (1 / result.reference.numel() if result.shared else 0.0)
    reach = 1.96 * math.sqrt(share * (1 - share) * effective)
    axes.axhspan(max(0.0, share - reach), share + reach, color="0.85", linewidth=0, label="95 % of bars, if right")
    axes.axhline(share, color="0.4", linewidth=0.8)
    counts = np.histogram(value, bins, (0, 1))[0] / size
    edges = np.linspace(0, 1, bins + 1)
    axes.stairs(counts, edges, color=COLOURS[0], linewidth=1.6, label=f"data, {p_text(result.p_value)}")
    axes.set(xlabel="share of the model's draws with a lower log p(x)", ylabel="share of the data", xlim=(0, 1))
    axes.set_ylim(0, 1.1 * max(counts.max(), share + reach))
    legend_above(axes)
    return axes


def plot_foreign(result: ForeignData, axes: Axes | None = None, *, name: str = "foreign data") -> Axes:
    """Plot histograms of log p(x) of test data and foreign data, with the AUC and its standard error.

    How to read it: the AUC is the probability that a test datum has the higher log p(x). Near 1 the histograms are
    apart; 0.5 is chance; below 0.5 foreign data are scored above test data. The area is by values beyond the axis, too,
    whose shares the labels give.

    Sources: DeLong, DeLong and Clarke-Pearson 1988, https://doi.org/10.2307/2531595; Nalisnick et al. 2019,
    https://arxiv.org/abs/1810.09136.

    Args:
        result: Comparison of foreign data with test data.
        axes: Axes to draw in; None for new ones.
        name: Name of the foreign data.

    Returns:
        The axes.
    """
    axes = new_axes(3.1) if axes is None else axes
    both = [values[~values.isnan()].double() for values in (result.log_p, result.foreign_log_p)]
    known = [values[values.isfinite()] for values in both]
    ends = torch.stack([_ends(values) for values in known if len(values)])
    low, high = float(ends.min()), float(ends.max())
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    edges = np.linspace(low, high, 41)
    for values, label, colour, hatch in zip(
        both, ("test data", name), (COLOURS[0], COLOURS[2]), (None, "///"), strict=True
    ):
        outside = float(((values < low) | (values > high)).double().mean())
        text = f"{short_name(label)}{f', {_percent(outside)} beyond' if outside else ''}"
        heights = np.histogram(values[values.isfinite()].numpy(), edges)[0] / len(values)
        axes.stairs(heights, edges, color=colour, fill=True, alpha=0.25)
        axes.stairs(heights, edges, color=colour, linewidth=1.4, hatch=hatch, label=text)
    auc = result.auc
    axes.set_title(f"AUC {auc.value:.3f} ± {auc.std_error:.1g}", fontsize=10, loc="left")
    axes.set(xlabel="log p(x) (nats)", ylabel="share")
    axes.legend(frameon=False, fontsize=9, loc="best")
    return axes


def _ends(values: Tensor) -> Tensor:
    """Return the 0.5 and the 99.5 % quantile."""
    return torch.quantile(values, torch.tensor([0.005, 0.995], dtype=values.dtype))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "< 0.1 %"
