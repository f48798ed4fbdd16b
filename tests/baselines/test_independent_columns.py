"""Independent columns in a likelihood's own family, against fits by SciPy and closed forms."""

import math
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
import torch

import pyrovae.likelihoods as room
from pyrovae import (
    BernoulliLikelihood,
    BetaBinomialLikelihood,
    BetaLikelihood,
    BinomialLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    GammaLikelihood,
    HurdleGammaLikelihood,
    HurdleLogNormalLikelihood,
    LaplaceLikelihood,
    Likelihood,
    LogNormalLikelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    NormalLikelihood,
    OrderedLogisticLikelihood,
    PoissonLikelihood,
    RoundedNormalLikelihood,
    StudentTLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
)
from pyrovae.baselines import IndependentColumns
from pyrovae.columns import Column, Columns
from pyrovae.likelihoods import MixedLikelihood

RNG = np.random.default_rng(0)
REAL = np.stack([3 + RNG.normal(size=300), 1e4 + 500 * RNG.standard_t(3, size=300)], 1)
SHARES = RNG.beta([0.7, 5.0], [2.0, 3.0], size=(300, 2))
COUNTS = np.stack([RNG.negative_binomial(1.5, 0.2, 300), RNG.poisson(0.3, 300)], 1)
TRIALS = np.stack([RNG.binomial(6, 0.4, 300), RNG.binomial(6, RNG.beta(0.8, 0.8, 300))], 1)


def by_scipy(log_p, *start):
    """The function of a column that fits log_p(x, *parameters) by Nelder-Mead, and returns log p of its cells."""

    def fit(x):
        first = np.array([one(x) if callable(one) else one for one in start])
        options = {"maxiter": 5000, "maxfev": 5000, "xatol": 1e-8, "fatol": 1e-12}
        found = scipy.optimize.minimize(lambda p: -log_p(x, *p).mean(), first, method="Nelder-Mead", options=options)
        return log_p(x, *found.x)

    return fit


def log_rounded(x, loc, log_scale):
    low, high = (scipy.stats.norm.cdf((x + half - loc) / np.exp(log_scale)) for half in (-0.5, 0.5))
    return np.log(high - low)


def log_nb(x, log_mean, log_r):
    mean, r = np.exp(log_mean), np.exp(log_r)
    return scipy.stats.nbinom.logpmf(x, r, r / (r + mean))


FITS = {
    "normal": (NormalLikelihood, REAL, lambda x: scipy.stats.norm.logpdf(x, x.mean(), x.std())),
    "laplace": (LaplaceLikelihood, REAL, lambda x: scipy.stats.laplace.logpdf(x, *scipy.stats.laplace.fit(x))),
    "t": (
        StudentTLikelihood,
        REAL,
        by_scipy(
            lambda x, df, m, s: scipy.stats.t.logpdf(x, 1.1 + np.exp(df), m, np.exp(s)),
            1.0,
            np.median,
            lambda x: np.log(x.std()),
        ),
    ),
    "log-normal": (
        LogNormalLikelihood,
        SHARES,
        lambda x: scipy.stats.norm.logpdf(np.log(x), np.log(x).mean(), np.log(x).std()) - np.log(x),
    ),
    "gamma": (GammaLikelihood, SHARES, lambda x: scipy.stats.gamma.logpdf(x, *scipy.stats.gamma.fit(x, floc=0))),
    "beta": (BetaLikelihood, SHARES, lambda x: scipy.stats.beta.logpdf(x, *scipy.stats.beta.fit(x, floc=0, fscale=1))),
    "poisson": (PoissonLikelihood, COUNTS, lambda x: scipy.stats.poisson.logpmf(x, x.mean())),
    "negative binomial": (NegativeBinomialLikelihood, COUNTS, by_scipy(log_nb, lambda x: np.log(x.mean()), 0.0)),
    "binomial": (
        partial(BinomialLikelihood, total_count=6),
        TRIALS,
        lambda x: scipy.stats.binom.logpmf(x, 6, x.mean() / 6),
    ),
    "beta-binomial": (
        partial(BetaBinomialLikelihood, total_count=6),
        TRIALS[:, 1:],
        by_scipy(lambda x, a, b: scipy.stats.betabinom.logpmf(x, 6, np.exp(a), np.exp(b)), 0.0, 0.0),
    ),
    "rounded normal": (
        partial(RoundedNormalLikelihood, resolution=1.0),
        REAL[:, :1].round(),
        by_scipy(log_rounded, 3.0, 0.0),
    ),
}


