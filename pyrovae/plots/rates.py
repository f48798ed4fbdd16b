"""Picture of reconstruction against KL divergence for several trainings."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from pyrovae.plots.base import COLOURS, new_axes
from pyrovae.training import History


def plot_rates(results: Mapping[float, History], axes: Axes | None = None) -> Axes:
    """Plot E log p(x|z) against KL(q(z|x), p(z)) of the validation data at the best epoch, for several weights beta.

    How to read it: to the right the code costs more and the reconstruction is better. Grey lines are of equal ELBO,
    higher ones better; their slope is 1. Along the curve of the best pairs the slope is beta, so that the ELBO is best
    at beta = 1, if the trainings came to their optimum. A point below the curve of the others is a training that did
    not. Points near KL = 0 have collapsed latents.

    Sources: Higgins et al. 2017, "beta-VAE"; Alemi et al. 2018, "Fixing a broken ELBO",
    https://arxiv.org/abs/1711.00464, which plots minus the reconstruction (distortion) against the rate.

    Args:
        results: History of the training with each weight beta of the KL divergence.
        axes: Axes to draw in; None for new ones.

    Returns:
        The axes.

    Raises:
        ValueError: If a history has no parts of the validation ELBO.
    """
    points = []
    for beta in sorted(results):
        row = results[beta].rows[results[beta].best_epoch - 1]
        if row.get("validation_kl") is None or row.get("validation_reconstruction") is None:
            raise ValueError(f"the history of beta = {beta:g} has no validation KL; train with validation data")
        points.append((row["validation_kl"], row["validation_reconstruction"]))
    axes = new_axes(3.6) if axes is None else axes
    kl, reconstruction = np.array(points).T
    axes.plot(kl, reconstruction, "o-", color=COLOURS[0], linewidth=1.2)
    axes.margins(0.14)
    for beta, x, y in zip(sorted(results), kl, reconstruction, strict=True):
        axes.annotate(f"{beta:g}", (x, y), (-5, 5), textcoords="offset points", ha="right", va="bottom", fontsize=9)
    best = (reconstruction - kl).max()
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    step = max((high - low + right - left) / 6, 1e-9)
    for count in range(-6, 7):
        elbo = best + count * step
        axes.plot([left, right], [elbo + left, elbo + right], color="0.85", linewidth=0.8, zorder=0)
    axes.set(xlim=(left, right), ylim=(low, high))
    axes.set(xlabel="KL(q, p) per datum (nats)", ylabel="E log p(x|z) per datum (nats)")
    axes.set_title(f"numbers: beta; largest ELBO {best:.2f} nats", fontsize=10)
    return axes
