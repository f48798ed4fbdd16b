"""Bounds of K draws with any program: identities, Pyro's objectives, recorded execution, extremes and errors."""

import inspect
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import HandWritten, LinearGaussian
from pyro.infer import SVI, Trace_ELBO
from pyro.infer import RenyiELBO as PyroRenyiELBO
from small_programs import loss_and_gradients, make_vae

from pyrovae import (
    MLP,
    Blueprint,
    CombinedImportanceWeightedELBO,
    ImportanceWeightedELBO,
    MixtureVAE,
    MultiplyImportanceWeightedELBO,
    PartiallyImportanceWeightedELBO,
    RenyiELBO,
    TwoLayerVAE,
    fit,
    log_weights,
    temper,
)
from pyrovae.objectives import KLWeight, LearnedKLWeight, ShapedKL
from pyrovae.objectives.base import TensorELBO
from pyrovae.objectives.bounds import ParticleBound
from pyrovae.objectives.decompositions import AggregateELBO
from pyrovae.objectives.power_means import Mean, power_mean, without_each


@pytest.fixture
def x():
    return torch.bernoulli(torch.full((30, 6), 0.4))


@pytest.mark.parametrize("alpha", [0.0, 0.5, -2.0])
def test_pathwise_renyi_elbo_agrees_with_pyro(x, alpha):
    vae = make_vae()
    ours, theirs = (
        loss_and_gradients(elbo, vae, x)
        for elbo in (
            RenyiELBO(alpha, 6),
            PyroRenyiELBO(alpha, num_particles=6, vectorize_particles=True, max_plate_nesting=1),
        )
    )
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        ImportanceWeightedELBO,
        partial(RenyiELBO, 0.5),
        partial(RenyiELBO, -math.inf),
        partial(MultiplyImportanceWeightedELBO, num_groups=1),
        partial(PartiallyImportanceWeightedELBO, num_groups=1),
        partial(CombinedImportanceWeightedELBO, 0.4),
    ],
)
def test_bounds_of_one_draw_are_the_elbo(x, make):
    vae = make_vae()
    elbo = make(num_particles=1)
    assert elbo.is_elbo
    ours = loss_and_gradients(elbo, vae, x)
    theirs = loss_and_gradients(Trace_ELBO(num_particles=1), vae, x)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-4, atol=1e-5)
    assert not make(num_particles=4).is_elbo


def test_bounds_of_one_group_are_the_importance_weighted_bound(x):
    vae = make_vae()
    expected = loss_and_gradients(ImportanceWeightedELBO(5), vae, x)
    for elbo in (
        RenyiELBO(0.0, 5),
        MultiplyImportanceWeightedELBO(5, 1),
        PartiallyImportanceWeightedELBO(5, 1),
        CombinedImportanceWeightedELBO(0.0, 5),
    ):
        loss, gradients = loss_and_gradients(elbo, vae, x)
        assert loss == pytest.approx(expected[0], rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[1][name], rtol=1e-4, atol=1e-5)


def test_losses_of_bounds_are_minus_the_sum_of_means_of_log_weights(x):
    vae = make_vae()
    pyro.set_rng_seed(3)
    log_w = log_weights(vae.model, vae.guide, x, num_particles=6)
    values = {
        ImportanceWeightedELBO(6): log_w.exp().mean(0).log(),
        RenyiELBO(-math.inf, 6): log_w.amax(0),
        RenyiELBO(math.inf, 6): log_w.amin(0),
        MultiplyImportanceWeightedELBO(3, 2): log_w.exp().reshape(2, 3, -1).mean(1).log().mean(0),
        PartiallyImportanceWeightedELBO(3, 2): log_w.exp().mean(0).log(),
        CombinedImportanceWeightedELBO(0.25, 6): 0.25 * log_w.mean(0) + 0.75 * log_w.exp().mean(0).log(),
    }
    for elbo, value in values.items():
        pyro.set_rng_seed(3)
        assert elbo.loss(vae.model, vae.guide, x) == pytest.approx(-value.sum().item(), rel=1e-5)


def test_vr_max_is_the_limit_of_very_negative_alpha(x):
    vae = make_vae()
    expected = loss_and_gradients(RenyiELBO(-1e6, 6), vae, x)
    found = loss_and_gradients(RenyiELBO(-math.inf, 6), vae, x)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("elbo", [ImportanceWeightedELBO(3), RenyiELBO(0.5, 3), CombinedImportanceWeightedELBO(0.5, 3)])
@pytest.mark.thin(1)
def test_the_pathwise_gradient_is_the_derivative_of_the_loss(elbo):
    oracle = LinearGaussian(data_dim=3)
    x, decoder, encoder = oracle.data(2), oracle.decoder(), torch.nn.Linear(3, 4).double()

    def loss(*tensors):
        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
                p_x = dist.Normal(torch.nn.functional.linear(z, *tensors[:2]), 0.7).to_event(1)
                pyro.sample("x", p_x, obs=x)

        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                loc, log_scale = torch.nn.functional.linear(x, *tensors[2:]).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

        pyro.set_rng_seed(2)
        return elbo.differentiable_loss(model, guide, x)

    assert torch.autograd.gradcheck(loss, (*decoder.parameters(), *encoder.parameters()))


