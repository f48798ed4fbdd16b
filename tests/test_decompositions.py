"""Objectives of the aggregate posterior: exact where the batch is all data, unbiased where they say so."""

import math
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from test_bounds import make_vae
from test_kl import loss_and_gradients, two_layers

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    BetaTCELBO,
    CategoricalEncoder,
    CategoricalPrior,
    FullCovarianceNormalEncoder,
    InfoVAEELBO,
    MixturePrior,
    NormalEncoder,
    StandardNormalPrior,
    fit,
)
from pyrovae.decompositions import _one_latent, squared_mmd


@pytest.fixture
def x():
    return torch.bernoulli(torch.full((30, 6), 0.4))


@pytest.mark.parametrize("elbo", [BetaTCELBO(30, beta=1.0), BetaTCELBO(5000, beta=1.0), InfoVAEELBO(0.0, 1.0)])
@pytest.mark.parametrize("prior", [StandardNormalPrior, MixturePrior])
def test_with_weights_of_one_it_is_the_elbo(elbo, prior, x):
    pyro.set_rng_seed(0)
    vae = VAE(prior(2), BernoulliLikelihood(MLP(2, 6)), NormalEncoder(MLP(6, 4)))
    ours, theirs = (loss_and_gradients(each, vae, x) for each in (elbo, Trace_ELBO()))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_three_terms_are_exact_where_the_batch_is_all_data(x):
    vae = make_vae().double()
    x = x.double()
    one = _one_latent(vae.model, vae.guide, (x,), {})
    found = BetaTCELBO(len(x)).terms(one)
    q = vae.guide.encoder(x).base_dist
    weights = torch.distributions.Categorical(torch.ones(len(x), dtype=x.dtype))
    joint = torch.distributions.MixtureSameFamily(weights, torch.distributions.Independent(q, 1)).log_prob(one.z)
    by_dimension = (torch.distributions.Normal(q.mean[:, j], q.stddev[:, j]) for j in range(2))
    marginals = sum(
        torch.distributions.MixtureSameFamily(weights, each).log_prob(one.z[:, j])
        for j, each in enumerate(by_dimension)
    )
    log_q = q.log_prob(one.z).sum(-1)
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(one.z).sum(-1)
    for ours, expected in zip(found, (log_q - joint, joint - marginals, marginals - log_p), strict=True):
        torch.testing.assert_close(ours, expected)
    loss = BetaTCELBO(len(x), alpha=2.0, beta=3.0, gamma=0.5).divergence(one)
    torch.testing.assert_close(loss, (2 * found[0] + 3 * found[1] + 0.5 * found[2]).sum())


def test_the_density_of_the_aggregate_is_unbiased_in_batches(x):
    # The first datum with every choice of two others among five: the mean over choices is the density of all six.
    vae = make_vae().double()
    x = x[:6].double()
    pyro.set_rng_seed(0)
    z = vae.guide.encoder(x).sample()

    def density(rows):
        q = vae.guide.encoder(x[rows]).expand([1, len(rows)])
        one = _one_latent(vae.model, vae.guide, (x[rows],), {})._replace(z=z[rows], q=q)
        information = BetaTCELBO(6).terms(one._replace(log_q=q.log_prob(z[rows])[0]))[0]
        return (q.log_prob(z[rows])[0] - information).exp()[0]

    choices = [[0, i, j] for i in range(1, 6) for j in range(i + 1, 6)]
    torch.testing.assert_close(torch.stack([density(rows) for rows in choices]).mean(), density(list(range(6))))


def test_the_discrepancy_is_its_closed_form():
    # Normals N(0, I) and N(m, s^2 I) under a Gaussian kernel, in closed form.
    m, s, h, dim = 0.8, 0.5, 2.0, 2

    def expected(distance, variance):
        return (h / (h + variance)) ** (dim / 2) * math.exp(-dim * distance**2 / (2 * (h + variance)))

    exact = expected(0, 2 * s**2) + expected(0, 2) - 2 * expected(m, 1 + s**2)
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 50, dim, generator=generator, dtype=torch.float64) for _ in range(1000)]
    values = torch.stack([squared_mmd(m + s * a, b, h) for a, b in draws])
    error = values.std() / 1000**0.5
    assert abs(values.mean() - exact) < 5 * error  # once, 6e-7
    assert error < 0.03 * exact
    same = torch.stack([squared_mmd(a, b, h) for a, b in draws])
    assert abs(same.mean()) < 5 * same.std() / 1000**0.5
    assert bool((same < 0).any())


def test_the_discrepancy_is_weighted_beside_the_divergence(x):
    vae = make_vae()
    losses = []
    for alpha, scale in ((0.3, 1.0), (0.3, 11.0), (1.0, 0.0)):
        pyro.set_rng_seed(2)
        losses.append(InfoVAEELBO(alpha, scale).loss(vae.model, vae.guide, x))
    pyro.set_rng_seed(2)
    one = _one_latent(vae.model, vae.guide, (x,), {})
    mmd = squared_mmd(one.z, one.p.sample()[0], 2)
    kl = (one.log_q - one.log_p).sum()
    assert losses[2] == pytest.approx(-one.log_lik.sum().item(), rel=1e-5)
    assert losses[0] == pytest.approx((0.7 * kl + 0.3 * len(x) * mmd - one.log_lik.sum()).item(), rel=1e-5)
    assert losses[1] - losses[0] == pytest.approx(10 * len(x) * mmd.item(), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("elbo", [BetaTCELBO(30), InfoVAEELBO()])
def test_they_train_and_recorded_steps_give_the_same(elbo, x):
    ends = []
    for execution in ("eager", "recorded"):
        pyro.clear_param_store()
        vae = make_vae()
        pyro.set_rng_seed(4)
        given = {"epochs": 4, "batch_size": 10, "execution": execution, "validation": x}
        history = fit(vae.model, vae.guide, x, elbo=elbo, optimizer=partial(torch.optim.SGD, lr=1e-3), **given)
        assert history["train_elbo"] == [None] * 4
        assert history["validation_objective"][-1] > history["validation_objective"][0]
        ends.append(vae.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5, msg=name)


class TestRefusals:
    def test_arguments(self):
        with pytest.raises(ValueError, match="num_data is the size of the training set, at least 2, got 1"):
            BetaTCELBO(1)
        with pytest.raises(ValueError, match="bandwidth must be positive, got 0"):
            InfoVAEELBO(bandwidth=0)

    def test_batches(self, x):
        vae = make_vae()
        with pytest.raises(ValueError, match=r"the batch has 30 data; q\(z\) of 20 needs from 2 to 20"):
            BetaTCELBO(20).loss(vae.model, vae.guide, x)
        with pytest.raises(ValueError, match="the batch has one datum"):
            InfoVAEELBO().loss(vae.model, vae.guide, x[:1])

    def test_latents(self, x):
        program = two_layers()
        with pytest.raises(ValueError, match="of one latent, and there are 2: z1, z2"):
            InfoVAEELBO().loss(program.model, program.guide, x)
        encoder = FullCovarianceNormalEncoder(MLP(6, FullCovarianceNormalEncoder.num_outputs(2)))
        vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(MLP(2, 6)), encoder)
        with pytest.raises(ValueError, match="not independent over dimensions"):
            BetaTCELBO(50).loss(vae.model, vae.guide, x)
        vae = VAE(CategoricalPrior(2), BernoulliLikelihood(MLP(2, 6)), CategoricalEncoder(MLP(6, 2)))
        with pytest.raises(ValueError, match="whose draws have a gradient"):
            InfoVAEELBO().loss(vae.model, vae.guide, x)
