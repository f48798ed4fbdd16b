"""Bounds of K draws and their gradients against quadrature, enumeration and closed forms."""

import copy
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from bound_oracles import Copies, exact_bound, normal_nodes, score_copies
from catalogue import ENCODERS, D

from pyrovae import (
    CombinedImportanceWeightedELBO,
    ImportanceWeightedELBO,
    MultiplyImportanceWeightedELBO,
    PartiallyImportanceWeightedELBO,
    RenyiELBO,
    temper,
)
from pyrovae.objectives.gradient_estimators import partial_derivatives
from pyrovae.objectives.power_means import power_mean

COPIES = 40_000


def mixed(share, num_particles):
    def bound(log_w, probability):
        elbo = exact_bound(log_w, probability, 1, 0.0)
        return share * elbo + (1 - share) * exact_bound(log_w, probability, num_particles)

    return bound


def of_order(num_particles, order=1.0):
    return partial(exact_bound, num_particles=num_particles, order=order)


# Each objective, and its expected bounds for the model and for the guide; None if the guide's is the model's.
BOUNDS = {
    "iwae, K = 1": (lambda g: ImportanceWeightedELBO(1, g), of_order(1), None),
    "iwae, K = 2": (lambda g: ImportanceWeightedELBO(2, g), of_order(2), None),
    "iwae, K = 8": (lambda g: ImportanceWeightedELBO(8, g), of_order(8), None),
    "renyi 0.5, K = 4": (lambda g: RenyiELBO(0.5, 4, g), of_order(4, 0.5), None),
    "renyi 2, K = 4": (lambda g: RenyiELBO(2.0, 4, g), of_order(4, -1.0), None),
    "renyi -1, K = 4": (lambda g: RenyiELBO(-1.0, 4, g), of_order(4, 2.0), None),
    "renyi 1, K = 4": (lambda g: RenyiELBO(1.0, 4, g), of_order(4, 0.0), None),
    "miwae, 2 of 4": (lambda g: MultiplyImportanceWeightedELBO(4, 2, g), of_order(4), None),
    "piwae, 2 of 3": (lambda g: PartiallyImportanceWeightedELBO(3, 2, g), of_order(6), of_order(3)),
    "ciwae": (lambda g: CombinedImportanceWeightedELBO(0.3, 4, g), mixed(0.3, 4), None),
}


def t_statistics(found, exact):
    """Compute the error of each parameter's mean gradient, in standard errors."""
    return {
        name: ((g.mean() - exact[name]) / (g.std() / len(g) ** 0.5).clamp_min(1e-12)).item()
        for name, g in found.items()
    }


def expected_gradient(name, weight=1.0):
    _, model_bound, guide_bound = BOUNDS[name]
    exact = Copies.exact(model_bound, weight)[1]
    if guide_bound is not None:
        exact |= {key: value for key, value in Copies.exact(guide_bound, weight)[1].items() if key in ("m", "log_r")}
    return exact


@pytest.mark.parametrize("gradient", ["pathwise", "dreg", "vimco"])
@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.thin(12)
def test_gradients_of_bounds_are_unbiased(name, gradient):
    if gradient == "vimco" and name == "iwae, K = 1":
        pytest.skip("VIMCO asks for two draws")
    copies = score_copies(COPIES) if gradient == "vimco" else Copies(COPIES)
    exact = expected_gradient(name)
    found = copies.gradients(BOUNDS[name][0](gradient))
    # 116 t statistics in all: one beyond 5.5 has probability 5e-6, once, with the seed fixed.
    for parameter, t in t_statistics(found, exact).items():
        assert abs(t) < 5.5, parameter
    # Power: the test detects an error of a fifth of the largest gradient.
    largest = max(map(abs, exact.values()))
    for g in found.values():
        assert 0.2 * largest > 11 * g.std() / COPIES**0.5


