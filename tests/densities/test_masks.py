"""Masks inside distributions on latents of ragged sequences, against the closed form of each length."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution

from pyrovae import (
    GuideProposal,
    ImportanceWeightedELBO,
    PriorProposal,
    ais,
    bracket,
    elbo_parts,
    evidence_lower_bound,
    exact_log_marginal,
    linear_schedule,
    log_marginal,
    refine,
)

STEPS, SD = 4, 0.7


def inside(fn, mask):
    return pyro.sample("w", fn.mask(mask).to_event(1))


def on_entries(fn, mask):
    return pyro.sample("w", fn.mask(mask).expand(fn.batch_shape).to_event(1))


def expanded(fn, mask):
    return pyro.sample("w", ExpandedDistribution(fn.mask(mask), fn.batch_shape).to_event(1))


def around(fn, mask):
    """The mask of whole sequences, by a handler; entries are masked inside."""
    with poutine.mask(mask=mask.any(-1)):
        return pyro.sample("w", fn.mask(mask).to_event(1))


FORMS = [inside, on_entries, expanded, around]


def model_with(form):
    def model(x, mask):
        with pyro.plate("data", len(x), dim=-1):
            w = form(dist.Normal(x.new_zeros(x.shape), 1.0), mask)
            pyro.sample("x", dist.Normal(w, SD).mask(mask).to_event(1), obs=x)

    return model


def guide_with(form, shrink=0.6):
    def guide(x, mask):
        with pyro.plate("data", len(x), dim=-1):
            form(dist.Normal(shrink * x, 0.6), mask)

    return guide


def sequences():
    pyro.set_rng_seed(1)
    x = torch.randn(5, STEPS, dtype=torch.float64)
    return x, torch.arange(STEPS) < torch.tensor([4, 1, 2, 0, 3]).unsqueeze(-1)


def closed_form(x, mask):
    return torch.where(mask, dist.Normal(0.0, (1 + SD**2) ** 0.5).log_prob(x), 0.0).sum(-1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("other", FORMS)
@pytest.mark.parametrize("proposal", [None, GuideProposal(), PriorProposal()])
@pytest.mark.thin(16)
def test_log_marginal_of_ragged_sequences_agrees_with_the_closed_form(form, other, proposal):
    x, mask = sequences()
    pyro.set_rng_seed(2)
    found = log_marginal(model_with(form), guide_with(other), x, mask=mask, num_particles=3000, proposal=proposal)
    exact = closed_form(x, mask)
    assert bool(((found.value - exact).abs() < 4.5 * found.std_error + 1e-9).all())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.thin(1)
def test_ais_of_ragged_sequences_agrees_with_the_closed_form(form):
    x, mask = sequences()
    pyro.set_rng_seed(3)
    settings = {"num_particles": 200, "betas": linear_schedule(15), "num_leapfrog": 3, "num_tuning": 10}
    for guide in (None, guide_with(form)):
        found = ais(model_with(form), x, mask=mask, guide=guide, **settings)
        assert bool(((found.value - closed_form(x, mask)).abs() < 4.5 * found.std_error + 1e-9).all())


@pytest.mark.parametrize("form", FORMS)
def test_the_elbo_of_ragged_sequences_agrees_with_the_closed_form(form):
    x, mask = sequences()
    posterior_sd = SD / (1 + SD**2) ** 0.5

    def posterior(x, mask):
        with pyro.plate("data", len(x), dim=-1):
            form(dist.Normal(x / (1 + SD**2), posterior_sd), mask)

    found = evidence_lower_bound(model_with(form), posterior, x, mask=mask, num_particles=3)
    torch.testing.assert_close(found.value, closed_form(x, mask), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_estimators_that_need_all_latents_refuse_ragged_sequences(form):
    x, mask = sequences()
    with pytest.raises(ValueError, match="a mask leaves some out; remove these data"):
        exact_log_marginal(model_with(form), x, mask=mask)
    with pytest.raises(ValueError, match="a mask leaves some out"):
        refine(model_with(form), guide_with(form), x, mask=mask, log_p=closed_form(x, mask), steps=2)


UNEQUAL = r"site 'w' carries one mask in the model and another in the guide; give both the same mask"


@pytest.mark.parametrize("form", FORMS)
def test_unequal_masks_are_refused_by_every_estimator(form):
    x, mask = sequences()
    model = model_with(form)

    def guide(x, mask):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("w", dist.Normal(0.6 * x, 0.6).to_event(1))

    latents, betas = {"w": torch.zeros_like(x)}, linear_schedule(5)
    for estimate in (
        lambda: log_marginal(model, guide, x, mask=mask, num_particles=5),
        lambda: log_marginal(model, guide, x, mask=mask, num_particles=5, proposal=GuideProposal()),
        lambda: evidence_lower_bound(model, guide, x, mask=mask, num_particles=5),
        lambda: ais(model, x, guide=guide, mask=mask, num_particles=5, betas=betas),
        lambda: bracket(model, guide, latents, x, mask=mask, num_particles=5),
        lambda: refine(model, guide, x, mask=mask, log_p=closed_form(x, mask), steps=2),
        lambda: elbo_parts(model, guide, x, mask=mask, num_particles=2),
        lambda: ImportanceWeightedELBO(num_particles=2).loss(model, guide, x, mask=mask),
    ):
        with pytest.raises(ValueError, match=UNEQUAL):
            estimate()
