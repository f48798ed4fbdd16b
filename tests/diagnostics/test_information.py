"""Brackets of information and of the aggregate posterior, against closed forms of normals."""

import math
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from latent_programs import linear_programs

from pyrovae import MLP, Blueprint, MixtureVAE, TwoLayerVAE
from pyrovae.diagnostics import information

ENCODER = torch.tensor([[0.9, 0.3], [0.1, 0.8]], dtype=torch.float64)


def within(found, exact, slack=4.0):
    """Return whether exact lies between two ends, up to their errors."""
    low = found.lower - slack * found.lower_error
    return bool(((low <= exact) & (exact <= found.upper + slack * found.upper_error)).all())


def test_closed_forms_of_a_linear_guide():
    noise = 0.5
    x = torch.randn(700, 2, dtype=torch.float64)
    found = information(*linear_programs(ENCODER, noise), x, num_particles=2)
    c = ENCODER @ ENCODER.T + noise**2 * torch.eye(2)  # covariance of q(z)
    variance, log_det = c.diagonal(), torch.logdet(c)
    mutual = log_det / 2 - 2 * math.log(noise)
    correlation = (variance.log().sum() - log_det) / 2
    aggregate = (variance.sum() - 2 - log_det) / 2
    by_dimension = (variance - 1 - variance.log()) / 2
    for ends, exact in (
        (found.information, mutual),
        (found.aggregate_kl, aggregate),
        (found.total_correlation, correlation),
        (found.dimension_kl_ends, by_dimension),
        (found.dimension_information, variance.log() / 2 - math.log(noise)),
    ):
        assert within(ends, exact)
        assert bool((ends.upper - ends.lower < 0.1).all())
        assert bool((ends.upper >= ends.lower).all())
        assert bool((ends.lower_error < 0.05).all())
    assert bool((abs(found.dimension_kl - by_dimension) < 4 * found.dimension_kl_error).all())
    assert abs(found.kl - mutual - aggregate) < 4 * found.kl_error
    assert found.measurable
    assert found.words.startswith("the latents hold from 1.")
    assert found.labels == ("z[0]", "z[1]")


def test_the_parts_add_up_for_one_set_of_draws():
    found = information(*linear_programs(ENCODER, 0.5), torch.randn(50, 2, dtype=torch.float64), num_particles=3)
    correlation, dimensions = found.within
    parts = found.information.lower + correlation + dimensions.sum() + found.prior_dependence
    assert abs(parts - found.kl) < 1e-10
    assert abs(found.prior_dependence) < 1e-10
    assert abs(found.aggregate_kl.lower + found.information.upper - found.kl) < 1e-10


def test_a_prior_that_depends_between_dimensions_keeps_the_sum():
    prior = dist.MultivariateNormal(torch.zeros(2).double(), torch.tensor([[1.0, 0.6], [0.6, 1.0]]).double())
    x = torch.randn(400, 2, dtype=torch.float64)
    found = information(*linear_programs(ENCODER, 0.5, prior=prior), x)
    correlation, dimensions = found.within
    parts = found.information.lower + correlation + dimensions.sum() + found.prior_dependence
    assert abs(parts - found.kl) < 1e-10
    # E_q[sum_j log p(z_j) - log p(z)] from the covariance of q(z).
    c = ENCODER @ ENCODER.T + 0.25 * torch.eye(2)
    precision = torch.linalg.inv(prior.covariance_matrix)
    exact = ((precision - torch.eye(2)) * c).sum() / 2 + torch.logdet(prior.covariance_matrix) / 2
    assert abs(found.prior_dependence - exact) < 0.15


def test_much_information_is_not_measurable_and_has_wide_ends():
    dim, true = 10, 12.0
    noise = math.exp(-true / dim)  # with marginals of variance 1
    programs = linear_programs((1 - noise**2) ** 0.5 * torch.eye(dim), noise)
    found = information(*programs, torch.randn(300, dim))
    assert found.information.lower <= math.log(300)
    assert within(found.information, torch.tensor(true))
    # 5.70 and 25.2 in an independent computation with N = 300.
    assert abs(found.information.lower - 5.70) < 0.02
    assert abs(found.information.upper - 25.2) < 4 * found.information.upper_error
    assert within(found.aggregate_kl, torch.tensor(0.0))
    assert not found.measurable
    assert found.words.startswith("not measurable with 300 data")
    assert bool((abs(found.dimension_kl) < 4 * found.dimension_kl_error + 0.01).all())


def test_a_guide_at_the_prior_holds_nothing():
    found = information(*linear_programs(torch.zeros(2, 2), 1.0), torch.randn(60, 2))
    for value in (*found.information[:2], *found.total_correlation[:2], found.dimension_kl, found.kl):
        torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-5)


def test_blocks_change_nothing(monkeypatch):
    programs, x = linear_programs(ENCODER, 0.5), torch.randn(40, 2, dtype=torch.float64)
    one = information(*programs, x)
    monkeypatch.setattr(sys.modules["pyrovae.diagnostics.information"], "_NUMBERS_AT_ONCE", 21)
    blocks = information(*programs, x)
    torch.testing.assert_close(blocks.information, one.information)
    torch.testing.assert_close(blocks.dimension_kl, one.dimension_kl)


def test_a_full_covariance_has_marginals():
    tril = torch.tensor([[0.8, 0.0], [0.5, 0.6]])
    model, _ = linear_programs(torch.eye(2), 1.0)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(0.5 * x, scale_tril=tril))

    found = information(model, guide, torch.randn(500, 2))
    c = 0.25 * torch.eye(2) + tril @ tril.T
    assert within(found.total_correlation, (c.diagonal().log().sum() - torch.logdet(c)) / 2)
    assert within(found.information, (torch.logdet(c) - torch.logdet(tril @ tril.T)) / 2)
    assert bool((found.total_correlation.upper - found.total_correlation.lower < 0.1).all())


def test_densities_that_depend_on_other_latents_are_left_out():
    x = (torch.rand(30, 6) > 0.5).float()
    layers = TwoLayerVAE(Blueprint(6, 2, network=lambda i, o: MLP(i, o, hidden=[4])), top_dim=1)
    found = information(layers.model, layers.guide, x)
    assert found.dimension_kl.isnan().tolist() == [False, True, True]
    assert bool(found.information.lower.isfinite())
    assert bool(found.total_correlation.lower.isnan())
    assert "site 'z1' of the model has no known densities by dimension" in found.skipped
    mixture = MixtureVAE(Blueprint(6, 2, network=lambda i, o: MLP(i, o, hidden=[4])), num_classes=2)
    found = information(mixture.model, mixture.guide, x)
    assert bool(found.aggregate_kl.lower.isfinite())
    assert found.skipped[0] == "site 'y' is discrete (OneHotCategorical)"


def test_a_prior_of_covariates_has_no_aggregate():
    def model(x, covariates):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(covariates, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x, covariates):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + covariates) / 2, 0.7).to_event(1))

    found = information(model, guide, torch.randn(30, 2), covariates=torch.randn(30, 2))
    assert bool(found.information.upper.isfinite())
    assert bool(found.aggregate_kl.lower.isnan())
    assert "the prior depends on the datum, so KL(q(z), p(z)) has no one p(z)" in found.skipped


def test_a_subset_of_many_data_and_too_few():
    programs = linear_programs(ENCODER, 0.5)
    found = information(*programs, torch.randn(90, 2, dtype=torch.float64), max_data=20)
    assert found.num_data == 20
    with pytest.raises(ValueError, match="at least two data"):
        information(*programs, torch.randn(1, 2, dtype=torch.float64))
