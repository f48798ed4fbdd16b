"""Tests of whole models from a blueprint: two layers, mixtures, covariates; against quadrature and sums by hand."""

import copy
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import network
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from quadrature import SCORE, line, log_integral, plane
from torch import nn

from pyrovae import (
    MLP,
    VAE,
    Blueprint,
    CategoricalEncoder,
    CategoricalPrior,
    ConditionalNormalPrior,
    Likelihood,
    MixturePrior,
    MixtureVAE,
    NormalLikelihood,
    TwoLayerEncoder,
    TwoLayerPrior,
    TwoLayerVAE,
    VampPrior,
    log_joint,
    log_marginal,
    log_weights,
)
from pyrovae.densities import sample_sites, weighted_draws
from pyrovae.nn import join
from pyrovae.runs.registry import known_parts

DIMS, N, C, CLASSES = 3, 4, 2, 3
SMALL = partial(MLP, hidden=[5], activation="tanh")
PROGRAMS = {
    "one layer": Blueprint.vae,
    "two layers, up": partial(TwoLayerVAE, direction="bottom-up", hidden=[5]),
    "two layers, down": partial(TwoLayerVAE, hidden=[5]),
    "mixture": partial(MixtureVAE, num_classes=CLASSES),
}


def made(program, *, num_covariates=0, latent_dim=1, **parts):
    """The program in double precision, its parameters moved off their start, with data and covariates."""
    parts = {"likelihood": partial(NormalLikelihood, scale=1.5), "network": SMALL, **parts}
    vae = PROGRAMS[program](Blueprint(DIMS, latent_dim, num_covariates, **parts)).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = torch.randn(N, DIMS, dtype=torch.float64)
    kwargs = {"covariates": torch.randn(N, num_covariates, dtype=torch.float64)} if num_covariates else {}
    return vae, x, kwargs


def objective(program):
    return (TraceEnum_ELBO if program == "mixture" else Trace_ELBO)(max_plate_nesting=1)


def cover(vae, x, kwargs):
    """Train the guide towards one that covers the posterior, so that the weights have a small variance."""
    optimizer = torch.optim.Adam(vae.guide.parameters(), lr=0.05)
    for _ in range(80):
        with torch.no_grad():
            log_w, latents, _ = weighted_draws(vae.model, vae.guide, x, num_particles=100, **kwargs)
        optimizer.zero_grad()
        (-log_w.softmax(0) * log_joint(vae.guide, latents, x, **kwargs)).sum().backward()
        optimizer.step()


@torch.no_grad()
def exact(vae, x, mask=None, covariates=None):
    """log p(x) of the observed entries: classes summed, latents of one dimension integrated over a grid."""
    model = vae.model
    observed = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    x = x.nan_to_num()

    def log_likelihood(z, conditions):
        return (model.likelihood(z, conditions).base_dist.log_prob(x) * observed).sum(-1)

    if isinstance(vae, TwoLayerVAE):
        points, weights = plane(2, 200)
        z2, z1 = points[:, None].expand(-1, len(x), -1).split(1, -1)
        log_p = model.prior(covariates).log_prob(z2) + model.between(z2).log_prob(z1)
        return log_integral(log_p + log_likelihood(z1, covariates), weights)
    points, weights = line(400)
    z = points[:, None, None].expand(-1, len(x), -1)
    if isinstance(vae, VAE):
        return log_integral(model.prior(covariates).log_prob(z) + log_likelihood(z, covariates), weights)
    parts = []
    for y, log_p in zip(torch.eye(CLASSES).double(), model.logits.log_softmax(0), strict=True):
        conditions = join(y.expand(len(x), -1), covariates)
        given_y = model.prior(conditions).log_prob(z) + log_likelihood(z, conditions)
        parts.append(log_p + log_integral(given_y, weights))
    return torch.stack(parts).logsumexp(0)


MASKS = {
    "whole": None,
    "entries": torch.tensor([[1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1]]).bool(),
    "data": torch.tensor([1, 0, 1, 0]).bool(),
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("mask", "num_covariates"), [("whole", 0), ("whole", C), ("entries", 0), ("data", C)])
@pytest.mark.thin(3)
def test_log_marginal_agrees_with_quadrature_over_observed_entries(program, num_covariates, mask):
    vae, x, kwargs = made(program, num_covariates=num_covariates)
    observed = MASKS[mask]
    if observed is not None:
        kwargs["mask"] = observed
        observed = observed if observed.dim() == 2 else observed[:, None].expand_as(x)
        x = torch.where(observed, x, torch.nan)
    cover(vae, x, kwargs)
    truth = exact(vae, x, observed, kwargs.get("covariates"))
    estimate = log_marginal(vae.model, vae.guide, x, num_particles=20_000, **kwargs)
    assert estimate.std_error.max() < 0.02
    # 64 numbers: one beyond has probability 4e-4, once.
    assert ((estimate.value - truth).abs() < SCORE * estimate.std_error + 1e-6).all()
    if mask == "whole":  # the test has power: another datum's log p(x) does not pass
        assert ((estimate.value - truth.roll(1)).abs() > SCORE * estimate.std_error).all()


