"""Tests of our models under plain Pyro: SVI, Predictive, NUTS, handlers; and of the facts of Pyro that we rely on."""

import pyro
import pytest
import torch
from oracles import LinearGaussian
from pyro import poutine
from pyro.distributions import MultivariateNormal
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.mcmc.util import initialize_model
from pyro.optim import Adam

from pyrovae import MLP, VAE, BernoulliLikelihood, NormalEncoder, StandardNormalPrior


@pytest.fixture
def vae():
    return VAE(
        prior=StandardNormalPrior(2), likelihood=BernoulliLikelihood(MLP(2, 7)), encoder=NormalEncoder(MLP(7, 4))
    )


@pytest.fixture
def x():
    return torch.bernoulli(torch.full((20, 7), 0.3))


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO])
@pytest.mark.thin(1)
def test_svi_of_plain_pyro_steps_a_vae(vae, x, elbo):
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), elbo())
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_a_torch_optimizer_trains_a_vae_through_pyros_elbo_module(vae, x):
    loss = Trace_ELBO()(vae.model, vae.guide)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    loss(x).backward()
    optimizer.step()
    assert all(not torch.equal(before[name], value) for name, value in vae.state_dict().items())


def test_the_analytic_kl_is_the_sampled_one_in_expectation(vae, x):
    # 600 draws of 20 data: the standard error of the sampled loss is measured, four of them allowed (6e-5).
    sampled = torch.tensor([Trace_ELBO().loss(vae.model, vae.guide, x) for _ in range(300)])
    analytic = torch.tensor([TraceMeanField_ELBO().loss(vae.model, vae.guide, x) for _ in range(300)])
    error = (sampled.var() / 300 + analytic.var() / 300).sqrt()
    assert (sampled.mean() - analytic.mean()).abs() < 4 * error
    assert analytic.var() < sampled.var()


def test_predictive_draws_data_and_replicates(vae, x):
    prior = Predictive(vae.model, num_samples=5)(size=3)
    assert prior["x"].shape == (5, 3, 7)
    assert prior["z"].shape == (5, 3, 2)
    # Fact 12: with x given, Predictive hands x back; replicates need uncondition.
    replicates = Predictive(poutine.uncondition(vae.model), guide=vae.guide, num_samples=5)(x)
    assert replicates["x"].shape == (5, 20, 7)
    assert not torch.equal(replicates["x"][0], x)


def test_predictive_draws_in_parallel(vae, x):
    draws = Predictive(vae.model, guide=vae.guide, num_samples=4, parallel=True, return_sites=["z"])(x)
    assert draws["z"].shape == (4, 20, 2)


def test_the_potential_energy_of_nuts_is_that_of_the_exact_posterior():
    oracle = LinearGaussian(data_dim=3, latent_dim=2)
    x = oracle.data(2)
    _, potential, _, _ = initialize_model(oracle.vae().model.eval(), (x,))
    posterior = MultivariateNormal(*oracle.posterior(x))
    z = posterior.sample((5,))
    found = torch.stack([potential({"z": each}) for each in z])
    torch.testing.assert_close(found - found[0], (posterior.log_prob(z[0]) - posterior.log_prob(z)).sum(-1))


@pytest.mark.slow
def test_nuts_on_z_finds_the_exact_posterior():
    oracle = LinearGaussian(data_dim=3, latent_dim=2, dtype=torch.float32)
    x = oracle.data(2)
    model = oracle.vae().model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    mcmc = MCMC(NUTS(model), num_samples=400, warmup_steps=150, disable_progbar=True)
    mcmc.run(x)
    z = mcmc.get_samples()["z"]
    assert z.shape == (400, 2, 2)
    loc, covariance = oracle.posterior(x)
    # At least 100 effective draws of 400: five standard errors of each of 4 means, and the seed is fixed.
    assert ((z.mean(0) - loc).abs() < 0.5 * covariance.diagonal().sqrt()).all()


def test_pyros_handlers_trace_and_condition_the_sites_of_a_vae(vae, x):
    trace = poutine.trace(vae.model).get_trace(x)
    assert [n for n, s in trace.nodes.items() if s["type"] == "sample" and not n.startswith("data")] == ["z", "x"]
    fixed = poutine.condition(vae.model, data={"z": torch.zeros(20, 2)})
    torch.testing.assert_close(poutine.trace(fixed).get_trace(x).nodes["z"]["value"], torch.zeros(20, 2))


def test_parameters_are_in_the_store_under_the_vaes_name(vae, x):
    vae.model(x), vae.guide(x)
    names = list(pyro.get_param_store())
    assert len(names) == len(list(vae.parameters()))
    assert all(name.startswith((f"{vae.name}.model.", f"{vae.name}.guide.")) for name in names)
