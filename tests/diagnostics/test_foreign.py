"""AUC of foreign data: closed forms, errors by DeLong, and the generators."""

import math

import pytest
import torch
from oracles import LinearGaussian
from scipy import stats

from pyrovae import GuideProposal
from pyrovae.diagnostics import foreign_data, noise_like, roc_auc, shuffled_columns, shuffled_entries, typicality

EXACT = {"num_particles": 2, "proposal": GuideProposal()}  # the guide is the posterior, so one draw is enough


def test_the_auc_of_a_shifted_normal_is_phi_and_its_error_is_right():
    exact = stats.norm.cdf(1 / math.sqrt(2))
    found = [roc_auc(torch.randn(60) + 1, torch.randn(40)) for _ in range(300)]
    values = torch.tensor([one.value for one in found])
    assert abs(values.mean() - exact) < 4.5 * values.std() / math.sqrt(300)
    errors = torch.tensor([one.std_error for one in found])
    assert errors.mean() / values.std() == pytest.approx(1, abs=0.15)
    apart = roc_auc(torch.arange(5.0, 10), torch.arange(4.0))
    assert apart == (1.0, 0.25)
    with pytest.raises(ValueError, match="at least two data of each kind, got 1 and 3"):
        roc_auc(torch.zeros(1), torch.zeros(3))


def test_ties_count_half_and_nan_is_left_out():
    x, y = torch.tensor([1.0, 2.0, 2.0, math.nan]), torch.tensor([2.0, 0.0])
    pairs = [(a > b) + (a == b) / 2 for a in (1.0, 2.0, 2.0) for b in (2.0, 0.0)]
    assert roc_auc(x, y).value == pytest.approx(sum(pairs) / len(pairs))


def test_shifted_linear_gaussian_data_are_told_apart_as_the_closed_form_says():
    """With one column and W = 0, -log p rises with x^2; for a shift s, x'^2 is noncentral chi-squared."""
    oracle = LinearGaussian(data_dim=1, latent_dim=1, scale=1.0)
    oracle.weight.zero_()
    vae, x = oracle.vae(), oracle.data(600)
    shift = 1.5
    found = foreign_data(vae.model, vae.guide, x, foreign=oracle.data(500) + shift, **EXACT)
    # P(|e| < |e' + s|) with u = e' - e + s, v = e' + e + s: the product of two independent normals is positive
    one = stats.norm.cdf(shift / math.sqrt(2))
    exact = one**2 + (1 - one) ** 2
    assert abs(found.auc.value - exact) < 4 * found.auc.std_error
    assert found.auc.std_error < 0.025
    same = foreign_data(vae.model, vae.guide, x, foreign=oracle.data(300), **EXACT)
    assert abs(same.auc.value - 0.5) < 4 * same.auc.std_error
    assert same.atypical_auc is None


def test_data_that_are_too_probable_are_atypical():
    oracle = LinearGaussian(data_dim=5)
    vae, x = oracle.vae(), oracle.data(200)
    draws = typicality(vae.model, vae.guide, x, **EXACT).reference
    near = oracle.bias + 0.1 * torch.randn(200, 5).double()
    found = foreign_data(vae.model, vae.guide, x, foreign=near, reference=draws, **EXACT)
    assert found.auc.value < 0.2
    assert found.atypical_auc.value > 0.8


def test_generators_keep_what_they_say():
    x = torch.poisson(torch.full((60, 4), 3.0))
    x[:, 3] = 5
    x[0, 0] = torch.nan
    noise = noise_like(x)
    assert torch.equal(noise.isnan(), x.isnan())
    assert bool((noise.nan_to_num(0.0) % 1 == 0).all())
    assert bool((noise[:, 3] == 5).all())
    assert noise[1:, 0].max() == x[1:, 0].max()
    columns = shuffled_columns(x)
    assert torch.equal(columns.isnan(), x.isnan())
    torch.testing.assert_close(columns.sort(0).values, x.sort(0).values, equal_nan=True)
    assert not torch.equal(columns[:, 1], x[:, 1])
    entries = shuffled_entries(x[1:])
    torch.testing.assert_close(entries.sort(1).values, x[1:].sort(1).values)
    reals = noise_like(torch.randn(1000, 2) * torch.tensor([1.0, 9.0]))
    assert stats.kstest((reals[:, 1] / reals[:, 1].abs().max()).numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


def test_foreign_data_of_another_shape_or_without_covariates_are_refused():
    oracle = LinearGaussian()
    vae, x = oracle.vae(), oracle.data(6)
    with pytest.raises(ValueError, match=r"must have shape \(M, 5\) like the data, got \(6, 4\)"):
        foreign_data(vae.model, vae.guide, x, foreign=x[:, :4])
    with pytest.raises(ValueError, match="cannot have the mask of 6 test data"):
        foreign_data(vae.model, vae.guide, x, foreign=x[:3], mask=x > -9)
