"""Tests of rounded likelihoods: sums over the grid, exact probabilities, draws, moments, the grid itself."""

import math

import mpmath as mp
import pytest
import torch
from goodness import LEAST_P_VALUE, NUM_SAMPLES, p_value_of_counts
from scipy import stats
from torch import nn

from pyrovae import RoundedNormalLikelihood, RoundedStudentTLikelihood
from pyrovae.columns import grid_of
from pyrovae.distributions import MultiplesOf, RoundedNormal, RoundedStudentT
from pyrovae.distributions.student_mass import log_student_mass, log_student_survival

mp.mp.dps = 40
SCALES = (1e-6, 1e-3, 0.1, 0.4, 1.0, 30.0, 1e6)
LOCS = (-1e4, -100.0, -1.3, 0.0, 0.25, 0.5, 3.0, 80.0)


def normal_mass(a, b):
    if a < 0:
        a, b = (-b, -a) if b <= 0 else (a, b)
    if a < 0:
        return 1 - mp.erfc(-a / mp.sqrt(2)) / 2 - mp.erfc(b / mp.sqrt(2)) / 2
    return (mp.erfc(a / mp.sqrt(2)) - mp.erfc(b / mp.sqrt(2))) / 2


def student_survival(t, df):
    t, df = mp.mpf(t), mp.mpf(df)
    y = t * t / (df + t * t)
    if y < 0.5:
        return (1 - mp.betainc(mp.mpf(1) / 2, df / 2, 0, y, regularized=True)) / 2
    return mp.betainc(df / 2, mp.mpf(1) / 2, 0, 1 - y, regularized=True) / 2


def student_mass(a, b, df):
    if b <= 0:
        a, b = -b, -a
    if a < 0:
        return 1 - student_survival(-a, df) - student_survival(b, df)
    return student_survival(a, df) - student_survival(b, df)


def make(df, loc, scale, resolution, **options):
    if df is None:
        return RoundedNormal(loc, scale, resolution, **options)
    return RoundedStudentT(df, loc, scale, resolution, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("resolution", [1e-6, 0.1, 1.0])
@pytest.mark.parametrize("df", [None, 1.1, 10.0, 300.0])
@pytest.mark.thin(8)
def test_probabilities_are_right_to_a_thousandth_of_a_nat_or_one_rounding(df, resolution, dtype):
    if df == 300 and resolution == 1e-6:
        pytest.skip("the reference takes minutes")
    steps = (-700_000.0, -3.0, 0.0, 1.0, 40.0)
    for scale in SCALES:
        loc = torch.tensor(LOCS, dtype=dtype).requires_grad_()
        spread = torch.full_like(loc, scale, requires_grad=True)
        for k in steps:
            x = torch.tensor(k * resolution, dtype=torch.float64).to(dtype)
            log_p = make(df, loc, spread, resolution).log_prob(x)
            assert log_p.dtype == dtype
            for slope in torch.autograd.grad(log_p.sum(), (loc, spread)):
                assert bool(slope.isfinite().all())
            for found, place, s in zip(log_p.tolist(), loc.tolist(), spread.tolist(), strict=True):
                left, right = (((mp.mpf(k) + h) * mp.mpf(resolution) - mp.mpf(place)) / mp.mpf(s) for h in (-0.5, 0.5))
                if df is None and min(abs(left), abs(right)) > 1e4 and left * right > 0:
                    # The leading term of the asymptotic series of Mills' ratio, whose error is far below one rounding.
                    t = min(abs(left), abs(right))
                    exact = -t * t / 2 - mp.log(t) - mp.log(2 * mp.pi) / 2
                    exact += mp.log1p(-mp.exp(-t * (right - left) - (right - left) ** 2 / 2))
                else:
                    with mp.workdps(120 if df is None else 60):
                        mass = normal_mass(left, right) if df is None else student_mass(left, right, df)
                        exact = mp.log(mass)
                # In single precision the sum is rounded once, in double precision so are its terms.
                rounding = float(abs(exact)) * torch.finfo(dtype).eps * (1 if dtype == torch.float32 else 4)
                assert abs(found - exact) <= max(1e-3, rounding), (k, place, s, found, exact)


def test_student_intervals_agree_with_the_incomplete_beta_function():
    for df in (0.5, 1.1, 2.0, 10.0, 300.0):
        for c in (0.0, 0.3, 0.5, 3.0, 40.0, 1e4):
            for w in (1e-9, 1e-3, 1.0, 7.0, 1e3, 1e6):
                parts = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (df, c, w)]
                found = log_student_mass(*parts)
                assert all(bool(slope.isfinite()) for slope in torch.autograd.grad(found, parts))
                with mp.workdps(60):
                    half = mp.mpf(w) / 2
                    assert abs(found.item() - mp.log(student_mass(mp.mpf(c) - half, mp.mpf(c) + half, df))) < 1e-6
        for t in (0.0, 0.5, 4.0, 1e3, 1e8):
            found = log_student_survival(*(torch.tensor(v, dtype=torch.float64) for v in (df, t)))
            assert abs(found.item() - mp.log(student_survival(t, df))) < 1e-6


