"""Objectives of the aggregate posterior: exact if the batch holds all data, unbiased as their docstrings state."""

import math
from contextlib import nullcontext
from copy import deepcopy
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from small_programs import loss_and_gradients, make_vae, two_layers

from pyrovae import (
    DIPVAEELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    BetaTCELBO,
    CategoricalEncoder,
    CategoricalPrior,
    FactorVAEELBO,
    FlowEncoder,
    FullCovarianceNormalEncoder,
    InfoVAEELBO,
    LaplacePrior,
    LinearWarmup,
    MixturePrior,
    NormalEncoder,
    NormalLikelihood,
    StandardNormalPrior,
    fit,
    temper,
)
from pyrovae.objectives.decompositions import _one_latent, squared_mmd


@pytest.fixture
def x():
    return torch.bernoulli(torch.full((30, 6), 0.4))


@pytest.mark.parametrize("elbo", [BetaTCELBO(30, beta=1.0), BetaTCELBO(5000, beta=1.0), InfoVAEELBO(0.0, 1.0)])
@pytest.mark.parametrize("prior", [StandardNormalPrior, MixturePrior])
def test_objectives_of_the_aggregate_posterior_with_weights_one_are_the_elbo(elbo, prior, x):
    pyro.set_rng_seed(0)
    vae = VAE(prior(2), BernoulliLikelihood(MLP(2, 6)), NormalEncoder(MLP(6, 4)))
    ours, theirs = (loss_and_gradients(each, vae, x) for each in (elbo, Trace_ELBO()))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_terms_of_beta_tc_are_exact_if_the_batch_holds_all_data(x):
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


def test_the_density_of_the_aggregate_posterior_is_unbiased_in_batches(x):
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


def test_squared_mmd_agrees_with_the_closed_form():
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


def test_info_vae_measures_the_discrepancy_of_guide_and_prior(x):
    # Guide N(m, s^2) for every datum, prior N(0, I): the closed form above, through the programs.
    m, s, dim = 0.8, 0.5, 2
    vae = make_vae()
    with torch.no_grad():
        last = vae.guide.encoder.network.layers[-1]
        last.weight.zero_()
        last.bias.zero_()
        made = vae.guide.encoder(x[:1]).base_dist
        last.bias[:dim] = m
        for _ in range(60):  # the bias for scale s, whatever the encoder's link
            last.bias[dim:] += torch.log(s / vae.guide.encoder(x[:1]).base_dist.stddev[0])
        made = vae.guide.encoder(x[:1]).base_dist
    torch.testing.assert_close(made.stddev, torch.full((1, dim), s), rtol=1e-4, atol=0)

    def expected(distance, variance):
        return (dim / (dim + variance)) ** (dim / 2) * math.exp(-dim * distance**2 / (2 * (dim + variance)))

    exact = expected(0, 2 * s**2) + expected(0, 2) - 2 * expected(m, 1 + s**2)
    pyro.set_rng_seed(0)
    one = _one_latent(vae.model, vae.guide, (x,), {})
    found = torch.stack([InfoVAEELBO(1.0, 1.0).divergence(fresh(vae, x)) for _ in range(150)]) / len(x)
    assert abs(found.mean() - exact) < 5 * found.std() / 150**0.5
    kl = (one.log_q - one.log_p).sum()
    weighted = []
    for alpha, scale in ((0.3, 1.0), (0.3, 11.0)):
        pyro.set_rng_seed(2)
        weighted.append(InfoVAEELBO(alpha, scale).divergence(one))
    pyro.set_rng_seed(2)
    mmd = InfoVAEELBO(1.0, 1.0).divergence(one)
    torch.testing.assert_close(weighted[0], 0.7 * kl + 0.3 * mmd)
    torch.testing.assert_close(weighted[1] - weighted[0], 10 * mmd, rtol=1e-3, atol=1e-4)


def fresh(vae, x):
    return _one_latent(vae.model, vae.guide, (x,), {})


