"""Activity of latent dimensions: unbiased, relative to the prior, and the same for every unit of the latent."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from latent_programs import linear_programs

from pyrovae import MLP, Blueprint, MixtureVAE, TwoLayerVAE, Whole
from pyrovae.diagnostics import unit_activity

SMALL = partial(MLP, hidden=[8])


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("top", dist.Laplace(torch.zeros(1), 0.5).to_event(1))
        pyro.sample("z", dist.Normal(torch.zeros(2), 2.0).to_event(1))


def guide(x):
    """Two sites whose means are 2 x_0, 0 and, in the second, x_1 / 10; wide, so that few draws are far off."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.stack([2 * x[:, 0], 0 * x[:, 0]], -1), 3.0).to_event(1))
        pyro.sample("top", dist.Normal(0.1 * x[:, 1:], 1.0).to_event(1))


def test_unit_activity_is_the_variance_of_the_means_over_that_of_the_prior():
    x = torch.randn(400, 2)
    # A Laplace distribution of scale b has the variance 2 b^2.
    exact = torch.stack([x[:, 1].var() / 100 / 0.5, 4 * x[:, 0].var() / 4, torch.zeros(())]).double()
    found = [unit_activity(model, guide, x, num_particles=2, seed=seed) for seed in range(16)]
    assert found[0].labels == ("top[0]", "z[0]", "z[1]")  # in the order of the model
    values = torch.stack([one.activity for one in found])
    error = values.std(0) / len(values) ** 0.5
    assert bool((abs(values.mean(0) - exact) < 4.5 * error).all())
    assert bool((error < torch.tensor([0.06, 0.15, 0.15])).all())  # with the noise of two draws, 1, 1.1 and 1.1 more
    torch.testing.assert_close(found[0].variance[0], found[0].activity[0] / 2)
    many = unit_activity(model, guide, x, num_particles=300)
    assert bool((abs(many.activity - exact) < 0.1).all())


def test_std_error_is_that_of_a_variance_of_normals():
    a, noise, size, draws = 0.8, 0.5, 4000, 20
    programs = linear_programs(torch.diag(torch.tensor([a, 0.0])), noise)
    found = unit_activity(*programs, torch.randn(size, 2), num_particles=draws)
    # Means have the variance m; a variance of n normal numbers has the variance 2 m^2 / (n - 1).
    m = torch.tensor([a**2, 0.0]) + noise**2 / draws
    exact = ((2 * m**2 + 2 * noise**4 / (draws - 1) / draws**2) / size).sqrt()
    torch.testing.assert_close(found.std_error, exact.double(), rtol=0.1, atol=0)
    assert bool((abs(found.activity - torch.tensor([a**2, 0.0])) < 4 * exact).all())


@pytest.mark.slow
def test_std_error_covers_the_variation_over_data():
    programs = linear_programs(torch.diag(torch.tensor([0.8, 0.0])), 0.5)
    found = [unit_activity(*programs, torch.randn(300, 2), num_particles=20, seed=seed) for seed in range(100)]
    values, errors = (torch.stack([getattr(one, key) for one in found]) for key in ("activity", "std_error"))
    torch.testing.assert_close(errors.mean(0), values.std(0), rtol=0.3, atol=0)  # 4 s.e. of a standard deviation


def test_unit_activity_is_the_same_for_every_unit_of_the_latent():
    x = torch.randn(200, 2)
    encoder = torch.diag(torch.tensor([0.9, 0.01]))
    found = []
    for unit in (1.0, 0.05):
        prior = dist.Normal(torch.zeros(2), unit).to_event(1)
        found.append(unit_activity(*linear_programs(unit * encoder, unit * 0.5, prior=prior), x))
    torch.testing.assert_close(found[0].activity, found[1].activity, rtol=1e-4, atol=1e-6)
    assert found[0].num_active == found[1].num_active == 1
    assert found[1].variance[0] < 0.01  # Burda's number calls it inactive


def test_a_prior_without_variance_gives_ranges():
    x = torch.randn(1000, 2)
    prior = dist.Cauchy(torch.zeros(2), torch.tensor([1.0, 3.0])).to_event(1)
    found = unit_activity(*linear_programs(torch.diag(torch.tensor([2.0, 0.0])), 1.0, prior=prior), x)
    assert found.relative_to == ("quantile range",) * 2
    # The quartiles of 2 N(0, 1) are 2 times 0.6745 from 0, those of a Cauchy its scale.
    exact = torch.tensor([(2 * 0.674490) ** 2, 0.0])
    assert bool((abs(found.activity - exact) < 4 * found.std_error).all())
    assert bool((found.std_error < torch.tensor([0.3, 0.02])).all())


def test_a_guide_at_a_prior_of_covariates_has_no_activity():
    c = torch.randn(500, 1)

    def at_prior(x, covariates):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(2 * covariates, 0.5).expand([len(x), 2]).to_event(1))

    found = unit_activity(at_prior, at_prior, torch.randn(500, 3), covariates=c)
    assert found.conditional
    assert bool((abs(found.activity) < 4 * found.std_error).all())
    assert not unit_activity(*linear_programs(torch.eye(2), 1.0), torch.randn(9, 2)).conditional


def test_two_layers_mixtures_and_angles():
    x = (torch.rand(60, 6) > 0.5).float()
    layers = TwoLayerVAE(Blueprint(6, 2, network=SMALL), top_dim=1)
    assert unit_activity(layers.model, layers.guide, x, num_particles=4).labels == ("z2[0]", "z1[0]", "z1[1]")
    mixture = MixtureVAE(Blueprint(6, 2, network=SMALL), num_classes=3)
    found = unit_activity(mixture.model, mixture.guide, x, num_particles=4)
    assert found.skipped == ("site 'y' is discrete (OneHotCategorical)",)
    assert found.labels == ("z[0]", "z[1]")

    def angle(x, noise):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.VonMises(0.0, 1.0))

    with pytest.raises(ValueError, match="but site 'z' is an angle"):
        unit_activity(angle, angle, x, Whole(torch.zeros(2)))


def test_unit_activity_repeats_for_a_seed_and_runs_in_chunks(monkeypatch):
    x = torch.randn(50, 2)
    before = torch.random.get_rng_state()
    one = unit_activity(model, guide, x, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(unit_activity(model, guide, x, seed=3).activity, one.activity, rtol=0, atol=0)
    monkeypatch.setattr("pyrovae.diagnostics.active_units.DRAWS_AT_ONCE", 64 * 20)
    chunked = unit_activity(model, guide, x, seed=3).activity
    torch.testing.assert_close(chunked[1], one.activity[1], rtol=0.3, atol=0)
    assert not torch.equal(chunked, one.activity)


def test_draws_do_not_share_random_numbers_with_data_of_the_same_seed():
    torch.manual_seed(0)
    x = torch.randn(500, 2)
    found = unit_activity(*linear_programs(0.0 * torch.eye(2), 1.0), x, num_particles=2, seed=0)
    assert bool((abs(found.activity) < 4 * found.std_error).all())


def test_unit_activity_needs_two_data_and_two_draws():
    for data, draws in ((1, 5), (5, 1)):
        with pytest.raises(ValueError, match="at least two data and two draws"):
            unit_activity(model, guide, torch.randn(data, 2), num_particles=draws)
