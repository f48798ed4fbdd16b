"""The same numbers on the CPU and, if present, on a GPU."""

from contextlib import nullcontext

import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    GuideProposal,
    NormalEncoder,
    NormalLikelihood,
    StandardNormalPrior,
    ais,
    exact_log_marginal,
    fit,
    linear_gaussian_log_marginal,
    linear_schedule,
    log_marginal,
)
from pyrovae.execution import NotRecordedWarning

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
SCALE = 0.7


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request):
    return torch.device(request.param)


def linear(device):
    """Return a linear-Gaussian VAE in double precision, data, and log p(x) in closed form on the CPU.

    The guide is the posterior without correlation, with 1.5 times its standard deviations. Importance weights are
    bounded, so that their standard errors hold for the draws of any device.
    """
    pyro.set_rng_seed(3)
    decoder, network = nn.Linear(2, 5).double(), nn.Linear(5, 4).double()
    vae = VAE(StandardNormalPrior(2), NormalLikelihood(decoder, scale=SCALE), NormalEncoder(network)).double()
    with torch.no_grad():
        weight = decoder.weight / SCALE
        covariance = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + weight.T @ weight)
        gain = covariance @ weight.T / SCALE
        log_scale = (1.5 * covariance.diagonal().sqrt()).log()
        network.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
        network.bias.copy_(torch.cat([-gain @ decoder.bias, log_scale]))
    x = vae.model(size=30).detach()
    exact = linear_gaussian_log_marginal(x, decoder.weight.detach(), decoder.bias.detach(), SCALE)
    return vae.to(device), x.to(device), exact


def test_exact_log_marginal_equals_the_closed_form(device):
    vae, x, exact = linear(device)
    found = exact_log_marginal(vae.model, x)
    assert found.value.device == x.device
    torch.testing.assert_close(found.value.cpu(), exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("execution", ["eager", "recorded"])
@pytest.mark.parametrize("proposal", [None, GuideProposal()], ids=["default", "guide"])
@pytest.mark.thin(2)
def test_log_marginal_lies_within_its_standard_errors(device, execution, proposal):
    vae, x, exact = linear(device)
    given = {} if proposal is None else {"proposal": proposal}
    found = log_marginal(vae.model, vae.guide, x, num_particles=5000, execution=execution, **given)
    assert found.value.device == x.device
    assert ((found.value.cpu() - exact).abs() < 5 * found.std_error.cpu() + 1e-9).all()


@pytest.mark.parametrize("execution", ["eager", "recorded"])
@pytest.mark.thin(1)
def test_ais_lies_within_its_standard_errors(device, execution):
    vae, x, exact = linear(device)
    quick = {"num_leapfrog": 4, "num_tuning": 20}
    found = ais(vae.model, x, num_particles=32, betas=linear_schedule(20), execution=execution, **quick)
    assert found.value.device == x.device
    error = (found.value.cpu() - exact) / found.std_error.cpu()
    assert error.square().mean() < 2  # 30 data: a chi-squared mean of 1 with sd 0.26
    assert found.std_error.mean() < 0.2


@pytest.mark.parametrize(
    "execution", ["recorded", pytest.param("compiled", marks=[pytest.mark.compiles, pytest.mark.slow])]
)
def test_a_recorded_run_trains_as_an_eager_run(device, execution):
    pyro.set_rng_seed(0)
    x = torch.bernoulli(torch.full((70, 6), 0.3)).to(device)
    found = []
    for how in ("eager", execution):
        pyro.clear_param_store()
        pyro.set_rng_seed(4)
        decoder, encoder = MLP(2, 6, hidden=[8]), MLP(6, 4, hidden=[8])
        vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(decoder), NormalEncoder(encoder)).to(device)
        fit(vae.model, vae.guide, x, elbo=TraceMeanField_ELBO(), epochs=4, batch_size=32, execution=how)
        found.append([value.cpu() for value in vae.state_dict().values()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_transform_draws_anew_on_the_cpu_at_every_step(device):
    """A CUDA graph would draw them once for all replays."""

    def thinned(x):
        return torch.bernoulli(x * torch.rand(()))

    found = []
    for how in ("eager", "recorded"):
        pyro.set_rng_seed(4)
        vae, x, _ = linear(device)
        warned = device.type == "cuda" and how == "recorded"
        with pytest.warns(NotRecordedWarning, match="draws on the CPU") if warned else nullcontext():
            settings = {"epochs": 4, "batch_size": 7, "transform": thinned, "execution": how}
            fit(vae.model, vae.guide, x.sigmoid(), elbo=TraceMeanField_ELBO(), **settings)
        found.append([value.cpu() for value in vae.state_dict().values()])
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)
