"""The randomised PIT: uniform under the model for counts, mixtures of measures and ranks; distribution functions."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyrovae.diagnostics import pit
from pyrovae.diagnostics.distribution_functions import NoDistributionFunctionError, distribution_function
from pyrovae.distributions import (
    ByColumn,
    FloatCategorical,
    Hurdle,
    LogitBeta,
    LogitBinomial,
    LogNormal,
    LogPoisson,
    MeanNegativeBinomial,
    ZeroInflated,
)

N = 800


def counts_model(x, c=0.0):
    """Poisson-lognormal counts with mean exp(0.5 + c + z)."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Poisson((0.5 + c + z).exp()), obs=x)


def poisson_model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Poisson(torch.ones(()).exp() * torch.ones_like(z)), obs=x)


def p_value(u):
    return stats.kstest(u.numpy().ravel(), "uniform").pvalue


def test_counts_of_the_model_are_uniform_and_those_of_a_poisson_are_not():
    x = torch.poisson((0.5 + torch.randn(N)).exp())
    found = pit(counts_model, x, num_particles=200)
    assert (found.method, found.num_particles, found.value.shape) == ("cdf", 200, (N, 1))
    assert 0.001 < p_value(found.value) < 0.9999
    assert p_value(pit(poisson_model, x, num_particles=5).value) < 1e-30
    # Without randomisation, the values F(x) of the right model are far from uniform
    z = torch.randn(4000).double()
    below = torch.special.gammaincc(x.double()[:, None] + 1, (0.5 + z).exp()).mean(1)
    assert p_value(below) < 1e-30


def test_f_agrees_with_quadrature_within_its_error():
    x = torch.arange(6.0)
    found = pit(counts_model, x, num_particles=4000, seed=1)
    z = torch.linspace(-9, 9, 4001).double()
    weight = torch.distributions.Normal(0.0, 1.0).log_prob(z).exp() * (z[1] - z[0])
    at_most = (torch.special.gammaincc(x.double()[:, None] + 1, (0.5 + z).exp()) * weight).sum(1)
    before = torch.cat([torch.zeros(1).double(), at_most[:-1]])
    margin = 4.5 * found.std_error[:, 0]
    assert bool((found.std_error < 0.01).all())
    assert bool(((found.value[:, 0] < at_most + margin) & (found.value[:, 0] > before - margin)).all())


def test_ranks_among_draws_are_uniform_for_few_draws():
    def model(x):  # a sum of two normals, whose distribution has no distribution function here
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = torch.stack([z, z], -1)
            pyro.sample("x", dist.MultivariateNormal(loc, torch.eye(2)), obs=x)

    z = torch.randn(N, 1)
    found = pit(model, z + torch.randn(N, 2), num_particles=7)
    assert found.method == "ranks"
    assert all(p_value(column) > 0.001 for column in found.value.T)
    assert p_value(pit(model, 1.5 * (z + torch.randn(N, 2)), num_particles=40).value[:, 0]) < 1e-4


def test_missing_entries_are_nan_and_covariates_count():
    def model(x, c, mask):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = (z + c).unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, 1.0).expand([*loc.shape[:-1], 2]).mask(mask).to_event(1), obs=x)

    c, mask = 3 * torch.randn(N), torch.rand(N, 2) < 0.7
    x = (torch.randn(N) + c)[:, None] + torch.randn(N, 2)
    found = pit(model, torch.where(mask, x, torch.nan), c, mask, num_particles=50)
    assert torch.equal(found.value.isnan(), ~mask)
    assert torch.equal(found.std_error.isnan(), ~mask)
    for column in range(2):
        assert p_value(found.value[mask[:, column], column]) > 0.001
    assert p_value(pit(model, x, 0 * c, torch.ones_like(mask), num_particles=50).value[:, 0]) < 1e-9


R, LOGITS = torch.tensor([0.7, 3.0]), torch.tensor([-1.0, 0.5])
FUNCTIONS = {
    "Poisson": (LogPoisson(R.log()), lambda k: stats.poisson.cdf(k, R), True),
    "negative binomial": (
        MeanNegativeBinomial(torch.tensor([0.2, 1.5]), R),
        lambda k: stats.nbinom.cdf(k, R, R / (R + torch.tensor([0.2, 1.5]).exp())),
        True,
    ),
    "torch's negative binomial": (
        dist.NegativeBinomial(R, logits=LOGITS),
        lambda k: stats.nbinom.cdf(k, R, 1 - LOGITS.sigmoid()),
        True,
    ),
    "binomial": (LogitBinomial(4, LOGITS), lambda k: stats.binom.cdf(k, 4, LOGITS.sigmoid()), True),
    "zero inflated": (
        ZeroInflated(LogPoisson(R.log()), gate_logits=LOGITS),
        lambda k: LOGITS.sigmoid() * (k >= 0) + (1 - LOGITS.sigmoid()) * torch.as_tensor(stats.poisson.cdf(k, R)),
        True,
    ),
    "Bernoulli": (dist.Bernoulli(logits=LOGITS), lambda k: stats.bernoulli.cdf(k, LOGITS.sigmoid()), True),
    "beta": (
        LogitBeta(LOGITS, R),
        lambda k: stats.beta.cdf(k, R * LOGITS.sigmoid(), R * (1 - LOGITS.sigmoid())),
        False,
    ),
    "normal": (dist.Normal(LOGITS, R), lambda k: stats.norm.cdf(k, LOGITS, R), False),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_distribution_functions_agree_with_scipy(name):
    fn, exact, discrete = FUNCTIONS[name]
    points = [0.0, 1.0] if name == "Bernoulli" else [0.0, 1.0, 3.0, 4.0] if discrete else [0.2, 0.9]
    for point in points:
        at_most, mass = distribution_function(fn, torch.full((2,), point))
        expected = torch.as_tensor(exact(point)).double()
        torch.testing.assert_close(at_most, expected, rtol=1e-5, atol=1e-7)
        before = torch.as_tensor(exact(point - 1)).double() if discrete else expected
        torch.testing.assert_close(mass, expected - before, rtol=1e-4, atol=1e-6)


def test_distribution_functions_of_tables_go_by_column_and_know_point_masses():
    parts = [Hurdle(LogNormal(torch.zeros(1), 1.0), torch.zeros(1)), dist.Normal(torch.zeros(1), 1.0)]
    fn = ByColumn(parts, [torch.tensor([1]), torch.tensor([0])]).to_event(1)
    at_most, mass = distribution_function(fn, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    torch.testing.assert_close(at_most[:, 0], torch.tensor([0.5, stats.norm.cdf(1)]).double())
    torch.testing.assert_close(at_most[:, 1], torch.tensor([0.5, 0.75]).double())
    torch.testing.assert_close(mass, torch.tensor([[0.0, 0.5], [0.0, 0.0]]).double())
    at_most, _ = distribution_function(FloatCategorical(logits=torch.zeros(4)), torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(at_most, torch.tensor([0.25, 0.75]).double())
    with pytest.raises(NoDistributionFunctionError):
        distribution_function(dist.VonMises(torch.zeros(1), 1.0), torch.zeros(1))
