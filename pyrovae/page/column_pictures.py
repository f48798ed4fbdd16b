"""Pictures of columns: data that are no images beside draws from the model.

To add one, write a function from a `Fit` to blocks and add it to `COLUMN_PICTURES`. It yields nothing where the picture
makes no sense.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from pyrovae.columns import LEVELLED, Column, date_text
from pyrovae.page.blocks import Block, Cell, Folded, Number, Picture, Table
from pyrovae.page.digits import in_digits
from pyrovae.page.fit import Fit
from pyrovae.plots import is_image, plot_columns, plot_marginal, plot_pairs, plot_rootogram, plot_samples

_COLUMNS = 24  # of a table or an array in one picture
_ROOTOGRAMS, _MARGINALS, _PAIRED = 3, 6, 4  # columns
_COMPARED = 40  # columns whose dependence is compared
_SEEN_NUMBERS = 2_000_000  # of draws that are compared with data


def columns(fit: Fit) -> Iterator[Block]:
    """Columns of data beside draws from the model."""
    if is_image(fit.data.shape):
        return
    kinds = _kinds(fit)
    places = [d for d, kind in enumerate(kinds) if kind not in LEVELLED][:_COLUMNS]
    if places:
        data, drawn = fit.x[:, places], fit.many_samples[:, places]
        named = [fit.columns.names[d] for d in places] if fit.columns.in_several_units else None
        off = _largest_shift(data, drawn)
        label = _name(fit, places[off[0]])
        caption = (
            f"Columns of {len(data):,} {fit.split} data beside {len(drawn):,} draws of the model: median, quartiles, "
            "5 to 95 %."
        )
        alt = f"The medians differ most in {label}, by {off[1]:.2f} standard deviations of the data."
        yield Picture("Columns", plot_columns(data, drawn, names=named), caption, alt)
    rows = [row for d, kind in enumerate(kinds) if kind in LEVELLED for row in _shares(fit, d)]
    if rows:
        yield Table("Shares of levels, in the data and in draws from the model.", ["", "data", "model"], rows)


def rootograms(fit: Fit) -> Iterator[Block]:
    """Rootograms of counts."""
    if is_image(fit.data.shape):
        return
    counts = [d for d, kind in enumerate(_kinds(fit)) if kind == "count"]
    for d in _farthest(fit, counts, _ROOTOGRAMS):
        x, drawn = _seen(fit.x[:, d]), fit.many_samples[:, d]
        if not len(x) or not bool(((drawn >= 0) & (drawn == drawn.floor())).all()):
            continue
        gap = _gap(x, drawn)
        zeros = [float((values == 0).double().mean()) for values in (x, drawn)]
        alt = (
            f"The cumulative shares differ most, by {gap.size:.2f}, at {in_digits(gap.value, 3)}: "
            f"{100 * gap.data:.0f} % of the data are at most that, {100 * gap.draws:.0f} % of the draws. Zeros: "
            f"{100 * zeros[0]:.1f} % of the data, {100 * zeros[1]:.1f} % of the draws."
        )
        of = _of_all(len(counts), _ROOTOGRAMS)
        caption = (
            f"Counts of {_name(fit, d)}{of}: bars of the {len(x):,} data hang from what {len(drawn):,} draws of the "
            "model expect, on a square-root scale. A bar that ends below 0 is a count more frequent than the model "
            "has it. About 95 % of the bars end inside the grey steps if the model is right."
        )
        yield Picture("Rootogram", plot_rootogram(x, drawn, name=_name(fit, d)), caption, alt)


def marginals(fit: Fit) -> Iterator[Block]:
    """Distributions of columns."""
    if is_image(fit.data.shape):
        return
    kinds = _kinds(fit)
    shown = [d for d, kind in enumerate(kinds) if fit.data.table is not None or kind != "count"]
    for d in _farthest(fit, shown, _MARGINALS):
        x, drawn = fit.x[:, d], fit.many_samples[:, d]
        column = _column(fit, d) or Column(_name(fit, d), kinds[d])
        looks = ("grey bars", "red bars") if kinds[d] in LEVELLED else ("filled", "outlined")
        caption = (
            f"Shares of {_name(fit, d)}{_of_all(len(shown), _MARGINALS)} in {len(_seen(x)):,} observed {fit.split} "
            f"data, {looks[0]}, and in {len(drawn):,} draws of the model, {looks[1]}."
        )
        picture = plot_marginal(x, drawn, column=column)
        yield Picture("Distribution of a column", picture, caption, _marginal_alt(fit, d, _seen(x), drawn))


def pairs(fit: Fit) -> Iterator[Block]:
    """Pairs of columns."""
    if is_image(fit.data.shape) or not fit.x.shape[1] >= 2:
        return
    found = _dependence(fit)
    if found is None:
        return
    places, j, k, (data, model) = found
    caption = (
        f"Columns against each other, {fit.split} data (grey dots) and as many draws of the model (red crosses), with "
        "the distribution of each on the diagonal."
    )
    if len(places) < fit.x.shape[1]:
        caption += f" The {len(places)} columns whose dependence differs most, of {fit.x.shape[1]}."
    alt = (
        f"The rank correlation differs most between {_name(fit, j)} and {_name(fit, k)}: {data:.2f} in the data, "
        f"{model:.2f} in the draws."
    )
    table = None if fit.data.table is None else fit.data.table.columns.data
    picture = plot_pairs(fit.x, fit.samples, columns=table, places=places)
    yield Picture("Pairs of columns", picture, caption, alt, wide=True)


def all_columns(fit: Fit) -> Iterator[Block]:
    """Samples beside data, more columns."""
    size = fit.x.shape[1]
    if is_image(fit.data.shape) or fit.data.table is None or size <= _MARGINALS:
        return
    gaps = {d: _distance(fit, d) for d in range(size)}
    best = min(gaps, key=lambda d: gaps[d])
    caption = (
        f"All numbers by quantiles, and the distributions of {min(12, size)} columns: {fit.split} data beside "
        f"{len(fit.many_samples):,} draws of the model."
    )
    alt = (
        f"The largest difference of shares is between {gaps[best]:.2f} ({_name(fit, best)}) and "
        f"{max(gaps.values()):.2f}, over {size} columns."
    )
    picture = plot_samples(fit.x, fit.many_samples, columns=fit.data.table.columns.data)
    yield Folded("Samples beside data, more columns", [Picture("Samples", picture, caption, alt, wide=True)])


COLUMN_PICTURES: tuple[Callable[[Fit], Iterator[Block]], ...] = (columns, rootograms, marginals, pairs, all_columns)
"""Pictures of columns in the order of the page."""


class _Gap(NamedTuple):
    """Largest difference of two cumulative distributions: where, how large, and both shares of values up to there."""

    value: float
    size: float
    data: float
    draws: float


def _gap(x: Tensor, drawn: Tensor) -> _Gap:
    x, drawn = (values.double().sort().values for values in (x, drawn))
    places = torch.cat([x, drawn]).unique()
    shares = [torch.searchsorted(values, places, right=True).double() / len(values) for values in (x, drawn)]
    worst = int((shares[0] - shares[1]).abs().argmax())
    data, draws = float(shares[0][worst]), float(shares[1][worst])
    return _Gap(float(places[worst]), abs(data - draws), data, draws)


def _distance(fit: Fit, d: int) -> float:
    """Return the largest difference of shares between data and draws: of a level, or of all values up to a place."""
    x, drawn = _seen(fit.x[:, d]), _seen(fit.many_samples[:, d])
    if not len(x) or not len(drawn):
        return 0.0
    if d in fit.columns.levels:
        return float((_level_shares(fit, d, x) - _level_shares(fit, d, drawn)).abs().max())
    return _gap(x, drawn).size


def _level_shares(fit: Fit, d: int, values: Tensor) -> Tensor:
    return torch.bincount(values.long(), minlength=len(fit.columns.levels[d])).double() / len(values)


def _farthest(fit: Fit, places: list[int], count: int) -> list[int]:
    """Return at most `count` of some columns in their order, those whose data differ most from draws of the model."""
    first = places[: _SEEN_NUMBERS // len(fit.many_samples)] if len(places) > count else places
    return sorted(sorted(first, key=lambda d: (-_distance(fit, d), d))[:count]) if len(places) > count else places


def _of_all(size: int, shown: int) -> str:
    return f", one of the {shown} of {size} that are farthest off" if size > shown else ""


def _marginal_alt(fit: Fit, d: int, x: Tensor, drawn: Tensor) -> str:
    if not len(x):
        return f"0 values are observed, beside {len(drawn):,} draws."
    if d in fit.columns.levels:
        shares = [_level_shares(fit, d, values) for values in (x, _seen(drawn))]
        worst = int((shares[0] - shares[1]).abs().argmax())
        level = fit.columns.levels[d][worst]
        return (
            f"The share of {level} differs most: {100 * float(shares[0][worst]):.1f} % of the data, "
            f"{100 * float(shares[1][worst]):.1f} % of the draws."
        )
    gap, middle = _gap(x, drawn), [float(values.double().median()) for values in (x, _seen(drawn))]
    return (
        f"The medians are {_text(fit, d, middle[0])} and {_text(fit, d, middle[1])}. The cumulative shares "
        f"differ most at {_text(fit, d, gap.value)}: {100 * gap.data:.0f} % of the data lie at or below, "
        f"{100 * gap.draws:.0f} % of the draws."
    )


def _dependence(fit: Fit) -> tuple[list[int], int, int, tuple[float, float]] | None:
    """Find up to 4 columns to plot by pairs, and the pair whose rank correlation differs most; None if none is known.

    Levels without an order have no rank correlation.
    """
    kinds = _kinds(fit)
    places = [d for d, kind in enumerate(kinds) if kind != "category"][:_COMPARED]
    both = {}
    for a, j in enumerate(places):
        for k in places[a + 1 :]:
            values = [_rank_correlation(part[:, j], part[:, k]) for part in (fit.x, fit.samples)]
            if all(np.isfinite(values)):
                both[j, k] = values[0], values[1]
    if not both:
        return None
    order = sorted(both, key=lambda pair: (-abs(both[pair][0] - both[pair][1]), pair))
    chosen: list[int] = []
    for pair in order:
        chosen += [d for d in pair if d not in chosen]
    chosen += [d for d in range(len(kinds)) if d not in chosen]
    j, k = order[0]
    return sorted(chosen[:_PAIRED]), j, k, both[j, k]


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    seen = ~(a.isnan() | b.isnan())
    if int(seen.sum()) < 3:
        return float("nan")
    ranks = [rankdata(values[seen].double().numpy()) for values in (a, b)]
    if any(each.std() == 0 for each in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _seen(values: Tensor) -> Tensor:
    return values[~values.isnan()]


def _kinds(fit: Fit) -> list[str]:
    """Return the kind of each column; without a table they are all "count" or all "real"."""
    if fit.columns.of_table:
        return list(fit.columns.kinds)
    seen, drawn = _seen(fit.x), _seen(fit.samples)
    counts = all(bool(((values >= 0) & (values == values.floor())).all()) for values in (seen, drawn))
    return ["count" if counts and float(seen.max()) > 1 else "real"] * fit.x.shape[1]


def _column(fit: Fit, d: int) -> Column | None:
    return None if fit.data.table is None else fit.data.table.columns.data[d]


def _name(fit: Fit, d: int) -> str:
    return fit.columns.names[d]


def _text(fit: Fit, d: int, value: float) -> str:
    """Write a value of a column, in the unit of its source."""
    column = _column(fit, d)
    if column is None:
        return in_digits(value, 4)
    return date_text(value + column.origin, "date") if column.format else f"{value + column.origin:.6g}"


def _largest_shift(data: Tensor, draws: Tensor) -> tuple[int, float]:
    """Return the column whose median differs most, and by how many standard deviations of the data."""
    spread = (data - data.nanmean(0)).square().nanmean(0).sqrt()
    shift = (data.nanmedian(0).values - draws.nanmedian(0).values).abs() / spread.where(spread > 0, torch.ones(()))
    place = int(shift.nan_to_num(0.0).argmax())
    return place, float(shift[place])


def _shares(fit: Fit, d: int) -> list[list[Cell]]:
    assert fit.data.table is not None
    column, seen = fit.data.table.columns.data[d], _seen(fit.x[:, d])
    drawn = fit.many_samples[:, d]

    def share(values: Tensor, code: int) -> Number:
        found = float((values == code).double().mean())
        return Number(found, f"{100 * found:.1f} %")

    levels = enumerate(column.levels[:12])
    return [[f"{column.name}: {level}", share(seen, code), share(drawn, code)] for code, level in levels]