def test_the_quadrature_of_bounds_is_exact():
    # K = 1 gives the ELBO in closed form, K = 2 a product of two quadratures, large K log p(x).
    p = {name: torch.tensor(value, dtype=torch.float64) for name, value in Copies.values.items()}
    nodes, probability = normal_nodes()
    r = p["log_r"].exp()
    log_w = Copies.log_w(p, p["m"] + r * nodes)
    error = (Copies.x - p["a"] * p["m"] - p["c"]) ** 2 + p["a"] ** 2 * r**2
    elbo = -0.5 * (math.log(2 * math.pi * Copies.scale**2) + error / Copies.scale**2)
    elbo -= 0.5 * (r**2 + p["m"] ** 2 - 1) - p["log_r"]
    for order in (0.0, 1.0):
        assert exact_bound(log_w, probability, 1, order).item() == pytest.approx(elbo.item(), abs=1e-9)
    pairs = torch.stack(torch.broadcast_tensors(log_w[:, None], log_w))
    for order in (1.0, 0.5, -1.0):
        two = (probability[:, None] * probability * power_mean(pairs, order).value).sum()
        assert exact_bound(log_w, probability, 2, order).item() == pytest.approx(two.item(), abs=1e-9)
    assert exact_bound(log_w, probability, 100_000).item() == pytest.approx(Copies.log_marginal(), abs=1e-4)


def test_sticking_the_landing_is_unbiased_only_for_one_draw():
    exact = expected_gradient("iwae, K = 1")
    assert max(map(abs, t_statistics(Copies(COPIES).gradients(ImportanceWeightedELBO(1, "stl")), exact).values())) < 5.5
    # For K = 8 it is biased for the guide, and unbiased for the model.
    exact = expected_gradient("iwae, K = 8")
    off = t_statistics(Copies(COPIES).gradients(ImportanceWeightedELBO(8, "stl")), exact)
    assert max(abs(off["a"]), abs(off["c"])) < 5.5
    assert min(abs(off["m"]), abs(off["log_r"])) > 20


@pytest.mark.parametrize("name", ["iwae, K = 1", "iwae, K = 8", "renyi 0.5, K = 4", "piwae, 2 of 3"])
@pytest.mark.parametrize("gradient", ["pathwise", "dreg", "vimco"])
@pytest.mark.parametrize("weight", [0.0, 0.4, torch.tensor(2.0)])
@pytest.mark.thin(10)
def test_gradients_of_bounds_are_unbiased_under_a_kl_weight(name, gradient, weight):
    if gradient == "vimco" and name == "iwae, K = 1":
        pytest.skip("VIMCO asks for two draws")
    copies = score_copies(COPIES) if gradient == "vimco" else Copies(COPIES)
    with temper(latent=weight):
        found = copies.gradients(BOUNDS[name][0](gradient))
    # 132 t statistics, as above.
    for parameter, t in t_statistics(found, expected_gradient(name, float(weight))).items():
        assert abs(t) < 5.5, parameter


def test_losses_of_bounds_agree_with_quadrature():
    for make, bound, _ in BOUNDS.values():
        for gradient in ("pathwise", "stl"):
            losses = torch.stack(
                [
                    make(gradient).differentiable_loss(copies.model, copies.guide, copies.data).detach() / 2000
                    for copies in [Copies(2000)] * 20
                ]
            )
            value, _ = Copies.exact(bound)
            # 20 t statistics of 19 degrees: one beyond 6.5 has probability 6e-5, once.
            assert abs(-losses.mean() - value) < 6.5 * losses.std() / 20**0.5


def test_importance_weighted_bounds_rise_with_the_draws_towards_log_p():
    exact = [Copies.exact(of_order(k))[0] for k in (1, 2, 8, 64)]
    assert exact == sorted(exact)
    copies = Copies(COPIES)
    found = [-ImportanceWeightedELBO(k).loss(copies.model, copies.guide, copies.data) / COPIES for k in (1, 2, 8, 64)]
    assert found == sorted(found)
    assert found[-1] < Copies.log_marginal() + 0.01
    assert found[-1] > Copies.log_marginal() - 0.05


