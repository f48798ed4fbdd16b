"""Codes of data: closed forms of the guide, weighted codes against the exact posterior, draws, and refusals."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from small_programs import two_layers

from pyrovae import GuideProposal, encode


def test_codes_of_a_normal_guide_are_its_parameters():
    oracle = LinearGaussian(latent_dim=2)
    vae, x = oracle.vae(sd_factor=0.5, shift=1.0), oracle.data(7)
    found = encode(vae.model, vae.guide, x, num_draws=300)
    fn = vae.guide.encoder(x).base_dist
    torch.testing.assert_close(found.mean["z"], fn.loc)
    torch.testing.assert_close(found.std["z"], fn.scale)
    assert bool((found.mean_error["z"] == 0).all())
    assert found.log_marginal is None
    assert found.draws["z"].shape == (300, 7, 2)
    assert bool(((found.draws["z"].mean(0) - fn.loc).abs() < 4.5 * fn.scale / 300**0.5).all())


def test_weighted_codes_are_those_of_the_posterior_for_a_wrong_guide():
    oracle = LinearGaussian(latent_dim=2)
    vae, x = oracle.vae(sd_factor=1.5, shift=1.0), oracle.data(6)
    mean, covariance = oracle.posterior(x)
    sd = covariance.diagonal().sqrt()
    for proposal in (None, GuideProposal()):
        found = encode(
            vae.model,
            vae.guide,
            x,
            weighted=True,
            num_particles=2000,
            num_draws=1000,
            proposal=proposal,
            chunk_size=5000,
        )
        assert bool(((found.mean["z"] - mean).abs() < 4.5 * found.mean_error["z"]).all())
        assert bool((found.mean_error["z"] < 0.2 * sd).all())
        assert bool(((found.std["z"] / sd - 1).abs() < 0.25).all())
        assert bool(((found.draws["z"].mean(0) - found.mean["z"]).abs() < 4.5 * sd / 1000**0.5).all())
        log_p = found.log_marginal
        assert bool(((log_p.value - oracle.log_marginal(x)).abs() < 4.5 * log_p.std_error + 1e-6).all())
        assert bool((log_p.ess > 50).all())


def test_latents_that_depend_on_others_come_from_draws():
    vae, x = two_layers(), torch.bernoulli(torch.full((5, 6), 0.5))
    found = encode(vae.model, vae.guide, x, num_particles=400)
    weighted = encode(vae.model, vae.guide, x[:1], weighted=True, proposal=GuideProposal(), num_particles=5)
    assert list(found.mean) == list(weighted.mean)
    errors = {name: bool((value > 0).all()) for name, value in found.mean_error.items()}
    assert sorted(errors.values()) == [False, True]  # the lower one is known in closed form
    other = encode(vae.model, vae.guide, x, num_particles=400)
    for name, value in found.mean.items():
        margin = 6 * found.mean_error[name] + 1e-9
        assert bool(((value - other.mean[name]).abs() < margin).all())


def test_codes_without_closed_form_and_refusals():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            base = dist.Normal(x, 0.1)
            pyro.sample("z", dist.TransformedDistribution(base, [dist.transforms.ExpTransform()]))

    x = torch.tensor([0.0, 0.5])
    found = encode(model, guide, x, num_particles=2000)
    exact = (x + 0.005).exp().double()
    assert bool(((found.mean["z"] - exact).abs() < 4.5 * found.mean_error["z"]).all())
    with pytest.raises(ValueError, match="a proposal is for weighted codes"):
        encode(model, guide, x, proposal=GuideProposal())
    with pytest.raises(ValueError, match="num_draws must be at least 1, got -1"):
        encode(model, guide, x, num_draws=-1)