@pytest.mark.parametrize("df", [None, 1.1, 3.0, 10.0])
def test_gradients_are_right(df):
    loc = torch.tensor([-3.0, 0.1, 0.5, 4.0, 30.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.3, 2.0, 1.0, 40.0, 2000.0], dtype=torch.float64, requires_grad=True)
    value = torch.tensor(1.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: make(df, a, b, 1.0).log_prob(value), (loc, scale))
    if df is not None:
        shape = torch.full((5,), df, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda d: make(d, loc.detach(), scale.detach(), 1.0).log_prob(value), (shape,))


@pytest.mark.parametrize("scale", [0.05, 0.4, 1.0, 1.9, 2.1, 5.0])
@pytest.mark.parametrize("df", [None, 2.5, 8.0])
@pytest.mark.thin(2)
def test_probabilities_sum_to_one_and_give_the_moments_and_the_distribution_function(df, scale):
    loc = torch.tensor([-7.5, 0.0, 0.2, 0.5, 3.3], dtype=torch.float64)
    scale = torch.full_like(loc, scale)
    for resolution in (0.1, 1.0, 4.0):
        p = make(df, loc * resolution, scale * resolution, resolution)
        k = torch.arange(-3000, 3001, dtype=torch.float64)[:, None]
        mass = p.log_prob(k * resolution).exp()
        tolerance = 1e-9 if df != 2.5 else 1e-6  # beyond 3000 steps
        torch.testing.assert_close(mass.sum(0), torch.ones_like(loc), rtol=0, atol=tolerance)
        torch.testing.assert_close(mass.cumsum(0), p.cdf(k * resolution), rtol=0, atol=10 * tolerance)
        below = make(df, loc * resolution, scale * resolution, resolution, validate_args=False)
        torch.testing.assert_close(below.cdf((k + 0.4) * resolution), p.cdf(k * resolution))
        mean = (mass * k).sum(0)
        torch.testing.assert_close(mean * resolution, p.mean, rtol=1e-5, atol=1e-5 * resolution)
        if df != 2.5:
            variance = (mass * (k - mean) ** 2).sum(0)
            torch.testing.assert_close(variance * resolution**2, p.variance, rtol=3e-5, atol=1e-12)


def test_the_variance_of_a_heavy_tail_is_continuous_where_sums_end_and_infinite_where_it_must_be():
    loc = torch.tensor([0.3], dtype=torch.float64)
    for df in (2.1, 2.5, 3.0):
        low, high = (RoundedStudentT(df, loc, scale, 1.0).variance for scale in (2 - 1e-9, 2.0))
        torch.testing.assert_close(low, high, rtol=1e-4, atol=0)
    assert RoundedStudentT(1.5, loc, 0.1, 1.0).variance.item() == math.inf
    assert RoundedStudentT(1.0, loc, 0.1, 1.0).mean.isnan().all()