@pytest.mark.parametrize("name", FITS)
def test_columns_are_fitted_as_by_scipy(name):
    likelihood, x, reference = FITS[name]
    data = torch.from_numpy(x).double()
    holes = torch.zeros_like(data, dtype=torch.bool)
    holes[::7, 0] = True
    found = IndependentColumns(data.masked_fill(holes, math.nan), likelihood)
    expected = np.zeros(len(x))
    for d in range(x.shape[1]):
        seen = ~holes[:, d].numpy()
        expected[seen] += reference(x[seen, d])
    log_p = found.log_prob(data.masked_fill(holes, math.nan))
    assert log_p.dtype == torch.float64
    assert log_p.mean().item() == pytest.approx(expected.mean(), abs=2e-6)
    np.testing.assert_allclose(log_p, expected, atol=5e-3)


@pytest.mark.parametrize("word", ["global", "dimension", "network"])
def test_each_word_of_a_learned_parameter_gives_constants_of_the_columns(word):
    x = torch.from_numpy(REAL)
    log_p = IndependentColumns(x, partial(NormalLikelihood, scale=word)).log_prob(x)
    expected = scipy.stats.norm.logpdf(REAL, REAL.mean(0), REAL.std(0)).sum(1)
    np.testing.assert_allclose(log_p, expected, atol=1e-5)


def test_a_fixed_scale_stays_fixed():
    x = torch.from_numpy(REAL)
    log_p = IndependentColumns(x, partial(NormalLikelihood, scale=2.0)).log_prob(x)
    np.testing.assert_allclose(log_p, scipy.stats.norm.logpdf(REAL, REAL.mean(0), 2.0).sum(1), rtol=1e-6)


@pytest.mark.parametrize(
    "maker", [partial(CategoricalLikelihood, num_classes=4), partial(OrderedLogisticLikelihood, num_levels=4)]
)
def test_levels_follow_the_rule_of_laplace(maker):
    x = torch.tensor([[0.0, 1.0], [0.0, 3.0], [2.0, math.nan]])
    baseline = IndependentColumns(x, maker)
    levels = torch.tensor([[0.0, math.nan], [1.0, math.nan], [3.0, 1.0], [4.0, 1.0], [0.5, 1.0], [math.nan, math.nan]])
    expected = [3 / 7, 1 / 7, 1 / 7 * 2 / 6, 0, 0, 1]
    np.testing.assert_allclose(baseline.log_prob(levels).exp(), expected, rtol=1e-12)
    assert baseline.num_parameters == 6


def test_bits_and_their_grey_values_are_as_the_histogram_of_pixels():
    grey = torch.rand(50, 3)
    bits = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    for train in (grey, (grey > 0.3).float()):
        ones = (train.double().sum(0) + 1) / (len(train) + 2)
        expected = torch.where(bits == 1, ones, 1 - ones).log().sum(1)
        torch.testing.assert_close(IndependentColumns(train, BernoulliLikelihood).log_prob(bits), expected)


def test_counts_that_are_always_zero_have_half_a_count_more():
    x = torch.stack([torch.zeros(50), torch.arange(50.0)], 1)
    new = torch.tensor([[2.0, 3.0]])
    expected = scipy.stats.poisson.logpmf(2, 0.5 / 50.5) + scipy.stats.poisson.logpmf(3, 24.5)
    assert IndependentColumns(x, PoissonLikelihood).log_prob(new).item() == pytest.approx(expected, abs=1e-5)
    ended = IndependentColumns(torch.full((50, 1), 6.0), partial(BinomialLikelihood, total_count=6))
    p = (50 * 6 + 0.5) / (50 * 6 + 1)
    assert ended.log_prob(torch.tensor([[5.0]])).item() == pytest.approx(scipy.stats.binom.logpmf(5, 6, p), abs=1e-4)


@pytest.mark.parametrize("maker", [HurdleLogNormalLikelihood, HurdleGammaLikelihood])
def test_a_hurdle_without_zeros_gives_zeros_the_probability_of_the_rule_of_laplace(maker):
    x = torch.from_numpy(SHARES[:, :1])
    zero = IndependentColumns(x, maker).log_prob(torch.zeros(1, 1))
    assert zero.item() == pytest.approx(math.log(1 / 302), abs=1e-4)
    only_zeros = IndependentColumns(torch.zeros(20, 1), maker)
    assert only_zeros.log_prob(torch.zeros(1, 1)).item() == pytest.approx(math.log(21 / 22), abs=1e-4)
    assert only_zeros.log_prob(torch.ones(1, 1)).isfinite().all()


