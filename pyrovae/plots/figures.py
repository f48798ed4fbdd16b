"""Draws from the model, reconstructions, and figures of them for images."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from pyro import poutine
from torch import Tensor

from pyrovae.densities import Program, evaluating, isolated_rng, sample_sites

_PANEL = 4.2  # width of a panel, in inches
# Limits of one figure.
_MOST_INCHES, _MOST_DATA, _MOST_NUMBERS = 200, 1000, 5_000_000


def prior_samples(model: Program, x: Tensor, *, seed: int, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Draw N data from the model, z from p(z) and x from p(x|z).

    Args:
        model: Pyro program p(z) p(x|z), with one observed site.
        x: Data, with shape (N, D); only their shape is used.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of the model.

    Returns:
        The draws, and the means E[x|z], each with shape (N, D).
    """
    with evaluating(model), isolated_rng(seed):
        name = _observed_site(poutine.trace(model).get_trace(x, **kwargs))
        site = sample_sites(poutine.trace(poutine.uncondition(model)).get_trace(x, **kwargs))[name]
        return site["value"], _mean(site["fn"])


def reconstructions(model: Program, guide: Program, x: Tensor, *, seed: int, **kwargs: Any) -> Tensor:
    """Reconstruct data by one draw from q(z|x) and the mean of p(x|z).

    Args:
        model: Pyro program p(z) p(x|z), with one observed site.
        guide: Pyro program q(z|x), with the model's arguments.
        x: Data, with shape (N, D).
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of both programs.

    Returns:
        The means E[x|z], with shape (N, D).
    """
    with evaluating(model, guide), isolated_rng(seed):
        guide_trace = poutine.trace(guide).get_trace(x, **kwargs)
        trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x, **kwargs)
        return _mean(sample_sites(trace)[_observed_site(trace)]["fn"])


def num_per_figure(shape: Sequence[int], *, columns: int = 8) -> int:
    """Compute how many data `plot_grids` shows in one figure of moderate memory and at most 30,000 pixels of height."""
    numbers = max(1, math.prod(shape))
    rows = int(_MOST_INCHES * columns / _PANEL * shape[-1] / shape[-2]) if len(shape) > 1 else _MOST_DATA
    return max(8 * columns, min(_MOST_DATA, _MOST_NUMBERS // numbers, rows * columns) // columns * columns)


def plot_grids(panels: Sequence[tuple[str, Tensor]], shape: Sequence[int], *, columns: int = 8) -> Figure:
    """Plot panels of images side by side, each as a grid, all on one grey scale. Missing entries stay empty.

    Data that are no images have `plot_samples` and `plot_reconstructions`.

    Args:
        panels: Title and data, with shape (N, D), NaN where missing, of each panel.
        shape: Shape of one datum: (H, W), (1, H, W) or (3, H, W).
        columns: Number of data per row of a grid.

    Raises:
        ValueError: If the shape is another.
    """
    if not (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))):
        raise ValueError(f"data of shape {tuple(shape)} are no images; use plot_samples or plot_reconstructions")
    seen = [x[~x.isnan()] for _, x in panels]
    low = min((float(x.min()) for x in seen if len(x)), default=0.0)
    high = max((float(x.max()) for x in seen if len(x)), default=1.0)
    rows = math.ceil(max(len(x) for _, x in panels) / columns)
    height = _PANEL * rows / columns * shape[-2] / shape[-1] + (0.4 if any(title for title, _ in panels) else 0.0)
    figure = Figure(figsize=(_PANEL * len(panels), height), layout="constrained")
    for axes, (title, x) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        values = x.detach().cpu().float()
        axes.set_title(title, fontsize=10)
        grid = _tile((values - low) / max(high - low, 1e-12), shape, columns)
        axes.imshow(grid, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
    return figure


def _observed_site(trace: poutine.Trace) -> str:
    """Return the name of the first observed site."""
    return next(name for name, site in sample_sites(trace).items() if site["is_observed"])


def _mean(distribution: Any) -> Tensor:
    """Return the mean, or the average of 100 draws if the distribution has no closed form for it."""
    try:
        return distribution.mean
    except NotImplementedError:
        return distribution.sample((100,)).mean(0)


def _tile(values: Tensor, shape: Sequence[int], columns: int) -> np.ndarray:
    """Arrange flat images, with shape (N, D) and values in [0, 1], in one image with white lines between them."""
    channels, height, width = (1, *shape) if len(shape) == 2 else shape
    rows = math.ceil(len(values) / columns)
    grid = torch.ones(channels, rows * (height + 1) - 1, columns * (width + 1) - 1)
    for index, image in enumerate(values.reshape(-1, channels, height, width)):
        top, left = (index // columns) * (height + 1), (index % columns) * (width + 1)
        grid[:, top : top + height, left : left + width] = image
    return (grid[0] if channels == 1 else grid.permute(1, 2, 0)).numpy()
