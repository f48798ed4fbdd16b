"""Imputations of mixed columns against sums over a grid of the latent, with the formulas of scipy."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit, softmax

from pyrovae.distributions import (
    ByColumn,
    FloatCategorical,
    Hurdle,
    LogNormal,
    LogPoisson,
    OrderedLogistic,
    RoundedNormal,
    StudentT,
)
from pyrovae.evidence import impute

CUTS = np.array([-1.0, 0.2, 1.0])
GRID = np.linspace(-8, 8, 8001)
REAL, BINARY, CATEGORY, ORDERED, POSITIVE, HEAVY, HURDLE, ROUNDED, COUNT = range(9)
D = 9


def entries(z):
    """One part per column, at latents z of shape (..., 1)."""
    logits = torch.stack([z, 0.3 + 0 * z, -z], -1)
    return ByColumn(
        [
            dist.Normal(z, 0.5),
            dist.Bernoulli(logits=2 * z - 0.5),
            FloatCategorical(logits=logits),
            OrderedLogistic(1.5 * z, torch.tensor(CUTS)),
            LogNormal(0.8 * z, 0.4),
            StudentT(0.9, 3 * z, 0.5),
            Hurdle(LogNormal(0.5 * z, 0.3), 0.4 - z),
            RoundedNormal(2 * z, 0.7, 0.5),
            LogPoisson(1 + 0.5 * z),
        ],
        list(torch.arange(D).unsqueeze(-1)),
    )


def model(x, mask):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        p = entries(z)
        x = torch.where(mask, x, p.sample())
        pyro.sample("x", p.mask(mask).to_event(1), obs=x)


def guide(x, mask):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_full((1,), 0.5), 1.0).to_event(1))


def levels(column, z=GRID):
    """Probabilities of the levels of a column, with shape (L, grid)."""
    if column == BINARY:
        return np.stack([expit(0.5 - 2 * z), expit(2 * z - 0.5)])
    if column == CATEGORY:
        return softmax(np.stack([z, 0.3 + 0 * z, -z]), 0)
    below = np.vstack([0 * z, expit(CUTS[:, None] - 1.5 * z), 1 + 0 * z])
    return np.diff(below, axis=0)


def density(column, x, z=GRID):
    """p(x | z) on the grid."""
    if column in (BINARY, CATEGORY, ORDERED):
        return levels(column, z)[int(x)]
    if column == HURDLE:
        return expit(0.4 - z) if x == 0 else expit(z - 0.4) * stats.lognorm.pdf(x, 0.3, scale=np.exp(0.5 * z))
    if column == ROUNDED:
        return stats.norm.cdf(x + 0.25, 2 * z, 0.7) - stats.norm.cdf(x - 0.25, 2 * z, 0.7)
    if column == COUNT:
        return stats.poisson.pmf(x, np.exp(1 + 0.5 * z))
    return {
        REAL: lambda: stats.norm.pdf(x, z, 0.5),
        POSITIVE: lambda: stats.lognorm.pdf(x, 0.4, scale=np.exp(0.8 * z)),
        HEAVY: lambda: stats.t.pdf(x, 0.9, 3 * z, 0.5),
    }[column]()


def cdf(column, x, z=GRID):
    if column in (BINARY, CATEGORY, ORDERED):
        return levels(column, z)[: int(x) + 1].sum(0)
    if column == HURDLE:
        return (x >= 0) * (expit(0.4 - z) + expit(z - 0.4) * stats.lognorm.cdf(x, 0.3, scale=np.exp(0.5 * z)))
    if column == ROUNDED:
        return stats.norm.cdf(x + 0.25, 2 * z, 0.7)  # for x on the grid of halves
    if column == COUNT:
        return stats.poisson.cdf(x, np.exp(1 + 0.5 * z))
    return {
        REAL: lambda: stats.norm.cdf(x, z, 0.5),
        POSITIVE: lambda: stats.lognorm.cdf(x, 0.4, scale=np.exp(0.8 * z)),
        HEAVY: lambda: stats.t.cdf(x, 0.9, 3 * z, 0.5),
    }[column]()


MEANS = {
    REAL: GRID,
    BINARY: expit(2 * GRID - 0.5),
    ORDERED: np.arange(4) @ levels(ORDERED),
    POSITIVE: np.exp(0.8 * GRID + 0.08),
    HURDLE: expit(GRID - 0.4) * np.exp(0.5 * GRID + 0.045),
    ROUNDED: sum(x * density(ROUNDED, x) for x in np.arange(-40, 41) / 2),
    COUNT: np.exp(1 + 0.5 * GRID),
}


def posterior(x, mask):
    """Weights of the grid given the observed entries of one row, and log p(x_obs)."""
    p = stats.norm.pdf(GRID)
    for column in np.flatnonzero(mask):
        p = p * density(column, x[column])
    total = np.trapezoid(p, GRID)
    return p / p.sum(), np.log(total)


def median(column, weight):
    if column in (BINARY, CATEGORY, ORDERED, COUNT):
        values = np.arange(200) if column == COUNT else np.arange(len(levels(column)))
    elif column == ROUNDED:
        values = np.arange(-40, 41) / 2
    else:
        if column == HURDLE and weight @ cdf(column, 0) >= 0.5:
            return 0.0
        return brentq(lambda x: weight @ cdf(column, x) - 0.5, -50 if column in (REAL, HEAVY) else 1e-9, 50)
    return next(x for x in values if weight @ cdf(column, x) >= 0.5)


@pytest.fixture(scope="module")
def data():
    pyro.set_rng_seed(3)
    z = torch.linspace(-1.6, 1.6, 12).double().unsqueeze(-1)
    x = entries(z).sample()
    mask = torch.rand(x.shape) < 0.5
    mask[0] = False
    mask[1] = torch.arange(D) == ORDERED
    mask[2] = torch.arange(D) == CATEGORY
    return x, mask, [posterior(x[n].numpy(), mask[n].numpy()) for n in range(len(x))]


def run(data, centre, **options):
    x, mask, _ = data
    pyro.set_rng_seed(4)
    return impute(model, guide, torch.where(mask, x, torch.nan), mask=mask, centre=centre, **options)


def missing(data, *columns):
    _, mask, posteriors = data
    return [(n, d, posteriors[n][0]) for n in range(len(mask)) for d in columns if not mask[n, d]]


def test_each_column_has_the_centre_that_suits_it(data):
    x, mask, posteriors = data
    with pytest.warns(UserWarning, match="mean of column 5 does not exist or overflows"):
        found = run(data, "auto", num_particles=4000, num_draws=0)
    assert found.centre == ("mean", "mode", "mode", "median", "mean", "median", "mean", "mean", "mean")
    assert found.without_mean == (HEAVY,)
    log_p = torch.tensor([log_p for _, log_p in posteriors])
    assert bool(((found.log_marginal.value - log_p).abs() < 5 * found.log_marginal.std_error + 1e-6).all())
    assert found.log_marginal.value[0] == 0
    assert bool((found.value[mask] == x[mask]).all())
    errors = [
        ((found.value[n, d] - weight @ MEANS[d]) / found.std_error[n, d]).item()
        for n, d, weight in missing(data, REAL, POSITIVE, HURDLE, ROUNDED, COUNT)
    ]
    assert len(errors) > 25
    assert max(map(abs, errors)) < 4.5
    assert 0.6 < np.std(errors) < 1.5
    for n, d, weight in missing(data, BINARY, CATEGORY):
        exact = levels(d) @ weight
        assert abs(found.probability[n, d] - exact[int(found.value[n, d])]) < 0.03
        assert exact.max() - exact[int(found.value[n, d])] < 0.03
    others = [REAL, POSITIVE, HEAVY, HURDLE, ROUNDED, COUNT]
    assert bool(found.probability[:, others].isnan().all())
    assert bool(found.std_error[:, [BINARY, CATEGORY, ORDERED]][~mask[:, [BINARY, CATEGORY, ORDERED]]].isnan().all())
    assert bool((found.std_error[mask] == 0).all())


def test_medians_are_those_of_the_mixture(data):
    found = run(data, "median", num_particles=4000, num_draws=0)
    assert found.centre == ("median", "median", "mode", *["median"] * 6)
    assert not found.without_mean
    for n, d, weight in missing(data, REAL, BINARY, ORDERED, POSITIVE, HEAVY, HURDLE, ROUNDED, COUNT):
        below, at_most = (weight @ cdf(d, found.value[n, d].item() + shift) for shift in (-1e-4, 0.0))
        if d in (BINARY, ORDERED, COUNT, ROUNDED):
            below = weight @ cdf(d, found.value[n, d].item() - (0.5 if d == ROUNDED else 1.0)) if below else 0.0
            below = 0.0 if d != ROUNDED and found.value[n, d] == 0 else below
        assert below < 0.53, (n, d)
        assert at_most > 0.47, (n, d)
        if d in (REAL, POSITIVE, HEAVY):
            assert abs(found.value[n, d] - median(d, weight)) < 0.12 * max(1, abs(median(d, weight))), (n, d)
    zero = [found.value[n, HURDLE] for n, _, weight in missing(data, HURDLE) if weight @ cdf(HURDLE, 0) > 0.53]
    assert zero
    assert not any(zero)


def test_medians_have_an_error_or_a_probability(data):
    found = run(data, "median", num_particles=4000, num_draws=0)
    errors = []
    for n, d, weight in missing(data, REAL, BINARY, ORDERED, POSITIVE, HEAVY, HURDLE, ROUNDED, COUNT):
        value, error, probability = (part[n, d].item() for part in (found.value, found.std_error, found.probability))
        if d in (BINARY, ORDERED, ROUNDED, COUNT) or value == 0:
            assert abs(probability - weight @ density(d, value)) < 0.03, (n, d)
            assert np.isnan(error), (n, d)
        else:
            assert np.isnan(probability), (n, d)
            errors.append((value - median(d, weight)) / error)
    assert len(errors) > 20
    assert max(map(abs, errors)) < 4.5
    assert 0.6 < np.std(errors) < 1.5


def test_modes_of_ordered_levels_and_probabilities_of_binary_columns_on_request(data):
    found = run(data, ["mean", "mean", "auto", "mode", "median", "median", "mean", "mean", "mean"], num_draws=0)
    assert found.centre == ("mean", "mean", "mode", "mode", "median", "median", "mean", "mean", "mean")
    for n, d, weight in missing(data, BINARY):
        assert abs(found.value[n, d] - weight @ MEANS[d]) < 5 * found.std_error[n, d]
    for n, d, weight in missing(data, ORDERED):
        exact = levels(d) @ weight
        assert exact.max() - exact[int(found.value[n, d])] < 0.06


def test_a_column_has_one_centre_in_all_blocks(data):
    """Only the last row has the heavy tail, so that its block alone finds no mean."""
    x, _, _ = data

    def sometimes_heavy(x, mask, heavy):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            p = StudentT(torch.where(heavy, 0.5, 5.0).unsqueeze(-1), z.exp(), 0.1)
            pyro.sample("x", p.mask(mask).to_event(1), obs=torch.where(mask, x, 0.0))

    def its_guide(x, mask, heavy):
        guide(x, mask)

    heavy, x, done = torch.arange(len(x)) == len(x) - 1, x[:, :1], list[int]()
    options = {"mask": torch.zeros_like(x).bool(), "heavy": heavy, "chunk_size": 2000, "num_draws": 0}
    with pytest.warns(UserWarning, match="mean of column 0 does not exist"):
        found = impute(sometimes_heavy, its_guide, x, **options, on_progress=done.append)
    assert done == [2] * 6  # the second pass, for medians, is not counted again
    assert found.centre == ("median",)
    assert found.without_mean == (0,)
    assert bool((found.value - 1).abs().max() < 0.25)  # the means are 1.65


def test_draws_have_the_distribution_of_the_mixture(data):
    found = run(data, "median", num_particles=4000, num_draws=3000)
    assert bool(entries(torch.zeros(1, 1)).support.check(found.draws).all())
    for n, d, weight in missing(data, *range(D)):
        drawn = found.draws[:, n, d].numpy()
        for x in np.quantile(drawn, [0.25, 0.75], method="inverted_cdf"):
            assert abs((drawn <= x).mean() - weight @ cdf(d, x)) < 0.05, (n, d)


def test_centres_that_columns_lack_are_refused(data):
    with pytest.raises(ValueError, match=r"column 2 \(FloatCategorical\) has no mean; use mode"):
        run(data, ["mean"] * D, num_particles=20)
    with pytest.raises(ValueError, match=r"column 0 \(Normal\) has no mode; use mean or median"):
        run(data, ["mode"] * D, num_particles=20)
    with pytest.raises(ValueError, match=r"centre must be .* for each of the 9 columns, got 'average'"):
        run(data, "average", num_particles=20)
