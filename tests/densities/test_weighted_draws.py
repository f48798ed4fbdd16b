"""`weighted_draws`: draws from a guide with log weights that average to p(x) and to posterior means."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae import log_weights, to_arviz, weighted_draws

K = 20_000


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 3, 1.0))


def test_weighted_draws_estimate_the_evidence_and_the_posterior_mean():
    """The closed forms are log N(x; 0, 2) and x / 2; the bounds are over five standard errors."""
    pyro.set_rng_seed(0)
    x = torch.tensor([-1.0, 0.5, 2.0])
    draws = weighted_draws(model, guide, x, num_particles=K)
    evidence = draws.log_weights.logsumexp(0) - math.log(K)
    torch.testing.assert_close(evidence, dist.Normal(0.0, 2**0.5).log_prob(x), atol=0.05, rtol=0)
    mean = (draws.log_weights.softmax(0) * draws.latents["z"]).sum(0)
    torch.testing.assert_close(mean, x / 2, atol=0.05, rtol=0)
    torch.testing.assert_close(draws.log_likelihood, dist.Normal(draws.latents["z"], 1.0).log_prob(x))


def test_weighted_draws_have_the_log_weights_of_log_weights():
    x = torch.randn(4)
    pyro.set_rng_seed(1)
    expected = log_weights(model, guide, x, num_particles=7)
    pyro.set_rng_seed(1)
    torch.testing.assert_close(weighted_draws(model, guide, x, num_particles=7).log_weights, expected)


def test_weighted_draws_of_a_hand_written_program_go_to_arviz():
    x = torch.randn(4)
    draws = weighted_draws(model, guide, x, num_particles=7)
    tree = to_arviz(
        draws.latents,
        observed={"x": x},
        log_likelihood={"x": draws.log_likelihood},
        log_weights=draws.log_weights,
    )
    assert tree["posterior"]["z"].shape == (1, 7, 4)
    assert tree["sample_stats"]["log_weight"].shape == (1, 7, 4)


def test_weighted_draws_refuse_zero_draws():
    with pytest.raises(ValueError, match="num_particles must be at least 1, got 0"):
        weighted_draws(model, guide, torch.randn(4), num_particles=0)
