"""Tests of the gamma distribution against scipy."""

import math

import pytest
import torch
from goodness import LEAST_P_VALUE, NUM_SAMPLES, p_value_of_uniform
from scipy import stats

from pyrovae.distributions import MeanGamma

LOG_MEAN = torch.tensor([-20.0, -1.0, 0.0, 3.0, 30.0], dtype=torch.float64)
SHAPES = [1e-2, 0.5, 1.0, 20.0, 1e4]


def exact(log_mean, s):
    return stats.gamma(s, scale=log_mean.exp().numpy() / s)


@pytest.mark.parametrize("s", SHAPES)
def test_gamma_agrees_with_scipy(s):
    p, other = MeanGamma(LOG_MEAN, s), exact(LOG_MEAN, s)
    x = torch.as_tensor(other.ppf(torch.tensor([[1e-3], [0.1], [0.5], [0.9], [0.9999]]).numpy()))
    x = x.clamp(min=1e-300)
    torch.testing.assert_close(p.log_prob(x), torch.as_tensor(other.logpdf(x)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.cdf(x), torch.as_tensor(other.cdf(x)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.mean, torch.as_tensor(other.mean()))
    torch.testing.assert_close(p.variance, torch.as_tensor(other.var()))


@pytest.mark.parametrize("s", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_of_the_gamma_are_uniform_under_its_distribution_function(s, dtype):
    p = MeanGamma(LOG_MEAN.to(dtype), s).expand((5,))
    x = p.sample((NUM_SAMPLES,))
    assert x.dtype == dtype
    assert bool((x > 0).all())
    if s < 0.1 and dtype == torch.float32:  # a third of the draws lie below the smallest number
        share = (x < 1e-37).double().mean(0)
        right = torch.as_tensor(exact(LOG_MEAN, s).cdf(1e-37))
        assert bool(((share - right).abs() < 0.02).all())
        return
    for column, log_mean in zip(x.T.double(), LOG_MEAN, strict=True):
        u = torch.as_tensor(exact(log_mean, s).cdf(column.numpy()))
        assert p_value_of_uniform(u.clamp(0, 1)) > LEAST_P_VALUE


def test_gamma_beyond_the_range_of_single_precision_has_the_lowest_density_and_a_finite_slope():
    log_mean = torch.tensor([-1e4, -300.0, -90.0], requires_grad=True)
    for s in (1e-3, 1.0, 1e4):
        log_p = MeanGamma(log_mean, s).log_prob(torch.tensor(5.0))
        (slope,) = torch.autograd.grad(log_p.sum(), log_mean)
        assert bool(log_p.isfinite().all())
        assert bool((log_p[:2] < -3e38).all())
        assert bool(slope.isfinite().all())
        assert bool((slope > 1e29).all())
    unchecked = MeanGamma(log_mean, 1.0, validate_args=False)
    assert bool(unchecked.log_prob(torch.tensor(torch.nan)).isnan().all())
    double = MeanGamma(torch.tensor([-710.0, -800.0], dtype=torch.float64), 1.0)
    right = 1 - (torch.tensor([710.0, 800.0], dtype=torch.float64) - 690).exp()
    log_p = double.log_prob(torch.tensor(-690.0, dtype=torch.float64).exp())
    torch.testing.assert_close(log_p, torch.tensor([20.0, 110.0]).double() + 690 + right - 1, rtol=1e-12, atol=0)


def test_gamma_gradients_are_right():
    log_mean = torch.tensor([-2.0, 0.3, 4.0], dtype=torch.float64, requires_grad=True)
    s = torch.tensor([0.2, 1.0, 300.0], dtype=torch.float64, requires_grad=True)
    value = torch.tensor(1.7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: MeanGamma(a, b).log_prob(value), (log_mean, s))


def test_gamma_expands_and_validates():
    p = MeanGamma(torch.zeros(2), 3.0, validate_args=True)
    wide = p.expand((3, 2))
    x = wide.sample((10,))
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x))
    torch.testing.assert_close(wide.cdf(x), p.cdf(x))
    for outside in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="within the support"):
            wide.log_prob(torch.full((2,), outside))
    with pytest.raises(ValueError, match="concentration"):
        MeanGamma(torch.zeros(2), -1.0, validate_args=True)
