"""Pictures of latent space: codes beside the prior, and decoded places."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy.stats import gaussian_kde
from torch import Tensor

from pyrovae.diagnostics import Codes, CodesPCA, DecodedGrid
from pyrovae.plots.base import COLOURS, MOST_MARKS, new_axes, short_name
from pyrovae.plots.tiles import draw_cells

_SHARES = (0.99, 0.9, 0.5)  # of the prior inside its contours
_GREYS = ("0.93", "0.86", "0.78")  # of these regions
_MARKS = "os^Dv<>Ph*"
_MOST_LABELS = 20
_KDE_DRAWS, _KDE_STEPS = 3000, 40
_WIDEN = 1.5  # times the usual width of the kernel, for smooth lines


def plot_codes(
    codes: Codes | CodesPCA,
    axes: Axes | None = None,
    *,
    dims: tuple[int, int] = (0, 1),
    labels: Tensor | None = None,
    names: Sequence[str] | None = None,
    draws: bool = False,
) -> Axes:
    """Plot the codes of data in two dimensions, by label, with contours that hold 50, 90 and 99 % of the prior.

    Args:
        codes: Codes of N data, or their principal components.
        axes: Axes to draw in; None for new ones.
        dims: The two dimensions.
        labels: Class of each datum, with shape (N,), negative where unknown; None for one colour. Up to 20 are told
            apart, by colour and mark.
        names: Names of the classes; None for their numbers.
        draws: Whether to plot one draw of q(z|x) per datum, which alone is comparable with the prior, not its mean.

    Returns:
        The axes.
    """
    axes = new_axes(4.2) if axes is None else axes
    z = (codes.draw if draws else codes.mean)[:, dims].numpy()
    prior_contours(axes, codes.prior[:, dims].numpy())
    known = torch.full((len(z),), -1) if labels is None else labels
    classes = classes_of(known)
    rest = ~np.isin(known.numpy(), classes)
    style: dict[str, Any] = {"s": 14, "linewidths": 0, "alpha": 0.75, "rasterized": len(z) > MOST_MARKS}
    axes.scatter(*z[rest].T, color=COLOURS[0 if not classes else -1], **style)
    box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "alpha": 0.8, "linewidth": 0}
    for place, label in enumerate(classes):
        some = z[known.numpy() == label]
        colour, marker = class_style(place)
        axes.scatter(*some.T, color=colour, marker=marker, **style)
    for label in classes:  # above all points
        name = str(label) if names is None else names[label]
        x, y = np.median(z[known.numpy() == label], 0)
        axes.text(x, y, short_name(name, 12), ha="center", va="center", weight="bold", bbox=box)
    axes.set(xlabel=codes.names[dims[0]], ylabel=codes.names[dims[1]])
    return axes


def classes_of(labels: Tensor) -> list[int]:
    """List the known classes among labels; empty if there are more than 20, which cannot be told apart."""
    classes = [int(label) for label in labels.unique().tolist() if label >= 0]
    return classes if len(classes) <= _MOST_LABELS else []


def class_style(place: int) -> tuple[str, str]:
    """Return the colour and the mark of a class, given its place among all."""
    marker = _MARKS[(place + place // len(COLOURS)) % len(_MARKS)]
    return COLOURS[place % len(COLOURS)], marker


def prior_contours(axes: Axes, prior: np.ndarray, *, filled: bool = False) -> None:
    """Draw the smallest regions that hold shares of the prior, from a kernel estimate of its density.

    Args:
        axes: Axes to draw in.
        prior: Draws of the prior, with shape (M, 2).
        filled: Whether to fill the regions with greys, instead of labelled lines.
    """
    low, high = np.quantile(prior, [0.0005, 0.9995], 0)
    if not (high > low).all():
        return
    low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
    density = gaussian_kde(prior[:_KDE_DRAWS].T, lambda kde: _WIDEN * kde.scotts_factor())
    x, y = (np.linspace(low[j], high[j], _KDE_STEPS) for j in (0, 1))
    values = density(np.stack([each.ravel() for each in np.meshgrid(x, y)])).reshape(len(y), len(x))
    levels = np.quantile(density(prior[: _KDE_STEPS**2].T), [1 - share for share in _SHARES])
    if filled and (np.diff(levels) > 0).all():
        axes.contourf(x, y, values, levels=[*levels, np.inf], colors=_GREYS)
    elif (np.diff(levels) > 0).all():
        lines = axes.contour(x, y, values, levels=levels, colors="0.35", linewidths=0.9, linestyles=["-", "--", ":"])
        texts = {level: f"{100 * share:.0f} %" for level, share in zip(levels, _SHARES, strict=True)}
        axes.clabel(lines, fmt=texts, fontsize=8, inline_spacing=2, rightside_up=True)


def plot_decoded_grid(grid: DecodedGrid, shape: Sequence[int], axes: Axes | None = None) -> Axes:
    """Plot decoded places of latent space, images as they are, other data as lines over their columns.

    Lines of skewed positive means show log(1 + x).

    The axes are linear in the places' number, not in z, and are labelled with z.

    Args:
        grid: Decoded grid.
        shape: Shape of one datum. (H, W), (1, H, W) and (3, H, W) are images.
        axes: Axes to draw in; None for new ones.

    Returns:
        The axes.
    """
    axes = new_axes(4.4) if axes is None else axes
    rows, columns, _ = grid.means.shape
    draw_cells(axes, grid.means.flip(0), shape)  # the largest y is on top
    for axis, places, number in ((axes.xaxis, grid.x, columns), (axes.yaxis, grid.y, rows)):
        chosen = sorted({0, number // 4, number // 2, (3 * number) // 4, number - 1})
        axis.set_ticks([place + 0.5 for place in chosen], [_number(float(places[place])) for place in chosen])
    axes.set(xlabel=grid.names[0], ylabel=grid.names[1])
    return axes


def _number(value: float) -> str:
    return f"{value:.2g}".replace("-", "\N{MINUS SIGN}")


def plot_columns(data: Tensor, draws: Tensor, axes: Axes | None = None, *, names: Sequence[str] | None = None) -> Axes:
    """Plot quantiles of each column: data beside draws from the model. Counts have a logarithmic axis, log(1 + x).

    A thin line is the 5 to 95 % range, a thick one the quartiles, a dot the median. Columns whose units differ are in
    units of the data: (x - median) / standard deviation.

    Args:
        data: Data, with shape (N, D), NaN where missing.
        draws: Draws from the model, with shape (M, D).
        axes: Axes to draw in; None for new ones.
        names: Names of the columns, whose units may then differ; None for their numbers and one unit.

    Returns:
        The axes.
    """
    columns = data.shape[1]
    axes = new_axes(0.9 + 0.3 * columns if names else 3.2) if axes is None else axes
    data, draws = data.double(), draws.double()
    counts = names is None and bool(((data >= 0) & (data == data.floor()) | data.isnan()).all())
    if names is not None:
        centre, spread = data.nanmedian(0).values, _spread(data)
        data, draws = (data - centre) / spread, (draws - centre) / spread
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    for shift, values, colour, label in ((-0.18, data, "0.35", "data"), (0.18, draws, COLOURS[2], "model")):
        quantiles = torch.nanquantile(values, levels, dim=0).numpy()
        place = np.arange(columns) + shift
        line = axes.hlines if names else axes.vlines
        line(place, quantiles[0], quantiles[4], color=colour, linewidth=1)
        line(place, quantiles[1], quantiles[3], color=colour, linewidth=3 if columns <= 40 else 1.5)
        dots = (quantiles[2], place) if names else (place, quantiles[2])
        axes.plot(*dots, "o", color=colour, markersize=4 if columns <= 40 else 2, label=label)
    if names:
        axes.set_yticks(range(columns), [short_name(name) for name in names])
        axes.set_ylim(columns - 0.4, -0.6)
        axes.set_xlabel("(x - median) / sd of the data")
    else:
        axes.set(xlabel="column", ylabel="value")
        if counts:
            axes.set_yscale("symlog", linthresh=1)
            axes.set_ylim(-0.2, None)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return axes


def _spread(data: Tensor) -> Tensor:
    seen = ~data.isnan()
    mean = data.nanmean(0)
    variance = torch.where(seen, data - mean, 0.0).square().sum(0) / seen.sum(0).clamp(min=1)
    return variance.sqrt().where(variance > 0, torch.ones_like(mean)).nan_to_num(1.0)
