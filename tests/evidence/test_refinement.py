"""Approximation and amortisation gaps against closed forms and quadrature."""

import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import HandWritten, LinearGaussian
from quadrature import log_integral, plane, simplex
from torch.distributions import Normal, kl_divergence

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    Blueprint,
    CategoricalEncoder,
    CategoricalPrior,
    DirichletPrior,
    NormalEncoder,
    StandardNormalPrior,
    TwoLayerVAE,
    ais,
    linear_schedule,
    log_joint,
    refine,
)


class TestLinearGaussian:
    oracle = LinearGaussian(latent_dim=3)

    def test_refined_full_normals_are_the_posterior_and_the_guide_has_the_whole_gap(self):
        x, vae = self.oracle.data(20), self.oracle.vae(sd_factor=0.7, shift=0.8)
        loc, covariance = self.oracle.posterior(x)
        exact = self.oracle.log_marginal(x)
        found = refine(vae.model, vae.guide, x, log_p=exact, family="full", lr=0.05, steps=300, chunk_size=1000)
        torch.testing.assert_close(found.mean, loc, rtol=0, atol=5e-3)
        torch.testing.assert_close(
            found.scale_tril @ found.scale_tril.mT, covariance.expand(20, 3, 3), rtol=0.05, atol=2e-3
        )
        assert found.approximation_gap.abs().max() < 1e-3
        scale = covariance.diagonal().sqrt()
        guide = torch.distributions.MultivariateNormal(loc + 0.8 * scale, (0.7 * scale).square().diag())
        kl = kl_divergence(guide, torch.distributions.MultivariateNormal(loc, covariance))
        # Four standard errors for each of 20 data, once: 1e-3.
        assert ((found.total_gap - kl).abs() < 4 * found.total_error).all()
        assert ((found.amortisation_gap - kl).abs() < 4 * found.amortisation_error + 1e-3).all()
        assert found.total_error.max() < 0.15 * kl.min()

    @pytest.mark.slow
    def test_refined_diagonal_normals_leave_the_gap_of_mean_field(self):
        # The best diagonal normal has the posterior's mean and variances 1 / Lambda_ii; it leaves
        # (sum_i log Lambda_ii - log det Lambda) / 2 (Bishop 2006, section 10.1.2).
        x, vae = self.oracle.data(20), self.oracle.vae(sd_factor=1.4, shift=-0.5)
        loc, covariance = self.oracle.posterior(x)
        precision = torch.linalg.inv(covariance)
        left = (precision.diagonal().log().sum() - torch.logdet(precision)) / 2
        log_p = self.oracle.log_marginal(x)
        found = refine(vae.model, vae.guide, x, log_p=log_p, num_particles=4000)
        sd = found.scale_tril.diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(sd, precision.diagonal().rsqrt().expand(20, 3), rtol=0.1, atol=0)
        torch.testing.assert_close(found.scale_tril, sd.diag_embed())
        assert (found.mean - loc).abs().max() < 0.05
        assert ((found.approximation_gap - left).abs() < 4 * found.approximation_error + 0.003).all()
        assert found.approximation_error.max() < 0.3 * left
        torch.testing.assert_close(found.approximation_gap + found.amortisation_gap, found.total_gap)
        assert (found.amortisation_gap > 4 * found.amortisation_error).all()

    def test_gap_errors_include_the_error_of_log_p(self):
        x, vae = self.oracle.data(5), self.oracle.vae(sd_factor=1.0)
        log_p = ais(vae.model, x, num_particles=10, betas=linear_schedule(5), num_leapfrog=2, num_tuning=10)
        found = refine(vae.model, vae.guide, x, log_p=log_p, steps=20)
        torch.testing.assert_close(
            found.total_error.square(), log_p.std_error.square() + found.guide_elbo_error.square()
        )
        torch.testing.assert_close(
            found.approximation_error.square(), log_p.std_error.square() + found.elbo_error.square()
        )
        torch.testing.assert_close(found.total_gap, log_p.value - found.guide_elbo)


class _PoorGuide:
    """A guide with the posterior's mean plus shift standard deviations, and factor times these."""

    def __init__(self, oracle, shift, factor):
        self.oracle, self.shift, self.factor = oracle, shift, factor

    def __call__(self, x):
        loc, covariance = self.oracle.posterior(x)
        sd = covariance.diagonal().sqrt().expand_as(loc)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc + self.shift * sd, self.factor * sd).to_event(1))


@pytest.mark.parametrize("family", ["diagonal", "full"])
@pytest.mark.parametrize(("shift", "factor"), [(0, 1e-4), (100, 1), (30, 1e-3), (0, 1000)])
@pytest.mark.thin(1)
def test_gaps_of_collapsed_and_far_guides_agree_with_the_closed_form(family, shift, factor):
    # The best diagonal normal leaves (sum_i log Lambda_ii - log det Lambda) / 2; Adam from the guide left 5 to 170,000.
    oracle = LinearGaussian(32, 10)
    x, vae = oracle.data(20), oracle.vae()
    precision = torch.linalg.inv(oracle.posterior(x)[1])
    left = (precision.diagonal().log().sum() - torch.logdet(precision)) / 2 if family == "diagonal" else 0.0
    guide = _PoorGuide(oracle, shift, factor)
    found = refine(vae.model, guide, x, log_p=oracle.log_marginal(x), family=family, steps=200)
    assert ((found.approximation_gap - left).abs() < 4.5 * found.approximation_error + 0.005).all()
    assert abs(found.approximation_gap.mean() - left) < 0.02
    assert found.shortfall.max() < 0.05
    torch.testing.assert_close(found.total_gap, found.approximation_gap + found.amortisation_gap)


