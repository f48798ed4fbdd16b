"""Importance sampling of log p(x) against closed forms, and its invariances and errors."""

import math
import weakref
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import HandWritten, LinearGaussian
from pyro import poutine
from pyro.infer import RenyiELBO
from torch import nn

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    Guide,
    MixturePrior,
    NormalEncoder,
    NormalLikelihood,
    Prior,
    StandardNormalPrior,
    evidence_lower_bound,
    exact_log_marginal,
    log_joint,
    log_marginal,
    log_weights,
)
from pyrovae.evidence import GuideProposal, log_weight_blocks


def test_with_the_posterior_as_guide_all_weights_are_log_p():
    oracle = LinearGaussian()
    x, vae = oracle.data(7), oracle.vae()
    log_w = log_weights(vae.model, vae.guide, x, num_particles=20)
    assert log_w.shape == (20, 7)
    torch.testing.assert_close(log_w, oracle.log_marginal(x).expand(20, 7), rtol=0, atol=1e-10)
    estimate = log_marginal(vae.model, vae.guide, x, num_particles=20, proposal=GuideProposal())
    torch.testing.assert_close(estimate.value, oracle.log_marginal(x), rtol=0, atol=1e-10)
    assert estimate.std_error.max() < 1e-10
    torch.testing.assert_close(estimate.ess, torch.full((7,), 20.0, dtype=torch.float64))


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_log_marginal_is_within_four_standard_errors(latent_dim):
    # The weights have finite variance (guide wider than the posterior) and the seed is fixed. Each of 400 z-scores is
    # standard normal but for a bias well below it: one beyond four has probability 400 * 6e-5 = 2.5 %, once, since the
    # seed is fixed. A constant missing from either density (0.9 nats) is 100 standard errors.
    oracle = LinearGaussian(latent_dim=latent_dim)
    x, vae = oracle.data(400), oracle.vae(sd_factor=1.2)
    estimate = log_marginal(vae.model, vae.guide, x, num_particles=1000, proposal=GuideProposal())
    z = (estimate.value - oracle.log_marginal(x)) / estimate.std_error
    assert z.abs().max() < 4
    # The mean of 400 z has sd 0.05; their sd is 1 within 0.035. Both bands are five of those wide.
    assert abs(z.mean()) < 0.25
    assert 0.82 < z.std() < 1.18


def test_the_bias_shrinks_with_the_number_of_particles():
    oracle = LinearGaussian()
    x = oracle.data(3000)
    vae = oracle.vae(sd_factor=1.3, shift=0.5)
    exact = oracle.log_marginal(x)
    gaps = []
    for num_particles in (1, 4, 16, 64):
        gap = exact - log_marginal(vae.model, vae.guide, x, num_particles=num_particles, proposal=GuideProposal()).value
        error = gap.std() / len(gap) ** 0.5
        assert gap.mean() > -4 * error  # a lower bound: above log p(x) by chance in 3 runs of 100,000
        gaps.append(gap.mean())
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 8 * gaps[3]
    elbo = evidence_lower_bound(vae.model, vae.guide, x, num_particles=1)
    assert abs((exact - elbo.value).mean() - gaps[0]) < 6 * error + 0.05


def test_the_elbo_is_log_p_minus_the_kl():
    oracle = LinearGaussian(latent_dim=1)
    x, vae = oracle.data(6), oracle.vae(sd_factor=1.5, shift=1.0)
    loc, covariance = oracle.posterior(x)
    scale = covariance.diagonal().sqrt()
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(loc + scale, 1.5 * scale), torch.distributions.Normal(loc, scale)
    ).sum(-1)
    bound = evidence_lower_bound(vae.model, vae.guide, x, num_particles=20_000)
    # Four standard errors for each of six data: false alarm 4e-4; the seed is fixed.
    assert ((bound.value - (oracle.log_marginal(x) - kl)).abs() < 4 * bound.std_error).all()


