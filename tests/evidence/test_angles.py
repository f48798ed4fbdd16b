"""Angles whose posterior mode lies at the cut of the period: estimates agree with closed forms and quadrature."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import ive, logsumexp
from scipy.stats import norm, vonmises

from pyrovae import exact_log_marginal, log_marginal
from pyrovae.evidence import WidenedProposal


def pair(mean, prior, concentration, size):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.VonMises(x.new_full((size,), mean), prior).to_event(1))
            pyro.sample("x", dist.VonMises(a, concentration).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("a", dist.VonMises(0.0 * x, 0.5).to_event(1))

    return model, guide


def closed_form(x, mean, prior, concentration):
    """Integrate a: the product of two von Mises densities is one of concentration R (Mardia and Jupp 2000, 3.5.4)."""

    def log_norm(k):
        return np.log(ive(0, k)) + k

    joint = np.sqrt(prior**2 + concentration**2 + 2 * prior * concentration * np.cos(x.numpy() - mean))
    value = log_norm(joint) - log_norm(prior) - log_norm(concentration) - math.log(2 * math.pi)
    return torch.from_numpy(value).sum(-1)


def data(mean, size):
    x = mean + 0.1 * torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.remainder(x + math.pi, 2 * math.pi) - math.pi


@pytest.mark.parametrize(("prior", "concentration"), [(0.1, 0.1), (0.1, 20.0), (0.1, 500.0), (20.0, 500.0)])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.thin(3)
def test_modes_at_the_cut_of_the_period_are_as_easy_as_others(prior, concentration, size):
    ess = []
    for mean in (0.0, math.pi):
        pyro.set_rng_seed(1)
        x = data(mean, size)
        model, guide = pair(mean, prior, concentration, size)
        found = log_marginal(model, guide, x, num_particles=2000)
        error = (found.value - closed_form(x, mean, prior, concentration)).abs()
        assert (error < 5 * found.std_error).all()
        # The tail of near equal weights has any shape.
        assert ((found.khat < 0.5) | (found.ess > 0.95 * 2000)).all()
        ess.append(found.ess.mean().item())
    assert ess[1] > 0.8 * ess[0]


def test_a_wide_copy_of_the_guide_is_right_at_the_cut():
    x = data(math.pi, 2)
    model, _ = pair(math.pi, 0.1, 20.0, 2)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("a", dist.VonMises(x, 15.0).to_event(1))

    pyro.set_rng_seed(1)
    found = log_marginal(model, guide, x, num_particles=2000, proposal=WidenedProposal(df=5.0))
    assert ((found.value - closed_form(x, math.pi, 0.1, 20.0)).abs() < 5 * found.std_error).all()
    assert (found.ess > 800).all()


@pytest.mark.parametrize("concentration", [0.1, 20.0, 500.0])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.thin(4)
def test_quadrature_at_the_cut_is_right_within_its_error(concentration, size):
    x = data(math.pi, size)
    found = exact_log_marginal(pair(math.pi, 0.1, concentration, size)[0], x)
    error = (found.value - closed_form(x, math.pi, 0.1, concentration)).abs()
    assert (error < found.error + 1e-6).all()  # torch's density of a von Mises is right to 1e-7


def test_angles_used_other_than_by_periodic_functions_keep_their_period():
    """The density jumps at the cut, since x is near an angle itself."""
    x = torch.tensor([3.0, -3.0, 0.5], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.VonMises(x.new_tensor(math.pi), 2.0))
            pyro.sample("x", dist.Normal(a, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("a", dist.VonMises(0.0 * x, 0.5))

    a = np.linspace(-math.pi, math.pi, 200_001)
    log_prior = 2.0 * np.cos(a - math.pi) - math.log(2 * math.pi) - np.log(ive(0, 2.0)) - 2.0
    likelihood = np.exp(-((x.numpy()[:, None] - a) ** 2) / (2 * 0.25)) / math.sqrt(2 * math.pi * 0.25)
    expected = torch.from_numpy(np.log(np.trapezoid(np.exp(log_prior) * likelihood, a)))
    pyro.set_rng_seed(1)
    found = log_marginal(model, guide, x, num_particles=2000)
    assert ((found.value - expected).abs() < 5 * found.std_error).all()
    assert (found.khat < 0.7).all()


def test_both_signs_of_an_angle_known_by_its_cosine_are_found():
    # The sine of the first of eight angles is not observed, and the guide is on one of its two values. Each angle has
    # an integral of its own, by a sum over its period.
    generator, noise, prior = np.random.default_rng(3), 0.15, 0.5
    z = generator.vonmises(0.0, prior, (100, 8))
    cosine, sine = (part + noise * generator.normal(size=(100, 8)) for part in (np.cos(z), np.sin(z)))
    grid = np.linspace(-math.pi, math.pi, 4001)[:-1]
    exact = np.zeros(100)
    for entry in range(8):
        log_p = vonmises.logpdf(grid, prior) + norm.logpdf(cosine[:, entry, None], np.cos(grid), noise)
        if entry:
            log_p = log_p + norm.logpdf(sine[:, entry, None], np.sin(grid), noise)
        exact += logsumexp(log_p, axis=1) + math.log(grid[1] - grid[0])

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.VonMises(torch.zeros(8, dtype=x.dtype), prior).to_event(1))
            pyro.sample("x", dist.Normal(torch.cat([a.cos(), a[..., 1:].sin()], -1), noise).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            first = torch.acos(x[:, :1].clamp(-0.99, 0.99))
            loc = torch.cat([first, torch.atan2(x[:, 8:], x[:, 1:8])], -1)
            pyro.sample("a", dist.VonMises(loc, torch.tensor(40.0, dtype=x.dtype)).to_event(1))

    x = torch.from_numpy(np.concatenate([cosine, sine[:, 1:]], 1))
    found = log_marginal(model, guide, x, num_particles=500)
    off = found.value - torch.from_numpy(exact)
    assert (off.abs() < 0.4).all()  # a missed sign costs log 2
    assert off.mean().abs() < 0.02
