"""Test every combination of a prior, an encoder and a likelihood: it trains, gives weights, samples, saves and exports.

The fast tests combine each pair of prior and encoder with a share of the likelihoods, and the slow tests with the rest.
One combination of each share uses the default proposal, the others the guide, which costs less.
"""

from collections import Counter

import pyro
import pytest
import torch
from catalogue import ENCODERS, LIKELIHOODS, PRIORS, C, D
from combinations_of_parts import (
    CELLS,
    DISCRETE,
    LATENT,
    LIKELIHOOD_NAMES,
    MEANLESS,
    UNMATCHED,
    N,
    build,
    seed,
    some_data,
)
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from safetensors.torch import load as tensors_of

from pyrovae import GuideProposal, log_marginal, log_weights, to_arviz
from pyrovae.densities import evaluating, weighted_draws
from pyrovae.runs.files import tensors_to_bytes

K, STEPS = 3, 4
SHARES = 8

# Many draws, since the components that a mixture's draws come from change with its parameters under one seed too.
SAMPLED = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
ENUMERATED = TraceEnum_ELBO(max_plate_nesting=1)


def check_cell(prior, encoder, likelihood, proposal=None):
    generator = torch.Generator().manual_seed(1)
    support = LIKELIHOODS[likelihood]()(torch.zeros(2)).support
    x = some_data(support, generator)
    assert bool(support.check(x).all())
    kwargs = {"covariates": torch.randn(N, C, generator=generator)} if prior == "conditional" else {}
    pyro.clear_param_store()
    seed(0)
    vae = build(prior, encoder, likelihood, x)

    elbo = ENUMERATED if (prior, encoder) in DISCRETE else SAMPLED
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
    losses = []
    for step in range(STEPS):
        seed(1)
        with pyro.validation_enabled(step == 0):
            loss = elbo.differentiable_loss(vae.model, vae.guide, x, **kwargs)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seed(1)
    losses.append(elbo.loss(vae.model, vae.guide, x, **kwargs))
    assert losses[-1] < losses[0] - 0.01, losses

    estimate = log_marginal(vae.model, vae.guide, x, num_particles=K, proposal=proposal, **kwargs)
    assert estimate.value.shape == (N,)
    assert bool(torch.isfinite(estimate.value).all())

    with evaluating(vae):
        drawn = vae.model(**kwargs) if kwargs else vae.model(size=N)
        assert drawn.shape == (N, D)
        assert bool(support.check(drawn).all())

        again = build(prior, encoder, likelihood, torch.zeros(1, D)).eval()
        again.load_state_dict(tensors_of(tensors_to_bytes(vae.state_dict())))
        vae.eval()
        seed(2)
        log_w, latents, log_lik = weighted_draws(vae.model, vae.guide, x, num_particles=K, **kwargs)
        seed(2)
        assert torch.equal(log_weights(again.model, again.guide, x, num_particles=K, **kwargs), log_w)

    tree = to_arviz(latents, observed={"x": x}, log_likelihood={"x": log_lik}, log_weights=log_w, stats=estimate)
    assert tree["posterior"]["z"].shape == (1, K, N, LATENT)
    assert tree["observed_data"]["x"].shape == (N, D)
    for group, name in (("log_likelihood", "x"), ("sample_stats", "log_weight")):
        assert tree[group][name].shape == (1, K, N)
    return losses[0] - losses[-1]


def check_cells(prior, encoder, likelihoods, default):
    """Check cells; those whose likelihoods are in default by the default proposal."""
    for likelihood in likelihoods:
        try:
            check_cell(prior, encoder, likelihood, None if likelihood in default else GuideProposal())
        except Exception as error:
            error.add_note(f"in the cell of prior {prior!r}, encoder {encoder!r}, likelihood {likelihood!r}")
            raise


def share(pair):
    """Every eighth likelihood: eight pairs that follow each other have all of them."""
    return LIKELIHOOD_NAMES[CELLS.index(pair) % SHARES :: SHARES]


def by_default(pair):
    """The likelihood of a share that is weighed by the default proposal, another one when the share comes again."""
    found = share(pair)
    return found[CELLS.index(pair) // SHARES % len(found)]


# Splines take 10 seconds with the default proposal, and a minute beside a second density of many layers.
EXPENSIVE = [pair for pair in CELLS if pair[0] == "flow, nsf" or pair == ("vamp", "flow, nsf")]


@pytest.mark.parametrize(("prior", "encoder"), CELLS)
@pytest.mark.thin(12)
def test_combinations_train_give_weights_sample_save_and_export(prior, encoder):
    pair = prior, encoder
    check_cells(prior, encoder, share(pair), default=[] if pair in EXPENSIVE else [by_default(pair)])


@pytest.mark.slow
@pytest.mark.parametrize(("prior", "encoder"), CELLS)
def test_remaining_combinations_train_give_weights_sample_save_and_export(prior, encoder):
    pair = prior, encoder
    others = [name for name in LIKELIHOOD_NAMES if name != by_default(pair) or pair in EXPENSIVE]
    check_cells(prior, encoder, others, default=others)


def test_every_likelihood_occurs_in_the_fast_tests_of_a_part_with_enough_partners():
    for kind in (0, 1):
        parts = Counter(pair[kind] for pair in CELLS if pair not in DISCRETE)
        for part in (part for part, pairs in parts.items() if pairs >= SHARES):
            met = {name for pair in CELLS if pair[kind] == part for name in share(pair)}
            assert met == set(LIKELIHOOD_NAMES), part
    assert {by_default(pair) for pair in CELLS if pair not in EXPENSIVE} == set(LIKELIHOOD_NAMES)
    assert len(EXPENSIVE) == 10


VARIANTS = [
    *((name, "normal", "bernoulli") for name in PRIORS if name not in {prior for prior, _ in CELLS}),
    *(("standard", name, "bernoulli") for name in ENCODERS if name not in {encoder for _, encoder in CELLS}),
    *(("standard", "normal", name) for name in LIKELIHOODS if name not in LIKELIHOOD_NAMES),
]


@pytest.mark.parametrize(("prior", "encoder", "likelihood"), VARIANTS)
@pytest.mark.thin(3)
def test_variants_of_parts_train_give_weights_sample_save_and_export(prior, encoder, likelihood):
    check_cell(prior, encoder, likelihood)


@pytest.mark.parametrize("likelihood", LIKELIHOOD_NAMES)
@pytest.mark.thin(6)
def test_mismatched_pairs_are_rejected_with_every_likelihood(likelihood):
    x = torch.rand(N, D)
    for prior, encoder in UNMATCHED:
        with pytest.raises(ValueError, match="cannot be mapped to it"):
            build(prior, encoder, likelihood, x)
    for prior, encoder in MEANLESS:
        vae = build(prior, encoder, likelihood, x)
        with pytest.raises(ValueError, match="has none in closed form"):
            log_weights(vae.model, vae.guide, x)
