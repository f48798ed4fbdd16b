"""Figures of samples and reconstructions of data that are no images show columns, draws beside data."""

from types import SimpleNamespace

import numpy as np
import torch

from pyrovae import MLP, VAE, NormalEncoder, PoissonLikelihood, StandardNormalPrior
from pyrovae.data import Data
from pyrovae.runs import report


def test_figures_of_counts_show_columns(tmp_path, monkeypatch):
    torch.manual_seed(0)
    x = torch.poisson(torch.full((30, 3), 2.0))
    rows = torch.arange(30)
    data = Data("counts", x, x, x, (3,), "none", rows, rows, rows, "")
    vae = VAE(StandardNormalPrior(1), PoissonLikelihood(MLP(1, 3)), NormalEncoder(MLP(3, 2)))
    found = []

    def read(figure):  # the figure is cleared afterwards
        panels = [axes for axes in figure.axes if axes.get_title("left")]
        found.append([axes.get_title("left").split(",")[0] for axes in panels])
        axes = panels[1]
        found.append(axes.patches[0].get_data() if axes.patches else axes.collections[0].get_offsets()[:, 0])
        return b"png"

    monkeypatch.setattr(report, "to_png", read)
    names = report.write_sample_figures(SimpleNamespace(path=tmp_path), vae, data, size=20, seed=0)
    assert names == ["samples.png", "reconstructions.png"]
    assert found[0] == found[2] == ["column 0", "column 1", "column 2"]
    shares, recovered = found[1], found[3]
    np.testing.assert_allclose(shares.values, np.histogram(x[:20, 1].numpy(), shares.edges)[0] / 20)
    np.testing.assert_allclose(recovered, x[:20, 1])
