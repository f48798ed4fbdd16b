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
    figures = {}

    def titles(figure):
        figures[len(figures)] = figure.axes
        return b"png"

    monkeypatch.setattr(report, "to_png", titles)
    monkeypatch.setattr("matplotlib.figure.Figure.clear", lambda figure: None)
    names = report.write_sample_figures(SimpleNamespace(path=tmp_path), vae, data, size=20, seed=0)
    assert names == ["samples.png", "reconstructions.png"]
    samples, again = figures[0], figures[1]
    panels = [axes for axes in samples if axes.get_title("left")]
    assert [axes.get_title("left") for axes in panels] == ["column 0", "column 1", "column 2"]
    shown = panels[1].patches[0].get_data()
    np.testing.assert_allclose(shown.values, np.histogram(x[:20, 1].numpy(), shown.edges)[0] / 20)
    np.testing.assert_allclose(again[2].collections[0].get_offsets()[:, 0], x[:20, 2])
    assert again[2].get_ylabel() == "E[x|z]"
