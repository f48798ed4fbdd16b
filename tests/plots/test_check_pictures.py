"""Pictures of checks: their artists have the numbers of the results, and their texts name what is wrong."""

import itertools
import math

import numpy as np
import pytest
import torch
from clipped_texts import clipped_texts

from pyrovae.diagnostics import (
    AUC,
    PIT,
    Calibration,
    Codes,
    Entropies,
    ForeignData,
    KhatMap,
    NutsCheck,
    PredictiveCheck,
    Typicality,
    check_uniform,
)
from pyrovae.plots import (
    figure_of,
    plot_calibration,
    plot_entropies,
    plot_foreign,
    plot_khat,
    plot_nuts,
    plot_pit,
    plot_predictive,
    plot_rates,
    plot_statistic,
    plot_typicality,
    plot_uniformity,
)
from pyrovae.training import History

HOSTILE = "$x^{$ <b> " + 40 * "w"
U = (torch.arange(60, dtype=torch.float64) + 0.5) / 60
WIDE = 0.5 + 0.4 * (U - 0.5)  # crowd in the middle


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def calibration(ranks, num_draws=19):
    tests = {name: check_uniform(values, num_draws + 1) for name, values in ranks.items()}
    p_values = {name: min(1.0, len(tests) * test.p_value) for name, test in tests.items()}
    return Calibration(ranks, num_draws, tests, p_values, min(p_values.values()), {}, ())


def ranks_of(u, num_draws=19):
    return (u * (num_draws + 1)).floor().long()


