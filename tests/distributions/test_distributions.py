"""Tests of our distributions against scipy, quadrature and torch."""

import math

import pyro.distributions as dist
import pytest
import torch
from goodness import LEAST_P_VALUE, NUM_SAMPLES, p_value_of_uniform
from scipy import special, stats

from pyrovae.distributions import (
    ContinuousBernoulli,
    DiscretizedLogistic,
    FloatCategorical,
    LogitBeta,
    LogitBetaBinomial,
    StudentT,
    TruncatedNormal,
)
from pyrovae.distributions.interval import _erfcx


def unit_interval():
    """Points of (0, 1), dense at its ends, and their weights in an integral, with shape (S, 1)."""
    u = torch.linspace(-25, 25, 100_001, dtype=torch.float64)[:, None]
    return u.sigmoid(), u.sigmoid() * (-u).sigmoid() * (u[1] - u[0])


def test_truncated_normal_agrees_with_scipy():
    loc = torch.tensor([-40.0, -3.0, -0.4, 0.2, 0.5, 0.9, 1.3, 5.0, 60.0], dtype=torch.float64)
    low, high = 0.1, 0.7  # no float32 numbers
    x = torch.linspace(low, high, 11, dtype=torch.float64)[1:-1, None]
    for scale in (0.02, 0.3, 1.0, 30.0):
        p = TruncatedNormal(loc, torch.tensor(scale, dtype=torch.float64), low, high)
        exact = stats.truncnorm((low - loc) / scale, (high - loc) / scale, loc, scale)
        torch.testing.assert_close(p.log_prob(x), torch.as_tensor(exact.logpdf(x)), rtol=1e-9, atol=1e-9)


def test_mean_of_the_truncated_normal_agrees_with_quadrature():
    loc = torch.tensor([-40.0, -3.0, -0.4, 0.2, 0.5, 0.9, 1.3, 5.0, 60.0], dtype=torch.float64)
    x, weight = unit_interval()
    for scale in (0.3, 1.0, 30.0, 1e4):
        p = TruncatedNormal(loc, torch.tensor(scale, dtype=torch.float64))
        torch.testing.assert_close((p.log_prob(x).exp() * weight * x).sum(0), p.mean, rtol=1e-7, atol=1e-7)