def test_log_marginal_is_accurate_for_hand_written_programs():
    hand = HandWritten()
    x = torch.randn(30, 4)
    estimate = log_marginal(hand.model, hand.guide, x, num_particles=5000, proposal=GuideProposal())
    z = (estimate.value - hand.log_marginal(x).double()) / estimate.std_error
    assert z.abs().max() < 4.5  # 30 data: 2e-4


def test_weights_are_per_datum_not_joint():
    # The weights of one datum are those it would have alone, under the same draws.
    oracle = LinearGaussian()
    x, vae = oracle.data(5), oracle.vae(sd_factor=1.3)
    pyro.set_rng_seed(1)
    joint = log_weights(vae.model, vae.guide, x, num_particles=64)
    latents = _draws(vae.guide, x, 64, seed=1)
    for n in range(5):
        alone = log_joint(vae.model, {"z": latents[:, n : n + 1]}, x[n : n + 1])
        q = vae.guide.encoder(x[n : n + 1]).log_prob(latents[:, n : n + 1])
        torch.testing.assert_close((alone - q)[:, 0], joint[:, n])


def _draws(guide, x, num_particles, seed):
    pyro.set_rng_seed(seed)
    with pyro.plate("k", num_particles, dim=-2):
        return poutine.trace(guide).get_trace(x).nodes["z"]["value"]


class _GivenNoise(dist.Normal):
    """A normal whose draws are made of the given noise."""

    def __init__(self, loc, scale, noise):
        super().__init__(loc, scale)
        self.noise = noise

    def expand(self, batch_shape, _instance=None):
        return _GivenNoise(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.noise)

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * self.noise


class _FixedDraws(nn.Module):
    """A guide whose k-th draw for a datum depends on k and the datum alone, whatever comes in one chunk."""

    def __init__(self, oracle, draws):
        super().__init__()
        self.oracle, self.draws, self.next = oracle, draws, {}

    def forward(self, x):
        loc, covariance = self.oracle.posterior(x)
        scale = 1.3 * covariance.diagonal().sqrt()
        with pyro.plate("data", len(x), dim=-1):
            q = dist.Normal(loc, scale).to_event(1)
            stack = pyro.poutine.runtime._PYRO_STACK
            plates = [handler for handler in stack if isinstance(handler, pyro.plate) and handler.dim == -2]
            checks = any(isinstance(handler, pyro.poutine.block_messenger.BlockMessenger) for handler in stack)
            if checks or not plates:  # a check of the program or of supports: no draw is used up
                return pyro.sample("z", q)
            particles = plates[0].size
            keys = [round(float(row[0]), 9) for row in x]
            start = self.next.get(keys[0], 0)
            for key in keys:
                self.next[key] = start + particles
            noise = torch.stack([self.draws[key][start : start + particles] for key in keys], 1)
            return pyro.sample("z", _GivenNoise(loc, scale, noise).to_event(1))


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.thin(3)
def test_log_marginal_does_not_depend_on_chunks_or_the_order_of_data(chunk_size, reverse):
    oracle = LinearGaussian()
    x = oracle.data(9)
    # 50 draws, and one more for the scale of the densities
    draws = {round(float(row[0]), 9): torch.randn(51, 2, dtype=torch.float64) for row in x}
    model = oracle.vae().model
    same = {"num_particles": 50, "proposal": GuideProposal(), "execution": "eager"}  # the guide keeps state
    whole = log_marginal(model, _FixedDraws(oracle, draws), x, **same, chunk_size=10_000)
    order = torch.arange(9).flip(0) if reverse else torch.arange(9)
    parts = log_marginal(model, _FixedDraws(oracle, draws), x[order], **same, chunk_size=chunk_size)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one[order], other, rtol=1e-9, atol=1e-9)


