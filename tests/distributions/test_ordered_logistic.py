"""Tests of the ordered logistic distribution against differences of sigmoids."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from goodness import LEAST_P_VALUE, NUM_SAMPLES, p_value_of_counts

from pyrovae import MLP, OrderedLogisticLikelihood
from pyrovae.distributions import OrderedLogistic

CUTS = torch.tensor([[-2.0, -1.9, 0.5], [0.0, 3.0, 3.001]], dtype=torch.float64)
ETA = torch.tensor([[0.3, -4.0], [2.0, 3.0], [-30.0, 40.0]], dtype=torch.float64)
LEVELS = torch.arange(4, dtype=torch.float64)


def test_ordered_logistic_agrees_with_pyro_and_sums_to_one():
    p, other = OrderedLogistic(ETA[:2], CUTS), dist.OrderedLogistic(ETA[:2], CUTS)
    k = LEVELS[:, None, None]
    torch.testing.assert_close(p.log_prob(k), other.log_prob(k.expand(4, 2, 2)), rtol=1e-5, atol=1e-5)
    whole = OrderedLogistic(ETA, CUTS)
    mass = whole.log_prob(k).exp()
    torch.testing.assert_close(mass.sum(0), torch.ones(3, 2, dtype=torch.float64))
    torch.testing.assert_close(whole.cdf(k), mass.cumsum(0))
    torch.testing.assert_close(OrderedLogistic(ETA, CUTS, validate_args=False).cdf(k - 0.5), mass.cumsum(0) - mass)
    torch.testing.assert_close(whole.mean, (k * mass).sum(0))
    torch.testing.assert_close(whole.variance, (k**2 * mass).sum(0) - (k * mass).sum(0) ** 2)


def test_draws_of_the_ordered_logistic_have_its_shares():
    draws = OrderedLogistic(ETA[:2], CUTS).sample((NUM_SAMPLES,))
    mass = OrderedLogistic(ETA[:2], CUTS).log_prob(LEVELS[:, None, None]).exp()
    for i in range(2):
        for j in range(2):
            counts = torch.bincount(draws[:, i, j].long(), minlength=4).double()
            assert p_value_of_counts(mass[:, i, j], counts) > LEAST_P_VALUE


def test_ordered_logistic_gradients_are_right_and_finite_far_away():
    eta, cuts = ETA[:2].clone().requires_grad_(), CUTS.clone().requires_grad_()
    value = torch.tensor([[0.0, 1.0], [3.0, 2.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, c: OrderedLogistic(a, c).log_prob(value), (eta, cuts))
    far = torch.tensor([-1e4, 80.0, 1e4], requires_grad=True)
    for level in range(4):
        log_p = OrderedLogistic(far, CUTS[0]).log_prob(torch.tensor(float(level)))
        assert log_p.dtype == torch.float32
        assert bool(log_p.isfinite().all())
        assert bool(torch.autograd.grad(log_p.sum(), far)[0].isfinite().all())


def test_ordered_logistic_expands_and_validates():
    p = OrderedLogistic(ETA[0], CUTS, validate_args=True)
    wide = p.expand((3, 2))
    x = wide.sample((10,))
    assert x.shape == (10, 3, 2)
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x))
    for outside in (-1.0, 0.5, 4.0, math.nan):
        with pytest.raises(ValueError, match="within the support"):
            wide.log_prob(torch.full((2,), outside))
    with pytest.raises(ValueError, match="cutpoints"):
        OrderedLogistic(ETA[0], CUTS.flip(-1), validate_args=True)
    unchecked = OrderedLogistic(ETA[0], CUTS, validate_args=False)
    assert bool(unchecked.log_prob(torch.tensor(math.nan)).isnan().all())


def test_cut_points_increase_whatever_their_parameters():
    likelihood = OrderedLogisticLikelihood(MLP(2, 3), 6)
    for size in (0.1, 10.0, 1e4):
        with torch.no_grad():
            likelihood.raw_gaps.copy_(size * torch.randn(3, 4))
        assert likelihood.cutpoints.shape == (3, 5)
        assert bool((likelihood.cutpoints.diff() > 0).all())
        with pyro.validation_enabled():
            assert bool(likelihood(torch.randn(7, 2)).log_prob(torch.full((3,), 2.0)).isfinite().all())


def test_levels_start_equally_likely():
    likelihood = OrderedLogisticLikelihood(MLP(2, 1), 5).double()
    p = OrderedLogistic(torch.zeros((), dtype=torch.float64), likelihood.cutpoints[0])
    torch.testing.assert_close(p.log_prob(torch.arange(5).double()).exp().detach(), torch.full((5,), 0.2).double())
