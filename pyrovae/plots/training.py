"""Curves of a training: the ELBO and its parts over the epochs."""

import math
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pyrovae.plots.base import COLOURS, new_axes
from pyrovae.training import History

_NAMES = {"elbo": "ELBO", "reconstruction": "E log p(x|z)", "kl": "KL(q, p)"}


def plot_history(
    history: History, axes: Axes | None = None, *, part: Literal["elbo", "reconstruction", "kl"] = "elbo"
) -> Axes:
    """Plot the ELBO, or a part of it, against the epoch, and mark the best epoch.

    Args:
        history: History of a training.
        axes: Axes to draw in; None for new ones.
        part: "elbo", for training and validation data, or its "reconstruction" or "kl", for validation data.

    Returns:
        The axes.
    """
    axes = new_axes() if axes is None else axes
    shown = []
    if part == "elbo":
        train = [math.nan if value is None else value for value in history["train_elbo"]]
        if any(map(math.isfinite, train)):
            axes.plot(history["epoch"], train, label="train (running)", color="0.6", linestyle="--")
        shown += train
    validation = [math.nan if value is None else value for value in history[f"validation_{part}"]]
    shown += validation
    if any(map(math.isfinite, validation)):
        axes.plot(history["epoch"], validation, label="validation", color=COLOURS[0])
        best = validation[history.best_epoch - 1]
        axes.plot(history.best_epoch, best, "o", color=COLOURS[0], label=f"best epoch, {history.best_epoch}")
    # The first epochs lie far below the rest and would compress it.
    skipped, size = len(history) // 10, len(history)
    tail = [value for place, value in enumerate(shown) if math.isfinite(value) and place % size >= skipped]
    if tail and min(tail) < max(tail):
        margin = 0.05 * (max(tail) - min(tail))
        axes.set_ylim(min(tail) - margin, max(tail) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel="epoch", ylabel=f"{_NAMES[part]} per datum (nats)")
    axes.legend(loc="lower right" if part == "elbo" else "best", frameon=False)
    return axes