def test_chunks_keep_the_number_of_draws_and_bound_the_decoded_latents():
    oracle = LinearGaussian()
    x, vae = oracle.data(8), oracle.vae(sd_factor=1.2)
    decoded = []
    vae.model.likelihood.network.register_forward_hook(lambda m, args, out: decoded.append(out[..., 0].numel()))
    blocks = log_weight_blocks(vae.model, vae.guide, x, num_particles=133, chunk_size=50)
    shapes = [block.log_w.shape for block in blocks]
    assert sum(n for _, n in shapes) == 8
    assert {k for k, _ in shapes} == {133}
    assert max(decoded) <= max(50, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_renyi_zero_is_the_sum_of_log_mean_exp_in_value_and_gradient(dtype):
    # Fact 2 of the design: RenyiELBO(0) on the same draws is minus the sum of log-mean-exp.
    vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(MLP(2, 6, hidden=[5])), NormalEncoder(MLP(6, 4, hidden=[5])))
    vae.to(dtype)
    x = torch.bernoulli(torch.full((10, 6), 0.4, dtype=dtype))
    vae.model(x), vae.guide(x)
    pyro.set_rng_seed(3)
    log_w = log_weights(vae.model, vae.guide, x, num_particles=8)
    loss = -(log_w.logsumexp(0) - math.log(8)).sum()
    ours = torch.autograd.grad(loss, list(vae.parameters()))
    pyro.set_rng_seed(3)
    theirs = RenyiELBO(alpha=0, num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    value = theirs.loss_and_grads(vae.model, vae.guide, x)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    assert value == pytest.approx(loss.item(), rel=tolerance)
    for gradient, parameter in zip(ours, vae.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=tolerance, atol=tolerance)


def test_evaluation_is_in_eval_mode_without_gradients_and_steps_nothing():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.9), nn.Linear(4, 3))

        def forward(self, z):
            assert not self.training
            assert not torch.is_grad_enabled()
            return self.layers(z)

    vae = VAE(StandardNormalPrior(2), NormalLikelihood(Dropping()), NormalEncoder(MLP(3, 4)))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    log_marginal(vae.model, vae.guide, torch.randn(4, 3), num_particles=3, proposal=GuideProposal())
    assert vae.model.likelihood.network.training
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_log_marginal_uses_the_prior_of_the_model():
    # Same likelihood and guide, another prior: the estimate follows, as the closed form says.
    class ShiftedPrior(Prior):
        def forward(self, covariates=None):
            return dist.Normal(torch.full((self.latent_dim,), 3.0, dtype=torch.float64), 2.0).to_event(1)

    oracle = LinearGaussian(scale=1.0)
    vae = VAE(ShiftedPrior(2), NormalLikelihood(oracle.decoder(), scale=1.0).double(), nn.Identity())
    x = oracle.data(20)
    covariance = 4 * oracle.weight @ oracle.weight.T + torch.eye(5, dtype=torch.float64)
    loc = oracle.bias + 3 * oracle.weight.sum(1)
    exact = torch.distributions.MultivariateNormal(loc, covariance).log_prob(x)

    def from_the_posterior_widened(x):
        precision = oracle.weight.T @ oracle.weight + torch.eye(2, dtype=torch.float64) / 4
        posterior = torch.linalg.inv(precision)
        mean = ((x - oracle.bias) @ oracle.weight + 3 / 4) @ posterior
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(mean, 1.5 * posterior))

    estimate = log_marginal(vae.model, from_the_posterior_widened, x, num_particles=3000)
    assert ((estimate.value - exact).abs() < 4.5 * estimate.std_error).all()  # 20 data: 1e-4


def test_a_mixture_prior_agrees_with_quadrature():
    pyro.set_rng_seed(2)
    prior = MixturePrior(1, num_components=3).double()
    network = MLP(1, 4, hidden=[6], activation="tanh").double()
    vae = VAE(prior, BernoulliLikelihood(network), NormalEncoder(MLP(4, 2, hidden=[])).double())
    x = torch.bernoulli(torch.full((8, 4), 0.5, dtype=torch.float64))
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    density = log_joint(vae.model, {"z": grid[:, None, None].expand(-1, 8, 1)}, x)
    exact = density.logsumexp(0) + math.log(grid[1] - grid[0])
    estimate = log_marginal(vae.model, vae.guide, x, num_particles=20_000, proposal=Guide(_WideEncoder(), name="wide"))
    assert ((estimate.value - exact).abs() < 4.5 * estimate.std_error).all()  # 8 data: 5e-5


