"""Pictures of latent space draw the numbers of their results, with one latent and with twelve, and hostile names."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.path import Path

from pyrovae.diagnostics import (
    Ascent,
    AttributeSteps,
    Codes,
    CodesTSNE,
    Collapse,
    DecodedGrid,
    Ends,
    Information,
    Interpolation,
    KhatMap,
    KLByDimension,
    LabelGrids,
    LatentPosteriors,
    PCAAlignment,
    Redraws,
    Traversals,
    UnitActivity,
    pca_codes,
)
from pyrovae.plots import (
    COLOURS,
    figure_of,
    new_axes,
    plot_activity,
    plot_ascent,
    plot_ascent_path,
    plot_attribute_steps,
    plot_codes,
    plot_collapse,
    plot_information,
    plot_interpolation,
    plot_khat_plane,
    plot_kl,
    plot_label_grids,
    plot_latent_posteriors,
    plot_pca_alignment,
    plot_redraws,
    plot_traversals,
    plot_tsne,
    short_name,
    to_pdf,
    to_svg,
)
from pyrovae.plots.latents import prior_contours

HOSTILE = ("$z_{", "</script><img onerror=alert(1)>", "a" * 40, "$\\frac$ & \n \\")


def names(count):
    return tuple(HOSTILE[j % len(HOSTILE)] + str(j) for j in range(count))


def random(*size):
    return torch.rand(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def codes(count):
    z = random(60, count) - 0.5
    return Codes(names(count), z, z.abs(), z, z, random(count), z[:3], random(3), {"z": torch.Size([count])})


def khat():
    values = torch.linspace(-0.2, 1.2, 60).double()
    return KhatMap(values, *[values] * 7, torch.arange(60), 0.7, 1000)


def kl(count):
    mean = random(count)
    return KLByDimension(names(count), mean[None], mean, mean / 10, mean, mean.sum(), mean[0], (), (), ())


def activity(count):
    return UnitActivity(names(count), random(count), random(count) / 10, random(count), (), False, ())


def collapsed(count):
    epsilon, share = torch.logspace(-4, 1, 26).double(), random(26, count).sort(0).values
    kl_j = random(count)
    rest = [kl_j, kl_j > 2, kl_j, kl_j, kl_j > 2, kl_j]
    return Collapse(names(count), epsilon, share, share, kl_j, *rest, (), ())


def information(count):
    def ends(*size):
        return Ends(random(*size) - 0.5, random(*size), random(*size) / 10, random(*size) / 10)

    one = random(1)[0]
    scalars = [one, one, ends(), ends(), ends()]
    return Information(100, names(count), *scalars, random(count), one, ends(count), ends(count), (), one, True, "", ())


def posteriors(count):
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]).double()
    prior = 5 + 2 * levels[:, None].expand(5, count)
    return LatentPosteriors(names(count), levels, prior, random(5, 3, count).sort(0).values, random(3, count))


def traversals(count):
    levels = torch.tensor([0.1, 0.5, 0.9]).double()
    means = torch.arange(count * 3 * 6.0).double().reshape(count, 3, 6)
    values = random(count)
    return Traversals(names(count), tuple(range(count)), values, values, levels, random(count, 3), values, means)


def interpolation(count):
    return Interpolation(random(4), ("straight", "spherical"), random(2, 4, count), random(2, 4, 6), random(2, 4))


def ascent(count):
    rise = torch.arange(5.0).double()
    return Ascent(random(5, count), random(5, 6), rise, rise / 2, rise, (-9.0, -1.0), 0.5, 1.0, 2.0, True)


def alignment(count):
    component = torch.arange(count).roll(1)
    component[0] = -1
    return PCAAlignment(
        random(count).index_fill(0, torch.tensor(0), torch.nan), component, 0.5, 3.0, random(1), random(1)
    )


def grid():
    return DecodedGrid(HOSTILE[:2], random(3), random(2), random(2, 3, 6), False)


SHAPE = (2, 3)
PICTURES = {
    "activity": lambda n, axes: plot_activity(activity(n), axes),
    "kl": lambda n, axes: plot_kl(kl(n), axes),
    "collapse": lambda n, axes: plot_collapse(collapsed(n), axes),
    "information": lambda n, axes: plot_information(information(n), axes),
    "posteriors": lambda n, axes: plot_latent_posteriors(posteriors(n), axes, names=HOSTILE[:3]),
    "alignment": lambda n, axes: plot_pca_alignment(alignment(n), axes, labels=names(n)),
    "traversals": lambda n, axes: plot_traversals(traversals(n), SHAPE, axes),
    "lines": lambda n, axes: plot_traversals(traversals(n), (6,), axes),
    "interpolation": lambda n, axes: plot_interpolation(interpolation(n), SHAPE, axes, names=HOSTILE[:2]),
    "attribute": lambda n, axes: plot_attribute_steps(
        AttributeSteps(random(4), ("balanced", "unbalanced"), random(2, 4, n), random(2, 4, 6)), (6,), axes
    ),
    "redraws": lambda n, axes: plot_redraws(Redraws(random(6), random(9, n), random(9, 6), random(6)), SHAPE, axes),
    "ascent": lambda n, axes: plot_ascent(ascent(n), axes),
    "path": lambda n, axes: plot_ascent_path(ascent(n), SHAPE, axes),
    "khat": lambda n, axes: plot_khat_plane(khat(), codes(n), axes),
    "tsne": lambda n, axes: plot_tsne(
        CodesTSNE(random(60, 2), 5.0, 0.1, "Caution."), axes, labels=torch.arange(60) % 5 - 1, names=HOSTILE
    ),
    "labels": lambda n, axes: plot_label_grids(LabelGrids(HOSTILE[: min(n, 3)], (grid(),) * min(n, 3)), SHAPE, axes),
}


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.thin(10)
def test_a_picture_of_one_latent_or_twelve_draws_in_the_given_axes(name, count):
    given = new_axes(5.0)
    assert PICTURES[name](count, given) is given
    given.figure.draw_without_rendering()


@pytest.mark.parametrize("name", ["activity", "posteriors", "information", "traversals", "tsne", "labels", "khat"])
@pytest.mark.thin(2)
def test_names_stay_inside_a_new_figure_and_out_of_the_markup(name):
    axes = PICTURES[name](12, None)
    figure = figure_of(axes)
    svg = to_svg(figure)
    assert b"<img" not in svg
    assert b"</script" not in svg
    width, height = figure.get_size_inches()
    figure.draw_without_rendering()  # widths of letters differ from those in SVG
    box = axes.get_tightbbox().transformed(figure.dpi_scale_trans.inverted())
    assert box.x0 > -0.02
    assert box.x1 < width + 0.02
    assert box.y0 > -0.02
    assert box.y1 < height + 0.02


def test_pdf_has_equal_bytes_and_its_fonts_inside():
    figure = figure_of(PICTURES["activity"](3, None))
    pdf = to_pdf(figure)
    assert pdf == to_pdf(figure)
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf


def test_short_names_are_one_line_without_mathematics():
    assert short_name("$a$ \n b") == r"\$a\$ b"
    assert short_name("a" * 40) == "a" * 19 + "…"
    assert short_name("a" * 40, 5) == "aaaa…"
    assert short_name("a" * 40 + "[12]", 10) == "aaaaa…[12]"
    assert short_name("a" * 40 + "[12345]", 8) == "aaaaaaa…"


@pytest.mark.parametrize(("plot", "result"), [(plot_activity, activity(12)), (plot_kl, kl(12))])
def test_bars_have_the_values_in_falling_order_with_their_errors(plot, result):
    axes = plot(result)
    values, errors = (result.activity, result.std_error) if plot is plot_activity else (result.mean, result.std_error)
    order = values.sort(descending=True).indices
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(values[order].tolist())
    segments = next(part for part in axes.collections if len(part.get_segments()) == 12).get_segments()
    assert [line[1, 0] - line[0, 0] for line in segments] == pytest.approx((2 * errors[order]).tolist())
    assert axes.get_yticklabels()[0].get_text() == short_name(names(12)[order[0]])


def test_unknown_divergences_have_a_cross_and_at_most_24_bars_are_drawn():
    many = kl(30)
    many = many._replace(mean=torch.cat([torch.full((29,), torch.nan), torch.ones(1)]))
    axes = plot_kl(many)
    assert len(axes.patches) == 24
    assert axes.get_ylabel() == "the largest 24 of 30"
    (crosses,) = [line for line in axes.get_lines() if line.get_label() == "unknown"]
    assert crosses.get_ydata().tolist() == list(range(1, 24))


def test_curves_of_collapse_are_the_shares_with_colours_for_the_smallest_divergences():
    result = collapsed(12)
    lines = [line for line in plot_collapse(result).get_lines() if len(line.get_xdata()) == 26]
    order = result.kl.sort().indices.tolist()
    for line, j in zip(lines[::-1], order, strict=True):
        assert line.get_ydata().tolist() == (100 * result.share[:, j]).tolist()
    assert [line.get_color() for line in lines[::-1]] == [*COLOURS[:8], *["0.75"] * 4]


def test_information_joins_both_ends_of_each_quantity():
    result = information(12)
    axes = plot_information(result)
    joined = [line.get_xdata() for line in axes.get_lines() if line.get_linewidth() == 3]
    ends = [result.information, result.aggregate_kl, result.total_correlation]
    exact = [[float(each.lower), float(each.upper)] for each in ends]
    exact += torch.stack([result.dimension_kl_ends.lower, result.dimension_kl_ends.upper], 1).tolist()
    assert [list(each) for each in joined] == exact


@pytest.mark.parametrize(("ends", "ticks"), [((-1.5, 15), [-1, -0.1, 0, 0.1, 1, 10]), ((-2e4, 2e4), None)])
def test_the_axis_of_information_has_powers_of_ten_with_room_for_their_names(ends, ticks):
    result = information(2)
    lower, upper = (torch.tensor(end).double() for end in ends)
    axes = plot_information(result._replace(aggregate_kl=result.aggregate_kl._replace(lower=lower, upper=upper)))
    found = axes.get_xticks().tolist()
    assert ticks is None or [value for value in found if ends[0] <= value <= ends[1]] == ticks
    assert {0.0} < set(found)
    assert len(found) <= 9


def test_a_traversal_of_unknown_divergence_says_so():
    result = traversals(2)
    axes = plot_traversals(result._replace(kl=torch.tensor([1.5, torch.nan])), SHAPE)
    assert [text.get_text().partition("\n")[2] for text in axes.get_yticklabels()] == ["1.50 nats", "KL unknown"]


def test_posteriors_are_in_units_of_the_priors_range():
    result = posteriors(12)
    axes = plot_latent_posteriors(result, dims=[4, 2])
    middle = (result.prior[0] + result.prior[4]) / 2
    half = (result.prior[4] - result.prior[0]) / 2
    exact = (result.posterior - middle) / half
    for n, line in enumerate(line for line in axes.get_lines() if line.get_label() in "012"):
        assert line.get_xdata().tolist() == pytest.approx(exact[2, n, [4, 2]].tolist())
    assert axes.patches[0].get_x() == pytest.approx(-1)
    assert axes.patches[0].get_width() == pytest.approx(2)
    many = result._replace(posterior=random(5, 9, 12))
    with pytest.raises(ValueError, match="at most 8 posteriors"):
        plot_latent_posteriors(many)


def test_a_table_of_images_has_the_first_row_on_top_and_the_names_of_rows_and_columns():
    result = traversals(2)
    axes = plot_traversals(result, SHAPE)
    (image,) = axes.get_images()
    picture = image.get_array()
    assert picture.shape == (2 * 3, 3 * 4)
    assert picture[0, 0] == 0
    assert picture[1, 2] == pytest.approx(5 / 35)
    assert picture[3, 0] == pytest.approx(18 / 35)
    assert (picture[2] == 1).all()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "50", "90"]
    assert axes.get_yticklabels()[0].get_text() == f"{short_name(names(1)[0])}\n{float(result.kl[0]):.2f} nats"
    first, second = axes.get_yticks()
    assert first > second


def test_a_table_of_other_data_has_lines_of_one_scale():
    axes = plot_traversals(traversals(2), (6,))
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 6]
    assert len(lines) == 6
    assert lines[0].get_ydata()[0] == pytest.approx(1.08)  # the lowest value, in the upper row
    assert lines[-1].get_ydata()[-1] == pytest.approx(0.92)
    assert lines[-1].get_xdata()[0] == pytest.approx(2.08)


def test_redraws_begin_with_the_datum_and_leave_missing_entries_empty():
    x = torch.tensor([0.0, torch.nan, 0.5, 0.5, 0.5, 0.5]).double()
    axes = plot_redraws(Redraws(x, random(3, 2), torch.full((3, 6), 2.0).double(), random(6)), SHAPE, columns=2)
    picture = axes.get_images()[0].get_array()
    assert picture[0, 0] == 0
    assert picture[0, 1] == 1  # empty
    assert picture[0, 2] == pytest.approx(0.25)
    assert axes.patches[0].get_xy() == (0, 1)


def test_each_label_has_its_grid_below_its_name():
    grids = [grid()._replace(means=torch.full((2, 3, 6), value).double()) for value in (0.0, 1.0, 0.5)]
    axes = plot_label_grids(LabelGrids(("a", "b", "c"), tuple(grids)), SHAPE)
    picture = axes.get_images()[0].get_array()
    block = picture[3:5, 0:2], picture[3:5, 16:18], picture[12:14, 0:2]
    assert [float(each.mean()) for each in block] == [0.0, 1.0, 0.5]
    assert [text.get_text() for text in axes.texts] == ["a", "b", "c"]


@pytest.mark.parametrize("shape", ["normal", "two clusters"])
def test_contours_of_the_prior_hold_their_shares(shape):
    generator = np.random.default_rng(0)
    centres = 0.0 if shape == "normal" else generator.choice([[-4.0, 0.0], [4.0, 0.0]], 20_000)
    prior = centres + generator.normal(size=(20_000, 2)) * [1.0, 3.0]
    axes = new_axes(4.0)
    prior_contours(axes, prior[:10_000], filled=True)  # lines are cut by their labels
    (regions,) = axes.collections
    assert len(regions.get_paths()) == 3
    for share, path in zip((0.09, 0.4, 0.5), regions.get_paths(), strict=True):  # from 99 to 90, to 50 %, and inside
        rings = [Path(ring) for ring in path.to_polygons()]
        inside = sum(ring.contains_points(prior[10_000:]).astype(int) for ring in rings) % 2 == 1
        assert abs(inside.mean() - share) < 0.03


def test_khat_colours_codes_and_marks_those_above_the_limit():
    result, where = khat(), codes(12)
    axes = plot_khat_plane(result, where, dims=(3, 1))
    above, drawn = result.khat > 0.7, {}
    for points in axes.collections:
        edges = points.get_edgecolor()
        red = len(edges) > 0 and tuple(edges[0][:3]) == to_rgb(COLOURS[2])
        drawn |= {tuple(place): (red, tuple(points.get_facecolor()[0])) for place in points.get_offsets().data}
    assert len(drawn) == 60
    tenths = matplotlib.colormaps["cividis"].resampled(10)
    for place, k, bad in zip(where.mean[:, [3, 1]].numpy(), result.khat.tolist(), above.tolist(), strict=True):
        assert drawn[tuple(place)] == (bad, tenths(min(9, int(10 * k))))
    assert axes.get_title() == f"{int(above.sum())} of 60 above the limit, 0.70"
    with pytest.raises(ValueError, match="k-hat of 60 data"):
        plot_khat_plane(result, where._replace(mean=where.mean[:5]))


def test_an_ascent_has_both_curves_and_its_path_the_measured_values():
    axes = plot_ascent(ascent(2))
    predicted, measured = axes.get_lines()[1:3]
    assert predicted.get_ydata().tolist() == [0, 1, 2, 3, 4]
    assert measured.get_ydata().tolist() == [0, 0.5, 1, 1.5, 2]
    assert "gain 2 measured, 4 predicted" in axes.get_title()
    path = plot_ascent_path(ascent(2), SHAPE, num_steps=3)
    assert [tick.get_text() for tick in path.get_xticklabels()] == ["0", "1", "2"]


def test_cosines_and_components_are_drawn_and_axes_of_length_0_named():
    result = alignment(3)
    axes = plot_pca_alignment(result)
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.0, *result.cosines[1:].tolist()])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["z[0], no axis", "z[1], PC 1", "z[2], PC 2"]


def test_codes_are_plotted_in_principal_components():
    found = pca_codes(codes(12))
    axes = plot_codes(found)
    torch.testing.assert_close(torch.as_tensor(axes.collections[-1].get_offsets().data), found.mean)
    assert axes.get_xlabel() == found.names[0]


def test_tsne_carries_its_caution():
    axes = PICTURES["tsne"](2, None)
    assert axes.get_xlabel() == "Caution."
    assert "not a map" in axes.get_title()
    assert sum(len(part.get_offsets()) for part in axes.collections) == 60


@pytest.mark.slow
def test_plots_leave_pyplot_unimported():
    script = "import sys, pyrovae.plots; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
