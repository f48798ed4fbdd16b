"""Pictures: they draw in the axes that they are given, leave pyplot alone, and have equal bytes for equal results."""

import re
from pathlib import Path

import pytest
import torch

import pyrovae
from pyrovae.diagnostics import Codes, DecodedGrid
from pyrovae.plots import (
    figure_of,
    is_image,
    new_axes,
    plot_codes,
    plot_columns,
    plot_decoded_grid,
    plot_history,
    to_png,
    to_svg,
)
from pyrovae.training import History

ROWS = [
    {"epoch": n, "train_elbo": None if n == 1 else -9.0, "validation_elbo": -10.0 / n, "validation_kl": n / 2}
    for n in range(1, 5)
]


def codes():
    z = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    sites = {"z": torch.Size([2])}
    return Codes(("z[0]", "z[1]"), z, z.abs(), z, z, torch.ones(2), z.quantile(levels, 0), levels, sites)


def grid(*size):
    means = torch.arange(2.0 * 3 * torch.Size(size).numel()).reshape(2, 3, -1)
    return DecodedGrid(("a", "b"), torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.0, 5.0]), means, False)


PICTURES = {
    "history": lambda axes: plot_history(History(ROWS, 3), axes),
    "kl": lambda axes: plot_history(History(ROWS, 3), axes, part="kl"),
    "codes": lambda axes: plot_codes(codes(), axes, labels=torch.arange(60) % 12 - 1, names=["$_" * 9] * 12),
    "images": lambda axes: plot_decoded_grid(grid(2, 5), (2, 5), axes),
    "colours": lambda axes: plot_decoded_grid(grid(3, 2, 2), (3, 2, 2), axes),
    "lines": lambda axes: plot_decoded_grid(grid(4), (4,), axes),
    "counts": lambda axes: plot_columns(torch.arange(12.0).reshape(4, 3), torch.ones(5, 3), axes),
    "table": lambda axes: plot_columns(torch.randn(9, 2), torch.ones(5, 2), axes, names=["a$", "b" * 50]),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.thin(4)
def test_a_picture_draws_in_given_or_new_axes_with_equal_bytes(name):
    torch.manual_seed(0)
    given = new_axes()
    assert PICTURES[name](given) is given
    assert given.has_data()
    torch.manual_seed(0)
    new = PICTURES[name](None)
    torch.manual_seed(0)
    again = PICTURES[name](None)
    assert to_svg(figure_of(new)) == to_svg(figure_of(again))
    assert to_png(figure_of(new)) == to_png(figure_of(again))


def test_a_decoded_grid_has_the_largest_y_on_top_and_white_lines_between_images():
    axes = plot_decoded_grid(grid(1, 2, 1), (1, 2, 1))
    (image,) = axes.get_images()
    picture = image.get_array()
    assert picture.shape == (2 * 3, 3 * 2)
    assert picture[0, 0] == pytest.approx(6 / 11)  # the first value of the row y = 5, of 0..11
    assert (picture[2] == 1).all()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["\N{MINUS SIGN}1", "0", "1"]


def test_shapes_of_images():
    assert [is_image(shape) for shape in ((8, 8), (1, 8, 8), (3, 8, 8), (8,), (1, 8), (5, 8, 8))] == [
        *(True, True, True, False, False, False)
    ]


def test_plots_and_page_do_not_import_pyplot():
    files = [path for room in ("plots", "page") for path in (Path(pyrovae.__file__).parent / room).glob("*.py")]
    assert len(files) > 8
    assert [path for path in files if re.search(r"^\s*(import|from) .*pyplot", path.read_text(), flags=re.M)] == []
