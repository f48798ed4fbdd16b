"""Typicality: uniform for data of the model, also with holes; low and high for data that are not."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from scipy import stats

from pyrovae import GuideProposal
from pyrovae.diagnostics import typicality

EXACT = {"num_particles": 2, "proposal": GuideProposal()}  # the guide is the posterior, so one draw is enough


def test_ranks_of_model_data_are_uniform_and_foreign_ones_are_not():
    oracle = LinearGaussian(data_dim=4)
    vae, x = oracle.vae(), oracle.data(300)
    found = typicality(vae.model, vae.guide, x, **EXACT, num_replicates=3)
    assert found.shared
    assert found.reference.shape == (3, 300)
    torch.testing.assert_close(found.log_marginal.value, oracle.log_marginal(x), rtol=1e-6, atol=1e-6)
    assert found.p_value > 0.001
    # The rank of log p(x) is that of the Mahalanobis distance, which has a chi-squared distribution
    covariance = oracle.weight @ oracle.weight.T + oracle.scale**2 * torch.eye(4).double()
    distance = ((x - oracle.bias) @ covariance.inverse() * (x - oracle.bias)).sum(1)
    exact = torch.as_tensor(stats.chi2.sf(distance.numpy(), 4))
    assert bool(((found.value - exact).abs() < 4.5 / math.sqrt(4 * 900) + 0.01).all())
    for factor, high in ((2.0, False), (0.3, True)):
        other = typicality(vae.model, vae.guide, oracle.bias + factor * (x - oracle.bias), **EXACT)
        assert (other.value.mean() > 0.5) == high
        assert other.p_value < 1e-6


def test_data_with_holes_or_covariates_are_compared_with_draws_that_have_the_same():
    def model(x, c, mask):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = (z + c).unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, c.exp()[..., None]).expand([*z.shape, 3]).mask(mask).to_event(1), obs=x)

    def guide(x, c, mask):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    c, mask = torch.randn(200), torch.rand(200, 3) < 0.5
    mask[:, 0] = True
    x = (torch.randn(200) + c)[:, None] + c.exp()[:, None] * torch.randn(200, 3)
    found = typicality(
        model, guide, torch.where(mask, x, 0.0), c, mask, num_particles=20, num_replicates=9, proposal=GuideProposal()
    )
    assert not found.shared
    assert found.reference.shape == (9, 200)
    assert found.p_value > 0.001
    # log p alone says mostly how many entries are seen and how wide they are, the ranks do not
    assert abs(stats.spearmanr(found.value.numpy(), c.numpy()).statistic) < 0.25
    assert abs(stats.spearmanr(found.log_marginal.value.numpy(), c.numpy()).statistic) > 0.5


def test_data_that_are_no_argument_are_refused():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x / 2)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 4, 0.7))

    with pytest.raises(ValueError, match="the value of site 'x' is none of the arguments"):
        typicality(model, guide, torch.randn(5), num_particles=2)
