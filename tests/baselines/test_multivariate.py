"""Multivariate normal, Student-t and Gaussian mixture, against SciPy, scikit-learn and direct maximisation."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import sklearn.mixture
import torch

from pyrovae.baselines import GaussianMixture, MultivariateNormal, MultivariateStudentT

KINDS = [MultivariateNormal, MultivariateStudentT, GaussianMixture]
UNITS = torch.tensor([1.0, 1000.0, 0.01], dtype=torch.float64)


def draws(num_data, df=math.inf, seed=0):
    """Draws of three columns with correlations, in different units."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(num_data, 3)) @ np.array([[1.0, 0.8, 0.0], [0.0, 1.0, -0.5], [0.0, 0.0, 1.0]])
    z = z * np.sqrt(df / rng.chisquare(df, size=(num_data, 1))) if math.isfinite(df) else z
    return torch.from_numpy(5 + z) * UNITS


def with_holes(x, share=0.3, seed=1):
    hidden = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(hidden, math.nan, x)


def test_a_normal_of_complete_rows_has_the_moments_of_the_data():
    x = draws(200)
    standard = (x / UNITS).numpy()
    reference = scipy.stats.multivariate_normal(standard.mean(0), np.cov(standard.T, bias=True))
    expected = reference.logpdf(standard) - UNITS.log().sum().item()
    np.testing.assert_allclose(MultivariateNormal(x).log_prob(x), expected, rtol=1e-8)
    assert MultivariateNormal(x).num_parameters == 9


def _log_p_by_row(x, mean, scatter, df):
    """Log p of the observed cells of each row, by SciPy, one pattern of missing cells after the other."""
    x, total = x.numpy(), np.zeros(len(x))
    for seen in np.unique(~np.isnan(x), axis=0):
        rows = (np.isnan(x) != seen).all(1)
        if seen.any():
            given = mean[seen], scatter[np.ix_(seen, seen)]
            cells = x[rows][:, seen]
            if df is None:
                total[rows] = scipy.stats.multivariate_normal.logpdf(cells, *given)
            else:
                total[rows] = scipy.stats.multivariate_t.logpdf(cells, *given, df=df)
    return total


def _by_direct_maximisation(x, df):
    """The largest mean of log p over mean, Cholesky factor and df, by SciPy's BFGS."""

    def unpack(p):
        factor = np.zeros((3, 3))
        factor[np.tril_indices(3)] = p[3:9]
        factor[np.diag_indices(3)] = np.exp(np.diag(factor))
        return p[:3], factor @ factor.T, math.exp(p[9]) if df else None

    found = scipy.optimize.minimize(lambda p: -_log_p_by_row(x, *unpack(p)).mean(), np.zeros(9 + df), method="BFGS")
    return _log_p_by_row(x, *unpack(found.x))


@pytest.mark.parametrize("has_holes", [False, True])
@pytest.mark.parametrize("kind", [MultivariateNormal, MultivariateStudentT])
def test_log_p_is_maximal_also_with_missing_cells(kind, has_holes):
    x = (draws(80, df=4.0) / UNITS - 5) if kind is MultivariateStudentT else draws(80) / UNITS - 5
    x = with_holes(x) if has_holes else x
    if has_holes:
        x[3] = math.nan
    expected = _by_direct_maximisation(x, int(kind is MultivariateStudentT))
    log_p = kind(x).log_prob(x).numpy()
    assert log_p.mean() == pytest.approx(expected.mean(), abs=1e-6)
    np.testing.assert_allclose(log_p, expected, atol=5e-3)
    if has_holes:
        assert log_p[3] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.thin(1)
def test_other_units_change_log_p_by_the_jacobian_of_the_observed_cells(kind):
    x = draws(150, df=5.0)
    x = x if kind is GaussianMixture else with_holes(x)
    c = torch.tensor([1e3, 1e-4, 7.0], dtype=torch.float64)
    expected = kind(x).log_prob(x) - torch.where(x.isnan(), 0.0, c.log()).sum(1)
    torch.testing.assert_close(kind(c * x).log_prob(c * x), expected, atol=1e-5, rtol=0)
    given = kind(c * x, resolution=0.2 * c * UNITS).log_prob(c * x)
    expected = kind(x, resolution=0.2 * UNITS).log_prob(x) - torch.where(x.isnan(), 0.0, c.log()).sum(1)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_by_its_logarithm_has_the_jacobian_of_the_logarithm(kind):
    x = draws(100)
    positive = torch.cat([(x[:, :1] / 3).exp(), x[:, 1:]], 1)
    log = torch.tensor([True, False, False])
    resolution = torch.tensor([0.0, 0.0, 0.0])
    expected = kind(torch.cat([x[:, :1] / 3, x[:, 1:]], 1), resolution=resolution).log_prob(
        torch.cat([x[:, :1] / 3, x[:, 1:]], 1)
    )
    found = kind(positive, log=log, resolution=resolution)
    torch.testing.assert_close(found.log_prob(positive), expected - x[:, 0] / 3, atol=1e-6, rtol=0)
    assert found.log_prob(-positive).tolist() == [-math.inf] * 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_density_integrates_to_one(kind):
    x = draws(60)[:, :1]
    grid = torch.linspace(-400, 400, 400001, dtype=torch.float64)[:, None]
    mass = torch.trapezoid(kind(x).log_prob(grid).exp(), grid[:, 0])
    assert mass.item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_case_weights_count_rows(kind):
    x = draws(60)
    w = torch.arange(60) % 3
    kept = {"num_starts": 1, "max_components": 1} if kind is GaussianMixture else {}
    resolution = 1e-3 * UNITS
    centred = kind(x[w > 0], weights=w[w > 0].double(), resolution=resolution, **kept)
    repeated = kind(x.repeat_interleave(w, 0), resolution=resolution, **kept)
    atol = 0.05 if kind is GaussianMixture else 1e-4  # its floor is relative to the spread, which has no weights
    torch.testing.assert_close(centred.log_prob(x), repeated.log_prob(x), atol=atol, rtol=0)