class _WideEncoder(nn.Module):
    def forward(self, x):
        return dist.Normal(torch.zeros(len(x), 1, dtype=x.dtype), 3.0).to_event(1)


@pytest.mark.parametrize("masked", ["entries", "data"])
def test_log_marginal_integrates_masked_entries_out(masked):
    oracle = LinearGaussian()
    x, vae = oracle.data(12), oracle.vae(sd_factor=1.0)
    mask = torch.rand(12, 5) > 0.3 if masked == "entries" else torch.arange(12) % 3 > 0
    exact = oracle.log_marginal(x, mask) if masked == "entries" else torch.where(mask, oracle.log_marginal(x), 0.0)
    x = torch.where(mask if masked == "entries" else mask[:, None], x, torch.nan)

    def wide(x, mask):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))

    estimate = log_marginal(vae.model, wide, x, mask=mask, num_particles=20_000, chunk_size=100_000)
    assert ((estimate.value - exact).abs() < 4.5 * estimate.std_error + 1e-9).all()  # 12 data: 8e-5
    assert torch.isfinite(log_marginal(vae.model, vae.guide, x, mask=mask, num_particles=2).value).all()


def test_log_marginal_passes_covariates_to_every_part():
    class Shifted(Prior):
        def forward(self, covariates=None):
            return dist.Normal(covariates, 1.0).to_event(1)

    oracle = LinearGaussian(latent_dim=2)
    covariates = torch.randn(15, 2, dtype=torch.float64)
    decoder = nn.Linear(4, 5, dtype=torch.float64)  # of z and c
    with torch.no_grad():
        decoder.weight.copy_(torch.cat([oracle.weight, 2 * oracle.weight], 1))
        decoder.bias.copy_(oracle.bias)
    encoder = NormalEncoder(nn.Linear(7, 4, dtype=torch.float64))
    vae = VAE(Shifted(2), NormalLikelihood(decoder, scale=oracle.scale).double(), encoder)
    x = vae.model(covariates=covariates).detach()
    assert x.shape == (15, 5)
    # p(x|c): shift z by its prior mean c, so x is the oracle's data moved by 3 W c.
    exact = oracle.log_marginal(x - 3 * covariates @ oracle.weight.T)

    def posterior(x, covariates):
        mean, covariance = oracle.posterior(x - 3 * covariates @ oracle.weight.T)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(mean + covariates, covariance))

    same = {"covariates": covariates, "num_particles": 3, "proposal": GuideProposal()}
    estimate = log_marginal(vae.model, posterior, x, **same, chunk_size=10)
    torch.testing.assert_close(estimate.value, exact, rtol=0, atol=1e-9)
    assert torch.isfinite(log_marginal(vae.model, vae.guide, x, covariates=covariates, num_particles=3).value).all()


def test_log_weights_leave_out_data_masked_in_both_programs():
    oracle = LinearGaussian()
    x, vae = oracle.data(6), oracle.vae()
    mask = torch.arange(6) % 2 == 0
    log_w = log_weights(poutine.mask(vae.model, mask), poutine.mask(vae.guide, mask), x, num_particles=3)
    torch.testing.assert_close(log_w, torch.where(mask, oracle.log_marginal(x), 0.0).expand(3, 6))


def test_a_program_can_replace_the_guide_as_proposal():
    oracle = LinearGaussian()
    x, exact, poor = oracle.data(5), oracle.vae(), oracle.vae(sd_factor=0.3, shift=2.0)
    estimate = log_marginal(exact.model, poor.guide, x, num_particles=4, proposal=exact.guide)
    torch.testing.assert_close(estimate.value, oracle.log_marginal(x), rtol=0, atol=1e-10)


def test_the_standard_error_of_the_elbo_is_its_spread_over_runs():
    oracle = LinearGaussian()
    x, vae = oracle.data(3).repeat(400, 1), oracle.vae(sd_factor=1.4)  # 400 runs at once
    bound = evidence_lower_bound(vae.model, vae.guide, x, num_particles=25)
    spread = bound.value.reshape(400, 3).std(0)
    stated = bound.std_error.reshape(400, 3).square().mean(0).sqrt()
    # The sd of 400 draws is known to 1 / sqrt(800) = 3.5 %; five of those for each of three data, once: 2e-6.
    torch.testing.assert_close(stated, spread, rtol=0.18, atol=0)


