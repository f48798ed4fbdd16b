"""Log weights: errors that name datum and site, unbiased stopping, and precision."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    GuideProposal,
    NormalEncoder,
    PriorProposal,
    StandardNormalPrior,
    ais,
    bracket,
    evidence_lower_bound,
    ladder,
    linear_schedule,
    log_joint,
    log_marginal,
    refine,
)
from pyrovae.evidence import evaluate

BAD, SIZE = 250, 300


@pytest.fixture
def broken():
    """Programs of which datum 250 alone, marked in the data, has a density that is NaN."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = torch.where(x[:, :1] > 90, torch.nan, z)
            pyro.sample("pixels", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    x = torch.zeros(SIZE, 2)
    x[BAD] = 99.0
    return model, guide, x


@pytest.mark.parametrize(
    "estimate",
    [
        lambda *pair: log_marginal(*pair, num_particles=20, chunk_size=640),
        lambda *pair: log_marginal(*pair, num_particles=20, chunk_size=640, proposal=GuideProposal()),
        lambda *pair: log_marginal(
            *pair, num_particles=900, chunk_size=640, target_std_error=1.0, proposal=PriorProposal()
        ),
        lambda *pair: evidence_lower_bound(*pair, num_particles=20, chunk_size=640),
        lambda model, _, x: ais(model, x, num_particles=2, betas=linear_schedule(3), num_leapfrog=1, num_tuning=1),
    ],
    ids=["default", "guide", "target_std_error", "ELBO", "AIS"],
)
@pytest.mark.thin(1)
def test_a_nan_weight_makes_its_datum_nan_and_names_it_and_the_site(broken, estimate):
    with pytest.warns(UserWarning, match=r"of datum 250 are NaN .*site 'pixels' of the model is not finite") as told:
        found = estimate(*broken)
    assert len(told) == 1
    for field in found:
        assert field.isnan().nonzero().tolist() == [[BAD]]


@pytest.mark.parametrize(
    "estimate",
    [
        lambda *pair: evaluate(*pair, num_particles=20, chunk_size=640),
        lambda *pair: bracket(
            *pair[:2], {"z": torch.zeros(SIZE, 2)}, pair[2], num_particles=20, proposal=GuideProposal(), chunk_size=640
        ),
        lambda *pair: refine(*pair, log_p=torch.zeros(SIZE), steps=1, num_particles=4, chunk_size=640),
    ],
    ids=["evaluate", "bracket", "refine"],
)
def test_a_nan_weight_names_the_datum_and_the_site(broken, estimate):
    with pytest.raises(ValueError, match=r"of datum 250 are NaN .*site 'pixels' of the model is not finite"):
        estimate(*broken)


def test_a_guide_without_width_is_refused_by_name_and_loses_its_share_of_a_mixture():
    oracle = LinearGaussian()
    vae, x = oracle.vae(sd_factor=0.0), oracle.data(4)
    with pytest.raises(ValueError, match=r"of datum 0 .*site 'z' of the guide"):
        log_marginal(vae.model, vae.guide, x, num_particles=100, proposal=GuideProposal())
    with pytest.warns(UserWarning, match="draws of the guide for 4 of 4 data"):
        value, error, *_ = log_marginal(vae.model, vae.guide, x, num_particles=1000)
    assert ((value - oracle.log_marginal(x)) / error).abs().max() < 5


def test_log_marginal_is_accurate_when_the_guide_is_very_narrow():
    oracle = LinearGaussian()
    vae, x = oracle.vae(sd_factor=1e-20), oracle.data(20)
    estimate = log_marginal(vae.model, vae.guide, x, num_particles=2000)
    z = (estimate.value - oracle.log_marginal(x)) / estimate.std_error
    assert z.abs().max() < 4.5


@pytest.mark.filterwarnings("ignore:1 of 1 data do not reach target_std_error")
def test_a_target_error_stops_by_other_draws_than_those_it_averages():
    # Stopped by the very draws it averages, the guide that is too narrow came out 0.04 nats low here, for its error is
    # small where its tail is missed; chosen by others, the bias is the bound's own, half the squared error.
    oracle = LinearGaussian(data_dim=16, latent_dim=6)
    vae, x = oracle.vae(sd_factor=0.8), oracle.data(160)
    found = [
        log_marginal(
            vae.model, vae.guide, x[n : n + 1], num_particles=20_000, target_std_error=0.1, proposal=GuideProposal()
        )
        for n in range(len(x))
    ]
    away = torch.cat([one.value for one in found]) - oracle.log_marginal(x)
    error = torch.cat([one.std_error for one in found])
    standardised = (away + error.square() / 2).mean() / (away.std() / len(x) ** 0.5)
    assert abs(standardised) < 4
    assert error.median() < 0.12


@pytest.mark.parametrize("option", [{"target_std_error": 0.1}, {"pareto_smoothed": True}])
def test_the_ladder_refuses_options_that_change_the_number_of_draws(option):
    oracle = LinearGaussian()
    vae = oracle.vae(sd_factor=1.0)
    with pytest.raises(ValueError, match=f"same number of draws for all data, got {next(iter(option))}"):
        ladder(vae.model, vae.guide, oracle.data(3), num_particles=10, **option)


@pytest.mark.parametrize("proposal", ["guide", GuideProposal])
def test_a_proposal_that_is_no_object_is_refused(proposal):
    oracle = LinearGaussian()
    vae = oracle.vae(sd_factor=1.0)
    with pytest.raises(ValueError, match=r"proposal must be an object, got .*give an object such as GuideProposal"):
        log_marginal(vae.model, vae.guide, oracle.data(3), num_particles=10, proposal=proposal)


def test_log_weights_in_single_precision_are_within_a_thousandth_of_a_nat():
    # 784 pixels, as in MNIST: the same latents weighed in both precisions.
    pyro.set_rng_seed(0)
    decoder, encoder = MLP(5, 784, hidden=[50]), MLP(784, 10, hidden=[50])
    vae = VAE(StandardNormalPrior(5), BernoulliLikelihood(decoder), NormalEncoder(encoder))
    x, z = torch.bernoulli(torch.full((30, 784), 0.3)), torch.randn(40, 30, 5)
    single = log_joint(vae.model, {"z": z}, x)
    vae.double()
    double = log_joint(vae.model, {"z": z.double()}, x.double())
    assert (single - double).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_the_default_estimate_is_right_in_both_precisions(dtype):
    oracle = LinearGaussian(dtype=dtype)
    vae, x = oracle.vae(sd_factor=1.3), oracle.data(200)
    estimate = log_marginal(vae.model, vae.guide, x, num_particles=1000)
    assert estimate.value.dtype == torch.float64
    z = (estimate.value - oracle.log_marginal(x)) / estimate.std_error
    assert z.abs().max() < 5
    assert 0.8 < z.std() < 1.2
