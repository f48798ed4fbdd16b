"""Figures of data that are no images, beside draws and reconstructions: quantiles and single columns."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyrovae.columns import LEVELLED, Column
from pyrovae.plots.latents import plot_columns
from pyrovae.plots.tables import plot_marginal, plot_pair, plot_recovered

_PER_ROW, _PANEL_WIDTH, _PANEL_HEIGHT = 4, 2.3, 2.2  # inches
_MOST_PANELS, _MOST_PAIRS = 12, 5


def plot_samples(data: Tensor, draws: Tensor, *, columns: Sequence[Column] | None = None) -> Figure:
    """Plot draws from the model beside data that are no images: quantiles of each column, and marginals of up to 12.

    How to read it: as `plot_columns` and `plot_marginal`. Of more than 12 columns those with marginals are evenly
    spaced.

    Args:
        data: Data, with shape (N, D), NaN where missing.
        draws: Draws, with shape (M, D).
        columns: The columns of a table; None for numbers without names.
    """
    numbers = [d for d in range(data.shape[1]) if columns is None or columns[d].kind not in LEVELLED]
    names = None if columns is None else [columns[d].name for d in numbers]
    top_height = 0.0 if len(numbers) < 2 else 3.2 if names is None else 0.9 + 0.3 * len(numbers)
    places = _evenly(data.shape[1], _MOST_PANELS)
    figure, top, panels = _figure(top_height, places)
    if top is not None:
        overview = plot_columns(data[:, numbers], draws[:, numbers], top.subplots(), names=names)
        if names is None:
            overview.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    for d, axes in zip(places, panels, strict=True):
        plot_marginal(data[:, d], draws[:, d], axes, column=None if columns is None else columns[d])
        if columns is None:
            axes.set_title(f"column {d}", fontsize=10, loc="left", pad=20)
    return figure


def plot_reconstructions(data: Tensor, means: Tensor, *, columns: Sequence[Column] | None = None) -> Figure:
    """Plot reconstructions E[x|z] against data that are no images, for up to 12 columns of numbers.

    How to read it: as `plot_recovered`. Of more than 12 columns those shown are evenly spaced.

    Args:
        data: Data, with shape (N, D), NaN where missing.
        means: Reconstructions, with shape (N, D).
        columns: The columns of a table, whose levels have no mean and are left out; None for numbers without names.

    Raises:
        ValueError: If no column has numbers.
    """
    numbers = [d for d in range(data.shape[1]) if columns is None or columns[d].kind not in LEVELLED]
    if not numbers:
        raise ValueError("no column has numbers, so there are no means to plot; compare shares of levels")
    places = [numbers[k] for k in _evenly(len(numbers), _MOST_PANELS)]
    figure, _, panels = _figure(0.0, places)
    for d, axes in zip(places, panels, strict=True):
        plot_recovered(data[:, d], means[:, d], axes, column=None if columns is None else columns[d])
        if columns is None:
            axes.set_title(axes.get_title("left").replace("column", f"column {d}"), fontsize=10, loc="left")
    return figure


def plot_pairs(
    data: Tensor, draws: Tensor, *, columns: Sequence[Column] | None = None, places: Sequence[int] | None = None
) -> Figure:
    """Plot up to five columns against each other, data beside draws, with the marginals on the diagonal.

    How to read it: as `plot_pair` and `plot_marginal`.

    Args:
        data: Data, with shape (N, D), NaN where missing.
        draws: Draws from the model, with shape (M, D).
        columns: The columns of a table; None for numbers without names.
        places: Numbers of the columns, at most 5; None for the first ones.

    Raises:
        ValueError: If there are more than five places.
    """
    chosen = list(range(min(data.shape[1], _MOST_PAIRS))) if places is None else list(places)
    if not 1 <= len(chosen) <= _MOST_PAIRS:
        raise ValueError(f"places must be 1 to {_MOST_PAIRS} columns, got {len(chosen)}; choose some")
    size = len(chosen)
    figure = Figure(figsize=(2.5 * size + 0.3, 2.4 * size + 0.3), layout="constrained")
    grid = np.atleast_2d(figure.subplots(size, size, squeeze=False))
    for row, j in enumerate(chosen):
        for place, k in enumerate(chosen):
            axes = grid[row, place]
            if place > row:
                axes.set_axis_off()
            elif place == row:
                plot_marginal(data[:, j], draws[:, j], axes, column=None if columns is None else columns[j])
                if columns is None:
                    axes.set_title(f"column {j}", fontsize=10, loc="left", pad=20)
            else:
                both = [k, j]
                plot_pair(data[:, both], draws[:, both], axes, columns=columns and [columns[d] for d in both])
                axes.get_legend().remove()
                if columns is None:
                    axes.set(xlabel=f"column {k}", ylabel=f"column {j}")
    return figure


def _figure(top_height: float, places: Sequence[int]) -> tuple[Figure, SubFigure | None, list[Axes]]:
    """Make a figure with a picture on top, if it has a height in inches, and panels in rows of four below."""
    per_row = min(_PER_ROW, len(places))
    rows = math.ceil(len(places) / per_row)
    below = rows * _PANEL_HEIGHT
    figure = Figure(figsize=(max(per_row * _PANEL_WIDTH, 4.6), top_height + below), layout="constrained")
    if top_height:
        parts: Any = figure.subfigures(2, 1, height_ratios=[top_height, below])
        top, bottom = parts
        found = list(bottom.subplots(rows, per_row, squeeze=False).flat)
    else:
        top, found = None, list(figure.subplots(rows, per_row, squeeze=False).flat)
    for axes in found[len(places) :]:
        axes.set_axis_off()
    return figure, top, found[: len(places)]


def _evenly(size: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, size - 1, min(size, most)).round().astype(int)).tolist()
