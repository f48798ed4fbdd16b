"""Draws at the ends of a dtype's range stay finite, since masked entries are filled with draws."""

import math

import pyro.poutine as poutine
import pytest
import torch

from pyrovae import MLP, VAE, LogNormalLikelihood, NormalEncoder, StandardNormalPrior
from pyrovae.distributions import Hurdle, LogNormal, LogPoisson, MeanNegativeBinomial


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_log_normal_draws_positive_finite_numbers(dtype):
    torch.manual_seed(0)
    p = LogNormal(torch.tensor([-2000.0, 0.0, 2000.0], dtype=dtype), torch.tensor(1.0, dtype=dtype))
    for x in (p.sample((5,)), p.rsample((5,)), Hurdle(p, torch.full((3,), -50.0, dtype=dtype)).sample((5,))):
        assert bool(p.support.check(x).all())
        assert bool(x.isfinite().all())
        assert bool(((x[:, 1] > 0.01) & (x[:, 1] < 100)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_of_huge_rates_do_not_overflow(dtype):
    torch.manual_seed(0)
    log_rate = torch.tensor([math.log(3.0), math.log(1e13), 60.0, 2000.0], dtype=dtype)
    for p in (LogPoisson(log_rate), MeanNegativeBinomial(log_rate, 1e8)):
        x = p.sample((1000,))
        assert bool(((x >= 0) & x.isfinite() & (x == x.round())).all())
        assert bool((x[:, 3] > 1e38).all())
        mean, sd = x.double().mean(0)[:3] / log_rate[:3].double().exp(), x.double().std(0)[:2]
        torch.testing.assert_close(mean, torch.ones_like(mean), rtol=0.1, atol=0)
        assert 1.6 < sd[0] < 1.9
    spread = LogPoisson(torch.full((20_000,), math.log(1e14), dtype=torch.float64)).sample() - 1e14
    assert abs(spread.std().item() / 1e7 - 1) < 0.02


def test_a_missing_entry_under_a_wide_log_normal_leaves_finite_gradients():
    torch.manual_seed(0)
    network = MLP(1, 2)
    vae = VAE(StandardNormalPrior(1), LogNormalLikelihood(network, scale=200.0), NormalEncoder(MLP(2, 2)))
    x, mask = torch.ones(200, 2), torch.zeros(200, 2, dtype=torch.bool)
    trace = poutine.trace(vae.model).get_trace(x, mask=mask)
    trace.log_prob_sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters())