def test_signal_to_noise_of_dreg_rises_with_the_draws_and_that_of_pathwise_falls():
    # Guide's gradient; Rainforth et al. 2018 and Tucker et al. 2019.
    def signal_to_noise(gradient, draws):
        g = Copies(4000).gradients(ImportanceWeightedELBO(draws, gradient))["m"]
        return (g.mean() / g.std()).abs().item()

    assert signal_to_noise("dreg", 64) > 1.5 * signal_to_noise("dreg", 4)
    assert signal_to_noise("pathwise", 64) < 0.7 * signal_to_noise("pathwise", 4)


class Classes:
    """Class y of three, and z given y, in model and guide: a discrete latent above a reparameterised one."""

    def __init__(self, copies):
        generator = torch.Generator().manual_seed(4)
        values = {"logits": torch.randn(3, generator=generator), "loc": torch.randn(3, generator=generator)}
        values["slope"] = torch.tensor([0.7])
        self.parameters = {
            name: value.double().expand(copies, -1).clone().requires_grad_() for name, value in values.items()
        }
        self.data = torch.full((copies,), 0.9, dtype=torch.float64)

    def model(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.3, 0.5], dtype=x.dtype)))
            z = pyro.sample("z", dist.Normal(y - 1.0, 1.0))
            pyro.sample("x", dist.Normal(self.parameters["slope"][:, 0] * z, 0.5), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.parameters["logits"]))
            loc = self.parameters["loc"].expand(*y.shape, 3).gather(-1, y[..., None])[..., 0]
            pyro.sample("z", dist.Normal(loc, 0.6))

    def exact(self, num_particles):
        p = {name: value[0].detach().clone().requires_grad_() for name, value in self.parameters.items()}
        nodes, probability = normal_nodes(40)
        log_w, weight = [], []
        for y in range(3):
            z = p["loc"][y] + 0.6 * nodes
            log_q = p["logits"].log_softmax(-1)[y] + dist.Normal(p["loc"][y], 0.6).log_prob(z)
            log_p = dist.Normal(p["slope"] * z, 0.5).log_prob(self.data[:1]) + math.log([0.2, 0.3, 0.5][y])
            log_w.append(log_p + dist.Normal(y - 1.0, 1.0).log_prob(z) - log_q)
            weight.append(p["logits"].softmax(-1)[y] * probability)
        bound = exact_bound(torch.cat(log_w), torch.cat(weight), num_particles)
        return dict(zip(p, torch.autograd.grad(bound, list(p.values())), strict=True))


@pytest.mark.parametrize("num_particles", [2, 5])
def test_vimco_is_unbiased_if_a_discrete_latent_is_above_a_continuous_one(num_particles):
    both = Classes(COPIES)
    loss = ImportanceWeightedELBO(num_particles, "vimco").differentiable_loss(both.model, both.guide, both.data)
    found = torch.autograd.grad(-loss, list(both.parameters.values()))
    exact = both.exact(num_particles).values()
    for expected, g in zip(exact, found, strict=True):
        t = (g.mean(0) - expected) / (g.std(0) / COPIES**0.5)
        assert t.abs().max() < 5.5  # seven of them, twice
        assert 0.3 * max(value.abs().max() for value in exact) > 11 * g.std(0).max() / COPIES**0.5


