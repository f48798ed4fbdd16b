"""Pyro's auto guides: the auxiliary site and its Jacobian count, rows belong to the data of the first run."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoMultivariateNormal, AutoNormal
from torch.distributions import biject_to

from pyrovae import (
    ImportanceWeightedELBO,
    WeightedELBO,
    ais,
    evidence_lower_bound,
    exact_log_marginal,
    fit,
    linear_schedule,
    log_marginal,
    log_weights,
    refine,
)
from pyrovae.evidence import GuideProposal, WidenedProposal

N = 30

PRIORS = {
    "positive": lambda: dist.LogNormal(0.2, 0.7),
    "interval": lambda: dist.Beta(2.0, 3.0),
    "simplex": lambda: dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
    "vector": lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
}


@pytest.fixture
def x():
    pyro.set_rng_seed(3)
    return torch.randn(N).abs() + 0.3


def model_of(prior):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior())
            loc = z if z.shape[-1:] == x.shape or z.dim() == 1 else z[..., 0]
            pyro.sample("x", dist.Normal(loc, 0.5), obs=x)

    return model


def trained(model, x, make=AutoNormal, scale=0.3):
    """Make an auto guide with one row for each datum of x, moved away from its start."""
    guide = make(model, init_scale=scale)
    guide(x)
    for parameter in guide.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape))
    return guide


def by_hand(model, guide, prior):
    """Return the guide with the densities of AutoNormal as one site with a transformed distribution."""
    to_support = biject_to(prior().support)

    def written(x):
        loc, scale = guide.locs.z, guide.scales.z
        base = dist.Normal(loc, scale).to_event(loc.dim() - 1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.TransformedDistribution(base, [to_support]))

    return written


def moments(value):
    return value.mean(0).double(), value.std(0).double() / math.sqrt(len(value))


@pytest.mark.parametrize("name", PRIORS)
def test_log_weights_of_an_auto_normal_equal_those_of_its_density_written_by_hand(x, name):
    model = model_of(PRIORS[name])
    guide = trained(model, x)
    pyro.set_rng_seed(1)
    ours = log_weights(model, guide, x, num_particles=5)
    pyro.set_rng_seed(1)
    theirs = log_weights(model, by_hand(model, guide, PRIORS[name]), x, num_particles=5)
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["positive", "interval"])
@pytest.mark.thin(1)
def test_every_estimator_of_log_p_agrees_with_quadrature_under_an_auto_normal(x, name):
    model = model_of(PRIORS[name])
    guide = trained(model, x, scale=1.0)
    exact = exact_log_marginal(model, x).value
    proposals = {"default": None, "guide": GuideProposal(), "widened": WidenedProposal(1.5, df=5.0)}
    for proposal in proposals.values():
        found = log_marginal(model, guide, x, num_particles=800, proposal=proposal)
        well = found.khat < 0.6
        assert bool(well.float().mean() > 0.5)
        assert bool(((found.value - exact).abs() < 5 * found.std_error + 1e-3)[well].all())
    annealed = ais(model, x, num_particles=200, betas=linear_schedule(20), num_tuning=60)
    assert bool(((annealed.value - exact).abs() < 6 * annealed.std_error + 0.02).all())
    gaps = refine(model, guide, x, log_p=exact, steps=20)
    bound = evidence_lower_bound(model, guide, x, num_particles=800)
    assert bool(((gaps.guide_elbo - bound.value).abs() < 6 * torch.hypot(gaps.guide_elbo_error, bound.std_error)).all())
    assert bool((bound.value < exact + 5 * bound.std_error).all())


@pytest.mark.parametrize("objective", [WeightedELBO(), *(ImportanceWeightedELBO(3, g) for g in ("pathwise", "dreg"))])
def test_objectives_and_their_gradients_equal_those_of_the_density_written_by_hand(x, objective):
    prior = PRIORS["positive"]
    model = model_of(prior)
    guide = trained(model, x)
    found = []
    for program in (guide, by_hand(model, guide, prior)):
        guide.zero_grad()
        pyro.set_rng_seed(2)
        loss = objective.loss_and_grads(model, program, x)
        found.append((torch.tensor(loss), *(p.grad.clone() for p in guide.parameters())))
    assert all(bool((gradient != 0).any()) for gradient in found[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


def test_fit_trains_an_auto_normal_row_by_row_to_the_posterior(x):
    # p(z) = N(0, 1) and p(x|z) = N(z, 0.5) give the posterior N(0.8 x, 0.2).
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    guide = AutoNormal(model)
    pyro.set_rng_seed(0)
    fit(
        model,
        guide,
        x,
        elbo=Trace_ELBO(num_particles=8),
        epochs=80,
        batch_size=N,
        validation=x,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.05),
    )
    torch.testing.assert_close(guide.locs.z.detach(), 0.8 * x, rtol=0.0, atol=0.2)
    bound = evidence_lower_bound(model, guide, x, num_particles=500)
    exact = dist.Normal(0.0, math.sqrt(1.25)).log_prob(x).double()
    assert bool((exact - bound.value < 0.15).all())


def test_fit_refuses_batches_under_a_guide_with_one_row_for_each_datum(x):
    model = model_of(PRIORS["positive"])
    with pytest.raises(ValueError, match=r"AutoNormal holds one row of parameters .* batch_size=30"):
        fit(model, AutoNormal(model), x, elbo=Trace_ELBO(), epochs=1, batch_size=10)


@pytest.mark.parametrize("first", [N, 8])
def test_other_data_than_those_of_the_first_run_are_refused(x, first):
    model = model_of(PRIORS["positive"])
    guide = trained(model, x[:first])
    other = x[:8] if first == N else x
    log_marginal(model, guide, x[:first], num_particles=5)
    for data in (other, x[:1]):
        with pytest.raises(ValueError, match=rf"AutoNormal holds one row .*, {first} data, but got {len(data)};"):
            log_marginal(model, guide, data, num_particles=5)


@pytest.mark.parametrize("make", [AutoMultivariateNormal, AutoLaplaceApproximation])
def test_guides_that_join_all_data_are_referred_to_log_evidence(x, make):
    model = model_of(PRIORS["positive"])
    with pytest.raises(ValueError, match=rf"{make.__name__} draws the latents of all data jointly.*log_evidence"):
        log_marginal(model, make(model), x, num_particles=5)


def pair_with(extra, model=None):
    model = model or model_of(lambda: dist.Normal(0.0, 1.0))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            extra(x)
            pyro.sample("z", dist.Normal(x, 0.5))

    return model, guide


def test_an_observed_site_of_the_guide_is_told_how_to_be_hidden(x):
    model, guide = pair_with(lambda x: pyro.sample("y", dist.Normal(0.0, 1.0), obs=x))
    with pytest.raises(ValueError, match=r"site 'y' of the guide is observed.*poutine.block\(guide, hide=\['y'\]\)"):
        log_weights(model, guide, x)
    pyro.set_rng_seed(1)
    ours = log_weights(model, poutine.block(guide, hide=["y"]), x, num_particles=3)
    pyro.set_rng_seed(1)
    torch.testing.assert_close(ours, log_weights(*pair_with(lambda x: None), x, num_particles=3))


def test_a_factor_of_the_guide_is_refused(x):
    model, guide = pair_with(lambda x: pyro.factor("f", torch.zeros(len(x)), has_rsample=False))
    with pytest.raises(ValueError, match=r"site 'f' of the guide is a factor.*TransformedDistribution"):
        log_weights(model, guide, x)


def test_an_auxiliary_draw_of_a_guide_by_hand_is_refused(x):
    model, guide = pair_with(lambda x: pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True}))
    with pytest.raises(ValueError, match=r"site 'u' of the guide is no latent of the model.*MixtureSameFamily"):
        log_weights(model, guide, x)


def test_an_auto_normal_without_its_latent_is_told_to_hide_both_sites(x):
    model = model_of(PRIORS["positive"])
    guide = trained(model, x)
    conditioned = poutine.condition(model, data={"z": x})
    with pytest.raises(ValueError, match=r"the model observes it; write poutine.block\(guide, hide=\['z'"):
        log_weights(conditioned, guide, x)
    with pytest.raises(ValueError, match="point mass without its auxiliary site"):
        log_weights(model, poutine.block(guide, hide=["z_unconstrained"]), x)


class Easy(EasyGuide):
    """Guide of `pyro.contrib.easyguide`, which learns the shapes of the latents in its first run."""

    def guide(self, x):
        group = self.group(match="z")
        with self.plate("data", len(x), dim=-1):
            group.sample("zs", dist.Normal(torch.zeros(()), 1.0).expand([1]).to_event(1))


def test_an_easy_guide_learns_its_shapes_from_all_data(x):
    net = torch.nn.Linear(1, 1)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(net(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)

    guide = Easy(model)
    fit(model, guide, x, elbo=Trace_ELBO(), epochs=1, batch_size=N)
    assert guide.prototype_trace.nodes["z"]["value"].shape == (N,)
    with pytest.raises(ValueError, match=f"Easy holds one row of parameters for each datum.*give batch_size={N}"):
        fit(model, Easy(model), x, elbo=Trace_ELBO(), epochs=1, batch_size=10)
