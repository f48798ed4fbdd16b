"""Rootograms of counts."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator
from torch import Tensor

from pyrovae.plots.base import COLOURS, legend_above, new_axes, short_name

_SINGLE = 30  # counts up to which each has a bar
_JOINED = 20  # bars beyond
_SIMULATIONS = 4000


def plot_rootogram(data: Tensor, draws: Tensor, axes: Axes | None = None, *, name: str = "count") -> Axes:
    """Plot a hanging rootogram: square roots of the frequencies of counts, hung from those that the model expects.

    How to read it: the curve is the square root of the expected number of data with each count, and a bar hangs down
    from it by the square root of the observed number. A bar that ends above 0 is a count that the data have less often
    than the model, one that ends below 0 more often. The grey steps hold the ends of about 95 % of the bars, each by
    itself, if the model is right and the values are independent. The square root makes all bars equally exact. Right
    of the dotted line, beyond 30, a bar has several counts, the more the larger they are.

    Source: Kleiber and Zeileis 2016, "Visualizing count data regressions using rootograms",
    https://doi.org/10.1080/00031305.2016.1173590. Here the expected frequencies are those of draws, whose number M
    widens the steps: they are quantiles of a binomial number whose probability has the distribution Beta(m + 1/2,
    M - m + 1/2) after m of M draws.

    Args:
        data: Counts, with any shape, NaN where missing.
        draws: Draws of them from the model, with any shape.
        axes: Axes to draw in; None for new ones.
        name: Name of the counts.

    Returns:
        The axes.

    Raises:
        ValueError: If there are no data or no draws, or values are no counts.
    """
    x, drawn = (_counts(values, what) for values, what in ((data, "data"), (draws, "draws")))
    axes = new_axes(3.3) if axes is None else axes
    edges = count_edges(int(max(x.max(), drawn.max())))
    observed, shares = (np.histogram(values, edges)[0] for values in (x, drawn))
    expected = np.sqrt(shares * (len(x) / len(drawn)))
    place = np.arange(len(observed))
    bottom = expected - np.sqrt(observed)
    axes.bar(place, np.sqrt(observed), bottom=bottom, width=0.8, color=COLOURS[1], edgecolor="0.3", linewidth=0.4)
    lower, upper = _ends(shares, len(drawn), len(x))
    steps = np.arange(len(observed) + 1) - 0.5
    axes.stairs(
        expected - np.sqrt(lower), steps, baseline=expected - np.sqrt(upper), fill=True, color="0.3", alpha=0.35
    )
    axes.fill_between([], [], color="0.3", alpha=0.35, linewidth=0, label="95 % of ends, if right")
    axes.plot(place, expected, "o-", color=COLOURS[2], markersize=3, linewidth=1.2, label="expected by the model")
    axes.axhline(0, color="0.2", linewidth=0.9)
    wanted = np.unique(np.linspace(0, len(place) - 1, min(len(place), 9)).round().astype(int))
    ends = [(edges[k], edges[k + 1] - 1) for k in wanted]
    ticks = [f"{first:,.0f}" + (f"\N{EN DASH}{last:,.0f}" if last > first else "") for first, last in ends]
    if edges[-1] > _SINGLE + 1:
        axes.axvline(_SINGLE + 0.5, color="0.3", linewidth=0.8, linestyle=":")
    axes.xaxis.set_major_locator(FixedLocator(wanted.tolist()))
    axes.set_xticklabels(
        ticks, rotation=0 if edges[-1] <= _SINGLE + 1 else 30, ha="center" if edges[-1] <= _SINGLE + 1 else "right"
    )
    axes.set(xlabel=short_name(name, 28), ylabel="square root of frequency", xlim=(-0.7, len(place) - 0.3))
    legend_above(axes)
    return axes


def count_edges(largest: int) -> np.ndarray:
    """Return edges of bins of the counts 0, ..., largest: single ones up to 30, then 20 bins of growing width."""
    single = np.arange(min(largest, _SINGLE) + 2, dtype=float)
    if largest <= _SINGLE:
        return single
    beyond = np.ceil(np.geomspace(_SINGLE + 1, largest + 1, _JOINED + 1))
    return np.unique(np.concatenate([single, beyond]))


def _counts(values: Tensor, what: str) -> np.ndarray:
    found = values.detach().cpu().double().flatten().numpy()
    found = found[~np.isnan(found)]
    if not len(found):
        raise ValueError(f"a rootogram needs {what}, but there are none")
    if (found < 0).any() or (found != np.floor(found)).any():
        raise ValueError(f"a rootogram needs counts 0, 1, 2, ..., but the {what} have other values; use plot_marginal")
    return found


def _ends(shares: np.ndarray, num_draws: int, num_data: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 2.5 and 97.5 % quantiles of the number of data in each bin, given numbers of draws there."""
    generator = np.random.default_rng(0)
    p = generator.beta(shares + 0.5, num_draws - shares + 0.5, (_SIMULATIONS, len(shares)))
    return tuple(np.quantile(generator.binomial(num_data, p), [0.025, 0.975], axis=0, method="inverted_cdf"))