@pytest.mark.parametrize("df", [None, 1.1, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_probabilities(df, dtype):
    torch.manual_seed(0)
    p = make(df, torch.tensor([0.13, -2.0], dtype=dtype), torch.tensor([0.1, 0.7], dtype=dtype), 0.25)
    draws = p.sample((NUM_SAMPLES,))
    assert draws.dtype == dtype
    assert bool(p.support.check(draws).all())
    k = torch.arange(-40, 41)
    probs = p.log_prob(k[:, None].to(dtype) / 4).exp().double()
    for d in range(2):
        steps = (draws[:, d].double() * 4).round()
        counts = torch.stack([(steps == each).sum() for each in k]).double()
        probs_d, counts = (
            torch.cat([v, total[None] - v.sum()])
            for v, total in (
                (probs[:, d], torch.ones((), dtype=torch.float64)),
                (counts, torch.tensor(float(NUM_SAMPLES), dtype=torch.float64)),
            )
        )
        assert p_value_of_counts(probs_d, counts) > LEAST_P_VALUE


def test_rounded_normal_agrees_with_scipy():
    p = RoundedNormal(torch.tensor(0.2, dtype=torch.float64), 1.3, 0.5)
    x = torch.arange(-10, 11, dtype=torch.float64) / 2
    exact = stats.norm(0.2, 1.3).cdf(x + 0.25) - stats.norm(0.2, 1.3).cdf(x - 0.25)
    torch.testing.assert_close(p.log_prob(x).exp(), torch.as_tensor(exact))


@pytest.mark.parametrize("df", [None, 3.0])
def test_rounded_distributions_expand_and_validate(df):
    p = make(df, torch.zeros(2), torch.ones(2), 0.1, validate_args=True)
    wide = p.expand((3, 2))
    x = wide.sample((100,))
    assert x.shape == (100, 3, 2)
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x))
    for outside in (0.05, 0.1001, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"within the support \(multiples of 0.1\)"):
            wide.log_prob(torch.full((2,), outside))
    with pytest.raises(ValueError, match="scale"):
        make(df, torch.zeros(2), torch.tensor([1.0, -1.0]), 0.1, validate_args=True)
    unchecked = make(df, torch.zeros(2), torch.ones(2), 0.1, validate_args=False)
    assert bool(unchecked.log_prob(torch.tensor(math.nan)).isnan().all())


def test_multiples_in_single_precision_are_accepted_to_their_rounding():
    k = torch.arange(-200_000, 200_001)
    for resolution in (0.01, 0.1, 0.3, 2.5):
        grid = MultiplesOf(resolution)
        assert bool(grid.check((k.double() * resolution).float()).all())
        assert bool(grid.check(k.float() * torch.tensor(resolution)).all())
        assert not bool(grid.check(((k.double() + 0.4) * resolution).float()).any())
    assert MultiplesOf(1.0).check(torch.tensor([2.0**23, 2.0**23 + 2])).tolist() == [True, False]


def test_the_resolution_is_suggested_from_the_data():
    k = torch.randint(-50, 50, (300, 2))
    for resolution in (100.0, 5.0, 1.0, 0.25, 0.1, 0.01):
        assert grid_of(torch.cat([k, k.new_ones(1, 2)]) * torch.tensor(resolution)) == resolution
    assert grid_of(torch.randn(300, 2)) is None
    for part in (RoundedNormalLikelihood, RoundedStudentTLikelihood):
        assert part.arguments_for(torch.tensor([[0.3, 0.1]])) == {"resolution": 0.1}
        assert part(nn.Identity(), 0.1, scale=1.0).resolution == 0.1