def test_log_weights_include_factors():
    oracle = LinearGaussian()
    x, vae = oracle.data(4), oracle.vae()

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", vae.model.prior())
            pyro.sample("x", vae.model.likelihood(z), obs=x)
            pyro.factor("bonus", torch.arange(4.0))

    log_w = log_weights(model, vae.guide, x, num_particles=2)
    torch.testing.assert_close(log_w, (oracle.log_marginal(x) + torch.arange(4.0)).expand(2, 4))


@pytest.mark.parametrize("how", ["closure", "pyro.module", "partial", "handler", "bound"])
def test_evaluation_mode_reaches_every_kind_of_program(how):
    dropout = nn.Sequential(nn.Linear(2, 5), nn.Dropout(0.5), nn.BatchNorm1d(5))
    vae = VAE(StandardNormalPrior(2), NormalLikelihood(nn.Identity(), scale=1.0), NormalEncoder(MLP(5, 4)))

    def decode(z):
        assert not dropout.training
        return dropout(z.reshape(-1, 2)).reshape(*z.shape[:-1], 5)

    class Owner:
        decoder = decode

        def __init__(self):
            self.net = dropout

        def model(self, x):
            return model(x)

    def model(x):
        if how == "pyro.module":
            pyro.module("decoder", dropout)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), 1.0).to_event(1), obs=x)

    programs = {
        "closure": model,
        "pyro.module": model,
        "partial": partial(model),
        "handler": poutine.mask(model, mask=True),
        "bound": Owner().model,
    }
    before = dropout[2].running_mean.clone()
    log_marginal(programs[how], vae.guide, torch.randn(4, 5), num_particles=3)
    assert dropout.training
    torch.testing.assert_close(dropout[2].running_mean, before, rtol=0, atol=0)


def test_a_module_that_no_search_finds_runs_in_evaluation_mode():
    net = nn.Sequential(nn.Linear(1, 5), nn.Dropout(0.9)).double()
    held = weakref.ref(net)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(held()(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))

    x = 3 * torch.randn(4, 5, dtype=torch.float64)
    weight, bias = net[0].weight.detach(), net[0].bias.detach()
    exact = dist.MultivariateNormal(bias, torch.eye(5).double() + weight @ weight.T).log_prob(x)
    torch.testing.assert_close(exact_log_marginal(model, x).value, exact, rtol=0, atol=1e-6)
    found = log_marginal(model, guide, x, num_particles=500)
    assert ((found.value - exact).abs() < 4.5 * found.std_error + 1e-6).all()
    assert net.training
    assert net[1].training


def test_wide_data_are_decoded_in_smaller_chunks():
    # 8,192 latents of 20,000 columns would be 655 MB for one tensor.
    vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(MLP(2, 20_000)), NormalEncoder(MLP(20_000, 4)))
    x, decoded = torch.zeros(3, 20_000), []
    vae.model.likelihood.network.register_forward_hook(lambda m, args, out: decoded.append(out.numel()))
    log_marginal(vae.model, vae.guide, x, num_particles=400, proposal=GuideProposal())
    assert max(decoded) <= 6_500_000
    assert sum(decoded) >= 3 * 400 * 20_000
    decoded.clear()
    log_marginal(vae.model, vae.guide, x, num_particles=400, proposal=GuideProposal(), chunk_size=1200)
    assert max(decoded) == 3 * 400 * 20_000


def test_exact_values_of_wide_data_are_decoded_in_smaller_chunks():
    vae = VAE(StandardNormalPrior(1), BernoulliLikelihood(MLP(1, 20_000)), NormalEncoder(MLP(20_000, 2)))
    decoded = []
    vae.model.likelihood.network.register_forward_hook(lambda m, args, out: decoded.append(out.numel()))
    exact_log_marginal(vae.model, torch.zeros(1, 20_000), num_points=400)
    assert max(decoded) <= 6_500_000
