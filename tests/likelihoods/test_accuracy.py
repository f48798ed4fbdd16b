"""Densities and gradients of likelihoods against arithmetic of 40 digits, far from the middle of their range."""

import itertools
import math

import mpmath as mp
import pyro
import pytest
import torch
from exact_tables import TABLE_CASES, log_beta, log_sigmoid
from torch import nn

from pyrovae import (
    BernoulliLikelihood,
    BetaBinomialLikelihood,
    BetaLikelihood,
    BinomialLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticMixtureLikelihood,
    LaplaceLikelihood,
    LogNormalLikelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    NormalLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
    TruncatedNormalLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
    ZeroInflatedPoissonLikelihood,
)
from pyrovae.densities import SupportError, check_support
from pyrovae.distributions.log_gamma import log_factorial

mp.mp.dps = 40
LARGEST = 2**24  # of the whole numbers that float32 tells apart


class Outputs(nn.Module):
    """Network whose output is its input, so that a likelihood is given its parameters."""

    def __init__(self, size):
        super().__init__()
        self.out_features = size

    def forward(self, z):
        return z


def log_choose(n, k):
    return mp.loggamma(n + 1) - mp.loggamma(k + 1) - mp.loggamma(n - k + 1)


def poisson(k, a):
    return k * a - mp.exp(a) - mp.loggamma(k + 1)


def negative_binomial(k, a, r):
    r = mp.mpf(r)
    logits = a - mp.log(r)
    ways = mp.loggamma(k + r) - mp.loggamma(r) - mp.loggamma(k + 1)
    return ways + k * log_sigmoid(logits) + r * log_sigmoid(-logits)


def zero_inflated(log_p, k, gate):
    counted = log_sigmoid(-gate) + log_p
    return mp.log(mp.exp(log_sigmoid(gate)) + mp.exp(counted)) if k == 0 else counted


def binomial(k, a, n):
    return log_choose(n, k) + k * log_sigmoid(a) + (n - k) * log_sigmoid(-a)


def shapes(a, s):
    s = mp.mpf(s)
    return s * mp.exp(log_sigmoid(a)), s * mp.exp(log_sigmoid(-a))


def beta_binomial(k, a, n, s):
    p, q = shapes(a, s)
    return log_choose(n, k) + log_beta(k + p, n - k + q) - log_beta(p, q)


def beta(x, a, s):
    p, q = shapes(a, s)
    return (p - 1) * mp.log(x) + (q - 1) * mp.log1p(-x) - log_beta(p, q)


def student_t(x, a, df):
    df = mp.mpf(df)
    log_norm = mp.loggamma((df + 1) / 2) - mp.loggamma(df / 2) - mp.log(df * mp.pi) / 2
    return log_norm - (df + 1) / 2 * mp.log1p((x - a) ** 2 / df)


def continuous_bernoulli(x, a):
    return a * (x - mp.mpf(1) / 2) + (mp.log((a / 2) / mp.sinh(a / 2)) if a else 0)


def truncated_normal(x, a, scale):
    scale = mp.mpf(scale)
    tail = lambda t: mp.erfc(t / scale / mp.sqrt(2)) / 2  # noqa: E731
    mass = tail(-a) - tail(1 - a) if a < 0.5 else tail(a - 1) - tail(a)
    mass = tail(0 - a) - tail(1 - a) if a < 0 else mass
    return -(((x - a) / scale) ** 2) / 2 - mp.log(scale * mp.sqrt(2 * mp.pi)) - mp.log(mass)