def test_the_trained_discriminator_estimates_the_total_correlation():
    # A normal with correlation 0.8: -1/2 log(1 - 0.8^2) = 0.511 nats.
    pyro.set_rng_seed(0)
    elbo = FactorVAEELBO(2, hidden=[32, 32])
    factor = torch.linalg.cholesky(torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    optimizer = torch.optim.Adam(elbo.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        loss = elbo.discriminator_loss(torch.randn(1000, 2) @ factor.T)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    z = torch.randn(20_000, 2) @ factor.T
    found = elbo.log_ratio(z)
    assert found.mean().item() == pytest.approx(-0.5 * math.log(1 - 0.64), abs=0.04)
    apart = torch.randn(20_000, 2)
    assert elbo.log_ratio(apart).exp().mean().item() == pytest.approx(1, abs=0.1)  # a density ratio


def test_programs_and_discriminator_have_separate_gradients(x):
    vae, elbo = make_vae(), FactorVAEELBO(2, gamma=7.0, hidden=[8])
    ours, ours_by_name = loss_and_gradients(elbo, vae, x)  # draws from seed 1
    of_discriminator = [parameter.grad.clone() for parameter in elbo.parameters()]
    pyro.set_rng_seed(1)
    one = _one_latent(vae.model, vae.guide, (x,), {})
    learns = elbo.discriminator_loss(one.z.detach())
    for found, expected in zip(of_discriminator, torch.autograd.grad(learns, list(elbo.parameters())), strict=True):
        assert bool(found.abs().sum() > 0)
        torch.testing.assert_close(found, expected)
    loss = (one.log_q - one.log_p - one.log_lik + 7.0 * elbo.discriminator(one.z).squeeze(-1)).sum()
    assert ours == pytest.approx(loss.item(), rel=1e-6)
    vae.zero_grad()
    loss.backward()
    for name, parameter in vae.named_parameters():
        torch.testing.assert_close(ours_by_name[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_discriminator_loss_permutes_each_dimension_separately():
    elbo, seen = FactorVAEELBO(3), []
    elbo.discriminator.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    z = torch.arange(300.0).view(100, 3)
    elbo.discriminator_loss(z)
    together, permuted = seen
    assert torch.equal(together, z)
    assert torch.equal(permuted.sort(0).values, z)
    assert not bool((permuted[:, 0] + 1 == permuted[:, 1]).all())
    assert not bool((permuted[:, 1] + 1 == permuted[:, 2]).all())


def test_svi_and_fit_train_the_discriminator_with_the_programs(x):
    def corner():
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        return make_vae(), FactorVAEELBO(2, hidden=[8])

    vae, elbo = corner()
    before = {name: value.clone() for name, value in elbo.state_dict().items()}
    svi = SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": 1e-3}), elbo)
    for _ in range(2):
        svi.step(x)
    assert all(bool((value != before[name]).any()) for name, value in elbo.state_dict().items())
    vae, elbo = corner()
    assert len(list(elbo(vae.model, vae.guide).parameters())) == len([*vae.parameters(), *elbo.parameters()])

    # A resumed run ends with the same discriminator.
    vae, elbo = corner()
    states = []
    given = {"batch_size": 10, "validation": x}
    fit(vae.model, vae.guide, x, elbo=elbo, epochs=3, commit=lambda state: states.append(deepcopy(state)), **given)
    end = {name: value.clone() for name, value in elbo.state_dict().items()}
    assert all(bool((value != before[name]).any()) for name, value in end.items())
    vae, elbo = corner()
    fit(vae.model, vae.guide, x, elbo=elbo, epochs=3, resume=states[1], **given)
    assert all(torch.equal(value, end[name]) for name, value in elbo.state_dict().items())


def test_factor_vae_reduces_the_correlation_of_the_aggregate_posterior():
    # Two nearly equal pixels and the decoder x = z: the aggregate posterior is correlated unless gamma forbids it.
    data = torch.randn(200, 1).expand(200, 2) + 0.3 * torch.randn(200, 2)

    def correlation(gamma):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        likelihood = NormalLikelihood(MLP(2, 2, hidden=[]), scale=0.5)
        vae = VAE(StandardNormalPrior(2), likelihood, NormalEncoder(MLP(2, 4, hidden=[])))
        with torch.no_grad():
            for layer in (vae.model.likelihood.network.layers[0], vae.guide.encoder.network.layers[0]):
                layer.weight.zero_()
                layer.bias.zero_()
                layer.weight[:2].fill_diagonal_(1.0)
        elbo = FactorVAEELBO(2, gamma=gamma, hidden=[32])
        fit(
            vae.model,
            vae.guide,
            data,
            elbo=elbo,
            epochs=150,
            batch_size=200,
            optimizer=partial(torch.optim.Adam, lr=1e-2),
        )
        z = vae.guide.encoder(data).sample((50,)).flatten(0, 1)
        return torch.corrcoef(z.T)[0, 1].item()

    free, weighed = correlation(0.0), correlation(20.0)
    assert free > 0.5
    assert weighed < 0.6 * free


@pytest.mark.parametrize("kind", ["i", "ii"])
@pytest.mark.parametrize("encoder", [NormalEncoder, FullCovarianceNormalEncoder])
def test_the_dip_vae_penalty_is_its_formula(kind, encoder, x):
    pyro.set_rng_seed(0)
    prior = StandardNormalPrior(2)
    vae = VAE(prior, BernoulliLikelihood(MLP(2, 6)), encoder(MLP(6, encoder.num_outputs(2))))
    pyro.set_rng_seed(1)
    one = _one_latent(vae.model, vae.guide, (x,), {})
    q = vae.guide.encoder(x)
    covariance = torch.cov(q.mean.T)
    if kind == "ii":
        factor = q.scale_tril if encoder is FullCovarianceNormalEncoder else q.stddev.diag_embed()
        covariance = covariance + (factor @ factor.mT).mean(0)
    r = covariance - torch.eye(2)
    penalty = 3.0 * 2 * r[0, 1] ** 2 + 5.0 * (r[0, 0] ** 2 + r[1, 1] ** 2)
    found = DIPVAEELBO(kind, 3.0, 5.0).divergence(one) - (one.log_q - one.log_p).sum()
    assert found.item() == pytest.approx(len(x) * penalty.item(), rel=1e-4)
    default, tenfold = DIPVAEELBO(kind, 3.0), DIPVAEELBO(kind, 3.0, 30.0 if kind == "i" else 3.0)
    torch.testing.assert_close(default.divergence(one), tenfold.divergence(one))


def test_the_dip_vae_target_is_the_covariance_of_the_prior(x):
    pyro.set_rng_seed(0)
    prior = LaplacePrior(2)
    with torch.no_grad():
        prior.log_scale.fill_(math.log(2))
    vae = VAE(prior, BernoulliLikelihood(MLP(2, 6)), NormalEncoder(MLP(6, 4)))
    one = _one_latent(vae.model, vae.guide, (x,), {})
    covariance = torch.cov(vae.guide.encoder(x).mean.T)
    penalty = (covariance - 8 * torch.eye(2)).square().sum()  # a Laplace's variance is twice its scale squared
    found = DIPVAEELBO("i", 1.0, 1.0).divergence(one) - (one.log_q - one.log_p).sum()
    assert found.item() == pytest.approx(len(x) * penalty.item(), rel=1e-5)


@pytest.mark.parametrize("elbo", [BetaTCELBO(30), InfoVAEELBO(), FactorVAEELBO(2), DIPVAEELBO()])
@pytest.mark.thin(2)
def test_objectives_of_the_aggregate_posterior_train_and_recorded_steps_equal_eager_steps(elbo, x):
    ends = []
    for execution in ("eager", "recorded"):
        pyro.clear_param_store()
        vae, own = make_vae(), deepcopy(elbo)  # one may hold a network
        pyro.set_rng_seed(4)
        given = {"epochs": 4, "batch_size": 10, "execution": execution, "validation": x}
        history = fit(vae.model, vae.guide, x, elbo=own, optimizer=partial(torch.optim.SGD, lr=1e-3), **given)
        assert history["train_elbo"] == [None] * 4
        assert history["validation_objective"][-1] > history["validation_objective"][0]
        ends.append(vae.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5, msg=name)


def divergence_by_hand(elbo, q, z, from_prior):
    """Compute the divergence of an objective of `weighted_objectives` from its formula; the batch holds all data."""
    log_q = q.log_prob(z).sum(-1)
    kl = (log_q - torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)).sum()
    if isinstance(elbo, BetaTCELBO):
        pairs = q.log_prob(z[:, None])
        log_joint = pairs.sum(-1).logsumexp(1) - math.log(len(z))
        log_marginals = (pairs.logsumexp(1) - math.log(len(z))).sum(-1)
        information, correlation = (log_q - log_joint).sum(), (log_joint - log_marginals).sum()
        return 2 * information + 3 * correlation + 0.5 * (kl - information - correlation)
    if isinstance(elbo, InfoVAEELBO):
        return 0.7 * kl + 10.3 * len(z) * squared_mmd(z, from_prior, 2)
    if isinstance(elbo, FactorVAEELBO):
        return kl + 7 * elbo.discriminator(z).sum()
    r = torch.cov(q.mean.T) + q.variance.mean(0).diag() - torch.eye(2)
    return kl + len(z) * (3 * 2 * r[0, 1] ** 2 + 5 * (r[0, 0] ** 2 + r[1, 1] ** 2))


def weighted_objectives():
    return [
        BetaTCELBO(30, alpha=2.0, beta=3.0, gamma=0.5),
        InfoVAEELBO(alpha=0.3, scale=11.0),
        FactorVAEELBO(2, gamma=7.0, hidden=[8]),
        DIPVAEELBO("ii", 3.0, 5.0),
    ]


@pytest.mark.parametrize("place", range(4))
def test_the_kl_weight_multiplies_the_whole_divergence_of_the_aggregate_posterior(place, x):
    vae = make_vae()
    elbo = weighted_objectives()[place]
    q = vae.guide.encoder(x).base_dist
    for weight in (0.0, 0.25, torch.tensor(0.25), 1.0, 4.0):
        pyro.set_rng_seed(2)
        with temper(latent=weight):
            loss = elbo.differentiable_loss(vae.model, vae.guide, x)
        pyro.set_rng_seed(2)
        one = _one_latent(vae.model, vae.guide, (x,), {})
        from_prior = torch.randn(one.z.shape)  # the draws of InfoVAEELBO
        log_lik = vae.model.likelihood(one.z).log_prob(x).sum()
        expected = weight * divergence_by_hand(elbo, q, one.z, from_prior) - log_lik
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
        if weight == 0:  # the reconstruction alone trains the programs
            gradients = torch.autograd.grad(loss, list(vae.parameters()), retain_graph=True)
            wanted = torch.autograd.grad(-log_lik, list(vae.parameters()))
            torch.testing.assert_close(gradients, wanted)


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_the_kl_weight_does_not_change_the_steps_of_the_discriminator(weight, x):
    vae, elbo = make_vae(), FactorVAEELBO(2, hidden=[8])
    gradients = []
    for handler in (nullcontext(), temper(latent=weight)):
        elbo.zero_grad()
        with handler:
            loss_and_gradients(elbo, vae, x)
        gradients.append([parameter.grad for parameter in elbo.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients[1])


@pytest.mark.parametrize("place", range(4))
def test_a_recorded_warm_up_of_the_aggregate_posterior_equals_an_eager_one(place, x):
    ends, histories = [], []
    for execution, kl_weight in (("eager", LinearWarmup(4)), ("recorded", LinearWarmup(4)), ("eager", None)):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        vae, own = make_vae(), weighted_objectives()[place]
        pyro.set_rng_seed(4)
        given = {"epochs": 2, "batch_size": 10, "execution": execution, "validation": x, "kl_weight": kl_weight}
        optimizer = partial(torch.optim.SGD, lr=1e-3)
        histories.append(fit(vae.model, vae.guide, x, elbo=own, optimizer=optimizer, **given))
        ends.append(vae.state_dict())
    assert histories[0]["kl_weight"] == pytest.approx([2 / 12, 5 / 12])
    torch.testing.assert_close(dict(ends[0]), dict(ends[1]), rtol=1e-4, atol=1e-5)
    assert any(not torch.allclose(value, ends[2][name], rtol=1e-3, atol=1e-4) for name, value in ends[0].items())


class TestRefusals:
    def test_objectives_of_the_aggregate_posterior_refuse_invalid_arguments(self):
        with pytest.raises(ValueError, match="num_data must be at least 2, got 1"):
            BetaTCELBO(1)
        with pytest.raises(ValueError, match="bandwidth must be positive, got 0"):
            InfoVAEELBO(bandwidth=0)
        with pytest.raises(ValueError, match="latent_dim must be at least 2, got 1"):
            FactorVAEELBO(1)
        with pytest.raises(ValueError, match='kind must be "i" or "ii", got'):
            DIPVAEELBO("iii")
        with pytest.raises(ValueError, match="off_diagonal and diagonal must be at least 0, got -1"):
            DIPVAEELBO(off_diagonal=-1)

    def test_objectives_of_the_aggregate_posterior_refuse_invalid_batches(self, x):
        vae = make_vae()
        with pytest.raises(ValueError, match=r"needs a batch of 2 to 20 data, got 30; change the batch size"):
            BetaTCELBO(20).loss(vae.model, vae.guide, x)
        with pytest.raises(
            ValueError, match="InfoVAEELBO needs a batch of at least 2 data, got 1; change the batch size"
        ):
            InfoVAEELBO().loss(vae.model, vae.guide, x[:1])
        with pytest.raises(
            ValueError, match="FactorVAEELBO needs a batch of at least 2 data, got 1; change the batch size"
        ):
            FactorVAEELBO(2).loss(vae.model, vae.guide, x[:1])
        with pytest.raises(ValueError, match="needs a latent of dimension 3, got 2"):
            FactorVAEELBO(3).loss(vae.model, vae.guide, x)
        with pytest.raises(
            ValueError, match="DIPVAEELBO needs a batch of at least 2 data, got 1; change the batch size"
        ):
            DIPVAEELBO().loss(vae.model, vae.guide, x[:1])

    def test_objectives_of_the_aggregate_posterior_refuse_invalid_latents(self, x):
        program = two_layers()
        with pytest.raises(ValueError, match="need one latent, got 2: z1, z2; put all into one site"):
            InfoVAEELBO().loss(program.model, program.guide, x)
        encoder = FullCovarianceNormalEncoder(MLP(6, FullCovarianceNormalEncoder.num_outputs(2)))
        vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(MLP(2, 6)), encoder)
        with pytest.raises(ValueError, match="needs a guide independent over dimensions, but it is MultivariateNormal"):
            BetaTCELBO(50).loss(vae.model, vae.guide, x)
        vae = VAE(MixturePrior(2), BernoulliLikelihood(MLP(2, 6)), NormalEncoder(MLP(6, 4)))
        message = "needs a prior with a covariance in closed form, but it is BlockwiseMixture"
        with pytest.raises(ValueError, match=message):
            DIPVAEELBO().loss(vae.model, vae.guide, x)
        vae = VAE(
            StandardNormalPrior(2), BernoulliLikelihood(MLP(2, 6)), FlowEncoder(MLP(6, FlowEncoder.num_outputs(2)))
        )
        with pytest.raises(ValueError, match="needs a guide with a covariance in closed form"):
            DIPVAEELBO().loss(vae.model, vae.guide, x)
        vae = VAE(CategoricalPrior(2), BernoulliLikelihood(MLP(2, 6)), CategoricalEncoder(MLP(6, 2)))
        with pytest.raises(ValueError, match="must be an unmasked vector with reparameterised draws; use an encoder"):
            InfoVAEELBO().loss(vae.model, vae.guide, x)
