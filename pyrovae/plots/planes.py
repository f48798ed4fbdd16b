"""Pictures of a plane of codes: k-hat of each datum, and t-SNE; and the curve of an ascent."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyrovae.diagnostics import Ascent, Codes, CodesPCA, CodesTSNE, KhatMap
from pyrovae.plots.base import COLOURS, MOST_MARKS, figure_of, new_axes, short_name

_MARKS = "os^Dv<>Ph*"
_STEPS = 10  # colours from 0 to 1


def plot_khat_plane(
    result: KhatMap, codes: Codes | CodesPCA, axes: Axes | None = None, *, dims: tuple[int, int] = (0, 1)
) -> Axes:
    """Plot the mean codes of data in two dimensions, coloured by k-hat; data above the limit have a red triangle.

    Colours have steps of a tenth, and end at 0 and 1. With one latent, k-hat is plotted against it.

    Args:
        result: k-hat of N data.
        codes: Codes of the same data, or their principal components.
        axes: Axes to draw in; None for new ones.
        dims: The two dimensions.

    Raises:
        ValueError: If the two are not of as many data.
    """
    if len(result.khat) != len(codes.mean):
        raise ValueError(f"k-hat of {len(result.khat)} data needs codes of the same, got {len(codes.mean)}")
    axes = new_axes(4.2) if axes is None else axes
    khat, bad = result.khat.clamp(0, 1).numpy(), (result.khat > result.limit).numpy()
    single = codes.mean.shape[1] == 1
    x = codes.mean[:, 0 if single else dims[0]].numpy()
    y = khat if single else codes.mean[:, dims[1]].numpy()
    colours = matplotlib.colormaps["cividis"].resampled(_STEPS)
    step = np.minimum((_STEPS * np.nan_to_num(khat)).astype(int), _STEPS - 1)
    for here, marker, size in ((~bad & ~np.isnan(khat), "o", 16), (bad, "^", 34)):
        for each in np.unique(step[here]):  # points of one colour take few bytes
            some = here & (step == each)
            axes.scatter(
                x[some],
                y[some],
                color=colours(int(each)),
                marker=marker,
                s=size,
                linewidths=0.9 if marker == "^" else 0,
                edgecolors=COLOURS[2] if marker == "^" else "none",
                rasterized=len(khat) > MOST_MARKS,
            )
    axes.set_xlabel(short_name(codes.names[0 if single else dims[0]], 30))
    axes.set_ylabel("k-hat" if single else short_name(codes.names[dims[1]], 30))
    if single:
        axes.axhline(result.limit, color="0.35", linewidth=1, linestyle="--")
    else:
        scale = ScalarMappable(Normalize(0, 1), colours)
        bar = figure_of(axes).colorbar(scale, ax=axes, label="k-hat", shrink=0.8)
        bar.ax.axhline(result.limit, color=COLOURS[2], linewidth=2)
    share = f"{result.num_unreliable} of {len(khat)} above the limit, {result.limit:.2f}"
    axes.set_title(share, fontsize=10)
    return axes


def plot_tsne(
    result: CodesTSNE, axes: Axes | None = None, *, labels: Tensor | None = None, names: Sequence[str] | None = None
) -> Axes:
    """Plot t-SNE of codes by label, with its caution below.

    Args:
        result: t-SNE.
        axes: Axes to draw in; None for new ones.
        labels: Class of each datum, with shape (N,), negative where unknown; None for one colour. The first 20 are told
            apart.
        names: Names of the classes; None for their numbers.
    """
    axes = new_axes(5.0) if axes is None else axes
    z = result.places.numpy()
    known = np.full(len(z), -1) if labels is None else labels[: len(z)].numpy()
    classes = [label for label in np.unique(known).tolist() if label >= 0][:20]
    rest = ~np.isin(known, classes)
    if rest.any():
        axes.scatter(
            z[rest, 0],
            z[rest, 1],
            s=14,
            linewidths=0,
            color="0.6" if classes else COLOURS[0],
            rasterized=len(z) > MOST_MARKS,
        )
    for place, label in enumerate(classes):
        name = short_name(str(label) if names is None else names[label], 12)
        marker = _MARKS[(place + place // len(COLOURS)) % len(_MARKS)]
        axes.scatter(
            z[known == label, 0],
            z[known == label, 1],
            s=16,
            linewidths=0,
            color=COLOURS[place % len(COLOURS)],
            marker=marker,
            label=name,
            rasterized=len(z) > MOST_MARKS,
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"t-SNE, perplexity {result.perplexity:g}: not a map", fontsize=10)
    axes.set_xlabel(textwrap.fill(result.caution, 62), fontsize=8.5, loc="left")
    if classes:
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.1)
    return axes


def plot_ascent(result: Ascent, axes: Axes | None = None) -> Axes:
    """Plot predicted and measured property along an ascent, beside the data: mean and one standard deviation.

    The measured curve, of decoded means, is the one to believe. Where it leaves the predicted one, the climb follows
    faults of the predictor.

    Args:
        result: Ascent.
        axes: Axes to draw in; None for new ones.
    """
    axes = new_axes(3.4) if axes is None else axes
    steps = torch.arange(len(result.z)).numpy()
    axes.axhspan(
        result.centre - result.spread, result.centre + result.spread, color="0.9", linewidth=0, label="data, mean ± sd"
    )
    axes.axhline(result.centre, color="0.6", linewidth=1)
    axes.plot(steps, result.predicted.numpy(), "--", color=COLOURS[2], label="predicted")
    axes.plot(steps, result.measured.numpy(), "o-", color=COLOURS[0], markersize=3, label="measured on decoded means")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel="step", ylabel="property")
    gains = f"gain {result.measured_gain:.3g} measured, {result.predicted_gain:.3g} predicted"
    axes.set_title(f"{gains};\nR² of the predictor at left-out data {result.skill:.2f}", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return axes