def test_no_direction_has_less_variance_than_the_resolution():
    x = draws(100)[:, :2] / UNITS[:2]
    x = torch.cat([x, x[:, :1] + x[:, 1:]], 1)  # of rank 2
    peak = MultivariateNormal(x, resolution=0.1).log_prob(x.mean(0, keepdim=True))
    covariance = np.cov(x.numpy().T, bias=True)
    values = np.linalg.eigvalsh(covariance)
    assert values[0] < 1e-12
    expected = -0.5 * (np.log(2 * np.pi * 0.01) + np.log(2 * np.pi * values[1:]).sum())
    assert peak.item() == pytest.approx(expected, abs=1e-6)


def test_few_values_do_not_make_a_density_arbitrarily_large():
    x = torch.cat([draws(200)[:, :1], (torch.arange(200) % 2)[:, None].double()], 1)
    for kind in KINDS:
        log_p = kind(x).log_prob(x)
        alone = kind(x[:, :1]).log_prob(x[:, :1])
        assert (log_p.mean() - alone.mean()) < 0  # the gap of 1 between the two values is the smallest scale


def test_a_mixture_has_the_parameters_of_scikit_learn():
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(-4, 1, size=(150, 2)), rng.normal([4, 0], [0.3, 2.0], size=(100, 2))])
    mixture = GaussianMixture(torch.from_numpy(x))
    standard = (x - x.mean(0)) / x.std(0)
    reference = sklearn.mixture.GaussianMixture(2, covariance_type="diag", reg_covar=1e-3, tol=1e-8, random_state=0)
    reference.fit(standard)
    assert (mixture.num_components, mixture.covariance, mixture.num_parameters) == (2, "diagonal", 9)
    expected = reference.score_samples(standard) - np.log(x.std(0)).sum()
    np.testing.assert_allclose(mixture.log_prob(torch.from_numpy(x)), expected, atol=1e-3)
    assert mixture.bic == pytest.approx(reference.bic(standard), abs=0.01)


def test_a_single_normal_needs_one_component():
    assert GaussianMixture(draws(300)).num_components == 1


def test_missing_cells_and_other_mistakes_are_refused():
    x = with_holes(draws(50))
    with pytest.raises(ValueError, match="complete rows"):
        GaussianMixture(x)
    with pytest.raises(ValueError, match="complete rows"):
        GaussianMixture(draws(50)).log_prob(x)
    with pytest.raises(ValueError, match="shape"):
        MultivariateNormal(x).log_prob(x[:, :2])
    with pytest.raises(ValueError, match="observed cell"):
        MultivariateNormal(torch.full((5, 2), math.nan))
    with pytest.raises(ValueError, match="positive numbers"):
        MultivariateNormal(-draws(50), log=torch.tensor([True, False, False]))


def splits(name):
    """Five splits of 80 to 20 of a data set of scikit-learn, in original units."""
    import sklearn.datasets

    options = {"scaled": False} if name == "diabetes" else {}
    x = getattr(sklearn.datasets, f"load_{name}")(**options).data
    x = np.delete(x, 1, axis=1) if name == "diabetes" else x  # sex
    for seed in range(5):
        rows = np.random.RandomState(seed).permutation(len(x))
        cut = int(0.8 * len(x))
        yield torch.from_numpy(x[rows[:cut]]), torch.from_numpy(x[rows[cut:]])


# By NumPy, SciPy and scikit-learn 1.7 (covariance_type full and diag, 1 to 8 components by BIC, reg_covar=1e-3).
RECORDED = {
    ("breast_cancer", MultivariateNormal): (28.015, 0.01),
    ("wine", MultivariateNormal): (-19.664, 0.01),
    ("diabetes", MultivariateNormal): (-27.376, 0.01),
    ("breast_cancer", MultivariateStudentT): (38.05, 0.01),
    ("wine", MultivariateStudentT): (-19.37, 0.1),
    ("diabetes", MultivariateStudentT): (-27.16, 0.01),
    ("breast_cancer", GaussianMixture): (33.674, 0.1),
    ("wine", GaussianMixture): (-19.443, 0.1),
    ("diabetes", GaussianMixture): (-26.105, 0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), RECORDED)
def test_held_out_means_are_those_recorded(name, kind):
    recorded, tolerance = RECORDED[name, kind]
    found = [kind(train).log_prob(test).mean().item() for train, test in splits(name)]
    assert np.mean(found) == pytest.approx(recorded, abs=tolerance)
