"""Principal components and t-SNE of codes."""

import pytest
import torch

from pyrovae.diagnostics import Codes, pca_codes, tsne_codes


def codes_of(mean):
    names = tuple(f"z[{j}]" for j in range(mean.shape[1]))
    levels = torch.tensor([0.1, 0.9]).double()
    prior = torch.eye(mean.shape[1]).double()
    return Codes(names, mean, mean, mean + 1, prior, mean.var(0), prior[:2], levels, {"z": torch.Size([len(names)])})


def test_principal_components_of_codes_and_the_same_map_for_the_prior():
    torch.manual_seed(2)
    basis = torch.linalg.qr(torch.randn(4, 4).double()).Q
    scores = torch.linalg.qr(torch.randn(50, 4).double() - 0).Q
    scores = torch.linalg.qr(scores - scores.mean(0)).Q
    sd = torch.tensor([4.0, 2.0, 1.0, 0.0]).double()
    mean = scores * sd @ basis.T + 3.0
    found = pca_codes(codes_of(mean))
    torch.testing.assert_close(found.share, torch.tensor([16.0, 4.0]).double() / 21)
    assert found.names == ("PC 1 (76 % of the variance)", "PC 2 (19 % of the variance)")
    torch.testing.assert_close((found.components @ basis[:, :2]).abs(), torch.eye(2).double())
    torch.testing.assert_close(found.mean.abs(), (scores * sd)[:, :2].abs())
    shifted = (torch.eye(4).double() - mean.mean(0)) @ found.components.T
    torch.testing.assert_close(found.prior, shifted)
    torch.testing.assert_close(found.draw, found.mean + found.components.sum(1))
    assert (found.components.gather(1, found.components.abs().argmax(1, keepdim=True)) > 0).all()


def test_principal_components_need_codes_that_vary():
    with pytest.raises(ValueError, match="the guide ignores x"):
        pca_codes(codes_of(torch.ones(5, 3).double()))
    with pytest.raises(ValueError, match="number of latents, 1"):
        pca_codes(codes_of(torch.randn(5, 1).double()))


def test_tsne_keeps_neighbours_and_carries_its_caution():
    groups = torch.randn(45, 5).double() + 50 * (torch.arange(45) % 3)[:, None]
    found = tsne_codes(codes_of(groups), perplexity=5.0)
    assert found.places.shape == (45, 2)
    nearest = torch.cdist(found.places, found.places).fill_diagonal_(torch.inf).argmin(1)
    assert (nearest % 3 == torch.arange(45) % 3).all()
    assert "have no meaning" in found.caution
    assert found.divergence >= 0
    with pytest.raises(ValueError, match="below the number of data, 45"):
        tsne_codes(codes_of(groups), perplexity=45.0)
