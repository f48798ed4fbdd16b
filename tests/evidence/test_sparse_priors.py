"""Priors with mass nearer to the edge of their support than float32 can tell, against closed forms."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae import exact_log_marginal, log_marginal

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
    prior, guide = dist.Dirichlet(torch.full((3,), a)), dist.Dirichlet(torch.ones(3))
    return programs(prior, guide, lambda z: dist.Multinomial(10, probs=z, validate_args=False))


def dirichlet_multinomial(x, a):
    size, total = x.shape[-1], x.sum(-1)
    each = torch.lgamma(x + a) - math.lgamma(a) - torch.lgamma(x + 1)
    return torch.lgamma(total + 1) + math.lgamma(size * a) - torch.lgamma(total + size * a) + each.sum(-1)


@pytest.mark.parametrize("a", [1.0, 0.1, 0.02])
def test_sparse_dirichlet_priors_have_the_right_log_marginal(a):
    torch.manual_seed(0)
    value, error, *_ = log_marginal(*multinomial(a), COUNTS, num_particles=20_000)
    assert ((value - dirichlet_multinomial(COUNTS, a)) / error).abs().max() < 5  # 6e-7 for each
    assert error.max() < 0.05


@pytest.mark.parametrize("a", [1.0, 0.3, 0.05, 0.01])
def test_gamma_priors_with_a_small_shape_have_the_right_log_marginal(a):
    torch.manual_seed(0)
    x = torch.tensor([0.0, 1.0, 5.0])
    pair = programs(dist.Gamma(a, 1.0), dist.Gamma(1.0, 1.0), lambda z: dist.Poisson(z, validate_args=False))
    value, error, *_ = log_marginal(*pair, x, num_particles=20_000)
    right = torch.lgamma(x + a) - math.lgamma(a) - torch.lgamma(x + 1) - (x + a) * math.log(2)  # a negative binomial
    assert ((value - right) / error).abs().max() < 5
    assert error.max() < 0.05


def test_the_exact_sum_warns_of_mass_at_the_edge_and_of_none_inside():
    model, _ = multinomial(0.02)
    with pytest.warns(UserWarning, match=r"% of the prior's mass lies nearer to the edge of its support"):
        exact_log_marginal(model, COUNTS[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact_log_marginal(multinomial(1.0)[0], COUNTS[:1])
