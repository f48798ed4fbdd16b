"""Tables of decoded data: images as they are, other data as lines over their columns."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn.functional import pad

from pyrovae.diagnostics import Ascent, AttributeSteps, Interpolation, LabelGrids, Redraws, Traversals
from pyrovae.plots.base import COLOURS, WIDTH, new_axes, short_name

_LINE_CELL = 0.5  # inches: height of a cell with a line
_MARGIN = 0.8  # inches beside and below the cells
_HIGHEST = 9.0  # inches


def is_image(shape: Sequence[int]) -> bool:
    """Whether data of a shape are plotted as images."""
    return (len(shape) == 2 and min(shape) > 1) or (len(shape) == 3 and shape[0] in (1, 3))


def is_skewed(values: Tensor) -> bool:
    """Whether values are positive and some are far above most, so that log(1 + x) shows more of them."""
    return bool((values >= 0).all()) and float(values.max()) > 10 * max(1.0, float(values.median()))


def draw_cells(axes: Axes, means: Tensor, shape: Sequence[int]) -> None:
    """Draw data with shape (R, C, D) in R rows from the top and C columns. Cells are unit squares.

    All cells have one grey scale, or one scale of lines. Lines of skewed positive data show log(1 + x). Missing entries
    (NaN) stay empty.

    Args:
        axes: Axes to draw in.
        means: Data, with shape (R, C, D).
        shape: Shape of one datum. (H, W), (1, H, W) and (3, H, W) are images.
    """
    rows, columns, size = means.shape
    seen = means[~means.isnan()]
    shown = means.log1p() if not is_image(shape) and is_skewed(seen) else means
    low, high = float(shown.nan_to_num(torch.inf).min()), float(shown.nan_to_num(-torch.inf).max())
    scaled = ((shown - low) / max(high - low, 1e-12)).float()
    if is_image(shape):
        channels, height, width = (1, *shape) if len(shape) == 2 else shape
        tiles = pad(scaled.nan_to_num(1.0).reshape(rows, columns, channels, height, width), (0, 1, 0, 1), value=1.0)
        picture = tiles.permute(0, 3, 1, 4, 2).reshape(rows * (height + 1), columns * (width + 1), channels).numpy()
        axes.imshow(
            picture.squeeze(-1) if channels == 1 else picture,
            cmap="gray",
            vmin=0,
            vmax=1,
            extent=(0, columns, 0, rows),
            aspect=height / width,
            interpolation="none",
        )
        return
    steps = np.linspace(0.08, 0.92, size) if size > 1 else np.array([0.5])
    for row in range(rows):
        for column in range(columns):
            line = rows - 1 - row + 0.08 + 0.84 * scaled[row, column].numpy()
            axes.plot(column + steps, line, color=COLOURS[0], linewidth=0.7, marker="." if size == 1 else None)
    axes.set(xlim=(0, columns), ylim=(0, rows))
    for row in range(1, rows):
        axes.axhline(row, color="0.85", linewidth=0.5)
    for column in range(1, columns):
        axes.axvline(column, color="0.85", linewidth=0.5)


def cell_table(
    axes: Axes | None,
    means: Tensor,
    shape: Sequence[int],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    xlabel: str,
) -> Axes:
    """Draw a table of data with names of its rows and columns."""
    if axes is None:
        cell = (WIDTH - _MARGIN) / means.shape[1]
        cell = cell * shape[-2] / shape[-1] if is_image(shape) else _LINE_CELL
        axes = new_axes(min(_HIGHEST, _MARGIN + cell * len(means)))
    draw_cells(axes, means, shape)
    count = len(rows)
    axes.set_yticks([count - row - 0.5 for row in range(count)], list(rows), fontsize=9)
    axes.set_xticks([column + 0.5 for column in range(len(columns))], list(columns), fontsize=9)
    axes.tick_params(length=0)
    axes.set_xlabel(xlabel)
    return axes


def plot_traversals(result: Traversals, shape: Sequence[int], axes: Axes | None = None) -> Axes:
    """Plot decoded walks along latent dimensions, one row for each, by falling KL divergence in nats.

    Args:
        result: Traversals.
        shape: Shape of one datum. (H, W), (1, H, W) and (3, H, W) are images, others lines over their columns.
        axes: Axes to draw in; None for new ones.
    """
    said = ["KL unknown" if kl.isnan() else f"{float(kl):.2f} nats" for kl in result.kl]
    rows = [f"{short_name(name)}\n{text}" for name, text in zip(result.names, said, strict=True)]
    columns = [f"{100 * float(level):.3g}" for level in result.levels]
    return cell_table(axes, result.means, shape, rows=rows, columns=columns, xlabel="quantile of the prior (%)")


def plot_interpolation(
    result: Interpolation, shape: Sequence[int], axes: Axes | None = None, *, names: tuple[str, str] | None = None
) -> Axes:
    """Plot decoded means between two places, one row for each way.

    Args:
        result: Interpolation.
        shape: Shape of one datum. (H, W), (1, H, W) and (3, H, W) are images, others lines over their columns.
        axes: Axes to draw in; None for new ones.
        names: Names of the two ends; None for none.
    """
    xlabel = "share of the way (%)"
    if names is not None:
        xlabel += f", from {short_name(names[0])} to {short_name(names[1])}"
    columns = [f"{100 * float(share):.0f}" for share in result.share]
    return cell_table(axes, result.means, shape, rows=result.kinds, columns=columns, xlabel=xlabel)


def plot_attribute_steps(result: AttributeSteps, shape: Sequence[int], axes: Axes | None = None) -> Axes:
    """Plot decoded steps along an attribute's vector, balanced and unbalanced.

    Args:
        result: Decoded steps.
        shape: Shape of one datum. (H, W), (1, H, W) and (3, H, W) are images, others lines over their columns.
        axes: Axes to draw in; None for new ones.
    """
    columns = [f"{float(step):g}".replace("-", "\N{MINUS SIGN}") for step in result.steps]
    return cell_table(
        axes, result.means, shape, rows=result.ways, columns=columns, xlabel="multiple of the vector added"
    )


def plot_ascent_path(result: Ascent, shape: Sequence[int], axes: Axes | None = None, *, num_steps: int = 8) -> Axes:
    """Plot decoded means on the path of an ascent, from the start to the end, with the measured property.

    Args:
        result: Ascent.
        shape: Shape of one datum. (H, W), (1, H, W) and (3, H, W) are images, others lines over their columns.
        axes: Axes to draw in; None for new ones.
        num_steps: Largest number of steps that are shown.
    """
    chosen = torch.linspace(0, len(result.z) - 1, min(num_steps, len(result.z))).round().long()
    columns = [f"{float(value):.3g}".replace("-", "\N{MINUS SIGN}") for value in result.measured[chosen]]
    return cell_table(axes, result.means[chosen][None], shape, rows=[""], columns=columns, xlabel="measured property")


def plot_redraws(result: Redraws, shape: Sequence[int], axes: Axes | None = None, *, columns: int = 8) -> Axes:
    """Plot a datum, in a frame, and its reconstructions from many draws of its code.

    Args:
        result: Redrawn codes of one datum.
        shape: Shape of one datum. (H, W), (1, H, W) and (3, H, W) are images, others lines over their columns.
        axes: Axes to draw in; None for new ones.
        columns: Number of data per row.
    """
    all_of_them = torch.cat([result.x[None], result.means])
    empty = torch.full((-len(all_of_them) % columns, all_of_them.shape[1]), torch.nan, dtype=torch.float64)
    cells = torch.cat([all_of_them, empty]).reshape(-1, columns, all_of_them.shape[1])
    rows = ["datum"] + [""] * (len(cells) - 1)
    axes = cell_table(axes, cells, shape, rows=rows, columns=[], xlabel=f"{len(result.means)} draws of q(z|x), decoded")
    frame = Rectangle(
        (0, len(cells) - 1), 1, 1, fill=False, edgecolor=COLOURS[2], linewidth=2.5, clip_on=False, zorder=4
    )
    axes.add_patch(frame)
    return axes


def plot_label_grids(
    result: LabelGrids, shape: Sequence[int], axes: Axes | None = None, *, columns: int | None = None
) -> Axes:
    """Plot the decoded grid of each label, side by side, all on one scale. Places rise to the right and to the top.

    Args:
        result: Decoded grids by label.
        shape: Shape of one datum. (H, W), (1, H, W) and (3, H, W) are images, others lines over their columns.
        axes: Axes to draw in; None for new ones.
        columns: Number of grids per row; None for up to 2.
    """
    columns = min(2, len(result.grids)) if columns is None else columns
    height, width, size = result.grids[0].means.shape
    blocks = -(-len(result.grids) // columns)
    table = torch.full((blocks * (height + 1), columns * (width + 1) - 1, size), torch.nan, dtype=torch.float64)
    axes = axes or new_axes(min(_HIGHEST, 0.6 + WIDTH / columns * blocks * (height + 1) / width))
    for index, (label, grid) in enumerate(zip(result.labels, result.grids, strict=True)):
        top, left = (index // columns) * (height + 1), (index % columns) * (width + 1)
        table[top + 1 : top + 1 + height, left : left + width] = grid.means.flip(0)
        axes.text(left + width / 2, len(table) - top - 0.8, short_name(label), ha="center", va="bottom")
    draw_cells(axes, table, shape)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set(xlabel=short_name(result.grids[0].names[0]), ylabel=short_name(result.grids[0].names[1]))
    axes.spines[:].set_visible(False)
    return axes