def predictive(names, z, source="prior"):
    """A check whose replicates have mean 0 and sd 1 in each element, and whose data lie at z."""
    replicated = torch.randn(200, len(names), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    replicated = (replicated - replicated.mean(0)) / replicated.std(0)
    p = torch.linspace(0.01, 0.9, len(names))
    statistics = tuple(name.partition("[")[0] for name in names)
    return PredictiveCheck(tuple(names), z, replicated, p, p / 10, p, z, 0.02, source, statistics)


def khat_map(khat, log_p):
    order = khat.nan_to_num(math.inf, math.inf, -math.inf).sort(descending=True).indices
    return KhatMap(khat, *[khat] * 3, log_p, *[khat] * 3, order, 0.7, 2000)


def nuts(count=3, rhat=(1.0, 1.0, 1.2)):
    """Quantiles -1, 0, 1 by NUTS; the guide is right for datum 5, and twice as wide for the others."""
    levels = doubles(0.16, 0.5, 0.84)
    quantiles = doubles(-1, 0, 1).repeat(count, 1).unsqueeze(-1)
    guide, below = 2 * quantiles, doubles(0.31, 0.5, 0.69).repeat(count, 1).unsqueeze(-1)
    guide[0], below[0] = quantiles[0], levels.unsqueeze(-1)
    error, ones = torch.full_like(below, 0.02), torch.ones(count, 1)
    stated = doubles(*rhat).unsqueeze(-1), 500 * ones
    data = torch.arange(5, 5 + count)
    return NutsCheck(
        *(data, (HOSTILE,), levels, quantiles, guide, quantiles + 0.1, below, below, error, ones, ones, *stated),
        *(torch.zeros(count), torch.zeros(count), ()),
    )


def entropies(size=2):
    kl = torch.linspace(1, 2, size, dtype=torch.float64) * math.log(2)
    labels = (*(f"z[{j}]" for j in range(size - 1)), HOSTILE)
    return Entropies(labels, -kl, 0 * kl, kl, *[kl / 10] * 3, (), "nats", ())


def history(kl, reconstruction):
    return History([{"epoch": 1, "validation_kl": kl, "validation_reconstruction": reconstruction}, {"epoch": 2}], 1)


def codes(count):
    z = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    return Codes((HOSTILE, "z[1]"), z, z, z, z, z[0], z, z[0], {})


def pit_values(columns):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([U[torch.randperm(60, generator=generator)] for _ in range(columns)], 1)


def foreign():
    log_p = -100 - torch.arange(50, dtype=torch.float64)
    return ForeignData(AUC(0.876, 0.034), None, log_p, torch.cat([log_p - 30, doubles(-math.inf, math.nan)]))


KHAT = doubles(0.1, 0.9, -math.inf, 0.8, math.nan, 0.3)
MANY = [f"row profile[{j}]" for j in range(40)] + ["ink", "a $b$ long <name> of a statistic[0]"]
PICTURES = {
    "uniformity": lambda: plot_uniformity(check_uniform(U), name=HOSTILE),
    "one quantity": lambda: plot_calibration(calibration({HOSTILE: ranks_of(WIDE)})),
    "40 quantities": lambda: plot_calibration(
        calibration({f"{HOSTILE[: j + 1]}{j}": ranks_of(U if j % 4 else WIDE) for j in range(40)})
    ),
    "pit": lambda: plot_pit(PIT(pit_values(2), U, "cdf", 500), names=[HOSTILE, "b"]),
    "one statistic": lambda: plot_predictive(predictive([HOSTILE], doubles(0.5))),
    "40 statistics": lambda: plot_predictive(predictive([HOSTILE] * 40, torch.linspace(-9, 9, 40).double())),
    "many elements": lambda: plot_predictive(predictive(MANY, torch.linspace(-9, 9, 42).double())),
    "statistic": lambda: plot_statistic(predictive([HOSTILE], doubles(0.5), "guide")),
    "typicality": lambda: plot_typicality(Typicality(U**2, 1e-6, True, None, U[None])),
    "foreign": lambda: plot_foreign(foreign(), name=HOSTILE),
    "khat": lambda: plot_khat(khat_map(KHAT, 1e4 * KHAT)),
    "nuts": lambda: plot_nuts(nuts()),
    "nuts for 9": lambda: plot_nuts(nuts(9, [1.0] * 9)),
    "entropies": lambda: plot_entropies(entropies()),
    "40 entropies": lambda: plot_entropies(entropies(40)),
    "rates": lambda: plot_rates({0.5: history(9.0, -60.0), 1.0: history(5.0, -62.0)}),
    "one rate": lambda: plot_rates({1.0: history(5.0, -62.0)}),
}


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def curves(axes):
    """The lines with more than two points, by label."""
    return [line for line in axes.get_lines() if len(line.get_xdata()) > 2]


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_of_a_picture_is_clipped(name):
    assert clipped_texts(figure_of(PICTURES[name]())) == []


def test_curves_of_a_calibration_are_ecdfs_minus_uniform_and_name_the_shape():
    narrow = torch.where(U < 0.5, U / 4, 1 - (1 - U) / 4)
    result = calibration({"ok": ranks_of(U), "wide": ranks_of(WIDE), "narrow": ranks_of(narrow), "up": ranks_of(U**3)})
    axes = plot_calibration(result)
    texts = legend_of(axes)
    assert texts[0] == "95 % band, N = 60"
    assert texts[1].startswith("1 others, p = ")
    assert sorted(text.split(",")[0] for text in texts[2:]) == [
        "narrow: too narrow",
        "up: shifted up",
        "wide: too wide",
    ]
    lines = {line.get_label().split(":")[0]: line for line in curves(axes)}
    x, y = np.array(lines["wide"].get_xdata()), np.array(lines["wide"].get_ydata())
    ranks = result.ranks["wide"].numpy()
    np.testing.assert_allclose(x, np.arange(21) / 20)
    np.testing.assert_allclose(y, [(ranks < i).mean() - i / 20 for i in range(21)], atol=1e-12)
    signs = {name: tuple(np.sign(np.array(line.get_ydata())[[5, 15]])) for name, line in lines.items()}
    assert (signs["wide"], signs["narrow"], signs["up"]) == ((-1, 1), (1, -1), (1, 1))  # as the docstring says


def test_the_band_of_a_calibration_is_that_of_the_result():
    test = check_uniform(U)
    (band,) = plot_uniformity(test).collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].max() == pytest.approx(test.upper.max().item())
    assert corners[:, 1].min() == pytest.approx(test.lower.min().item())


def test_of_forty_quantities_six_are_named_and_all_are_drawn():
    axes = PICTURES["40 quantities"]()
    assert len(curves(axes)) == 40
    texts = legend_of(axes)
    assert len(texts) == 8
    assert texts[1].startswith("34 others, smallest p")
    assert sum(": too wide" in text for text in texts) == 6


def test_pit_values_are_those_of_observed_entries():
    values = pit_values(3)
    values[:20, 1], values[:, 2] = math.nan, WIDE
    axes = plot_pit(PIT(values, values, "cdf", 500), names=["a", "b", "c"])
    texts = legend_of(axes)
    assert texts[:2] == ["95 % band, N = 40", "95 % band, N = 60"]
    assert texts[3].startswith("c: too wide")
    seen = values[20:, 1].numpy()
    second = np.array(curves(axes)[1].get_ydata())
    assert second[50] == pytest.approx((seen < 0.5).mean() - 0.5)
    with pytest.raises(ValueError, match="names must be those of 3 columns, got 1"):
        plot_pit(PIT(values, values, "cdf", 500), names=["a"])
    with pytest.raises(ValueError, match="no column has an observed value"):
        plot_pit(PIT(values * math.nan, values, "cdf", 500))