def test_truncated_normal_in_float32_agrees_with_float64_in_the_tails():
    loc = torch.tensor([-100, -50.0, -3.0, -1e-3, 0.0, 0.3, 0.5, 1.0, 1.001, 2.0, 50.0, 100])[:, None]
    scale = torch.tensor([1e-5, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e5])
    value = torch.tensor([0.0, 1e-4, 0.25, 0.75, 1.0])[:, None, None]
    found = {}
    for dtype in (torch.float32, torch.float64):
        arguments = [t.detach().to(dtype).requires_grad_() for t in (loc, scale.expand(12, 7))]
        p = TruncatedNormal(*arguments)
        log_p = p.log_prob(value.to(dtype))
        gradients = torch.autograd.grad(log_p.sum(), arguments)
        found[dtype] = [t.detach().double() for t in (log_p, *gradients, p.mean)]
    for single, double in zip(found[torch.float32], found[torch.float64], strict=True):
        assert bool(single.isfinite().all())
        assert bool(double.isfinite().all())
    torch.testing.assert_close(found[torch.float32][0], found[torch.float64][0], rtol=2e-5, atol=2e-3)
    torch.testing.assert_close(found[torch.float32][3], found[torch.float64][3], rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("loc", [-40.0, -1.2, -0.9, 0.5, 2.0, 30.0])
@pytest.mark.parametrize("scale", [0.05, 0.8, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_truncated_normal_draws_match_in_the_tails(loc, scale, dtype):
    p = TruncatedNormal(torch.tensor([loc], dtype=dtype), scale)
    draws = p.sample((NUM_SAMPLES,)).double()[:, 0].numpy()
    uniform = torch.as_tensor(stats.truncnorm((0 - loc) / scale, (1 - loc) / scale, loc, scale).cdf(draws))
    assert p_value_of_uniform(uniform.clamp(0, 1)) > LEAST_P_VALUE


def test_erfcx_and_its_slope_are_accurate_where_the_series_begins():
    x = torch.tensor([0.7, 24.9, 25.1, 40.0, 1e3], dtype=torch.float64, requires_grad=True)
    exact = torch.as_tensor(special.erfcx(x.detach().numpy()))
    torch.testing.assert_close(_erfcx(x).detach(), exact, rtol=1e-12, atol=0)
    slope = torch.autograd.grad(_erfcx(x).sum(), x)[0]
    torch.testing.assert_close(slope[:4], (2 * x.detach() * exact - 2 / math.sqrt(math.pi))[:4], rtol=1e-8, atol=0)


def test_truncated_normal_gradients_are_right():
    loc = torch.tensor([-60.0, -1.05, -0.95, 0.4, 3.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.9, 1.0, 1.0, 0.2, 0.05], dtype=torch.float64, requires_grad=True)
    value = torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: TruncatedNormal(a, b).log_prob(value), (loc, scale))


@pytest.mark.parametrize("scale", [1e-3, 0.1, 3.0, 1e3, 1e5])
@pytest.mark.parametrize("loc", [-1e4, -3.0, 100.2, 255.0, 1e4])
def test_discretized_logistic_sums_to_one_in_float32(loc, scale):
    parameters = torch.tensor([loc, scale], requires_grad=True)
    p = DiscretizedLogistic(parameters[0], parameters[1], 256)
    log_p = p.log_prob(torch.arange(256.0))
    assert log_p.exp().sum().item() == pytest.approx(1, abs=2e-4)
    gradient = torch.autograd.grad(log_p.sum(), parameters)[0]
    assert bool(log_p.isfinite().all())
    assert bool(gradient.isfinite().all())


def test_discretized_logistic_is_a_difference_of_sigmoids():
    loc, scale = torch.tensor(3.3, dtype=torch.float64), torch.tensor(1.7, dtype=torch.float64)
    p = DiscretizedLogistic(loc, scale, 9)
    k = torch.arange(9, dtype=torch.float64)
    edges = torch.cat([torch.tensor([-math.inf]), k[1:] - 0.5, torch.tensor([math.inf])])
    mass = ((edges - loc) / scale).sigmoid().diff()
    torch.testing.assert_close(p.log_prob(k).exp(), mass)
    torch.testing.assert_close(p.variance, (mass * k**2).sum() - (mass * k).sum() ** 2)
    torch.testing.assert_close(p.expand((3, 2)).mean, (mass * k).sum().expand(3, 2))


def test_continuous_bernoulli_is_accurate_for_all_logits():
    logits = torch.tensor([-80.0, -20, -0.31, -0.29, -1e-4, 0, 1e-4, 0.29, 0.31, 5, 50], dtype=torch.float64)
    x, weight = unit_interval()
    p = ContinuousBernoulli(logits)
    mass = p.log_prob(x).exp() * weight
    mean = (mass * x).sum(0)
    torch.testing.assert_close(mass.sum(0), torch.ones_like(logits), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.mean, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.variance, (mass * x**2).sum(0) - mean**2, rtol=1e-6, atol=1e-9)
    single = ContinuousBernoulli(logits.float()).log_prob(torch.tensor(0.3))
    torch.testing.assert_close(
        single.double(), p.log_prob(torch.tensor(0.3, dtype=torch.float64)), rtol=1e-6, atol=1e-6
    )
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: ContinuousBernoulli(a).log_prob(x[45_000:55_000:997]), (logits,))


def test_continuous_bernoulli_has_no_step_where_its_series_ends():
    p = ContinuousBernoulli(torch.tensor([0.3 - 1e-14, 0.3], dtype=torch.float64))
    log_p = p.log_prob(torch.tensor(0.3, dtype=torch.float64))
    for value in (log_p, p.mean, p.variance):
        torch.testing.assert_close(value[0], value[1], rtol=0, atol=3e-11)


@pytest.mark.parametrize(
    "p",
    [
        TruncatedNormal(torch.zeros(2), torch.ones(2), validate_args=True),
        DiscretizedLogistic(torch.zeros(2), torch.ones(2), 5, validate_args=True),
        ContinuousBernoulli(torch.zeros(2), validate_args=True),
        LogitBeta(torch.zeros(2), torch.full((2,), 2e-3), validate_args=True),
        FloatCategorical(logits=torch.zeros(2, 5), validate_args=True),
    ],
    ids=lambda p: type(p).__name__,
)
def test_distributions_expand_and_validate(p):
    wide = p.expand((3, 2))
    assert type(wide) is type(p)
    x = wide.sample((1000,))
    assert x.shape == (1000, 3, 2)
    assert bool(wide.support.check(x).all())
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x))
    torch.testing.assert_close(wide.mean, p.mean.expand(3, 2))
    for checked in (p, wide):
        with pytest.raises(ValueError, match="within the support"):
            checked.log_prob(torch.full((2,), -0.5))
    wide._validate_args = False
    if type(p).__base__ is dist.TorchDistribution:
        assert wide.log_prob(torch.full((2,), -0.5)).shape == (3, 2)


