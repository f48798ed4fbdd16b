"""Weights of the KL divergence and of the likelihood: closed forms, warm-up in `fit`, resumed runs."""

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LOG_2PI, LinearGaussian
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    Blueprint,
    KLConstraint,
    LinearWarmup,
    MixtureVAE,
    NormalEncoder,
    StandardNormalPrior,
    WeightedELBO,
    evidence_lower_bound,
    fit,
    log_weights,
    temper,
)
from pyrovae.objectives.weighted import ControlledELBO, elbo_parts
from pyrovae.training import StoppedError
from pyrovae.training.batches import epoch_order


def closed_form(oracle, vae, x):
    """Compute E_q[log p(x|z)] and KL(q, p(z)) of a linear-Gaussian model and a diagonal guide, each with shape (N,)."""
    q = vae.guide.encoder(x)
    error = (x - q.mean @ oracle.weight.T - oracle.bias).square().sum(-1)
    spread = (q.variance @ oracle.weight.T.square()).sum(-1)
    log_lik = (
        -(len(oracle.bias) * (LOG_2PI + 2 * torch.tensor(oracle.scale).log()) + (error + spread) / oracle.scale**2) / 2
    )
    divergence = (q.variance + q.mean**2 - 1 - q.variance.log()).sum(-1) / 2
    return log_lik, divergence


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 4.0])
def test_temper_weights_the_kl_divergence(elbo, weight):
    oracle = LinearGaussian()
    vae, x = oracle.vae(sd_factor=0.8, shift=0.5), oracle.data(6)
    log_lik, divergence = closed_form(oracle, vae, x)
    objective = elbo(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    with temper(latent=weight):
        values = torch.tensor([-objective.loss(vae.model, vae.guide, x) for _ in range(40)])
    error = values.std() / 40**0.5
    expected = (log_lik - weight * divergence).sum()
    # Eight tests, each a t statistic of 39 degrees: one beyond 5.5 has probability 2e-5, once.
    assert abs(values.mean() - expected) < 5.5 * error
    # Power: the test detects an error of a tenth in the weight.
    assert 0.1 * divergence.sum() > 11 * error


def test_temper_weights_the_likelihood():
    oracle = LinearGaussian()
    vae, x = oracle.vae(), oracle.data(6)
    drawn = poutine.trace(vae.guide).get_trace(x)
    z = drawn.nodes["z"]["value"]
    log_prior, log_lik = vae.model.prior().log_prob(z), vae.model.likelihood(z).log_prob(x)
    model = poutine.replay(vae.model, trace=drawn)
    for handler, weights in (
        (temper(observed=0.25), (1, 0.25)),
        (temper(observed=torch.tensor(0.0)), (1, 0)),
        (temper(latent=0.5, observed=2.0), (0.5, 2)),
    ):
        total = poutine.trace(handler(model)).get_trace(x).log_prob_sum()
        torch.testing.assert_close(total, (weights[0] * log_prior + weights[1] * log_lik).sum())
    with temper(latent=0.5), temper(latent=0.5):
        total = poutine.trace(model).get_trace(x).log_prob_sum()
    torch.testing.assert_close(total, (0.25 * log_prior + log_lik).sum())


def test_temper_ignores_plates_and_deterministic_sites():
    def program():
        with pyro.plate("rows", 10, subsample_size=5):
            pyro.deterministic("c", torch.zeros(5))
            pyro.sample("z", dist.Normal(torch.zeros(5), 1.0))

    with temper(latent=0.5, observed=0.25):
        nodes = poutine.trace(program).get_trace().nodes
    assert [nodes[name]["scale"] for name in ("rows", "c", "z")] == [1.0, 2.0, 1.0]


def test_log_weights_refuse_temper():
    oracle = LinearGaussian()
    vae = oracle.vae()
    with temper(latent=0.5), pytest.raises(ValueError, match=r"'z' of the model carries scale 0\.5"):
        log_weights(vae.model, vae.guide, oracle.data(2))


def test_warm_up_rises_linearly():
    assert [LinearWarmup(4)(t) for t in (0, 1, 3, 4, 9)] == [0, 0.25, 0.75, 1, 1]
    with pytest.raises(ValueError, match="epochs must be positive, got 0"):
        LinearWarmup(0)


SMALL = partial(MLP, hidden=[8])


def make_vae(seed=5):
    pyro.set_rng_seed(seed)
    return VAE(StandardNormalPrior(2), BernoulliLikelihood(SMALL(2, 6)), NormalEncoder(SMALL(6, 4)))


@pytest.fixture
def x():
    return torch.bernoulli(torch.full((40, 6), 0.3))


def run(vae, x, lr=1e-2, seed=8, **given):
    """Train for four epochs of four steps."""
    pyro.set_rng_seed(seed)
    optimizer = partial(torch.optim.Adam, lr=lr)
    arguments = {"elbo": TraceMeanField_ELBO(), "epochs": 4, "batch_size": 10, "validation": x[:9], **given}
    return fit(vae.model, vae.guide, x, optimizer=optimizer, **arguments)


def test_warm_up_weights_the_steps_and_not_the_reported_elbo(x):
    # With learning rate 0 the validation ELBO is the same with and without warm-up.
    vae = make_vae()
    plain, warm = run(vae, x, lr=0.0), run(vae, x, lr=0.0, kl_weight=LinearWarmup(1.5))
    assert warm["kl_weight"] == [0.75 / 1.5, 1.0, 1.0, 1.0]
    assert [value is None for value in warm["train_elbo"]] == [True, True, False, False]
    assert plain["kl_weight"] == [1.0] * 4
    assert None not in plain["train_elbo"]
    assert warm["validation_elbo"] == plain["validation_elbo"]
    bound = evidence_lower_bound(vae.model, vae.guide, x[:9], num_particles=2000)
    gap = warm["validation_elbo"][0] - bound.value.mean().item()
    assert abs(gap) < 5 * (bound.std_error.square().mean() * 2000 / 4 / 9) ** 0.5  # of 4 draws for each of 9 data
    # The objective is the ELBO in the last two epochs.
    assert abs(warm["train_elbo"][-1] - plain["train_elbo"][-1]) < 1e-9


def test_a_step_of_warm_up_is_a_step_on_the_weighted_objective(x):
    ours, theirs = make_vae(), make_vae()
    run(ours, x, epochs=1, batch_size=40, kl_weight=lambda epoch: 0.25)
    pyro.set_rng_seed(8)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    with temper(latent=0.25):
        TraceMeanField_ELBO().differentiable_loss(
            theirs.model, theirs.guide, x[epoch_order(40, epoch=0, seed=0)]
        ).backward()
    optimizer.step()
    plain = make_vae()
    run(plain, x, epochs=1, batch_size=40)
    differ = []
    for (name, one), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        differ.append(not torch.allclose(one, plain.state_dict()[name], rtol=1e-3, atol=1e-4))
    assert any(differ)


@pytest.mark.parametrize("stop_at", [2, 4, 7, 8, 13])
def test_a_run_resumed_in_warm_up_equals_an_uninterrupted_run(x, stop_at):
    straight, broken, fresh, states = make_vae(), make_vae(), make_vae(seed=77), []
    history = run(straight, x, kl_weight=LinearWarmup(1.6))
    steps = iter(range(1, 100))
    with pytest.raises(StoppedError):
        run(
            broken,
            x,
            kl_weight=LinearWarmup(1.6),
            commit=lambda state: states.append(copy.deepcopy(state)),
            should_stop=lambda: next(steps) == stop_at,
        )
    again = run(fresh, x, seed=1234, kl_weight=LinearWarmup(1.6), resume=states[-1])
    for name, value in straight.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    for key in ("epoch", "train_elbo", "validation_elbo", "kl_weight"):
        assert history[key] == again[key]
    assert history["train_elbo"][:2] == [None, None]


def test_temper_weights_enumerated_classes_as_other_latents(x):
    vae = MixtureVAE(Blueprint(6, 2, network=SMALL), num_classes=3)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)

    def loss(weight):
        pyro.set_rng_seed(1)
        with temper(latent=weight):
            return elbo.loss(vae.model, vae.guide, x)

    y = torch.eye(3)[:, None].expand(-1, len(x), -1)
    pyro.set_rng_seed(1)
    log_lik = vae.model.likelihood(vae.guide.encoder(x, y).rsample(), y).log_prob(x)
    at = [loss(weight) for weight in (0.0, 0.5, 1.0)]
    assert at[0] == pytest.approx(-(vae.guide.classes(x).probs.T * log_lik).sum().item(), rel=1e-5)
    assert at[1] == pytest.approx((at[0] + at[2]) / 2, rel=1e-5)
    assert at[2] > at[0] + 1