def test_the_farthest_pit_values_keep_the_p_values_of_all_columns():
    values = pit_values(5)
    values[:, 3] = WIDE
    every, some = (plot_pit(PIT(values, values, "cdf", 500), num_curves=count) for count in (None, 2))
    assert (len(curves(every)), len(curves(some))) == (5, 2)
    named = [text for text in legend_of(every) if text.startswith("column 3: too wide")]
    assert len(named) == 1
    assert named[0] in legend_of(some)  # adjusted for five columns in both
    assert some.get_xlabel() == "PIT value (2 of 5 columns)"


def test_thin_curves_of_many_leave_places_out_and_keep_their_values():
    values = pit_values(4)
    many, few = (curves(plot_pit(PIT(values[:, :n], values[:, :n], "cdf", 500))) for n in (4, 3))
    for thin, full in zip(many, few, strict=False):
        x, y = thin.get_xydata().T
        assert len(x) <= 0.6 * len(full.get_xdata())
        assert set(x) <= set(full.get_xdata())
        np.testing.assert_array_equal(y, np.interp(x, *full.get_xydata().T))


def test_predictive_elements_lie_at_their_z_with_ranges_and_the_limit_of_replicates():
    result = predictive(["a", "b", "c", "d"], doubles(0.5, -3.5, 60.0, -math.inf))
    axes = plot_predictive(result)
    limit = np.quantile(np.abs(result.replicated.numpy()).max(1), 0.95)
    sides = [line.get_xdata()[0] for line in axes.get_lines()]
    assert sides == pytest.approx([-limit, limit, 0])
    assert axes.get_xlim() == pytest.approx((-2.5 * limit, 2.5 * limit))
    ranges, *dots = axes.collections
    ends = np.array([segment[:, 0] for segment in ranges.get_segments()])
    np.testing.assert_allclose(ends, np.quantile(result.replicated.numpy(), [0.025, 0.975], 0).T)
    places = np.concatenate([dot.get_offsets() for dot in dots])
    edge = 0.97 * 2.5 * limit
    np.testing.assert_allclose(places, [[0.5, 0], [-3.5, 1], [edge, 2], [-edge, 3]])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b", "c", "d"]
    assert axes.get_xlabel() == "z; joint p = 0.02"


def test_many_predictive_elements_have_a_row_for_each_statistic():
    axes = PICTURES["many elements"]()
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["row profile", "ink", r"a \$b\$ long <name> of a stat…"]
    rows = np.sort(np.concatenate([dots.get_offsets()[:, 1] for dots in axes.collections[1:]]))
    np.testing.assert_allclose(rows, [*np.linspace(-0.35, 0.35, 40), 1, 2])


def test_a_statistic_shows_data_and_replicates():
    result = predictive(["mean[0]", "mean[1]"], doubles(0.5, -1.25), "guide")
    axes = plot_statistic(result, element=1)
    assert axes.get_lines()[0].get_xdata()[0] == -1.25
    assert sum(bar.get_height() for bar in axes.patches) == 200
    assert axes.get_xlabel() == "mean[1]"
    assert axes.get_title() == "p = 0.9 ± 0.09 (z from q(z|x): conservative)"


@pytest.mark.parametrize("shared", [True, False])
def test_typicality_shows_shares_and_a_band_that_counts_common_draws(shared):
    value = torch.cat([U**2, doubles(math.nan)])
    axes = plot_typicality(Typicality(value, 0.004, shared, None, torch.zeros(3, 40)), bins=4)
    data, band = axes.patches[-1], axes.patches[0]
    root = [0, 0.5, math.sqrt(0.5), math.sqrt(0.75), 1]  # U below them, since u = U^2
    expected = [sum(low <= u < high for u in U.tolist()) / 60 for low, high in itertools.pairwise(root)]
    np.testing.assert_allclose(data.get_data().values, expected)
    reach = 1.96 * math.sqrt(0.25 * 0.75 * (1 / 60 + shared / 120))
    low, high = band.get_y(), band.get_y() + band.get_height()
    assert (low, high) == pytest.approx((0.25 - reach, 0.25 + reach))
    assert legend_of(axes)[1] == "data, p = 0.004"


