"""Priors with mass nearer to the edge of their support than float32 can tell, against closed forms."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import betaln
from torch.nn.functional import logsigmoid

from pyrovae import GuideProposal, PriorProposal, ais, exact_log_marginal, linear_schedule, log_marginal

COUNTS = torch.tensor([[10.0, 0, 0], [4, 3, 3]])


def programs(prior, guide, likelihood):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(pyro.sample("z", prior.expand([len(x)]))), obs=x)

    def q(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", guide.expand([len(x)]))

    return model, q


def multinomial(a):
    a = torch.as_tensor(a)
    prior, guide = dist.Dirichlet(a.expand(3)), dist.Dirichlet(torch.ones_like(a).expand(3))
    return programs(prior, guide, lambda z: dist.Multinomial(10, probs=z, validate_args=False))


def dirichlet_multinomial(x, a):
    size, total = x.shape[-1], x.sum(-1)
    each = torch.lgamma(x + a) - math.lgamma(a) - torch.lgamma(x + 1)
    return torch.lgamma(total + 1) + math.lgamma(size * a) - torch.lgamma(total + size * a) + each.sum(-1)


OF_THE_EDGE = "ignore:.*of the prior's mass lies nearer to the edge"


@pytest.mark.filterwarnings(OF_THE_EDGE)
@pytest.mark.parametrize("a", [1.0, 0.1, 0.02])
@pytest.mark.thin(2)
def test_sparse_dirichlet_priors_have_the_right_log_marginal(a):
    torch.manual_seed(0)
    value, error, *_ = log_marginal(*multinomial(a), COUNTS, num_particles=20_000)
    assert ((value - dirichlet_multinomial(COUNTS, a)) / error).abs().max() < 5  # 6e-7 for each
    assert error.max() < 0.05


@pytest.mark.filterwarnings(OF_THE_EDGE)
@pytest.mark.parametrize("a", [1.0, 0.3, 0.05, 0.01])
@pytest.mark.thin(2)
def test_gamma_priors_with_a_small_shape_have_the_right_log_marginal(a):
    torch.manual_seed(0)
    x = torch.tensor([0.0, 1.0, 5.0])
    pair = programs(dist.Gamma(a, 1.0), dist.Gamma(1.0, 1.0), lambda z: dist.Poisson(z, validate_args=False))
    value, error, *_ = log_marginal(*pair, x, num_particles=20_000)
    right = torch.lgamma(x + a) - math.lgamma(a) - torch.lgamma(x + 1) - (x + a) * math.log(2)  # a negative binomial
    assert ((value - right) / error).abs().max() < 5
    assert error.max() < 0.05


def binomial(z):
    return dist.Binomial(5, z, validate_args=False)


HITS = torch.tensor([0.0, 1.0, 2.0, 5.0])
ORDERINGS = math.lgamma(6) - torch.lgamma(HITS + 1) - torch.lgamma(6 - HITS)  # log binomial coefficients of 5


@pytest.mark.filterwarnings(OF_THE_EDGE)
@pytest.mark.parametrize("a", [0.5, 0.02, 0.001])
@pytest.mark.thin(2)
def test_sparse_beta_priors_have_the_right_log_marginal(a):
    torch.manual_seed(0)
    pair = programs(dist.Beta(a, a), dist.Beta(1.0, 1.0), binomial)
    value, error, *_ = log_marginal(*pair, HITS, num_particles=5000)
    right = ORDERINGS + torch.from_numpy(betaln(a + HITS.numpy(), a + 5 - HITS.numpy()) - betaln(a, a))
    assert ((value - right) / error).abs().max() < 5
    assert error.max() < 0.05


@pytest.mark.filterwarnings(OF_THE_EDGE)
@pytest.mark.parametrize("scale", [5.0, 50.0])
def test_wide_logistic_normal_priors_have_the_right_log_marginal(scale):
    torch.manual_seed(0)
    sigmoid = torch.distributions.transforms.SigmoidTransform()
    prior = dist.TransformedDistribution(dist.Normal(0.0, scale), [sigmoid])
    value, error, *_ = log_marginal(*programs(prior, dist.Beta(1.0, 1.0), binomial), HITS, num_particles=5000)
    u = torch.linspace(-12, 12, 200_001, dtype=torch.float64).unsqueeze(-1)
    logs = HITS * logsigmoid(scale * u) + (5 - HITS) * logsigmoid(-scale * u) - u.square() / 2
    right = ORDERINGS + logs.logsumexp(0) + math.log(24 / 200_000 / math.sqrt(2 * math.pi))
    assert ((value - right) / error).abs().max() < 5
    assert error.max() < 0.05


@pytest.mark.parametrize(("dtype", "a"), [(torch.float32, 0.02), (torch.float64, 0.001)])
@pytest.mark.thin(1)
def test_estimators_warn_of_mass_at_the_edge_and_of_none_inside(dtype, a):
    advice = "double precision" if dtype == torch.float32 else "a prior with less mass there"
    x = COUNTS[1:].to(dtype)
    for concentration in (a, 1.0):
        model, guide = multinomial(torch.tensor(concentration, dtype=dtype))
        calls = [
            lambda: log_marginal(model, guide, x, num_particles=500).value,  # noqa: B023
            lambda: log_marginal(model, guide, x, num_particles=500, proposal=GuideProposal()).value,  # noqa: B023
            lambda: ais(model, x, num_particles=4, betas=linear_schedule(3), num_tuning=10).value,  # noqa: B023
            lambda: exact_log_marginal(model, x).value,  # noqa: B023
        ]
        for call in calls:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call()
            told = [str(w.message) for w in caught if "nearer to the edge of its support" in str(w.message)]
            assert len(told) == (concentration == a)
            assert all(advice in message for message in told)


@pytest.mark.filterwarnings(OF_THE_EDGE)
@pytest.mark.parametrize("a", [pytest.param(0.02, marks=pytest.mark.slow), 0.001])
def test_draws_of_sparse_dirichlets_follow_their_density(a):
    # Of torch's draws, 12 % are (1/3, 1/3, 1/3) for a = 0.001. The largest entry is 1 - y, y < 0.1 but rarely.
    torch.manual_seed(0)
    model, guide = multinomial(torch.tensor(a, dtype=torch.float64))
    x = torch.tensor([[4.0, 3, 3]], dtype=torch.float64).expand(400, 3)
    found = log_marginal(model, guide, x, num_particles=5000, proposal=PriorProposal())
    mean = found.value.exp().mean()  # an average of p(x|z) over 2,000,000 draws of the prior
    expected = dirichlet_multinomial(x[:1], a).exp().item()
    assert mean.item() == pytest.approx(expected, rel=0.2, abs=3e-7)
