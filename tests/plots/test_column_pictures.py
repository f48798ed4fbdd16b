"""Pictures of columns and counts: shares, scales by kind, missing cells, pairs, rootograms, and figures of samples."""

import math

import numpy as np
import pytest
import torch
from clipped_texts import clipped_texts
from scipy.stats import betabinom

from pyrovae.columns import Column
from pyrovae.plots import (
    figure_of,
    plot_grids,
    plot_marginal,
    plot_pair,
    plot_pairs,
    plot_reconstructions,
    plot_recovered,
    plot_rootogram,
    plot_samples,
)

HOSTILE = "$x^{$ <b> " + 40 * "w"
NAN = math.nan
LEVELS = tuple(f"{j}{HOSTILE}" for j in range(15))
COLUMNS = [
    Column(HOSTILE, "real"),
    Column("income", "positive"),
    Column("visits", "count"),
    Column("town", "category", levels=LEVELS),
    Column("day", "real", format="date", origin=19_000.0),
    Column("sex", "binary", levels=("f", "m")),
]


def table(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, len(COLUMNS), generator=generator)
    x = torch.stack(
        [z[:, 0], (2 * z[:, 1]).exp(), (2 * z[:, 2]).exp().floor(), z[:, 3].abs().floor(), 90 * z[:, 4], z[:, 5] > 0], 1
    )
    x[:9, 0] = NAN
    return x


def numbers(columns):
    return torch.randn(50, columns, generator=torch.Generator().manual_seed(0))


FIGURES = {
    "table": lambda: plot_samples(table(), table(80, 1), columns=COLUMNS),
    "pairs": lambda: plot_pairs(table(), table(80, 1), columns=COLUMNS, places=[0, 2, 3, 5]),
    "recovered": lambda: plot_reconstructions(table(), table(60, 1), columns=COLUMNS),
    "one column": lambda: plot_samples(numbers(1), numbers(1)),
    "40 columns": lambda: plot_samples(numbers(40), numbers(40)),
    "40 recovered": lambda: plot_reconstructions(numbers(40), numbers(40)),
    "marginal": lambda: figure_of(plot_marginal(table()[:, 3], table()[:, 3], column=COLUMNS[3])),
    "pair": lambda: figure_of(plot_pair(table()[:, [3, 0]], table()[:, [3, 0]], columns=[COLUMNS[3], COLUMNS[0]])),
    "rootogram": lambda: figure_of(plot_rootogram(torch.arange(9), torch.arange(2000), name=HOSTILE)),
}


def steps(axes):
    """Shares of data and draws in the bins of a histogram, and the edges."""
    data, model = (patch.get_data() for patch in axes.patches[:2])
    assert (data.edges == model.edges).all()
    return data.values, model.values, data.edges


SLOW = ("pairs", "40 columns", "40 recovered")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FIGURES])
@pytest.mark.thin(3)
def test_no_text_of_a_figure_is_clipped(name):
    assert clipped_texts(FIGURES[name]()) == []


def test_a_histogram_has_the_shares_of_both_and_says_what_is_missing():
    x = torch.tensor([0.0, 0, 1, 2, NAN])
    axes = plot_marginal(x, torch.tensor([0.0, 1, 1, 1]), column=Column("n", "count"))
    data, model, edges = steps(axes)
    np.testing.assert_allclose(edges, [-0.5, 0.5, 1.5, 2.5])
    np.testing.assert_allclose(data, [0.5, 0.25, 0.25])
    np.testing.assert_allclose(model, [0.25, 0.75, 0])
    assert axes.get_xlabel() == "20.0 % missing"
    assert axes.get_title("left") == "n"


def test_draws_beyond_the_axis_are_counted():
    draws = torch.cat([torch.linspace(-1, 1, 997), torch.tensor([1e9, -1e9, math.inf])])
    axes = plot_marginal(torch.linspace(-1, 1, 9), draws)
    data, model, edges = steps(axes)
    assert (edges[0], edges[-1]) == (-1, 1)
    assert data.sum() == pytest.approx(1)
    assert model.sum() == pytest.approx(0.997)
    assert axes.get_xlabel() == "0.3 % of draws beyond"
    with pytest.raises(ValueError, match="no draws to plot"):
        plot_marginal(torch.ones(3), torch.ones(0))


@pytest.mark.parametrize(
    ("kind", "values", "scale"),
    [
        ("count", [0.0, 1, 1, 2, 900], "symlog"),
        ("count", [0.0, 1, 1, 2, 9], "linear"),
        (None, [0.0, 1, 1, 2, 900], "symlog"),  # whole numbers of an array
        (None, [0.5, 1, 1, 2, 900], "linear"),
        ("positive", [0.01, 1, 1, 2, 900], "log"),
        ("positive", [0.0, 1, 1, 2, 900], "symlog"),
        ("real", [0.0, 1, 1, 2, 900], "linear"),
    ],
)
def test_the_scale_of_an_axis_follows_kind_and_skewness(kind, values, scale):
    x, column = torch.tensor(values), None if kind is None else Column("a", kind)
    axes = plot_marginal(x, x, column=column)
    assert axes.get_xscale() == scale
    data, model, _ = steps(axes)
    assert data.sum() == pytest.approx(1)
    np.testing.assert_allclose(data, model)
    assert (
        plot_pair(torch.stack([x, x], 1), torch.stack([x, x], 1), columns=column and [column] * 2).get_yscale() == scale
    )