SEEN = torch.tensor([True, True, False, False])


def by_handler(fn, mask):
    """Draw a vector whose mask is around the site."""
    with poutine.mask(mask=mask):
        return pyro.sample("z", fn.to_event(1))


def inside(fn, mask):
    """Draw a vector whose mask is inside the distribution."""
    mask = mask.unsqueeze(-1) if isinstance(mask, torch.Tensor) else mask
    return pyro.sample("z", fn.mask(mask).to_event(1))


def masked_programs(in_model, in_guide, mask=SEEN):
    """Return programs with a masked latent vector, and a list of the draws of the guide."""
    drawn = []

    def model(x):
        with pyro.plate("data", len(x)):
            in_model(dist.Normal(torch.zeros(2), 0.5), mask)
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            drawn.append(in_guide(dist.Normal(0.5 * x + 1, 2.0), mask))

    return model, guide, drawn


@pytest.mark.parametrize("per", ["site", "dimension"])
@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("in_guide", [by_handler, inside])
@pytest.mark.parametrize("in_model", [by_handler, inside])
def test_a_divergence_counts_the_masks_of_guide_and_model_in_every_form(in_model, in_guide, analytic, per):
    x = torch.randn(4, 2)
    model, guide, drawn = masked_programs(in_model, in_guide)
    found = elbo_parts(model, guide, x, num_particles=3, analytic=analytic, per=per).divergences["z"]
    q, p, z = torch.distributions.Normal(0.5 * x + 1, 2.0), torch.distributions.Normal(0.0, 0.5), drawn[-1]
    kl = q.log_prob(z) - p.log_prob(z)
    if analytic and in_model is in_guide:  # torch has no closed form for a masked distribution and one without a mask
        kl = torch.distributions.kl_divergence(q, p).expand(3, 4, 2)
    kl = kl * SEEN.unsqueeze(-1)
    torch.testing.assert_close(found, kl if per == "dimension" else kl.sum(-1))


@pytest.mark.parametrize("in_guide", [by_handler, inside])
@pytest.mark.parametrize("in_model", [by_handler, inside])
def test_a_latent_that_is_masked_for_all_data_has_no_divergence(in_model, in_guide):
    x = torch.randn(4, 2)
    model, guide, _ = masked_programs(in_model, in_guide, mask=False)
    loss = WeightedELBO().loss(model, guide, x)
    assert loss == pytest.approx((x.square() + LOG_2PI).sum().item() / 2, rel=1e-5)


@pytest.mark.parametrize("elbo", [WeightedELBO(), ControlledELBO(KLConstraint(1.0), 1, True, torch.device("cpu"))])
def test_without_a_latent_that_the_guide_draws_the_loss_is_minus_log_p(elbo):
    x = torch.tensor([-1.0, 0.5, 2.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(torch.tensor([-1.0, 1.0])[z], 1.0), obs=x)

    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])), dist.Normal(torch.tensor([-1.0, 1.0]), torch.ones(2))
    )
    assert elbo.loss(model, lambda x: None, x) == pytest.approx(-mixture.log_prob(x).sum().item(), rel=1e-5)
