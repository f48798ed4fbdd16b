"""Pictures of numbers by latent dimension: activity, KL divergence, collapse, information, posteriors, PCA."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from torch import Tensor

from pyrovae.diagnostics import (
    ACTIVE_FROM,
    Collapse,
    Ends,
    Information,
    KLByDimension,
    LatentPosteriors,
    PCAAlignment,
    UnitActivity,
)
from pyrovae.plots.base import COLOURS, new_axes, short_name

_MOST_BARS = 24
_MOST_LINES = 8
_ROW = 0.24  # inches
_MARKS = "os^Dv<>P"
_LINEAR, _MOST_DECADES = 0.1, 8  # of the axis of information


def plot_activity(result: UnitActivity, axes: Axes | None = None) -> Axes:
    """Plot the activity of each latent dimension with its standard error, on a logarithmic axis, largest first.

    A line marks 0.01, from which a unit is active. Dimensions below 0.001, also negative ones, lie on the left edge. Of
    more than 24 the largest are shown.

    Args:
        result: Activity.
        axes: Axes to draw in; None for new ones.
    """
    axes = _bars(result.labels, result.activity, result.std_error, axes)
    known = result.activity.nan_to_num(1.0)
    axes.set_xscale("log")
    axes.set_xlim(1e-3, 2 * max(1.0, float((known + result.std_error.nan_to_num(0.0)).max())))
    axes.axvline(ACTIVE_FROM, color="0.35", linewidth=1, linestyle="--")
    axes.set_xlabel("variance of the means,\nrelative to the prior's")
    axes.set_title(f"{result.num_active} of {len(result.labels)} active (above {ACTIVE_FROM})", fontsize=10)
    return axes


def plot_kl(result: KLByDimension, axes: Axes | None = None) -> Axes:
    """Plot the mean KL divergence of each latent dimension with its standard error, largest first.

    Of more than 24 dimensions the largest are shown.

    Args:
        result: Divergences.
        axes: Axes to draw in; None for new ones.
    """
    axes = _bars(result.labels, result.mean, result.std_error, axes)
    axes.axvline(0, color="0.35", linewidth=1)
    axes.set_xlabel("KL(q(z_j|x), p(z_j)) per datum (nats)")
    axes.set_title(f"all: {float(result.total_mean):.2f} ± {float(result.total_error):.2f} nats", fontsize=10)
    return axes


def _bars(labels: Sequence[str], values: Tensor, errors: Tensor, axes: Axes | None) -> Axes:
    """Draw horizontal bars with errors, the largest on top; a cross for unknown values."""
    order = values.nan_to_num(-math.inf).sort(descending=True, stable=True).indices[:_MOST_BARS].tolist()
    axes = new_axes(1.1 + _ROW * len(order)) if axes is None else axes
    rows, shown = np.arange(len(order)), values[order].double().numpy()
    spread = errors[order].double().nan_to_num(0.0).numpy()
    axes.barh(rows, np.nan_to_num(shown), xerr=spread, color=COLOURS[1], ecolor="0.2", capsize=2, height=0.7)
    unknown = rows[np.isnan(shown)]
    axes.plot(np.zeros(len(unknown)), unknown, "x", color=COLOURS[2], label="unknown")
    axes.set_yticks(rows, [short_name(labels[j]) for j in order], fontsize=9)
    axes.set_ylim(len(order) - 0.4, -0.6)
    if len(labels) > len(order):
        axes.set_ylabel(f"the largest {len(order)} of {len(labels)}")
    return axes


def plot_collapse(result: Collapse, axes: Axes | None = None) -> Axes:
    """Plot the share of data whose KL divergence is below epsilon, against epsilon, one curve for each dimension.

    A dimension has collapsed if its curve is above 99 % at 0.01 nats, where the lines cross. Up to 8 dimensions of
    smallest divergence have a colour and a mark, others are grey.

    Args:
        result: Collapse.
        axes: Axes to draw in; None for new ones.
    """
    axes = new_axes(3.4) if axes is None else axes
    order = result.kl.nan_to_num(math.inf).sort(stable=True).indices.tolist()
    every = max(1, len(result.epsilon) // 6)
    for place, j in reversed(list(enumerate(order))):
        if bool(result.share[:, j].isnan().all()):
            continue
        told = place < _MOST_LINES
        axes.plot(
            result.epsilon.numpy(),
            100 * result.share[:, j].numpy(),
            color=COLOURS[place] if told else "0.75",
            marker=_MARKS[place] if told else None,
            markevery=(place % every, every),
            markersize=5,
            linewidth=1.3 if told else 0.8,
            label=short_name(result.labels[j], 14) if told else "_",
        )
    axes.axvline(0.01, color="0.35", linewidth=0.8, linestyle="--")
    axes.axhline(99, color="0.35", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set(xlabel="epsilon (nats)", ylabel="data with KL below epsilon (%)", ylim=(-3, 103))
    axes.set_title(f"{int(result.collapsed.sum())} of {len(result.labels)} collapsed", fontsize=10)
    handles, labels = axes.get_legend_handles_labels()
    columns = 3 if max(map(len, labels), default=0) <= 7 else 2  # of the width of the figure
    axes.legend(
        handles[::-1],
        labels[::-1],
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(0, -0.22),
        ncols=columns,
        fontsize=9,
    )
    return axes


def plot_information(result: Information, axes: Axes | None = None) -> Axes:
    """Plot the ends between which information, KL(q(z), p(z)) and total correlation lie, and those of each dimension.

    The axis is linear up to 0.1 nats and logarithmic from there. A line joins the two ends, thin lines are their
    standard errors. log N is the largest lower end of I(x; z) that N data can show. Up to 12 dimensions are shown,
    those with the largest |KL(q(z_j), p(z_j))|.

    Args:
        result: Information.
        axes: Axes to draw in; None for new ones.
    """
    size = result.dimension_kl.abs().nan_to_num(-1.0).sort(descending=True, stable=True).indices[:12].tolist()
    rows: list[tuple[str, Ends]] = [
        ("I(x; z)", result.information),
        ("KL(q(z), p(z))", result.aggregate_kl),
        ("total correlation", result.total_correlation),
    ]
    parts = result.dimension_kl_ends
    rows += [(f"KL, {short_name(result.labels[j], 12)}", Ends(*[part[j] for part in parts])) for j in sorted(size)]
    axes = new_axes(1.2 + 0.27 * len(rows)) if axes is None else axes
    for row, (_, ends) in enumerate(rows):
        colour = COLOURS[0] if row < 3 else COLOURS[6]
        low, high = float(ends.lower), float(ends.upper)
        axes.plot([low, high], [row, row], "-", color=colour, linewidth=3, solid_capstyle="butt")
        for value, error in ((low, ends.lower_error), (high, ends.upper_error)):
            axes.errorbar(value, row, xerr=float(error), fmt="|", color=colour, capsize=3, linewidth=1, markersize=9)
    cap = math.log(result.num_data)
    axes.set_xscale("symlog", linthresh=_LINEAR)
    axes.xaxis.set_major_locator(FixedLocator(_decades(*axes.get_xlim())))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(0, color="0.35", linewidth=1)
    axes.axvline(cap, color="0.35", linewidth=1, linestyle="--")
    axes.text(cap, -0.75, "log N", ha="center", va="bottom", fontsize=9)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.set_xlabel("lower and upper end (nats)")
    return axes


def _decades(low: float, high: float) -> list[float]:
    """Return 0 and powers of ten between two ends, every second one if there are many."""
    powers = [10.0**power for power in range(-1, 1 + math.ceil(math.log10(max(-low, high, 1.0))))]
    inside = [side * value for side in (-1, 1) for value in powers if low <= side * value <= high]
    if len(inside) > _MOST_DECADES:
        inside = [value for value in inside if abs(value) in powers[1::2]]
    return sorted([0.0, *inside])


def plot_latent_posteriors(
    result: LatentPosteriors, axes: Axes | None = None, *, names: Sequence[str] | None = None, dims: Sequence[int] = ()
) -> Axes:
    """Plot the posterior of each chosen datum in each latent dimension, in front of the prior's range in grey.

    A thin line is the 5 to 95 % range, a thick one the quartiles, a mark the median. Each dimension has its own scale,
    on which -1 and 1 are its 5 and 95 % quantiles, 0 lies between.

    Args:
        result: Posteriors of at most 8 data.
        axes: Axes to draw in; None for new ones.
        names: Names of the data; None for their numbers.
        dims: Dimensions that are shown; all, up to 12, if empty.

    Raises:
        ValueError: If there are more than 8 data.
    """
    count = result.posterior.shape[1]
    if count > _MOST_LINES:
        raise ValueError(f"at most {_MOST_LINES} posteriors can be told apart, got {count}; choose fewer data")
    dims = list(dims) or list(range(len(result.names)))[:12]
    axes = new_axes(1.3 + len(dims) * (0.16 + 0.11 * count)) if axes is None else axes
    low, high = result.prior[0, dims], result.prior[-1, dims]
    half = ((high - low) / 2).clamp_min(1e-300)
    prior = ((result.prior[:, dims] - (low + high) / 2) / half).numpy()
    posterior = ((result.posterior[:, :, dims] - (low + high) / 2) / half).numpy()
    for row in range(len(dims)):
        for first, last, grey in ((0, 4, "0.92"), (1, 3, "0.8")):
            width = prior[last, row] - prior[first, row]
            axes.barh(row, width, left=prior[first, row], height=0.92, color=grey, linewidth=0, zorder=0)
    shifts = (np.arange(count) - (count - 1) / 2) * 0.8 / max(count, 2)
    for n, shift in enumerate(shifts):
        place, colour = np.arange(len(dims)) + shift, COLOURS[(0, 2, 3, 4, 1, 5, 6, 7)[n]]
        axes.hlines(place, posterior[0, n], posterior[4, n], color=colour, linewidth=1)
        axes.hlines(place, posterior[1, n], posterior[3, n], color=colour, linewidth=3)
        label = short_name(str(n) if names is None else names[n], 12)
        style: dict[str, Any] = {"markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot(posterior[2, n], place, _MARKS[n], color=colour, label=label, **style)
    axes.set_yticks(range(len(dims)), [short_name(result.names[j]) for j in dims], fontsize=9)
    axes.set_ylim(len(dims) - 0.4, -0.6)
    axes.set_xlabel("z; the prior's 5 and 95 %\nare at \N{MINUS SIGN}1 and 1")
    columns = 4 if names is None or max(map(len, names)) <= 7 else 2
    above: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.45, 1.0)}
    axes.legend(frameon=False, ncols=columns, fontsize=9, handletextpad=0.1, **above)
    return axes


def plot_pca_alignment(result: PCAAlignment, axes: Axes | None = None, *, labels: Sequence[str] | None = None) -> Axes:
    """Plot |cos| of the angle between each latent axis and its principal component.

    Args:
        result: Alignment.
        axes: Axes to draw in; None for new ones.
        labels: Names of the latents; None for "z[0]", ...
    """
    count = len(result.cosines)
    axes = new_axes(1.2 + _ROW * count) if axes is None else axes
    known = result.component >= 0
    rows = np.arange(count)
    axes.barh(rows, result.cosines.nan_to_num(0.0).numpy(), color=COLOURS[1], height=0.7)
    names = [f"z[{j}]" for j in range(count)] if labels is None else list(labels)
    texts = [
        f"{short_name(name, 12)}, PC {int(c) + 1}" if yes else f"{short_name(name, 12)}, no axis"
        for name, c, yes in zip(names, result.component, known, strict=True)
    ]
    axes.set_yticks(rows, texts, fontsize=9)
    axes.set(xlim=(0, 1), ylim=(count - 0.4, -0.6), xlabel="|cos| of the angle between axis and component")
    axes.set_title(f"mean {result.mean_cosine:.2f}; subspaces at most {result.largest_angle:.1f}° apart", fontsize=10)
    return axes
