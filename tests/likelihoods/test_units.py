"""Units of the data: a change of units changes log p(x) by its Jacobian and nothing else."""

from functools import partial

import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from pyrovae import (
    MLP,
    Blueprint,
    LaplaceLikelihood,
    LogNormalLikelihood,
    NormalLikelihood,
    RoundedNormalLikelihood,
    StudentTLikelihood,
    TruncatedNormalLikelihood,
    fit,
    log_marginal,
)
from pyrovae.baselines import IndependentColumns
from pyrovae.densities import entry_of
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
@pytest.mark.thin(2)
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


def test_the_floor_of_scales_is_the_gap_of_few_values_and_at_most_their_deviation():
    few = torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.5, 7.0, torch.nan, 2.0], [1.5, 0.0, 4.0, 2.0], [3.0, 0.0, 5.0, 2.0]])
    floors = Moments.of(few).resolution
    deviation = (3 * 1.75**2 + 5.25**2) ** 0.5 / 2  # of 0, 7, 0, 0
    torch.testing.assert_close(floors[:3], torch.tensor([0.5, deviation, 1.0]))
    assert floors[3] == pytest.approx(1e-3 * Moments.of(few).spread[3].item())
    torch.testing.assert_close(Moments.of(few * 7.0).resolution, 7 * floors)


@pytest.mark.parametrize("kind", [NormalLikelihood, LaplaceLikelihood, StudentTLikelihood, LogNormalLikelihood])
def test_model_and_baseline_have_one_floor_however_small_their_scales(kind):
    """A column of few values, whose density has no maximum, and one of many, on which the floor has no effect."""
    pyro.set_rng_seed(2)
    x = torch.stack([torch.randint(1, 5, (200,)).float(), torch.randn(200).exp()], 1)
    vae = Blueprint(2, 1, likelihood=partial(kind, scale="dimension"), x=x, network=partial(MLP, hidden=[])).vae()
    likelihood = vae.model.likelihood
    with torch.no_grad():
        likelihood.scale.raw.fill_(-12.0)  # of a scale near 0
    scale = entry_of(likelihood(torch.zeros(1, 1))).scale[0].detach()
    is_log = kind is LogNormalLikelihood
    floor = 1 / x[:, 0].log().mean().exp() if is_log else torch.tensor(1.0)
    assert scale[0].item() == pytest.approx(floor.item(), rel=1e-4)
    assert scale[1] < 1e-3
    # A column with one frequent value, on which the floor binds the baseline.
    rare, made = torch.tensor([2.0] * 400 + [3.0, 1.0])[:, None], partial(kind, scale="dimension")
    deviation = (2 / 402) ** 0.5
    assert Moments.of(rare).resolution.item() == pytest.approx(deviation, rel=1e-4)
    if kind is not StudentTLikelihood:  # slow
        free, default, floored = (
            IndependentColumns(rare, made, resolution=given).log_prob(rare[:1]) for given in (1e-4, None, deviation)
        )
        torch.testing.assert_close(default, floored, rtol=0, atol=1e-5)
        assert free > default or kind is NormalLikelihood


def test_probabilities_of_rounded_numbers_have_no_floor():
    x = torch.randint(0, 4, (50, 2)).float()
    made = partial(RoundedNormalLikelihood, resolution=1.0, scale="dimension")
    likelihood = Blueprint(2, 1, likelihood=made, x=x).vae().model.likelihood
    assert bool((likelihood.units.floor == 0).all())
    assert bool((Blueprint(2, 1, likelihood=NormalLikelihood).vae().model.likelihood.units.floor == 0).all())