@pytest.mark.parametrize(
    "maker", [NormalLikelihood, LaplaceLikelihood, StudentTLikelihood, LogNormalLikelihood, GammaLikelihood]
)
def test_other_units_change_log_p_by_the_jacobian_of_the_observed_cells(maker):
    x = torch.from_numpy(SHARES if maker in (LogNormalLikelihood, GammaLikelihood) else REAL).clone()
    x[::5, 1] = math.nan
    atol = 1e-2 if maker is LaplaceLikelihood else 1e-4  # its median is an interval
    c = torch.tensor([1000.0, 1e-3], dtype=torch.float64)
    expected = IndependentColumns(x, maker).log_prob(x) - torch.where(x.isnan(), 0.0, c.log()).sum(1)
    torch.testing.assert_close(IndependentColumns(c * x, maker).log_prob(c * x), expected, atol=atol, rtol=0)
    given = IndependentColumns(c * x, maker, resolution=1e-2 * c)
    before = IndependentColumns(x, maker, resolution=1e-2)
    torch.testing.assert_close(
        given.log_prob(c * x), before.log_prob(x) - torch.where(x.isnan(), 0.0, c.log()).sum(1), atol=atol, rtol=0
    )


def test_no_scale_is_below_the_resolution():
    x = torch.tensor([[1.0, 7.0]] * 40 + [[2.0, 7.0]])
    baseline = IndependentColumns(x, NormalLikelihood, resolution=torch.tensor([1.0, 0.5]))
    expected = scipy.stats.norm.logpdf(1, 1 + 1 / 41, 1.0) + scipy.stats.norm.logpdf(7, 7, 0.5)
    assert baseline.log_prob(x[:1]).item() == pytest.approx(expected, abs=1e-5)
    gaps = IndependentColumns(x, NormalLikelihood).log_prob(torch.tensor([[1.0, math.nan]]))
    deviation = math.sqrt(40) / 41  # below the gap
    assert gaps.item() == pytest.approx(scipy.stats.norm.logpdf(1, 1 + 1 / 41, deviation), abs=1e-5)
    laplace = IndependentColumns(x[:, :1], LaplaceLikelihood).log_prob(x[:1, :1])  # its best scale is 1/41
    assert laplace.item() == pytest.approx(-math.log(2 * deviation), abs=0.01)
    constant = IndependentColumns(x[:, 1:], NormalLikelihood).log_prob(x[:1, 1:])
    assert constant.item() == pytest.approx(math.log(1e3 / math.sqrt(2 * math.pi)), abs=1e-3)


def test_case_weights_count_rows():
    x = torch.from_numpy(COUNTS).double()[:60]
    w = torch.arange(60) % 3
    weighted = IndependentColumns(x, NegativeBinomialLikelihood, weights=w.double())
    repeated = IndependentColumns(x.repeat_interleave(w, 0), NegativeBinomialLikelihood)
    torch.testing.assert_close(weighted.log_prob(x), repeated.log_prob(x), atol=1e-5, rtol=0)


class OwnScale(Likelihood):
    """A user's likelihood, whose scale is a parameter that no word names."""

    def __init__(self, network):
        super().__init__(network)
        self.log_scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, z, covariates=None):
        return dist.Normal(self.outputs(z, covariates), self.log_scale.exp()).to_event(1)


def test_parameters_of_a_users_likelihood_are_constants_of_the_columns():
    values = REAL * [1, 1e-3]
    x = torch.from_numpy(values)
    x[3, 0] = math.nan
    baseline = IndependentColumns(x, OwnScale)
    seen = values[~np.isnan(values[:, 0])]
    expected = scipy.stats.norm.logpdf(seen, np.nanmean(values, 0), np.nanstd(values, 0)).sum(1)
    np.testing.assert_allclose(baseline.log_prob(torch.from_numpy(seen)), expected, atol=1e-4)
    assert baseline.num_parameters == 4


def test_a_table_has_the_family_of_each_column():
    columns = Columns(
        (
            Column("a", "real", low=0, high=9, centre=3, spread=1, resolution=0.01),
            Column("b", "category", levels=("u", "v", "w")),
            Column("c", "count", low=0, high=9, centre=3, spread=1, resolution=1),
            Column("d", "real", low=0, high=9, centre=1e4, spread=1e3, resolution=2000.0),
        )
    )
    x = torch.from_numpy(np.stack([REAL[:, 0], COUNTS[:, 1].clip(max=1), COUNTS[:, 0], REAL[:, 1]], 1)).float()
    x[::4, 2] = math.nan
    baseline = IndependentColumns(x, partial(MixedLikelihood, columns=columns))
    parts = [
        IndependentColumns(x[:, :1], NormalLikelihood, resolution=0.01),
        IndependentColumns(x[:, 1:2], partial(CategoricalLikelihood, num_classes=3)),
        IndependentColumns(x[:, 2:3], NegativeBinomialLikelihood),
        IndependentColumns(x[:, 3:], NormalLikelihood, resolution=2000.0),
    ]
    expected = sum(part.log_prob(x[:, d : d + 1]) for d, part in enumerate(parts))
    torch.testing.assert_close(baseline.log_prob(x), expected, atol=1e-4, rtol=0)
    floored = scipy.stats.norm.logpdf(x[:, 3], x[:, 3].double().mean(), 2000.0)
    np.testing.assert_allclose(parts[3].log_prob(x[:, 3:]), floored, atol=1e-4)
    assert baseline.num_parameters == sum(part.num_parameters for part in parts)