class TestMixture:
    @pytest.mark.parametrize("num_covariates", [0, C])
    def test_enumerated_classes_agree_with_a_sum_by_hand(self, num_covariates):
        vae, x, kwargs = made("mixture", num_covariates=num_covariates, latent_dim=2, prior=ConditionalNormalPrior)
        pyro.set_rng_seed(1)
        objective("mixture").differentiable_loss(vae.model, vae.guide, x, **kwargs).backward()
        pyro.set_rng_seed(1)
        loss = objective("mixture").loss(vae.model, vae.guide, x, **kwargs)
        gradients = {name: parameter.grad for name, parameter in vae.named_parameters()}
        vae.zero_grad()

        y = torch.eye(CLASSES, dtype=torch.float64)[:, None].expand(-1, N, -1)
        conditions = join(y, kwargs.get("covariates"))
        q_y, q_z = vae.guide.classes(x, *kwargs.values()), vae.guide.encoder(x, conditions)
        pyro.set_rng_seed(1)
        z = q_z.rsample()
        log_p = vae.model.logits.log_softmax(0)[:, None] + vae.model.prior(conditions).log_prob(z)
        log_p = log_p + vae.model.likelihood(z, conditions).log_prob(x)
        by_hand = -(q_y.probs.T * (log_p - q_y.logits.T - q_z.log_prob(z))).sum()
        assert loss == pytest.approx(by_hand.item(), rel=1e-10)
        by_hand.backward()
        for name, parameter in vae.named_parameters():
            assert bool(torch.isfinite(gradients[name]).all())
            torch.testing.assert_close(gradients[name], parameter.grad, msg=lambda text, name=name: f"{name}: {text}")

    def test_conditional_prior_makes_a_mixture_prior(self):
        vae, x, _ = made("mixture", prior=ConditionalNormalPrior)

        class WithoutClass(Likelihood):
            def forward(self, z, covariates=None):
                return vae.model.likelihood(z, torch.zeros(N, CLASSES, dtype=torch.float64))

        with torch.no_grad():
            vae.model.logits.copy_(torch.tensor([0.5, -1.0, 0.2]))
            vae.model.likelihood.network.layers[0].weight[:, 1:] = 0  # the class enters through z alone
            prior = MixturePrior(1, num_components=CLASSES).double()
            prior.logits.copy_(vae.model.logits)
            for part, value in zip(
                (prior.loc, prior.log_scale), vae.model.prior.network(torch.eye(3).double()).T, strict=True
            ):
                part.copy_(value[:, None])
        other = VAE(prior, WithoutClass(nn.Identity()), nn.Identity())
        torch.testing.assert_close(exact(vae, x), exact(other, x), rtol=1e-9, atol=1e-9)

    def test_discrete_latents_are_enumerated_within_classes(self):
        vae, x, _ = made("mixture", latent_dim=2, prior=CategoricalPrior, encoder=CategoricalEncoder)
        y = torch.eye(CLASSES, dtype=torch.float64)[:, None, None].expand(-1, 2, N, -1)
        z = torch.eye(2, dtype=torch.float64)[:, None].expand(CLASSES, 2, N, 2)
        log_p = vae.model.logits.log_softmax(0)[:, None, None] + vae.model.prior().log_prob(z)
        log_p = log_p + vae.model.likelihood(z, y).log_prob(x)
        q_y, q_z = vae.guide.classes(x), vae.guide.encoder(x, y)
        log_q = q_y.log_prob(y) + q_z.log_prob(z)
        by_hand = -(log_q.exp() * (log_p - log_q)).sum()
        loss = objective("mixture").loss(vae.model, vae.guide, x)
        assert loss == pytest.approx(by_hand.item(), rel=1e-10)