def discretized_logistic(k, logit, b, e):
    half = mp.mpf(255) / 2
    room = mp.log(1000) * (1 - 10 / mp.log(10**6))  # of log scales from -log(1000) to log(1000), at each end
    edge = mp.log(1000) - room
    log_scale = e if abs(e) <= edge else mp.sign(e) * (edge + room * mp.tanh((abs(e) - edge) / room))
    loc, scale = half * (1 + b), half * mp.exp(log_scale)
    below = lambda y: log_sigmoid((y - loc) / scale)  # noqa: E731
    above = lambda y: log_sigmoid((loc - y) / scale)  # noqa: E731
    if k == 0:
        return below(mp.mpf(1) / 2)
    if k == 255:
        return above(254 + mp.mpf(1) / 2)
    return below(k + mp.mpf(1) / 2) + above(k - mp.mpf(1) / 2) + mp.log(-mp.expm1(-1 / scale))


ROUNDINGS = {"discretized logistic": 4}  # in single precision throughout, since its K components dominate a step
NEAR = (0.0, 0.3, -0.7)  # from the logarithm or logit of the data's own mean
FAR = (-1e4, -300.0, -104.0, -20.0, 0.0, 20.0, 80.0)
COUNTS = (0, 1, 2, 20, 1000, 10**6, 5 * 10**6, LARGEST)
SHAPES = (1e-3, 0.5, 1e3, 1e6, 1e8)


def near(counts):
    return [(k, math.log(k + 0.5) + away) for k in counts for away in NEAR]


def near_share(counts, n):
    return [(k, math.log((k + 0.5) / (n - k + 0.5)) + away) for k in counts for away in NEAR]


