"""Pictures of columns: data beside draws from the model, one column or two at a time, by the kind of the column."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from pyrovae.columns import LEVELLED, Column, date_text
from pyrovae.plots.base import COLOURS, legend_above, new_axes, short_name

DATA, MODEL = "0.55", COLOURS[2]
_BINS, _MOST_BARS, _MOST_LEVELS, _MOST_POINTS = 25, 30, 10, 400
_FEW_LEVELS = 6  # with letters of full size
_WIDE = 10.0  # largest value over median from which positive numbers have a logarithmic axis

Scale = Literal["linear", "log", "log1p"]


def plot_marginal(data: Tensor, draws: Tensor, axes: Axes | None = None, *, column: Column | None = None) -> Axes:
    """Plot the distribution of one column: data, filled, beside draws from the model, outlined.

    How to read it: both agree if the model gives the column the right distribution; the dependence between columns is
    not seen (`plot_pair`). Numbers have histograms, levels have bars of their shares, the most frequent first. Skewed
    counts have an axis of log(1 + x), skewed positive numbers one of log x. Shares are of the observed cells; below the
    axis are the share of missing cells, if any, and that of draws beyond the axis. All missing cells are drawn.

    Source: the marginals and their layout are descriptive; for a test, use `pit` with `plot_pit`.

    Args:
        data: Values of the column, with shape (N,), NaN where missing; codes for levels.
        draws: Draws from the model, with shape (M,).
        axes: Axes to draw in; None for new ones.
        column: Name, kind and levels; None for numbers without a name, which are counts if the data are.

    Returns:
        The axes.

    Raises:
        ValueError: If there are no draws.
    """
    x, drawn = _values(data), _values(draws)
    if not len(drawn):
        raise ValueError("there are no draws to plot beside the data; draw some from the model")
    levels = () if column is None else column.levels
    levelled = column is not None and column.kind in LEVELLED
    axes = new_axes(1.2 + 0.28 * min(len(levels), _MOST_LEVELS + 1) if levelled else 2.9) if axes is None else axes
    missing = 1 - len(x) / max(1, data.numel())
    notes = [f"{_percent(missing)} missing"] if missing else []
    if levelled:
        _draw_levels(axes, x, drawn, levels or tuple(map(str, range(int(max(*x, *drawn)) + 1))))
        axes.set_xlabel(", ".join(["share", *notes]), fontsize=9)
    else:
        notes += _draw_histograms(axes, x, drawn, column)
        axes.set_xlabel("\n".join(notes) or " ", fontsize=9)
        axes.set_ylabel("share")
    axes.set_title("column" if column is None else short_name(column.name, 24), fontsize=10, loc="left", pad=20)
    axes.legend(
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        fontsize=8,
        borderpad=0.2,
        borderaxespad=0.1,
        handlelength=1.2,
    )
    return axes


def plot_pair(
    data: Tensor, draws: Tensor, axes: Axes | None = None, *, columns: Sequence[Column] | None = None
) -> Axes:
    """Plot two columns against each other: data and as many draws from the model, at most 400 of each.

    How to read it: both clouds have one shape if the model has the dependence of the two columns right. Levels are
    spread around their place, so that points do not cover each other. Axes are as in `plot_marginal`.

    Args:
        data: Values of the two columns, with shape (N, 2), NaN where missing. Only complete pairs are drawn.
        draws: Draws from the model, with shape (M, 2).
        axes: Axes to draw in; None for new ones.
        columns: The two columns; None for numbers.

    Returns:
        The axes.

    Raises:
        ValueError: If there are no draws.
    """
    axes = new_axes(3.9) if axes is None else axes
    both = []
    for values in (data, draws):
        known = values.detach().cpu().double().numpy()
        both.append(known[~np.isnan(known).any(1)])
    x, drawn = both
    if not len(drawn):
        raise ValueError("there are no draws to plot beside the data; draw some from the model")
    count = min(len(x) or len(drawn), len(drawn), _MOST_POINTS)
    generator = np.random.default_rng(0)
    places = []
    for values in (x, drawn):
        some = values[np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)]
        jitter = generator.uniform(-0.3, 0.3, some.shape)
        spread = [columns is not None and columns[d].kind in LEVELLED for d in (0, 1)]
        places.append(some + jitter * spread)
    for points, colour, marker, label in ((places[0], DATA, "o", "data"), (places[1], MODEL, "x", "model")):
        size: dict[str, Any] = {"s": 9, "linewidths": 0} if marker == "o" else {"s": 11, "linewidths": 0.7}
        axes.scatter(*points.T, color=colour, marker=marker, alpha=0.7, label=label, rasterized=True, **size)
    for d, axis in enumerate((axes.xaxis, axes.yaxis)):
        column = None if columns is None else columns[d]
        _set_axis(axes, "xy"[d], column, x[:, d], drawn[:, d])
        axis.set_label_text(f"column {d}" if column is None else short_name(column.name))
    legend_above(axes)
    return axes


def plot_recovered(data: Tensor, means: Tensor, axes: Axes | None = None, *, column: Column | None = None) -> Axes:
    """Plot the reconstruction E[x|z] of one column, z from q(z|x), against the data.

    How to read it: on the diagonal the latents keep the value. A flat cloud at the mean says that they keep nothing of
    this column: the number is the correlation. Noise of p(x|z) makes the cloud flatter than the diagonal also under a
    perfect model.

    Args:
        data: Values of the column, with shape (N,), NaN where missing.
        means: Reconstructions, with shape (N,).
        axes: Axes to draw in; None for new ones.
        column: Name and kind; None for numbers without a name.

    Returns:
        The axes.
    """
    axes = new_axes(3.4) if axes is None else axes
    x, y = (values.detach().cpu().double().flatten().numpy() for values in (data, means))
    seen = ~np.isnan(x) & np.isfinite(y)
    x, y = x[seen], y[seen]
    few = np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).round().astype(int) if len(x) else np.arange(0)
    axes.scatter(x[few], y[few], s=9, linewidths=0, alpha=0.7, color=COLOURS[0], rasterized=True)
    if len(x):
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axes.plot(ends, ends, color="0.6", linewidth=0.9)
    for name in ("x", "y"):
        _set_axis(axes, name, column, x, y)
    varies = len(x) > 1 and x.std() > 0 and y.std() > 1e-12
    correlation = f"r = {np.corrcoef(x, y)[0, 1]:.2f}" if varies else "r unknown"
    axes.set_title(f"{'column' if column is None else short_name(column.name)}, {correlation}", fontsize=10, loc="left")
    axes.set(xlabel="data", ylabel="E[x|z]")
    return axes


def scale_of(column: Column | None, x: np.ndarray) -> Scale:
    """Choose the scale of the axis of a column from its data, with shape (N,), none missing."""
    kind = kind_of(column, x)
    if not len(x) or kind not in ("count", "positive") or x.max() <= _WIDE * max(np.median(x), 1.0 * (kind == "count")):
        return "linear"
    return "log1p" if kind == "count" or x.min() <= 0 else "log"


def kind_of(column: Column | None, x: np.ndarray) -> str:
    """Return the kind of a column; without one, numbers are "count" if the data are whole and not negative."""
    if column is not None:
        return column.kind
    return "count" if len(x) and bool((x >= 0).all() and (x == np.floor(x)).all()) else "real"


def _values(values: Tensor) -> np.ndarray:
    found = values.detach().cpu().double().flatten().numpy()
    return found[~np.isnan(found)]


def _draw_levels(axes: Axes, x: np.ndarray, drawn: np.ndarray, levels: Sequence[str]) -> None:
    """Draw the shares of levels as horizontal bars, the most frequent in the data on top; rare ones joined."""
    count = len(levels)
    shares = [np.bincount(values.astype(int), minlength=count)[:count] / max(1, len(values)) for values in (x, drawn)]
    order = np.argsort(-shares[0], kind="stable")
    named, rest = (order, order[:0]) if count <= _MOST_LEVELS + 1 else (order[:_MOST_LEVELS], order[_MOST_LEVELS:])
    labels = [short_name(levels[code], 16) for code in named] + ([f"{len(rest)} others"] if len(rest) else [])
    place = np.arange(len(labels))
    for share, shift, colour in ((shares[0], -0.2, DATA), (shares[1], 0.2, MODEL)):
        heights = np.append(share[named], [share[rest].sum()] if len(rest) else [])
        axes.barh(place + shift, heights, height=0.38, color=colour, label="data" if shift < 0 else "model")
    axes.set_yticks(place, labels, fontsize=9 if len(labels) <= _FEW_LEVELS else 7)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _draw_histograms(axes: Axes, x: np.ndarray, drawn: np.ndarray, column: Column | None) -> list[str]:
    """Draw histograms of numbers with common bins; return the shares beyond the axis, in words."""
    scale, kind = scale_of(column, x), kind_of(column, x)
    low, high = _reach(x, drawn)
    if kind == "count" and scale == "linear" and high - low <= _MOST_BARS:
        edges = np.arange(math.floor(low), math.floor(high) + 2) - 0.5
    elif scale == "log":
        edges = np.geomspace(max(low, x.min() / 10), high, _BINS + 1)
    elif scale == "log1p":
        edges = np.unique(np.ceil(np.expm1(np.linspace(0, math.log1p(high + 1), _BINS + 1))))
        edges = edges - 0.5 if kind == "count" else edges
    else:
        step = max(1, math.ceil((high - low) / _BINS)) if kind == "count" else 0
        edges = np.arange(low, high + step + 1, step) - 0.5 if step else np.linspace(low, high, _BINS + 1)
    for values, label in ((x, "data"), (drawn, "model")):
        heights = np.histogram(values, edges)[0] / max(1, len(values))
        style: dict[str, Any] = {"color": DATA, "fill": True, "alpha": 0.6} if label == "data" else {"color": MODEL}
        axes.stairs(heights, edges, label=label, linewidth=1.5, **style)
    _set_axis(axes, "x", column, x, drawn)
    axes.set_xlim(edges[0], edges[-1])
    beyond = float(((drawn < edges[0]) | (drawn > edges[-1])).mean())
    return [f"{_percent(beyond)} of draws beyond"] if beyond else []


def _reach(x: np.ndarray, drawn: np.ndarray) -> tuple[float, float]:
    """Return the ends of the axis: all data, and all draws but 0.5 % on each side; (0, 1) if there are none."""
    finite = drawn[np.isfinite(drawn)]
    if not len(x) and not len(finite):  # a likelihood may have no mean
        return 0.0, 1.0
    ends = np.quantile(finite if len(finite) else x, [0.005, 0.995], method="nearest")
    low, high = (min(x.min(), ends[0]), max(x.max(), ends[1])) if len(x) else ends
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(high) + 0.5)


def _set_axis(axes: Axes, name: str, column: Column | None, x: np.ndarray, drawn: np.ndarray) -> None:
    """Set scale, limits and tick labels of the axis "x" or "y" for a column."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    if column is not None and column.kind in LEVELLED:
        levels = column.levels or tuple(map(str, range(int(max(*x, *drawn)) + 1)))
        chosen = np.arange(0, len(levels), math.ceil(len(levels) / _MOST_LEVELS))
        texts = [short_name(levels[code], 12) for code in chosen]
        turn, size = 90 if name == "x" and max(map(len, texts)) > 3 else 0, 9 if len(texts) <= _FEW_LEVELS else 7
        axis.set_ticks(chosen.tolist(), texts, rotation=turn, fontsize=size)
        (axes.set_xlim if name == "x" else axes.set_ylim)(-0.6, len(levels) - 0.4)
        return
    scale = scale_of(column, x)
    low, high = _reach(x, drawn)
    if scale == "linear":
        axis.set_major_locator(MaxNLocator(4))
        margin = 0.04 * (high - low)
        (axes.set_xlim if name == "x" else axes.set_ylim)(low - margin, high + margin)
    else:
        options: dict[str, Any] = {"linthresh": 1} if scale == "log1p" else {}
        (axes.set_xscale if name == "x" else axes.set_yscale)("symlog" if scale == "log1p" else "log", **options)
        start = -0.3 if scale == "log1p" else max(low, x.min() / 10) / 1.1
        (axes.set_xlim if name == "x" else axes.set_ylim)(start, 1.1 * high + 0.5 * (scale == "log1p"))
    if column is not None and (column.format or column.origin) and scale == "linear":
        origin, form = column.origin, column.format
        axis.set_major_formatter(
            FuncFormatter(lambda value, _: date_text(value + origin, "date") if form else f"{value + origin:g}")
        )
        if form and name == "x":
            axis.set_major_locator(MaxNLocator(3))
            axis.set_tick_params(rotation=20, labelsize=8)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "< 0.1 %"