@pytest.mark.parametrize("program", PROGRAMS)
def test_covariates_of_a_datum_move_that_datum_alone(program):
    vae, x, kwargs = made(program, num_covariates=C)
    moved = {"covariates": kwargs["covariates"].clone()}
    moved["covariates"][1] += 1

    def run(for_guide, for_model):
        """Latents, and log p(x|latents), per datum, under the same noise."""
        pyro.set_rng_seed(0)
        drawn = poutine.trace(vae.guide).get_trace(x, **for_guide)
        scored = poutine.trace(poutine.replay(vae.model, trace=drawn)).get_trace(x, **for_model)
        scored.compute_log_prob()
        values = [site["value"] for name, site in sample_sites(drawn).items() if name != "y"]
        return torch.cat(values, -1), scored.nodes["x"]["log_prob"]

    (latents, log_lik), (same, other_lik), (others, _) = run(kwargs, kwargs), run(kwargs, moved), run(moved, kwargs)
    assert torch.equal(latents, same)
    assert (other_lik != log_lik).tolist() == [False, True, False, False]
    assert (others != latents).all(-1).tolist() == [False, True, False, False]


IMAGE = 12
X = torch.tensor([[0.0, 1, 2], [3, 0, 1]]).repeat(4, IMAGE // 3)
SHAPED = {"Conv": {"shape": (3, 4), "channels": (2,), "hidden": 4}, "Recurrent": {"shape": (4, 3), "hidden": 4}}


def part(kind, name):
    """A maker of this part, small, for the data X."""
    found = known_parts(kind)[name]
    if kind == "likelihood":
        return partial(found, **found.arguments_for(X))
    if kind == "network":
        return partial(found, **next((given for key, given in SHAPED.items() if key in name), {}))
    return found


# Parts that go with each other alone.
LEFT_OUT = {"CategoricalPrior", "CategoricalEncoder"}


@pytest.mark.parametrize("num_covariates", [0, C])
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("kind", ["prior", "likelihood", "encoder", "network"])
@pytest.mark.thin(3)
def test_a_blueprint_fits_every_part_to_every_program(kind, program, num_covariates):
    for name in known_parts(kind):
        conditional = name == "ConditionalNormalPrior"
        given = num_covariates + CLASSES * (program == "mixture")
        if name in LEFT_OUT or (conditional and not given):
            continue
        parts = {"likelihood": NormalLikelihood, "network": SMALL, "x": X, kind: part(kind, name)}
        blueprint = Blueprint(IMAGE, 4, num_covariates, **parts)
        if program == "two layers, up" and name in ("VampPrior", "ExemplarPrior"):
            with pytest.raises(ValueError, match=f'{name} needs an encoder.*use direction="top-down"'):
                PROGRAMS[program](blueprint)
            continue
        try:
            vae = PROGRAMS[program](blueprint)
            kwargs = {"covariates": torch.rand(len(X), num_covariates)} if num_covariates else {}
            x = vae.model(size=len(X), **kwargs).detach()
            log_w = log_weights(vae.model, vae.guide, x, num_particles=2, **kwargs)
        except Exception as error:
            error.add_note(f"in {kind} {name}")
            raise
        assert x.shape == X.shape, name
        assert log_w.shape == (2, len(X)), name
        assert bool(torch.isfinite(log_w).all()), name
        if conditional:
            assert vae.model.prior.network.in_features == given


@pytest.mark.parametrize("program", PROGRAMS)
def test_all_parameters_train_under_unique_names(program):
    vaes = [made(program, num_covariates=C)[0] for _ in range(2)]
    _, x, kwargs = made(program, num_covariates=C)
    vaes.append(copy.deepcopy(vaes[0]))
    assert len({vae.name for vae in vaes}) == 3
    for vae in vaes:
        before = copy.deepcopy(vae.state_dict())
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), objective(program))
        for _ in range(2):
            svi.step(x, **kwargs)
        assert [name for name, value in vae.named_parameters() if torch.equal(value, before[name])] == []
    other = made(program, num_covariates=C)[0]
    other.load_state_dict(vaes[0].state_dict())
    values = []
    for vae in (vaes[0], other, copy.deepcopy(other)):
        pyro.set_rng_seed(2)
        values.append(log_weights(vae.model, vae.guide, x, num_particles=3, **kwargs))
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    assert not torch.equal(vaes[0].state_dict()[name := next(iter(before))], vaes[2].state_dict()[name])


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unpickled_pair_has_its_own_name_and_values(program):
    vae, x, kwargs = made(program, num_covariates=C)
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), objective(program)).step(x, **kwargs)
    pickled = pickle.dumps(vae)

    def weights(pair):
        pyro.set_rng_seed(2)
        return log_weights(pair.model, pair.guide, x, num_particles=3, **kwargs)

    before = weights(vae)
    twins = [pickle.loads(pickled), pickle.loads(pickled)]
    assert len({vae.name, *(twin.name for twin in twins)}) == 3
    with torch.no_grad():
        for value in twins[0].parameters():
            value.add_(1.0)
    assert torch.equal(weights(vae), before)
    assert torch.equal(weights(twins[1]), before)
    assert not torch.equal(weights(twins[0]), before)


