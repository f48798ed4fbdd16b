"""Pictures of calibration: ECDFs of ranks and PIT values as differences from uniform, with their bands."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes

from pyrovae.diagnostics import PIT, Calibration, Uniformity, WeightedCalibration, check_uniform, holm
from pyrovae.plots.base import COLOURS, legend_above, new_axes, p_text, short_name

_FEW, _MOST_POINTS = 3, 50  # curves with all points; points of each of more curves
_MOST_NAMED = 6  # curves that the legend names
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))


def plot_uniformity(result: Uniformity, axes: Axes | None = None, *, name: str = "ECDF") -> Axes:
    """Plot the ECDF of ranks or PIT values minus that of a uniform distribution, with its simultaneous band.

    How to read it: a curve inside the band is uniform as far as N values can tell. A curve that is above 0 throughout
    says that the values crowd at 0: the distribution that they were ranked in lies too high; below 0, too low. Below
    first and then above (an S) says that values crowd in the middle: the distribution is too wide. Above and then below
    says that it is too narrow. The legend names the shape.

    Source: Saeilynoja, Buerkner and Vehtari 2022, https://doi.org/10.1007/s11222-022-10090-6.

    Args:
        result: Test of uniformity.
        axes: Axes to draw in; None for new ones.
        name: Name of the values.

    Returns:
        The axes.
    """
    return _plot_differences({name: result}, {name: result.p_value}, axes, "rank / (number of draws + 1), or PIT")


def plot_calibration(result: Calibration | WeightedCalibration, axes: Axes | None = None) -> Axes:
    """Plot the ECDFs of a calibration, one curve for each quantity, as differences from uniform.

    How to read it: as `plot_uniformity`. Curves in colour are those whose p-value, adjusted for the number of
    quantities, is at most 5 % (or 1 - level), worst first, with the fault of the guide's distribution. A grey curve may
    leave the band, since the band is for one quantity. Of weights no curve should leave it, whatever the guide is.

    Sources: Talts et al. 2018, https://arxiv.org/abs/1804.06788; bands as `plot_uniformity`.

    Args:
        result: Result of `sbc` or `weighted_sbc`.
        axes: Axes to draw in; None for new ones.

    Returns:
        The axes.
    """
    weighted = isinstance(result, WeightedCalibration)
    label = "weight of draws below the true value" if weighted else "share of draws below the true value"
    return _plot_differences(result.uniformity, result.adjusted, axes, label)


def plot_pit(
    result: PIT,
    axes: Axes | None = None,
    *,
    names: Sequence[str] | None = None,
    level: float = 0.95,
    num_curves: int | None = None,
) -> Axes:
    """Plot the ECDF of the PIT values of each column as a difference from uniform.

    How to read it: as `plot_uniformity`; the distribution is the model's predictive distribution of the column. "Too
    narrow" says that the data have more spread than the model gives. p-values are adjusted for the number of columns
    (`holm`).

    Sources: Dunn and Smyth 1996, https://doi.org/10.1080/10618600.1996.10474708; bands as `plot_uniformity`.

    Args:
        result: PIT values of N data with D columns.
        axes: Axes to draw in; None for new ones.
        names: Names of the columns; None for their numbers.
        level: Probability of the bands.
        num_curves: Largest number of curves, those with the smallest p-values; None for all.

    Returns:
        The axes.

    Raises:
        ValueError: If no column has an observed value, or the names are not D.
    """
    columns = result.value.unbind(1)
    if names is not None and len(names) != len(columns):
        raise ValueError(f"names must be those of {len(columns)} columns, got {len(names)}; give one for each")
    tests = {}
    for place, column in enumerate(columns):
        seen = column[~column.isnan()]
        if len(seen):
            tests[f"column {place}" if names is None else names[place]] = check_uniform(seen, level=level)
    if not tests:
        raise ValueError("no column has an observed value, so there is no PIT to plot")
    adjusted = holm(torch.tensor([test.p_value for test in tests.values()], dtype=torch.float64))
    p_values = dict(zip(tests, adjusted.tolist(), strict=True))
    shown = list(tests)
    if num_curves is not None:
        shown = sorted(tests, key=lambda name: (p_values[name], tests[name].p_value))[:num_curves]
    axes = _plot_differences({name: tests[name] for name in shown}, p_values, axes, "PIT value")
    if len(shown) < len(tests):
        axes.set_xlabel(f"PIT value ({len(shown)} of {len(tests):,} columns)")
    return axes


def _plot_differences(
    tests: Mapping[str, Uniformity], adjusted: Mapping[str, float], axes: Axes | None, label: str
) -> Axes:
    """Plot curves and their band, and name those whose adjusted p-value rejects, the smallest first."""
    alpha = 1 - next(iter(tests.values())).level
    rejected = sorted((name for name in tests if adjusted[name] <= alpha), key=lambda name: adjusted[name])
    named = rejected[:_MOST_NAMED]
    axes = new_axes(3.3 + 0.2 * len(named)) if axes is None else axes
    _draw_bands(axes, tests)
    axes.axhline(0, color="0.4", linewidth=0.8)
    rest = [name for name in tests if name not in named]
    smallest = min((adjusted[name] for name in rest), default=1.0)
    for place, name in enumerate(rest):
        over = name in rejected
        words = (
            f"{len(rest):,} others" if named else short_name(name, 24) if len(rest) == 1 else f"{len(rest):,} curves"
        )
        curve_label = f"{words}, {'' if len(rest) == 1 else 'smallest '}{p_text(smallest)}" if place == 0 else None
        colour = COLOURS[2] if over else COLOURS[0] if len(tests) == 1 else "0.45"
        width = 0.8 if len(tests) > 1 else 1.5
        _draw_curve(axes, tests[name], colour, width, "-", curve_label, many=len(tests) > _FEW)
    for place, name in enumerate(named):
        words = f"{short_name(name, 24)}: {tests[name].shape}, {p_text(adjusted[name])}"
        _draw_curve(axes, tests[name], COLOURS[(2, 0, 3, 5, 6, 7)[place]], 1.6, _LINES[place], words)
    axes.set(xlabel=label, ylabel="ECDF minus uniform", xlim=(0, 1))
    axes.margins(y=0.08)
    legend_above(axes, columns=1)
    return axes


def _draw_bands(axes: Axes, tests: Mapping[str, Uniformity]) -> None:
    """Fill the band of the largest number of values, and a lighter one of the smallest number."""
    by_size = {test.num_data: test for test in tests.values()}
    sizes = sorted({min(by_size), max(by_size)})
    for size, colour in zip(sizes, ("0.92", "0.84") if len(sizes) > 1 else ("0.84",), strict=True):
        test = by_size[size]
        x, lower, upper = (_closed(part, ends) for part, ends in ((test.points, 1.0), (test.lower, 0), (test.upper, 0)))
        axes.fill_between(
            x, lower, upper, color=colour, linewidth=0, label=f"{100 * test.level:g} % band, N = {size:,}"
        )


def _draw_curve(
    axes: Axes,
    test: Uniformity,
    colour: str,
    width: float,
    style: str | tuple[int, tuple[int, int]],
    label: str | None,
    *,
    many: bool = False,
) -> None:
    """Draw a curve, of many every few points."""
    line: dict[str, Any] = {"color": colour, "linewidth": width, "linestyle": style}
    every = slice(None, None, max(1, (len(test.points) + 1) // _MOST_POINTS if many else 1))
    axes.plot(_closed(test.points[every], 1.0), _closed(test.difference[every], 0.0), label=label, **line)


def _closed(values: torch.Tensor, end: float) -> torch.Tensor:
    """Add the ends of the curve at 0 and 1, where the difference is 0."""
    return torch.cat([values.new_zeros(1), values, values.new_full((1,), end)])