def test_a_multinomial_has_the_shares_of_all_counts():
    x = torch.from_numpy(RNG.multinomial(12, [0.5, 0.3, 0.2, 0.0], size=40)).float()
    baseline = IndependentColumns(x, partial(MultinomialLikelihood, total_count=12))
    p = (x.sum(0).double() + 0.5) / (x.sum() + 2)
    np.testing.assert_allclose(
        baseline.log_prob(x), scipy.stats.multinomial.logpmf(x.numpy(), 12, p.numpy()), rtol=1e-8
    )
    assert baseline.log_prob(x[:1] + 1).item() == -math.inf
    with pytest.raises(ValueError, match="complete rows"):
        IndependentColumns(torch.where(x > 6, math.nan, x), partial(MultinomialLikelihood, total_count=12))


def data_for(maker):
    """Data in the support of a likelihood, with one column that is always the same."""
    kinds = {
        "Beta": SHARES,
        "Interval": SHARES,
        "ContinuousBernoulli": SHARES,
        "TruncatedNormal": SHARES,
        "ZeroOneInflatedBeta": SHARES,
        "LogNormal": SHARES,
        "Gamma": SHARES,
        "Bernoulli": TRIALS > 2,
    }
    name = maker.__name__.removesuffix("Likelihood")
    x = kinds.get(name, TRIALS if name not in ("Normal", "Laplace", "StudentT") else REAL)
    x = torch.from_numpy(np.asarray(x)).float()[:100]
    return torch.cat([x, x[:1, :1].expand(100, 1)], 1)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in room.__all__
        if name.endswith("Likelihood") and name not in ("Likelihood", "MixedLikelihood", "MultinomialLikelihood")
    ],
)
@pytest.mark.thin(7)
def test_the_fit_of_every_likelihood_is_finite_and_no_worse_than_its_start(name):
    maker = getattr(room, name)
    x = data_for(maker)
    x[1, 0] = math.nan
    arguments = maker.arguments_for(x.nan_to_num(1.0))
    baseline = IndependentColumns(x, partial(maker, **arguments))
    log_p = baseline.log_prob(x)
    assert log_p.isfinite().all()

    class Start(torch.nn.Module):
        out_features = maker.num_outputs(3, **arguments)

        def forward(self, z):
            return torch.zeros(len(z), self.out_features)

    start = maker(Start(), **arguments)
    start.set_units(room.Moments.of(x))
    fn = start(torch.zeros(100, 1)).base_dist
    values = torch.where(x.isnan(), x[:1], x)
    before = torch.where(x.isnan(), 0.0, fn.log_prob(values)).sum(1)
    assert log_p.mean() >= before.mean() - 1e-3


def test_a_column_without_an_observed_cell_keeps_the_others_as_they_are():
    x = torch.from_numpy(REAL).clone()
    x[:, 0] = math.nan
    for maker in (NormalLikelihood, ZeroInflatedNegativeBinomialLikelihood):
        data = x if maker is NormalLikelihood else torch.where(x.isnan(), x, x.abs().round())
        both = IndependentColumns(data, maker).log_prob(data)
        one = IndependentColumns(data[:, 1:], maker).log_prob(data[:, 1:])
        torch.testing.assert_close(both, one, atol=1e-5, rtol=0)


def test_grey_pixels_that_are_always_zero_have_a_proper_density():
    x = torch.zeros(30, 1)
    baseline = IndependentColumns(x, ContinuousBernoulliLikelihood)
    grid = torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None]
    mass = torch.trapezoid(baseline.log_prob(grid).exp(), grid[:, 0])
    assert mass.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("x", "likelihood", "match"),
    [
        (torch.zeros(0, 2), NormalLikelihood, "shape"),
        (torch.full((5, 1), -1.0), PoissonLikelihood, "support"),
        (torch.full((5, 1), 2.0), BernoulliLikelihood, "levels 0..1"),
        (torch.zeros(5, 1), lambda network: NormalLikelihood(network), "a class of likelihoods"),
    ],
)
def test_mistakes_are_refused(x, likelihood, match):
    with pytest.raises(ValueError, match=match):
        IndependentColumns(x, likelihood)