def test_levels_have_bars_of_their_shares_the_rare_ones_joined():
    column = Column("a", "category", levels=LEVELS)
    x = torch.tensor([3.0, 3, 3, 0, 0, 14, NAN])
    axes = plot_marginal(x, torch.tensor([14.0, 14, 1, 3]), column=column)
    widths = [bar.get_width() for bar in axes.patches]
    assert len(widths) == 22
    np.testing.assert_allclose(widths[:3], [3 / 6, 2 / 6, 1 / 6])  # levels 3, 0 and 14
    np.testing.assert_allclose(widths[11:14], [1 / 4, 0, 2 / 4])
    assert sum(widths[11:]) == pytest.approx(1)
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels[0] == r"3\$x^{\$ <b> wwww…"
    assert labels[-1] == "5 others"
    assert axes.get_xlabel() == "share, 14.3 % missing"


def test_dates_are_written_in_full():
    axes = plot_marginal(torch.tensor([0.0, 800.0]), torch.tensor([0.0, 800.0]), column=COLUMNS[4])
    assert axes.xaxis.get_major_formatter()(0.0, 0) == "2022-01-08"


def test_a_pair_has_complete_rows_as_many_of_both_and_spreads_levels():
    x = torch.tensor([[0.0, 1], [NAN, 1], [1.0, 0]])
    draws = torch.tensor([[float(j % 2), 2.0 * j] for j in range(9)])
    axes = plot_pair(x, draws, columns=[Column("sex", "binary", levels=("f", "m")), Column(HOSTILE, "real")])
    data, model = (np.array(points.get_offsets()) for points in axes.collections)
    np.testing.assert_allclose(data[:, 1], [1, 0])
    np.testing.assert_allclose(data[:, 0].round(), [0, 1])
    assert (data[:, 0] != data[:, 0].round()).all()
    np.testing.assert_allclose(model[:, 1], [0, 16])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["f", "m"]
    assert axes.get_ylabel() == r"\$x^{\$ <b> wwwwwwwww…"


def test_recovered_values_lie_over_the_data_with_their_correlation():
    x, means = torch.tensor([1.0, 2, 3, NAN]), torch.tensor([1.0, 3, 2, 5])
    axes = plot_recovered(x, means, column=Column("a", "real"))
    np.testing.assert_allclose(axes.collections[0].get_offsets(), [[1, 1], [2, 3], [3, 2]])
    assert axes.get_title("left") == "a, r = 0.50"
    constant = plot_recovered(x, torch.ones(4))
    assert constant.get_title("left") == "column, r unknown"


def test_a_rootogram_hangs_bars_from_the_square_roots_of_expected_numbers():
    data = torch.tensor([0.0, 0, 0, 0, 1, 3, 3, 3, 3, NAN])  # 4, 1, 0, 4 of 9
    draws = torch.tensor([0.0] * 6 + [1.0] * 6 + [2.0] * 6)  # a third each, so 3 expected
    axes = plot_rootogram(data, draws, name="visits")
    bars = [bar for bar in axes.patches if hasattr(bar, "get_height")]
    np.testing.assert_allclose([bar.get_height() for bar in bars], [2, 1, 0, 2])
    np.testing.assert_allclose([bar.get_y() for bar in bars], np.sqrt([3, 3, 3, 0]) - [2, 1, 0, 2])
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), np.sqrt([3, 3, 3, 0]))
    (ends,) = (patch.get_data() for patch in axes.patches if hasattr(patch, "get_data"))
    low, high = betabinom.ppf([0.025, 0.975], 9, 6.5, 12.5)
    assert ends.values[0] == pytest.approx(math.sqrt(3) - math.sqrt(low))
    assert ends.baseline[0] == pytest.approx(math.sqrt(3) - math.sqrt(high))
    assert axes.get_xlabel() == "visits"


def test_large_counts_of_a_rootogram_are_joined():
    data = torch.tensor([0.0, 30, 31, 100_000])
    axes = plot_rootogram(data, data)
    bars = [bar for bar in axes.patches if hasattr(bar, "get_height")]
    assert len(bars) <= 51
    assert sum(bar.get_height() ** 2 for bar in bars) == pytest.approx(4)
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels[0] == "0"
    assert labels[-1].endswith("\N{EN DASH}100,000")


@pytest.mark.parametrize(
    ("data", "draws", "words"),
    [
        ([0.5], [1.0], "the data have other values; use plot_marginal"),
        ([1.0], [-1.0], "the draws have other values"),
        ([NAN], [1.0], "needs data, but there are none"),
    ],
)
def test_a_rootogram_refuses_what_are_no_counts(data, draws, words):
    with pytest.raises(ValueError, match=words):
        plot_rootogram(torch.tensor(data), torch.tensor(draws))


def test_figures_have_a_panel_for_up_to_twelve_columns():
    titles = [axes.get_title("left") for axes in FIGURES["40 columns"]().axes]
    assert len(titles) == 13
    assert titles[:12] == [f"column {j}" for j in (0, 4, 7, 11, 14, 18, 21, 25, 28, 32, 35, 39)]
    assert [axes.get_title("left") for axes in FIGURES["one column"]().axes] == ["column 0"]
    table_titles = [axes.get_title("left") for axes in FIGURES["table"]().axes if axes.axison]
    assert table_titles[1:6] == ["income", "visits", "town", "day", "sex"]
    recovered = [axes.get_title("left").split(",")[0] for axes in FIGURES["recovered"]().axes]
    assert recovered[1:] == ["income", "visits", "day"]  # levels have no mean


def test_figures_refuse_what_they_cannot_show():
    with pytest.raises(ValueError, match="are no images; use plot_samples"):
        plot_grids([("", torch.ones(2, 5))], (5,))
    with pytest.raises(ValueError, match="no column has numbers"):
        plot_reconstructions(torch.ones(3, 1), torch.ones(3, 1), columns=[COLUMNS[5]])
    with pytest.raises(ValueError, match="places must be 1 to 5 columns, got 6"):
        plot_pairs(table(), table(), places=range(6))