def test_a_plain_copy_of_a_pair_leaves_the_names_of_its_programs():
    vae, _, _ = made("one layer")
    twin = copy.copy(vae)
    assert (twin.name, twin.model) == (vae.name, vae.model)
    assert vae.model._pyro_name == f"{vae.name}.model"


def test_copied_pair_shares_its_encoder_with_its_prior():
    blueprint = Blueprint(DIMS, 2, prior=VampPrior, network=SMALL, x=torch.rand(5, DIMS))
    vae = TwoLayerVAE(blueprint, direction="top-down")
    twin = copy.deepcopy(vae)
    assert twin.model.prior.encoder is twin.guide.upper
    assert twin.guide.upper is not vae.guide.upper


def test_two_layer_prior_is_the_product_of_its_layers():
    prior = TwoLayerPrior(5, top_dim=2, hidden=[4]).double()
    z = torch.randn(7, 5, dtype=torch.float64)
    loc, log_scale = prior.network(z[:, :2]).chunk(2, -1)
    by_hand = dist.Normal(0.0, 1.0).log_prob(z[:, :2]).sum(-1) + dist.Normal(loc, log_scale.exp()).log_prob(
        z[:, 2:]
    ).sum(-1)
    torch.testing.assert_close(prior().log_prob(z), by_hand)


@pytest.mark.parametrize("direction", ["bottom-up", "top-down"])
def test_two_layer_encoder_is_the_product_of_its_layers(direction):
    outputs = torch.randn(7, 2 * 5 + 3, dtype=torch.float64)
    encoder = TwoLayerEncoder(nn.Linear(13, 13), top_dim=2, direction=direction, num_features=3, hidden=[4]).double()
    encoder.network = nn.Identity()
    z = torch.randn(6, 7, 5, dtype=torch.float64)
    first, second = (slice(2), slice(2, 5)) if direction == "top-down" else (slice(2, 5), slice(2))
    loc, log_scale, features = outputs.tensor_split((5, 10), -1)
    shift, stretch = encoder.link(torch.cat([features.expand(6, -1, -1), z[..., first]], -1)).chunk(2, -1)
    by_hand = dist.Normal(loc[:, first], log_scale[:, first].exp()).log_prob(z[..., first]).sum(-1)
    scale = (log_scale[:, second] + stretch).exp()
    by_hand = by_hand + dist.Normal(loc[:, second] + shift, scale).log_prob(z[..., second]).sum(-1)
    torch.testing.assert_close(encoder(outputs).log_prob(z), by_hand)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda b: TwoLayerVAE(b(), direction="up"), 'direction must be "bottom-up" or "top-down", got \'up\''),
        (lambda b: TwoLayerVAE(b(), top_dim=0), "latent_dim must be at least 1"),
        (lambda b: TwoLayerVAE(b(prior=CategoricalPrior)), "cannot be mapped to it"),
        (lambda b: TwoLayerVAE(b(encoder=CategoricalEncoder)), "cannot be mapped to it"),
        (lambda b: TwoLayerVAE(b(prior=CategoricalPrior, encoder=CategoricalEncoder)), "cannot be mapped to it"),
        (lambda b: MixtureVAE(b(), num_classes=1), "num_classes must be at least 2, got 1; use VAE"),
        (lambda b: MixtureVAE(b(prior=CategoricalPrior)), "cannot be mapped to it"),
        (lambda b: MixtureVAE(b(encoder=CategoricalEncoder)), "cannot be mapped to it"),
        (lambda b: b(prior=CategoricalPrior).vae(), "cannot be mapped to it"),
        (
            lambda b: TwoLayerPrior(1),
            "top_dim must be at least 1 and below latent_dim = 1, got 0; change top_dim or latent_dim",
        ),
        (lambda b: TwoLayerPrior(3, top_dim=3), "top_dim must be at least 1 and below latent_dim = 3, got 3"),
        (lambda b: TwoLayerEncoder(network(20), top_dim=2), "top_dim must be at least 1 and below latent_dim = 2"),
        (lambda b: TwoLayerEncoder(network(21)), r"must have 2 Z \+ num_features"),
        (lambda b: TwoLayerEncoder(network(20), direction="down"), 'direction must be "bottom-up"'),
    ],
)
def test_programs_reject_invalid_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make(partial(Blueprint, DIMS, 4, network=SMALL))
