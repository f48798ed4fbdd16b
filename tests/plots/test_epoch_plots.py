"""Pictures by epoch draw the snapshots: the same points, limits and cells, and no text is clipped."""

import io

import numpy as np
import pytest
import torch
from clipped_texts import clipped_texts
from PIL import Image

from pyrovae.diagnostics import Snapshot
from pyrovae.plots import (
    COLOURS,
    figure_of,
    plot_codes_by_epoch,
    plot_reconstructions_by_epoch,
    plot_samples_by_epoch,
    to_png,
)

HOSTILE = ("$z_{", "</script><img onerror=alert(1)>" + "a" * 40)


def snapshots(count, *, shape=(2, 3), size=30):
    generator = torch.Generator().manual_seed(0)
    found = {}
    for epoch in [0, *(2**k for k in range(count - 1))]:
        codes = (1 + epoch) * torch.randn(2, size, 2, generator=generator)
        prior = torch.randn(400, 2, generator=generator)
        means = torch.rand(2, 6, shape[0] * shape[1], generator=generator)
        found[epoch] = Snapshot(HOSTILE, *codes, prior, *means)
    return found


@pytest.mark.parametrize("count", [1, 11])
def test_each_panel_has_the_codes_of_its_epoch_on_the_same_axes(count):
    taken, labels = snapshots(count), torch.arange(30) % 3
    last = max(taken)
    figure = plot_codes_by_epoch(taken, labels=labels, names=[HOSTILE[1], "b", "c"], best_epoch=last)
    panels = [axes for axes in figure.axes if axes.axison]
    assert len(panels) == count
    assert panels[0].get_title() == ("untrained, kept" if last == 0 else "untrained")
    assert panels[-1].get_title() == ("untrained, kept" if last == 0 else f"epoch {last}, kept")
    for axes, one in zip(panels, taken.values(), strict=True):
        drawn = np.concatenate([part.get_offsets() for part in axes.collections if len(part.get_offsets()) > 1])
        expected = torch.cat([one.mean[labels == label] for label in range(3)]).numpy()
        np.testing.assert_allclose(drawn, expected, rtol=1e-6)
        assert axes.get_xlim() == panels[0].get_xlim()
        low, high = axes.get_ylim()
        assert low < min(float(each.mean[:, 1].min()) for each in taken.values())
        assert high > max(float(each.mean[:, 1].max()) for each in taken.values())
    assert clipped_texts(figure) == []
    draws = plot_codes_by_epoch(taken, draws=True).axes[0].collections[-1].get_offsets()
    np.testing.assert_allclose(draws, taken[0].draw.numpy(), rtol=1e-6)


def test_rows_are_epochs_and_cells_the_means_cut_to_the_data():
    taken = snapshots(3)
    taken[1].samples[0, 0] = torch.inf
    axes = plot_samples_by_epoch(taken, (2, 3), limits=(0.0, 0.5), best_epoch=2)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["untrained", "1", "2, kept"]
    cells = np.asarray(axes.images[0].get_array())
    assert cells.shape == (3 * 3, 6 * 4)
    shown = cells.reshape(3, 3, 6, 4)[:, :2, :, :3].transpose(0, 2, 1, 3).reshape(3, 6, 6)
    values = torch.stack([one.samples for one in taken.values()]).clamp(0, 0.5)
    values = ((values - values.min()) / (0.5 - values.min())).numpy()
    values[1, 0, 0] = 1.0  # a missing cell is white
    np.testing.assert_allclose(shown, values, atol=1e-6)
    x = torch.rand(6, 6)
    axes = plot_reconstructions_by_epoch(taken, x, (2, 3))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["data", "untrained", "1", "2"]
    first = np.asarray(axes.images[0].get_array())[:2].reshape(2, 6, 4)[..., :3].transpose(1, 0, 2).reshape(6, 6)
    np.testing.assert_allclose(first, ((x - x.min()) / (x.max() - x.min())).numpy(), atol=1e-6)
    for shape in ((2, 3), (6,)):
        figure = figure_of(plot_samples_by_epoch(snapshots(11), shape, best_epoch=512))
        assert clipped_texts(figure) == []


def test_small_files_have_the_colours_of_the_picture():
    figure = plot_codes_by_epoch(snapshots(2), labels=torch.arange(30) % 10)
    large, small = to_png(figure), to_png(figure, small=True)
    assert len(small) < 0.5 * len(large)
    assert small == to_png(figure, small=True)
    picture = Image.open(io.BytesIO(small)).convert("RGB")
    pixels = {tuple(colour) for _, colour in picture.getcolors(10**6)}
    assert {tuple(int(code[k : k + 2], 16) for k in (1, 3, 5)) for code in COLOURS} <= pixels


def test_no_snapshots_are_refused():
    with pytest.raises(ValueError, match="no snapshots"):
        plot_codes_by_epoch({})
    empty = {0: snapshots(1)[0]._replace(samples=torch.empty(0, 0))}
    with pytest.raises(ValueError, match="no decoded means"):
        plot_samples_by_epoch(empty, (2, 3))