def upto(n):
    return sorted({0, 1, n // 1000, n // 2, n - 1, n})


# Name: likelihood, exact log p(x) given outputs and further arguments, and the cases (x, outputs...).
CASES = {
    "poisson": (lambda n: PoissonLikelihood(n), poisson, [*near(COUNTS), *itertools.product((0, 1, 50, LARGEST), FAR)]),
    "zero-inflated poisson": (
        lambda n: ZeroInflatedPoissonLikelihood(n),
        lambda k, a, gate: zero_inflated(poisson(k, a), k, gate),
        [(k, a, g) for k, a in near(COUNTS) for g in (-30.0, 0.0, 40.0)]
        + [(k, a, g) for k in (0, 3) for a in FAR for g in (-1e4, 0.0, 1e4)],
    ),
    **{
        f"negative binomial, r = {r:g}": (
            lambda n, r=r: NegativeBinomialLikelihood(n, r),
            lambda k, a, r=r: negative_binomial(k, a, r),
            [*near(COUNTS), *itertools.product((0, 3, LARGEST), FAR)],
        )
        for r in SHAPES
    },
    "zero-inflated negative binomial": (
        lambda n: ZeroInflatedNegativeBinomialLikelihood(n, 1e6),
        lambda k, a, gate: zero_inflated(negative_binomial(k, a, mp.mpf(10) ** 6), k, gate),
        [(k, a, g) for k, a in near(COUNTS) for g in (-30.0, 0.0, 40.0)],
    ),
    **{
        f"binomial, n = {n}": (
            lambda net, n=n: BinomialLikelihood(net, n),
            lambda k, a, n=n: binomial(k, a, n),
            [*near_share(upto(n), n), *itertools.product(upto(n), FAR)],
        )
        for n in (1, 5, 10**6, 5 * 10**6, LARGEST)
    },
    **{
        f"beta-binomial, n = {n}, s = {s:g}": (
            lambda net, n=n, s=s: BetaBinomialLikelihood(net, n, s),
            lambda k, a, n=n, s=s: beta_binomial(k, a, n, s),
            [*near_share(upto(n), n), *itertools.product(upto(n), FAR)],
        )
        for n in (5, 10**6, LARGEST)
        for s in SHAPES
    },
    **{
        f"beta, s = {s:g}": (
            lambda net, s=s: BetaLikelihood(net, s),
            lambda x, a, s=s: beta(x, a, s),
            [(x, a) for x in (1e-30, 1e-3, 0.4, 0.999) for a in (*FAR, -0.4, 1e4)],
        )
        for s in SHAPES
    },
    **{
        f"student-t, df = {df:g}": (
            lambda net, df=df: StudentTLikelihood(net, 1.0, df),
            lambda x, a, df=df: student_t(x, a, df),
            [(x, a) for x in (0.0, 1.0, 30.0) for a in (-3.0, 0.0, 1e3)],
        )
        for df in SHAPES
    },
    "bernoulli": (
        lambda n: BernoulliLikelihood(n),
        lambda x, a: binomial(x, a, 1),
        [(x, a) for x in (0, 1) for a in FAR],
    ),
    "continuous bernoulli": (
        lambda n: ContinuousBernoulliLikelihood(n),
        continuous_bernoulli,
        [(x, a) for x in (0.0, 0.3, 1.0) for a in (*FAR, 0.29, 0.31, 1e-4, 1e4)],
    ),
    "normal": (
        lambda n: NormalLikelihood(n, 0.25),
        lambda x, a: -((x - a) ** 2) * 8 - mp.log(mp.mpf(1) / 16 * 2 * mp.pi) / 2,
        [(x, a) for x in (0.0, 3.0) for a in FAR],
    ),
    "laplace": (
        lambda n: LaplaceLikelihood(n, 0.25),
        lambda x, a: -abs(x - a) * 4 - mp.log(mp.mpf(1) / 2),
        [(x, a) for x in (0.0, 3.0) for a in FAR],
    ),
    **{
        f"truncated normal, scale {scale:g}": (
            lambda n, scale=scale: TruncatedNormalLikelihood(n, 0.0, 1.0, scale),
            lambda x, a, scale=scale: truncated_normal(x, a, scale),
            [(x, a) for x in (0.0, 0.25, 1.0) for a in (-128.0, -100.0, -2.0, 0.0, 0.3, 1.0, 50.0)],
        )
        for scale in (2**-7, 0.5, 128.0)
    },
    "discretized logistic": (
        lambda n: DiscretizedLogisticMixtureLikelihood(n, 256, 1),
        discretized_logistic,
        [
            (x, 0.3, b, e)
            for x in (0, 1, 128, 255)
            for b in (-100.0, -1.0, 0.004, 1.0, 30.0)
            for e in (-9.0, -2.0, 0.0, 9.0)
        ],
    ),
    "log-normal": (
        lambda n: LogNormalLikelihood(n, 0.25),
        lambda x, a: -((mp.log(x) - a) ** 2) * 8 - mp.log(mp.mpf(1) / 16 * 2 * mp.pi) / 2 - mp.log(x),
        [(x, a) for x in (1e-30, 1.0, 3e20) for a in FAR],
    ),
    **TABLE_CASES,
}


def evaluate(likelihood, cases, dtype):
    """Log p(x) and its gradient in each output, and the values as the dtype rounds them."""
    x, *outputs = torch.tensor(cases, dtype=torch.float64).to(dtype).T.unbind()
    network = Outputs(len(cases) * len(outputs))
    z = torch.cat(outputs).requires_grad_()
    p = likelihood(network).to(dtype)(z)
    log_p = p.base_dist.log_prob(x)
    (slope,) = torch.autograd.grad(log_p.sum(), z)
    rows = torch.stack([x, *outputs], 1).double().tolist()
    return log_p, slope.view(len(outputs), -1).T, rows


def exactly(log_p, row):
    return log_p(int(row[0]) if row[0] == int(row[0]) else mp.mpf(row[0]), *map(mp.mpf, row[1:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.thin(58)
def test_log_densities_are_right_to_a_thousandth_of_a_nat_or_one_rounding(name, dtype):
    likelihood, exact, cases = CASES[name]
    found, slopes, rows = evaluate(likelihood, cases, dtype)
    assert found.dtype == dtype
    assert bool(slopes.isfinite().all())
    for value, row in zip(found.tolist(), rows, strict=True):
        right = exactly(exact, row)
        if abs(right) < 3e38:
            rounding = float(abs(right)) * torch.finfo(dtype).eps * ROUNDINGS.get(name, 1)
            assert abs(mp.mpf(value) - right) <= max(1e-3, rounding), (row, value, right)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.thin(20)
def test_gradients_in_single_precision_are_those_of_40_digits(name):
    likelihood, exact, cases = CASES[name]
    _, slopes, rows = evaluate(likelihood, cases, torch.float32)
    for slope, row in zip(slopes[:, 0].tolist(), rows, strict=True):
        if name in ("laplace", "bernoulli") and row[0] == row[1]:
            continue
        right = mp.diff(lambda a, row=row: exactly(exact, [row[0], a, *row[2:]]), mp.mpf(row[1]), h=mp.mpf(10) ** -12)
        if abs(right) < 3e38:
            assert abs(mp.mpf(slope) - right) <= 1e-4 + 1e-5 * abs(right), (row, slope, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_multinomial_is_right_for_large_totals(dtype):
    for counts in ([10**6, 3 * 10**6, 0, 12], [8 * 10**6, 5 * 10**6, 3 * 10**6 + 777_216, 0], [0, 0, 2, 0]):
        total = sum(counts)
        x = torch.tensor(counts, dtype=dtype)
        logits = (x + 1).log() + torch.tensor([0.1, -0.2, 0.0, 3.0], dtype=dtype)
        found = MultinomialLikelihood(Outputs(4), total)(logits).log_prob(x)
        a = [mp.mpf(value) for value in logits.double().tolist()]
        log_norm = mp.log(sum(map(mp.exp, a)))
        right = mp.loggamma(total + 1) + sum(
            k * (b - log_norm) - mp.loggamma(k + 1) for k, b in zip(counts, a, strict=True)
        )
        assert abs(found.item() - right) <= max(1e-3, float(abs(right)) * torch.finfo(dtype).eps)


def test_double_precision_is_right_beyond_2e7():
    for k in (2 * 10**7, 10**9):
        x, a = torch.tensor([float(k)], dtype=torch.float64), torch.tensor([math.log(k) + 1e-4], dtype=torch.float64)
        found = PoissonLikelihood(Outputs(1))(a).log_prob(x).item()
        assert abs(found - poisson(k, mp.mpf(a.item()))) < 1e-3
        logits = torch.tensor([0.1], dtype=torch.float64)
        found = BinomialLikelihood(Outputs(1), 2 * k)(logits).log_prob(x).item()
        assert abs(found - binomial(k, mp.mpf(logits.item()), 2 * k)) < 1e-3


def test_log_factorials_are_right_where_the_table_ends():
    k = torch.tensor([0, 1, 2, 1022, 1023, 1024, 1025, 10**5, LARGEST, 5 * 10**9])  # the last beyond 32 bits
    for found, n in zip(log_factorial(k).tolist(), k.tolist(), strict=True):
        assert abs(found - mp.loggamma(n + 1)) <= 1e-12 + 1e-15 * mp.loggamma(n + 1)


@pytest.mark.parametrize(
    "likelihood",
    [
        PoissonLikelihood(Outputs(1)),
        NegativeBinomialLikelihood(Outputs(1)),
        BinomialLikelihood(Outputs(1), 3 * LARGEST),
        BetaBinomialLikelihood(Outputs(1), 3 * LARGEST),
        MultinomialLikelihood(Outputs(1), 2 * LARGEST),
    ],
)
def test_counts_that_single_precision_cannot_tell_apart_are_refused(likelihood):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(torch.zeros(len(x), 1, dtype=x.dtype)), obs=x)

    x = torch.tensor([[2.0 * LARGEST]])
    with pytest.raises(SupportError, match=r"float32 tells whole numbers apart only up to 16,777,216; give"):
        check_support(model, x)
    check_support(model, x.double())


def test_categories_far_below_the_others_keep_their_density():
    logits = torch.tensor([0.0, -200.0, 50.0])
    p = CategoricalLikelihood(Outputs(3), 3)(logits)
    torch.testing.assert_close(p.log_prob(torch.tensor([1.0])).item(), -250.0)