def test_foreign_data_show_shares_the_area_and_what_lies_beyond():
    result = foreign()
    axes = plot_foreign(result, name=HOSTILE)
    heights = [patch.get_data().values.sum() for patch in axes.patches[::2]]
    known = result.foreign_log_p[~result.foreign_log_p.isnan()]
    low, high = axes.patches[0].get_data().edges[[0, -1]]
    inside = [((values >= low) & (values <= high)).double().mean().item() for values in (result.log_p, known)]
    assert heights == pytest.approx(inside)
    assert legend_of(axes)[1].endswith(f"…, {100 * (1 - inside[1]):.1f} % beyond")
    assert 1 - inside[1] >= 1 / 51  # minus infinity
    assert axes.get_title("left") == "AUC 0.876 ± 0.03"


@pytest.mark.parametrize("against", ["rank", "log_p"])
def test_khat_shows_each_datum_and_the_limit(against):
    log_p = doubles(-1, -2, -3, -4, -5, -6)
    axes = plot_khat(khat_map(KHAT, log_p), against=against)
    below, above = (np.array(dots.get_offsets()) for dots in axes.collections)
    x = {"rank": ([4, 5, 6], [2, 3]), "log_p": ([-1, -3, -6], [-2, -4])}[against]
    y = {"rank": ([0.3, 0.1, -0.5], [0.9, 0.8]), "log_p": ([0.1, -0.5, 0.3], [0.9, 0.8])}[against]
    np.testing.assert_allclose(below, np.stack([x[0], y[0]], 1))
    np.testing.assert_allclose(above, np.stack([x[1], y[1]], 1))
    assert axes.get_lines()[0].get_ydata() == [0.7, 0.7]
    assert legend_of(axes) == ["3 data", "2 above", "limit 0.70 (K = 2,000)"]


def test_khat_refuses_another_axis():
    with pytest.raises(ValueError, match="against must be 'rank' or 'log_p'"):
        plot_khat(khat_map(KHAT, KHAT), against="elbo")


def test_nuts_marks_quantiles_that_differ_and_chains_that_disagree():
    axes = plot_nuts(nuts())
    assert legend_of(axes)[::2] == ["datum 5: R-hat 1.00, ESS 500", "datum 7: R-hat 1.20, ESS 500, not reliable"]
    diagonal, *lines = axes.get_lines()
    assert [line.get_linestyle() for line in lines] == ["-", "-", ":"]
    np.testing.assert_allclose(lines[1].get_ydata(), [-2, 0, 2])
    np.testing.assert_allclose(lines[1].get_xdata(), [-1, 0, 1])
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [-2, 2]
    filled = [len(dots.get_offsets()) for dots in axes.collections[::3]]
    assert filled == [0, 2, 2]  # 0.31 is 7.5 errors from 0.16, and 0.5 none from 0.5
    np.testing.assert_allclose(axes.collections[2].get_offsets()[:, 1], [-0.9, 0.1, 1.1])  # weighted
    assert r"\$x^{\$ <b> " in axes.get_xlabel()


def test_entropies_are_in_bits_the_largest_divergence_first():
    axes = plot_entropies(entropies(3))
    starts, ends = (line.get_xdata() for line in axes.get_lines())
    np.testing.assert_allclose(starts, [-2, -1.5, -1])
    np.testing.assert_allclose(ends, [0, 0, 0], atol=1e-12)
    errors, divergences = axes.collections
    np.testing.assert_allclose(errors.get_segments()[0][:, 0], [-0.4, 0.4])
    np.testing.assert_allclose(divergences.get_segments()[1], [[-1.5, 1], [0, 1]])
    assert [tick.get_text()[-4:] for tick in axes.get_yticklabels()] == ["2.00", "1.50", "1.00"]


def test_rates_are_of_the_best_epoch_with_lines_of_equal_elbo():
    axes = plot_rates({2.0: history(1.0, -70.0), 0.5: history(9.0, -60.0), 1.0: history(5.0, -62.0)})
    curve, *equal = axes.get_lines()
    np.testing.assert_allclose(curve.get_xdata(), [9, 5, 1])
    np.testing.assert_allclose(curve.get_ydata(), [-60, -62, -70])
    elbos = [np.subtract(line.get_ydata(), line.get_xdata()) for line in equal]
    assert all(ends[0] == pytest.approx(ends[1]) for ends in elbos)
    assert min(abs(ends[0] + 67) for ends in elbos) < 1e-9  # through the best, -62 - 5
    assert [text.get_text() for text in axes.texts] == ["0.5", "1", "2"]
    assert "largest ELBO -67.00" in axes.get_title()
    with pytest.raises(ValueError, match="beta = 3 has no validation KL"):
        plot_rates({3.0: History([{"epoch": 1, "validation_kl": None}], 1)})