def test_refine_refuses_gaps_that_have_not_converged(monkeypatch):
    # One short step of Adam from a collapsed guide alone: the fault that the gradient of fresh draws is to find.
    refinement = sys.modules["pyrovae.evidence.refinement"]
    monkeypatch.setattr(refinement, "_laplace", lambda space, family, _: refinement._guide_moments(space, family))
    oracle = LinearGaussian(32, 10)
    x, vae = oracle.data(5), oracle.vae()
    with pytest.warns(UserWarning, match="not converged for 5 of 5 data, the first of them datum 0"):
        found = refine(vae.model, _PoorGuide(oracle, 0, 1e-4), x, log_p=oracle.log_marginal(x), steps=1)
    for unknown in (found.elbo, found.approximation_gap, found.approximation_error, found.amortisation_gap):
        assert unknown.isnan().all()
    assert (found.shortfall > 1).all()
    assert found.total_gap.isfinite().all()


def test_refine_finds_the_best_normal_of_a_bernoulli_model():
    # One latent: the ELBO of every normal on a grid of means and widths by quadrature, its best against the optimum.
    vae = VAE(StandardNormalPrior(1), BernoulliLikelihood(_decoder(1)), NormalEncoder(MLP(5, 2, hidden=[]))).double()
    x = vae.model(size=6).detach()
    z, weights = plane(1, 600)
    log_p = log_joint(vae.model, {"z": z[:, None].expand(-1, 6, 1)}, x).detach()
    exact = log_integral(log_p, weights)
    loc, scale = torch.meshgrid(torch.linspace(-3, 3, 121), torch.linspace(0.05, 1.5, 59), indexing="ij")
    q = Normal(loc.double(), scale.double())
    density = (q.log_prob(z[:, :, None]).exp() * weights[:, None, None]).flatten(1)
    best = (density.T @ log_p + q.entropy().flatten()[:, None]).amax(0)
    found = refine(vae.model, vae.guide, x, log_p=exact, num_particles=20_000)
    assert ((found.elbo - best).abs() < 4 * found.elbo_error + 0.004).all()
    assert (found.approximation_gap > -4 * found.approximation_error).all()
    assert found.elbo_error.max() < 0.02
    assert (found.amortisation_gap > 10 * found.amortisation_error).all()


def _decoder(latent_dim):
    network = MLP(latent_dim, 5, hidden=[8], activation="tanh")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    return network


def test_refine_works_in_the_unconstrained_coordinates_of_a_simplex():
    vae = VAE(
        DirichletPrior(3, concentration=1.5), BernoulliLikelihood(_decoder(3)), NormalEncoder(MLP(5, 4, hidden=[]))
    ).double()
    x = vae.model(size=20).detach()
    points, weights = simplex(3, 100)
    exact = log_integral(log_joint(vae.model, {"z": points[:, None].expand(-1, 20, -1)}, x).detach(), weights)
    found = refine(vae.model, vae.guide, x, log_p=exact, family="full")
    assert found.mean.shape == (20, 2)
    assert (found.approximation_gap > -4 * found.approximation_error).all()
    assert found.approximation_gap.mean() < 0.1 < found.total_gap.mean()
    assert (found.amortisation_gap > -4 * found.amortisation_error).all()


@pytest.mark.slow
def test_hand_written_programs_and_two_sites_are_refined():
    hand = HandWritten()
    x = torch.randn(10, 4)
    found = refine(hand.model, hand.guide, x, log_p=hand.log_marginal(x), family="full", lr=0.05, steps=200)
    assert found.approximation_gap.abs().max() < 5e-3
    assert (found.total_gap > 0).all()
    assert all(p.grad is None and p.requires_grad for p in hand.decoder.parameters())
    vae = TwoLayerVAE(Blueprint(4, 2), top_dim=1, hidden=[6])
    x = vae.model(size=5).detach()
    found = refine(vae.model, vae.guide, x, log_p=torch.zeros(5), steps=100)
    assert found.mean.shape == (5, 3)
    assert (found.amortisation_gap > -4 * found.amortisation_error).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"num_particles": 0}, "num_particles must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"family": "banana"}, 'family must be "diagonal" or "full", got \'banana\''),
        ({"log_p": torch.zeros(3)}, r"log_p has shape \(3,\); expected one value for each of 4 data"),
    ],
)
def test_refine_refuses_wrong_arguments(wrong, message):
    oracle = LinearGaussian()
    vae = oracle.vae(sd_factor=1.0)
    with pytest.raises(ValueError, match=message):
        refine(vae.model, vae.guide, oracle.data(4), **{"log_p": torch.zeros(4), **wrong})


def test_refine_refuses_discrete_latents():
    vae = VAE(CategoricalPrior(3), BernoulliLikelihood(MLP(3, 4)), CategoricalEncoder(MLP(4, 3)))
    with pytest.raises(ValueError, match="is discrete"):
        refine(vae.model, vae.guide, torch.zeros(2, 4), log_p=torch.zeros(2))