def test_numbers_that_are_no_class_have_no_probability_and_missing_ones_an_unknown_one():
    logits = torch.randn(3, 4)
    p = FloatCategorical(logits=logits, validate_args=False)
    found = p.log_prob(torch.tensor([[0.0], [3.0], [-1.0], [4.0], [1.5], [math.nan]]))
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(found[:2], expected[:, [0, 3]].T)
    assert bool((found[2:5] == -math.inf).all())
    assert bool(found[5].isnan().all())


@pytest.mark.parametrize("make", [TruncatedNormal, lambda *a, **b: DiscretizedLogistic(*a, 5, **b)])
def test_distributions_reject_invalid_parameters(make):
    with pytest.raises(ValueError, match="scale"):
        make(torch.zeros(2), torch.tensor([1.0, -1.0]), validate_args=True)
    make(torch.zeros(2), torch.tensor([1.0, -1.0]), validate_args=False)


def test_continuous_bernoulli_draws_carry_gradients():
    logits = torch.tensor([-30.0, -1.0, 0.0, 2.0, 40.0], requires_grad=True)
    ContinuousBernoulli(logits).rsample((200,)).mean(0).sum().backward()
    assert bool(logits.grad.isfinite().all())
    assert bool((logits.grad[[0, 1, 3, 4]] > 0).all())


@pytest.mark.parametrize("shape", [(), (5,), (4, 5)])
def test_student_t_agrees_with_torchs_for_any_shape_of_df(shape):
    df, loc, value = (2 + torch.rand(shape)).requires_grad_(), torch.randn(4, 5), torch.randn(3, 4, 5)
    scale = (0.5 + torch.rand(shape)).requires_grad_()
    ours, theirs = StudentT(df, loc, scale), dist.StudentT(df, loc, scale)
    for mine, other in ((ours, theirs), (ours.expand([3, 4, 5]), theirs.expand([3, 4, 5]))):
        assert mine.batch_shape == other.batch_shape
        torch.testing.assert_close(mine.log_prob(value), other.log_prob(value))
        gradients = [torch.autograd.grad(d.log_prob(value).sum(), (df, scale)) for d in (mine, other)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="within the support"):
        StudentT(df, loc, scale, validate_args=True).log_prob(torch.tensor(torch.nan))


@pytest.mark.parametrize("logits", [0.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_of_beta_and_beta_binomial_at_a_tiny_concentration_lie_at_the_ends(logits, dtype):
    torch.manual_seed(0)
    s, size = 1e-3, 200_000  # the standard error of a share is at most 0.0011, and 0.00003 in the middle
    logits = torch.full((size,), logits, dtype=dtype)
    exact = stats.beta(s * torch.sigmoid(logits[0]).item(), s * torch.sigmoid(-logits[0]).item())
    draws = {"beta": LogitBeta(logits, s).sample(), "beta-binomial": LogitBetaBinomial(100, logits, s).sample() / 100}
    for x in draws.values():
        assert x.dtype == dtype
        middle = ((x > 0.405) & (x < 0.595)).double().mean().item()
        assert abs(middle - (exact.cdf(0.595) - exact.cdf(0.405))) < 2e-4
        assert abs((x > 0.5).double().mean().item() - exact.sf(0.5)) < 5e-3
    assert bool(((draws["beta"] > 0) & (draws["beta"] < 1)).all())


def test_gradients_of_beta_draws_are_those_of_the_mean():
    torch.manual_seed(0)
    logits = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    LogitBeta(logits, torch.tensor([0.5, 2.0, 40.0])).rsample((200_000,)).mean(0).sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().sigmoid() * (-logits.detach()).sigmoid(), rtol=0.03, atol=0)


def test_distribution_function_of_student_t_agrees_with_scipy():
    df = torch.tensor([0.5, 1.0, 4.0, 300.0], dtype=torch.float64)
    x = torch.tensor([-1e4, -3.0, 0.4, 0.7, 2.0, 50.0], dtype=torch.float64).unsqueeze(-1)
    exact = torch.as_tensor(stats.t.cdf(x, df, 0.5, 1.3))
    p = StudentT(df, torch.tensor(0.5, dtype=torch.float64), torch.tensor(1.3, dtype=torch.float64))
    torch.testing.assert_close(p.cdf(x), exact, rtol=1e-6, atol=0)
    single = StudentT(df.float(), torch.tensor(0.5), torch.tensor(1.3))
    torch.testing.assert_close(single.cdf(x.float()), exact.float(), rtol=1e-5, atol=0)