def test_power_means_have_the_derivatives_and_baselines_of_autograd():
    log_w = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    for order in (1.0, 0.5, -2.0, 0.0, math.inf, -math.inf):
        mean = power_mean(log_w, order)
        curvature = torch.zeros_like(log_w) if mean.curvature is None else mean.curvature
        first = torch.autograd.grad(mean.value.sum(), log_w, create_graph=True)[0]
        torch.testing.assert_close(first, mean.gradient)
        for k in range(4):
            if first.requires_grad:
                second = torch.autograd.grad(first[k].sum(), log_w, retain_graph=True)[0][k]
                torch.testing.assert_close(second, curvature[k])
        for k in range(4):
            others = torch.cat([log_w[:k], log_w[k + 1 :]])
            left = torch.cat([others, others.mean(0, keepdim=True)])
            torch.testing.assert_close(without_each(log_w, order)[k], power_mean(left, order).value)


def test_the_bound_without_a_dominating_draw_is_exact():
    log_w = torch.tensor([[0.0], [200.0], [-1.0]])
    expected = math.log((1 + math.exp(-1) + math.exp(-0.5)) / 3)
    assert without_each(log_w)[1].item() == pytest.approx(expected, rel=1e-5)


PROGRAMS = {
    "vae": lambda: make_vae(),
    "two layers": lambda: TwoLayerVAE(Blueprint(6, 2, network=partial(MLP, hidden=[8])), top_dim=2),
    "hand-written": HandWritten,
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("gradient", ["pathwise", "stl", "dreg"])
@pytest.mark.thin(3)
def test_bounds_train_under_svi_and_as_modules(program, gradient, x):
    made = PROGRAMS[program]()
    data = x[:, :4] if program == "hand-written" else x
    elbo = ImportanceWeightedELBO(4, gradient)
    svi = SVI(made.model, made.guide, pyro.optim.Adam({"lr": 2e-2}), elbo)
    losses = [svi.step(data) for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert svi.evaluate_loss(data) == pytest.approx(losses[-1], rel=0.3)
    if program != "hand-written":
        module = elbo(made.model, made.guide)
        assert len(list(module.parameters())) == len(list(made.parameters()))
        module(data).backward()


@pytest.mark.parametrize("gradient", ["stl", "dreg", "vimco"])
def test_bounds_pass_masks_and_covariates_to_the_programs(gradient):
    blueprint = Blueprint(6, 2, num_covariates=3, network=partial(MLP, hidden=[8]))
    vae = blueprint.vae()
    x, c = torch.bernoulli(torch.full((5, 6), 0.4)), torch.randn(5, 3)
    mask = torch.rand(5, 6) < 0.7
    elbo = ImportanceWeightedELBO(3, gradient)(vae.model, vae.guide)
    pyro.set_rng_seed(1)
    loss = elbo(x, covariates=c, mask=mask)
    other = torch.where(mask, x, 1 - x)
    pyro.set_rng_seed(1)
    assert elbo(other, covariates=c, mask=mask).item() == loss.item()
    pyro.set_rng_seed(1)
    assert elbo(other, covariates=c).item() != loss.item()
    loss.backward()
    assert all(bool((p.grad != 0).any()) for p in vae.parameters())


def test_mixtures_of_classes_train_by_vimco(x):
    vae = MixtureVAE(Blueprint(6, 2, network=partial(MLP, hidden=[8])), num_classes=3)
    with pytest.raises(ValueError, match=r"latent 'y' \(\w+\) has none"):
        ImportanceWeightedELBO(4, "dreg").loss(vae.model, vae.guide, x)
    history = fit(vae.model, vae.guide, x, elbo=ImportanceWeightedELBO(4, "vimco"), epochs=40, validation=x)
    assert history["validation_elbo"][-1] > history["validation_elbo"][0]


RECORDED = [
    ImportanceWeightedELBO(4),
    ImportanceWeightedELBO(4, "stl"),
    ImportanceWeightedELBO(4, "dreg"),
    ImportanceWeightedELBO(4, "vimco"),
    RenyiELBO(-math.inf, 3, "stl"),
    PartiallyImportanceWeightedELBO(2, 2),
]


@pytest.mark.parametrize(
    ("program", "elbo", "kl_weight"),
    [
        *(("vae", elbo, lambda epoch: 0.2 + epoch / 9) for elbo in RECORDED),
        ("vae", RECORDED[2], None),
        ("two layers", RECORDED[2], lambda epoch: 0.2 + epoch / 9),
    ],
)
@pytest.mark.thin(1)
def test_recorded_steps_of_bounds_equal_eager_steps(program, elbo, kl_weight, x):
    ends = []
    for execution in ("eager", "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        made = PROGRAMS[program]()
        pyro.set_rng_seed(4)
        given = {"epochs": 3, "batch_size": 10, "kl_weight": kl_weight, "execution": execution}
        fit(made.model, made.guide, x, elbo=elbo, optimizer=partial(torch.optim.SGD, lr=1e-3), **given)
        ends.append(made.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("gradient", ["pathwise", "stl", "dreg", "vimco"])
@pytest.mark.parametrize("log_scale", [-40.0, -10.0, 10.0, 40.0])
def test_bounds_of_a_thousand_draws_stay_finite_at_extreme_scales(gradient, log_scale, x):
    vae = make_vae()
    with torch.no_grad():
        last = [m for m in vae.guide.modules() if isinstance(m, torch.nn.Linear)][-1]
        last.bias[2:] = log_scale
    loss, gradients = loss_and_gradients(ImportanceWeightedELBO(1000, gradient), vae, x)
    assert math.isfinite(loss)
    assert all(bool(torch.isfinite(g).all()) for g in gradients.values())


def test_gradients_of_bounds_stay_finite_if_a_draw_has_density_zero():
    def model(x):
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Uniform(z - 1, z + 1, validate_args=False), obs=x)

    loc = torch.zeros(200, requires_grad=True)

    def guide(x):
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 1.0))

    with pyro.validation_enabled(False):
        for gradient in ("pathwise", "stl", "dreg", "vimco"):
            loss = ImportanceWeightedELBO(30, gradient).differentiable_loss(model, guide, torch.zeros(200))
            (found,) = torch.autograd.grad(loss, loc)
            assert math.isfinite(loss.item())
            assert bool(torch.isfinite(found).all())


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: ImportanceWeightedELBO(0), "num_particles must be at least 1, got 0"),
            (lambda: ImportanceWeightedELBO(1, "vimco"), 'at least 2 with gradient="vimco", got 1; draw more'),
            (lambda: ImportanceWeightedELBO(3, "reinforce"), "gradient must be one of pathwise, stl, dreg, vimco"),
            (lambda: RenyiELBO(math.nan), "alpha must not be NaN"),
            (lambda: RenyiELBO(-math.inf, 4, "dreg"), "needs a bound with second derivatives"),
            (lambda: MultiplyImportanceWeightedELBO(2, 0), "num_groups must be at least 1, got 0"),
            (lambda: MultiplyImportanceWeightedELBO(1, 4, "vimco"), "at least 2 with"),
            (lambda: PartiallyImportanceWeightedELBO(0, 4), "num_particles must be at least 1"),
            (lambda: CombinedImportanceWeightedELBO(1.5), "share must lie between 0 and 1, got 1.5"),
        ],
    )
    def test_bounds_refuse_invalid_arguments(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    def test_bounds_refuse_scales_that_are_no_kl_weight(self, x):
        vae = make_vae()
        with pyro.poutine.scale(scale=2.0), pytest.raises(ValueError, match=r"'x' of the model carries scale 2\.0"):
            ImportanceWeightedELBO(2).loss(vae.model, vae.guide, x)
        with pytest.raises(ValueError, match=r"'z' of the guide carries scale 1\.0, site 'z' of the model 0\.5"):
            ImportanceWeightedELBO(2).loss(temper(latent=0.5)(vae.model), vae.guide, x)

    def test_bounds_refuse_sites_outside_the_plate(self, x):
        def program(x):
            pyro.sample("z", dist.Normal(0.0, 1.0))

        with pytest.raises(ValueError, match="'z' of the model lies outside a plate"):
            ImportanceWeightedELBO(2).loss(program, program, x)


def test_a_bound_of_the_user_needs_two_methods(x):
    class Median(ParticleBound):
        def mean(self, log_w):
            value, index = log_w.median(0, keepdim=True)
            return Mean(value[0], torch.zeros_like(log_w).scatter(0, index, 1.0), None)

        def without_each(self, log_w):
            return torch.zeros_like(log_w)

    vae = make_vae()
    pyro.set_rng_seed(3)
    log_w = log_weights(vae.model, vae.guide, x, num_particles=5)
    pyro.set_rng_seed(3)
    loss = Median(5, "stl")(vae.model, vae.guide)(x)
    assert loss.item() == pytest.approx(-log_w.median(0).values.sum().item(), rel=1e-5)
    loss.backward()
    with pytest.raises(ValueError, match='"dreg" needs a bound with second derivatives, but Median gives none'):
        Median(5, "dreg").differentiable_loss(vae.model, vae.guide, x)


@pytest.mark.parametrize("base", [TensorELBO, ParticleBound, AggregateELBO, KLWeight, ShapedKL, LearnedKLWeight])
def test_base_classes_of_objectives_and_kl_weights_are_abstract(base):
    assert inspect.isabstract(base)