class Chain:
    """Two latents that the guide draws bottom-up: z1 given x, then z2 given z1, with parameters for each copy."""

    def __init__(self, copies):
        values = {"m": 0.3, "s": -0.5, "v": 0.6, "t": -0.3, "a": 0.8}
        self.parameters = {
            name: torch.full((copies,), value, dtype=torch.float64, requires_grad=True)
            for name, value in values.items()
        }
        self.data = torch.full((copies,), 1.1, dtype=torch.float64)

    def densities(self, p, z1, z2, x):
        log_q = dist.Normal(p["m"], p["s"].exp()).log_prob(z1)
        log_q = log_q + dist.Normal(p["v"] * z1.square(), p["t"].exp()).log_prob(z2)
        log_p = dist.Normal(torch.zeros_like(z2), 1.0).log_prob(z2) + dist.Normal(p["a"] * z2, 0.7).log_prob(z1)
        return log_p + dist.Normal(z1 + 0.5 * z2, 0.9).log_prob(x) - log_q

    def model(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 1.0))
            z1 = pyro.sample("z1", dist.Normal(self.parameters["a"] * z2, 0.7))
            pyro.sample("x", dist.Normal(z1 + 0.5 * z2, 0.9), obs=x)

    def guide(self, x):
        p = self.parameters
        with pyro.plate("rows", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(p["m"], p["s"].exp()))
            pyro.sample("z2", dist.Normal(p["v"] * z1.square(), p["t"].exp()))

    def exact(self, num_particles):
        p = {name: value[0].detach().clone().requires_grad_() for name, value in self.parameters.items()}
        nodes, weights = normal_nodes(24)
        z1 = (p["m"] + p["s"].exp() * nodes)[:, None].expand(-1, 24)
        z2 = p["v"] * z1.square() + p["t"].exp() * nodes
        log_w = self.densities(p, z1, z2, self.data[0])
        bound = exact_bound(log_w.flatten(), (weights[:, None] * weights).flatten(), num_particles)
        return dict(zip(p, torch.autograd.grad(bound, list(p.values())), strict=True))


@pytest.mark.parametrize(
    ("gradient", "num_particles"), [("pathwise", 1), ("pathwise", 4), ("stl", 1), ("dreg", 1), ("dreg", 4)]
)
def test_gradients_through_two_dependent_latents_are_unbiased(gradient, num_particles):
    chain = Chain(COPIES)
    elbo = ImportanceWeightedELBO(num_particles, gradient)
    found = torch.autograd.grad(
        -elbo.differentiable_loss(chain.model, chain.guide, chain.data), list(chain.parameters.values())
    )
    exact = chain.exact(num_particles)
    for (name, expected), g in zip(exact.items(), found, strict=True):
        assert abs((g.mean() - expected) / (g.std() / COPIES**0.5)) < 5.5, name  # 25 of them
    assert 0.3 * max(value.abs() for value in exact.values()) > 11 * max(g.std() for g in found) / COPIES**0.5


def test_partial_derivatives_hold_the_other_draws_fixed():
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    z1 = (w * 2).sin()
    z2 = z1**2 * w
    z3 = z2 * z1 + w
    value = z1 * z2**2 * z3.exp()
    expected = [z2**2 * z3.exp(), 2 * z1 * z2 * z3.exp(), value]
    found = partial_derivatives(value, [z1, z2, z3])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-12, atol=0)
    # The surrogate has the derivative of the value.
    surrogate = sum(z * g for z, g in zip([z1, z2, z3], found, strict=True))
    one, other = (torch.autograd.grad(each, w, retain_graph=True)[0] for each in (surrogate, value))
    torch.testing.assert_close(one, other)
    assert partial_derivatives(value, []) == []
    assert partial_derivatives(torch.tensor(1.0), [z1]) == [torch.zeros_like(z1)]


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name != "categorical"])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_gradients_without_score_vanish_if_the_guide_is_the_posterior(encoder, num_particles):
    # The posterior is a frozen copy of the guide. Every weight is 1, so the derivative of log w along any draw is 0.
    encode = ENCODERS[encoder]().double()
    frozen = copy.deepcopy(encode).requires_grad_(False)
    x = torch.randn(4, D, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", frozen(x))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", encode(x))

    if not encode(x).has_rsample:
        with pytest.raises(ValueError, match=r"latent 'z' \(\w+\) has none; use gradient=\"vimco\""):
            ImportanceWeightedELBO(num_particles, "dreg").differentiable_loss(model, guide, x)
        return
    norms = {}
    for gradient in ("pathwise", "stl", "dreg"):
        loss = ImportanceWeightedELBO(num_particles, gradient).differentiable_loss(model, guide, x)
        found = torch.autograd.grad(loss, list(encode.parameters()), allow_unused=True, materialize_grads=True)
        norms[gradient] = max(g.abs().max().item() for g in found)
    assert norms["stl"] < 1e-8
    assert norms["dreg"] < 1e-8
    assert norms["pathwise"] > 1e-3
