"""Units of the data: a change of units changes log p(x) by its Jacobian and nothing else."""

from functools import partial

import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from pyrovae import (
    Blueprint,
    LaplaceLikelihood,
    LogNormalLikelihood,
    NormalLikelihood,
    StudentTLikelihood,
    TruncatedNormalLikelihood,
    fit,
    log_marginal,
)
from pyrovae.likelihoods import Moments


def log_p(x, likelihood, held_out, **arguments):
    """Log p of held-out data after a short training, with the same draws for any units."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    vae = Blueprint(x.shape[1], 2, likelihood=likelihood, x=x, **arguments).vae().double()
    fit(vae.model, vae.guide, x, elbo=TraceMeanField_ELBO(), epochs=3, batch_size=20)
    pyro.set_rng_seed(1)
    return log_marginal(vae.model, vae.guide, held_out, num_particles=500).value


@pytest.fixture(scope="module")
def x():
    pyro.set_rng_seed(3)
    z = torch.randn(120, 2, dtype=torch.float64)
    return z @ torch.randn(2, 4, dtype=torch.float64) + 0.5 * torch.randn(120, 4, dtype=torch.float64)


SHIFT = torch.tensor([170.0, 0.0, -3e4, 1e-3], dtype=torch.float64)
SCALE = torch.tensor([8.0, 1000.0, 1e-2, 1e-4], dtype=torch.float64)


@pytest.mark.parametrize("scale", ["global", "dimension", "network"])
@pytest.mark.parametrize("kind", [NormalLikelihood, LaplaceLikelihood, StudentTLikelihood])
def test_log_p_of_reals_changes_by_the_jacobian_of_the_units(x, kind, scale):
    made = partial(kind, scale=scale)
    before = log_p(x[:100], made, x[100:])
    after = log_p(SHIFT + SCALE * x[:100], made, SHIFT + SCALE * x[100:])
    torch.testing.assert_close(after, before - SCALE.log().sum(), rtol=0, atol=1e-4)


def test_log_p_of_positive_numbers_changes_by_the_jacobian_of_the_units(x):
    positive, made = x.exp(), partial(LogNormalLikelihood, scale="dimension")
    before = log_p(positive[:100], made, positive[100:])
    after = log_p(SCALE * positive[:100], made, SCALE * positive[100:])
    torch.testing.assert_close(after, before - SCALE.log().sum(), rtol=0, atol=1e-4)


def test_log_p_of_bounded_numbers_changes_by_the_jacobian_of_the_units(x):
    share = x.sigmoid()
    before = log_p(share[:100], TruncatedNormalLikelihood, share[100:])
    made = partial(TruncatedNormalLikelihood, low=5.0, high=7.0)
    after = log_p(5 + 2 * share[:100], made, 5 + 2 * share[100:])
    torch.testing.assert_close(after, before - 4 * torch.tensor(2.0).double().log(), rtol=0, atol=1e-4)


def test_a_fixed_scale_is_in_the_units_of_the_data(x):
    vae = Blueprint(4, 2, likelihood=partial(NormalLikelihood, scale=0.3), x=SHIFT + SCALE * x).vae().double()
    assert bool((vae.model.likelihood(torch.zeros(1, 2).double()).base_dist.scale == 0.3).all())


def test_the_units_are_loaded_with_the_weights(x):
    trained = Blueprint(4, 2, likelihood=NormalLikelihood, x=x.float()).vae()
    fresh = Blueprint(4, 2, likelihood=NormalLikelihood).vae()
    fresh.load_state_dict(trained.state_dict())
    z = torch.zeros(1, 2)
    assert torch.equal(fresh.model.likelihood(z).mean, trained.model.likelihood(z).mean)


def test_units_are_mean_and_standard_deviation_of_the_observed_entries():
    x = torch.tensor([[1.0, torch.nan], [3.0, 10.0], [8.0, 14.0]])
    units = Moments.of(x)
    torch.testing.assert_close(units.mean, torch.tensor([4.0, 12.0]))
    torch.testing.assert_close(units.spread, torch.tensor([(26 / 3) ** 0.5, 4.0]))  # 4: the gap, above the deviation 2


def test_a_column_that_is_nearly_always_the_same_has_the_gap_of_its_values_as_spread():
    x = torch.zeros(1000, 3)
    x[0, 0], x[:, 1] = 16.0, torch.linspace(-1, 1, 1000)
    units = Moments.of(x)
    assert units.spread[0] == 16
    torch.testing.assert_close(units.spread[2], units.spread[:2].square().mean().sqrt())
    assert bool((Moments.of(torch.ones(5, 2)).spread == 1).all())
