"""Pictures of a training by epoch: codes, and decoded draws."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from pyrovae.diagnostics import Snapshot
from pyrovae.plots.base import COLOURS, WIDTH, new_axes, short_name
from pyrovae.plots.latents import class_style, classes_of, prior_contours
from pyrovae.plots.tiles import cell_table, is_image

_PER_ROW = 3
_LETTERS_PER_ROW, _PER_COLUMN = 62, 5  # of a legend
_SIZE = 7  # of a point
_BESIDE, _BELOW, _LINE_CELL = 1.2, 0.4, 0.4  # inches: room beside and below cells, height of a cell with a line


def plot_codes_by_epoch(
    snapshots: Mapping[int, Snapshot],
    *,
    dims: tuple[int, int] = (0, 1),
    labels: Tensor | None = None,
    names: Sequence[str] | None = None,
    best_epoch: int | None = None,
    draws: bool = False,
) -> Figure:
    """Plot codes of the same data at each epoch, over grey regions that hold 50, 90 and 99 % of the prior then.

    All panels have the same limits, which hold all codes and 99 % of the prior in each dimension.

    How to read it: codes begin close together, where the encoder's first weights put them. In a training that succeeds
    they spread out as far as the prior, and classes part. Codes that stay together are collapsed; codes beyond the
    grey are where the prior never draws.

    Args:
        snapshots: Snapshots by epoch, in order; epoch 0 is before training.
        dims: The two dimensions.
        labels: Class of each datum, with shape (N,), negative where unknown; None for one colour. Up to 20 are told
            apart, by colour and mark.
        names: Names of the classes; None for their numbers.
        best_epoch: Epoch whose weights the model has in the end; None to mark none.
        draws: Whether to plot one draw of q(z|x) per datum, not its mean.

    Raises:
        ValueError: If there are no snapshots.
    """
    _check(snapshots)
    places = list(dims)
    codes = {e: (one.draw if draws else one.mean)[:, places].numpy() for e, one in snapshots.items()}
    priors = {e: one.prior[:, places].numpy() for e, one in snapshots.items()}
    known = torch.full((len(next(iter(codes.values()))),), -1) if labels is None else labels
    classes = classes_of(known)
    rows = -(-len(codes) // _PER_ROW)
    figure = Figure(figsize=(WIDTH, 0.5 + 1.5 * rows), layout="constrained")
    panels = figure.subplots(rows, _PER_ROW, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, epoch in zip(panels, codes, strict=False):
        prior_contours(axes, priors[epoch], filled=True)
        _scatter(axes, codes[epoch], known.numpy(), classes)
        axes.set_title(_title(epoch, best_epoch), fontsize=9)
        axes.tick_params(labelsize=8)
    for axes in panels[len(codes) :]:
        axes.set_axis_off()
    for axes in panels[max(0, len(codes) - _PER_ROW) : len(codes)]:  # the last of each column
        axes.tick_params(labelbottom=True)
    every = np.concatenate([*codes.values(), *(np.quantile(prior, [0.005, 0.995], 0) for prior in priors.values())])
    low, high = every.min(0), every.max(0)
    margin = 0.04 * np.maximum(high - low, 1e-6)
    panels[0].set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
    label = next(iter(snapshots.values())).names
    figure.supxlabel(short_name(label[dims[0]]), fontsize=10)
    figure.supylabel(short_name(label[dims[1]]), fontsize=10)
    if classes:
        _class_legend(figure, list(panels[len(codes) :]), classes, names)
    return figure


def _scatter(axes: Axes, z: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> None:
    rest = ~np.isin(labels, classes)
    style: dict[str, Any] = {"s": _SIZE, "linewidths": 0}
    axes.scatter(*z[rest].T, color=COLOURS[0 if not classes else -1], **style)
    for place, label in enumerate(classes):
        colour, marker = class_style(place)
        axes.scatter(*z[labels == label].T, color=colour, marker=marker, **style)


def _class_legend(figure: Figure, free: Sequence[Axes], classes: Sequence[int], names: Sequence[str] | None) -> None:
    """Put the names of the classes into free panels, or above all panels."""
    texts = [str(label) if names is None else short_name(names[label], 12) for label in classes]
    styles = [class_style(place) for place in range(len(classes))]
    handles = [Line2D([], [], linestyle="", markersize=5, color=colour, marker=marker) for colour, marker in styles]
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "handletextpad": 0.1, "handlelength": 1.2}
    if len(free) > 1 and len(classes) <= 2 * _PER_COLUMN:
        found = free[0].legend(
            handles, texts, loc="upper left", ncols=-(-len(classes) // _PER_COLUMN), columnspacing=1.0, **style
        )
        found.set_in_layout(False)
        return
    columns = max(1, min(len(classes), _LETTERS_PER_ROW // (5 + max(map(len, texts)))))
    figure.legend(handles, texts, loc="outside upper center", ncols=columns, columnspacing=0.7, **style)


def plot_samples_by_epoch(
    snapshots: Mapping[int, Snapshot],
    shape: Sequence[int],
    axes: Axes | None = None,
    *,
    limits: tuple[float, float] | None = None,
    best_epoch: int | None = None,
) -> Axes:
    """Plot the means E[x|z] of the same draws of the prior, one row for each epoch.

    Args:
        snapshots: Snapshots by epoch, in order; epoch 0 is before training.
        shape: Shape of one datum. (H, W), (1, H, W) and (3, H, W) are images, others lines over their columns.
        axes: Axes to draw in; None for new ones.
        limits: Smallest and largest value of data, to which means are cut; None for no limits.
        best_epoch: Epoch whose weights the model has in the end; None to mark none.

    Raises:
        ValueError: If there are no snapshots, or no means in them.
    """
    _check(snapshots)
    return _by_epoch(
        {epoch: one.samples for epoch, one in snapshots.items()},
        shape,
        axes,
        limits=limits,
        best_epoch=best_epoch,
        xlabel="draws of the prior, decoded",
    )


def plot_reconstructions_by_epoch(
    snapshots: Mapping[int, Snapshot],
    x: Tensor,
    shape: Sequence[int],
    axes: Axes | None = None,
    *,
    best_epoch: int | None = None,
) -> Axes:
    """Plot data above their reconstructions, the means E[x|z] at one draw z of q(z|x), one row for each epoch.

    Args:
        snapshots: Snapshots by epoch, in order; epoch 0 is before training.
        x: Data of the snapshots, with shape (N, D), NaN where missing.
        shape: Shape of one datum. (H, W), (1, H, W) and (3, H, W) are images, others lines over their columns.
        axes: Axes to draw in; None for new ones.
        best_epoch: Epoch whose weights the model has in the end; None to mark none.

    Raises:
        ValueError: If there are no snapshots, or no means in them.
    """
    _check(snapshots)
    seen = x[~x.isnan()]
    return _by_epoch(
        {epoch: one.reconstructions for epoch, one in snapshots.items()},
        shape,
        axes,
        limits=(float(seen.min()), float(seen.max())),
        best_epoch=best_epoch,
        xlabel="data, and their reconstructions",
        above=x,
    )


def _by_epoch(
    means: Mapping[int, Tensor],
    shape: Sequence[int],
    axes: Axes | None,
    *,
    limits: tuple[float, float] | None,
    best_epoch: int | None,
    xlabel: str,
    above: Tensor | None = None,
) -> Axes:
    count = len(next(iter(means.values())))
    if not count:
        raise ValueError("the snapshots have no decoded means, so there is nothing to plot; see `take_snapshot`")
    cells = torch.stack(list(means.values()))
    cells = torch.where(cells.isfinite(), cells, torch.nan)
    if limits is not None:
        cells = cells.clamp(*limits)
    rows = [f"{epoch or 'untrained'}{', kept' if epoch == best_epoch else ''}" for epoch in means]
    if above is not None:
        cells, rows = torch.cat([above[None, :count].to(cells), cells]), ["data", *rows]
    if axes is None:
        cell = (WIDTH - _BESIDE) / count
        axes = new_axes(_BELOW + len(cells) * (cell * shape[-2] / shape[-1] if is_image(shape) else _LINE_CELL))
    axes = cell_table(axes, cells, shape, rows=rows, columns=[], xlabel=xlabel)
    axes.set_ylabel("epoch")
    return axes


def _title(epoch: int, best_epoch: int | None) -> str:
    text = f"epoch {epoch}" if epoch else "untrained"
    return f"{text}, kept" if epoch == best_epoch else text


def _check(snapshots: Mapping[int, Snapshot]) -> None:
    if not snapshots:
        raise ValueError("there are no snapshots to plot; train again, or give those of another run")
