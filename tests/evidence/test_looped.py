"""The evidence of programs that run once per draw agrees with enumeration, quadrature and closed forms."""

import math
import warnings
from itertools import product

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from scipy import stats

from pyrovae import GuideProposal, log_evidence
from pyrovae.densities import LoopedWarning, vectorize_whole


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.set_rng_seed(4)
    yield
    torch.set_default_dtype(torch.float32)


def assert_near(found, exact, worst_error):
    assert found.std_error.item() < worst_error
    assert abs(found.value.item() - exact) < 4.5 * found.std_error.item() + 1e-6


def test_lda_that_indexes_topics_by_position_agrees_with_quadrature():
    """Topics are over two words, so that each is one number; a document is one draw of a topic per word."""
    words = torch.tensor([[0, 1, 1], [0, 0, 1]])

    def model(words):
        with pyro.plate("topics", 2):
            topics = pyro.sample("phi", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("documents", len(words)), pyro.plate("words", words.shape[1], dim=-2):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            pyro.sample("w", dist.Categorical(topics[k]), obs=words.T)

    def guide(words):
        with pyro.plate("topics", 2):
            pyro.sample("phi", dist.Dirichlet(torch.ones(2)))

    grid = (np.arange(500) + 0.5) / 500
    a, b = np.meshgrid(grid, grid, indexing="ij")
    first = 0.3 * a + 0.7 * b  # probability of word 0; the priors are uniform
    exact = math.log(np.mean(first**3 * (1 - first) ** 3))
    with pytest.warns(LoopedWarning, match="run once per draw"):
        found = log_evidence(model, guide, words, num_particles=800, proposal=GuideProposal())
    assert_near(found, exact, 0.05)


def test_an_hmm_that_indexes_transitions_by_position_agrees_with_brute_force():
    x = torch.randn(2, 4)

    def model(x):
        with pyro.plate("states", 2):
            transition = pyro.sample("transition", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("sequences", len(x)):
            s = 0
            for t in pyro.markov(range(x.shape[1])):
                s = pyro.sample(f"s_{t}", dist.Categorical(transition[s]), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t}", dist.Normal(2.0 * s, 1.0), obs=x[:, t])

    def guide(x):
        with pyro.plate("states", 2):
            pyro.sample("transition", dist.Dirichlet(torch.ones(2)))

    grid = (np.arange(400) + 0.5) / 400
    stay, leave = np.meshgrid(grid, grid, indexing="ij")  # P(0 -> 0), P(1 -> 0)
    move = {(0, 0): stay, (0, 1): 1 - stay, (1, 0): leave, (1, 1): 1 - leave}
    density = np.ones_like(stay)
    for row in x.numpy():
        total = np.zeros_like(stay)
        for path in product(range(2), repeat=4):
            term = np.ones_like(stay)
            for before, s, value in zip((0, *path), path, row, strict=False):
                term = term * move[before, s] * stats.norm.pdf(value, 2 * s, 1)
            total += term
        density *= total
    exact = math.log(density.mean())
    with pytest.warns(LoopedWarning):
        found = log_evidence(model, guide, x, num_particles=600, proposal=GuideProposal())
    assert_near(found, exact, 0.05)


def regression(x, y):
    """Weights by position: `weights[0]` and `x @ weights`."""
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x[:, 0] * weights[0] + x[:, 1] * weights[1], 0.5), obs=y)


@pytest.mark.parametrize("proposal", [None, GuideProposal()], ids=["default", "guide"])
@pytest.mark.thin(1)
def test_a_regression_by_position_has_the_evidence_of_its_closed_form(proposal):
    x, y = torch.randn(5, 2), torch.randn(5)
    exact = dist.MultivariateNormal(torch.zeros(5), x @ x.T + 0.25 * torch.eye(5)).log_prob(y).item()
    precision = torch.eye(2) + 4 * x.T @ x
    mean = torch.linalg.solve(precision, 4 * x.T @ y)

    def guide(x, y):
        scale = 1.3 * precision.inverse().diagonal().sqrt()
        pyro.sample("weights", dist.Normal(mean, scale).to_event(1))

    with pytest.warns(LoopedWarning):
        found = log_evidence(regression, guide, x, y, num_particles=600, proposal=proposal)
    assert_near(found, exact, 0.1)


def test_an_auto_guide_and_a_positive_latent_run_once_per_draw():
    y = torch.tensor([0.4, -1.1, 2.0])

    def model(y):
        scales = pyro.sample("scales", dist.LogNormal(torch.zeros(1), 0.5).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, scales[0]), obs=y)

    log_scale = np.linspace(-5, 5, 20_001)
    log_p = stats.norm.logpdf(log_scale, 0, 0.5)
    for value in y.tolist():
        log_p = log_p + stats.norm.logpdf(value, 0, np.exp(log_scale))
    exact = math.log(np.exp(log_p).sum() * (log_scale[1] - log_scale[0]))
    guide = AutoMultivariateNormal(model, init_scale=0.5)
    guide(y)
    with pytest.warns(LoopedWarning):
        found = log_evidence(model, guide, y, num_particles=600)
    assert_near(found, exact, 0.1)


def test_programs_that_count_dims_from_the_right_do_not_run_in_a_loop():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(x.mean(), 0.6))

    with warnings.catch_warnings():
        warnings.simplefilter("error", LoopedWarning)
        assert vectorize_whole(model, guide, (torch.randn(4),), {})[0].how == "whole"


def test_sums_that_are_wrong_with_all_values_at_once_are_refused_however_many_combinations():
    x = torch.randn(20)

    def model(x):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
            loc = weights[0] * k.max()  # the largest of all values at once
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"sites \['k'\] of the model.*cannot be summed out"):
        log_evidence(model, guide, x, num_particles=10)


def test_random_numbers_outside_the_sites_are_refused():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean + torch.randn(()), 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"second run at the same latents.*pyro\.sample"):
        log_evidence(model, guide, torch.randn(4), num_particles=10)
