"""Scores of disentanglement on five codes: the factors, with noise beside them, twice, rotated, and noise alone."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from pyrovae.diagnostics import beta_vae_score, dci, factor_vae_score, half_sample_error, mig, sap

SIZES = (3, 4, 5)


def made(num_data, sizes=SIZES, seed=0):
    """Return factors with these numbers of classes, and codes by name."""
    generator = np.random.default_rng(seed)
    factors = np.stack([generator.integers(size, size=num_data) for size in sizes], -1)
    z = (factors - factors.mean(0)) / factors.std(0)
    rotation, _ = np.linalg.qr(generator.normal(size=(len(sizes),) * 2))
    noise = generator.normal(size=(num_data, len(sizes)))
    return factors, {
        "factors": z,
        "more": np.concatenate([z, noise], 1),
        "twice": np.concatenate([z, z], 1),
        "rotated": z @ rotation,
        "noise": noise,
        "constant": np.zeros_like(z),
    }


FACTORS, CODES = made(600)
VOTES = {"num_votes": 150}
SCORES = {
    "mig": mig,
    "mig of bins": lambda z, v: mig(z, v, bins=20),
    "sap": sap,
    "factor_vae": lambda z, v: factor_vae_score(z, v, **VOTES),
    "beta_vae": lambda z, v: beta_vae_score(z, v, **VOTES),
}
# Lower and upper limits for factors, more, twice, rotated, noise, constant.
CHANCE = (0.2, 0.47)  # 1/3 within 3.5 standard errors of 150 votes
LIMITS = {
    "mig": [(0.97, 1.02), (0.95, 1.02), (-0.001, 0.001), (0.0, 0.6), (-0.01, 0.03), (0.0, 0.0)],
    "mig of bins": [(0.95, 1.001), (0.93, 1.001), (0.0, 0.0), (0.0, 0.6), (0.0, 0.03), (0.0, 0.0)],
    "sap": [(0.95, 1.0), (0.9, 1.0), (0.0, 0.0), (0.0, 0.6), (0.0, 0.1), (0.0, 0.0)],
    "factor_vae": [(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.5, 1.0), CHANCE, (1 / 3, 1 / 3)],
    "beta_vae": [(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.8, 1.0), CHANCE, CHANCE],
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_the_five_codes_and_of_constants(name):
    for (kind, codes), (low, high) in zip(CODES.items(), LIMITS[name], strict=True):
        found = SCORES[name](codes, FACTORS)
        assert low <= found.value <= high, kind
        assert found.table.shape == (codes.shape[1], 3)
        assert found.by_factor.shape == (3,)
        assert found.floor == (0.0 if name[:3] in ("mig", "sap") else 1 / 3)
        assert found.rescaled == pytest.approx((found.value - found.floor) / (1 - found.floor))


@pytest.mark.parametrize("name", ["mig of bins", "sap", "factor_vae", "beta_vae"])
def test_order_and_signs_of_codes_do_not_matter(name):
    codes = CODES["more"]
    changed = (codes * np.array([1, -1, 1, -1, -1, 1]))[:, ::-1]
    one, other = (SCORES[name](each, FACTORS) for each in (codes, changed))
    assert other.value == pytest.approx(one.value, abs=0.02)
    np.testing.assert_allclose(one.table, other.table[::-1], atol=0.1)


def test_mig_of_a_code_with_two_halves_is_known():
    """A code that tells only whether v is below 2 of 4 classes holds ln 2 of the entropy ln 4."""
    v = np.tile(np.arange(4), 100)
    w = np.repeat(np.arange(2), 200)
    codes = np.stack([v // 2, w], -1).astype(float)
    found = mig(codes, np.stack([v, w], -1), bins=4)
    np.testing.assert_allclose(found.by_factor, [0.5, 1.0], atol=1e-12)
    np.testing.assert_allclose(found.table, [[np.log(2), 0], [0, np.log(2)]], atol=1e-12)
    assert mig(codes, np.stack([v, w], -1)).value == pytest.approx(0.75, abs=0.03)


def test_sap_of_numbers_is_the_gap_of_squared_correlations():
    z = np.random.default_rng(2).normal(size=(400, 3))
    v = z[:, :2] + np.array([0.0, 0.7]) * z[:, 2:]
    found = sap(z, v)
    exact = np.corrcoef(z.T, v.T)[:3, 3:] ** 2
    np.testing.assert_allclose(found.table, exact, atol=1e-12)
    ordered = np.sort(exact, 0)
    assert found.value == pytest.approx((ordered[-1] - ordered[-2]).mean())


def few_trees(**options):
    return RandomForestClassifier(n_estimators=8, max_features=None, random_state=0, **options)


def test_dci_of_the_five_codes():
    for kind, limits in {
        "factors": [(0.99, 1.0), (0.99, 1.0), (1.0, 1.0)],
        "twice": [(0.99, 1.0), (0.3, 0.8), (1.0, 1.0)],
        "rotated": [(0.0, 0.7), (0.0, 0.7), (0.3, 1.0)],
        "noise": [(0.0, 0.1), (0.0, 0.1), (-0.3, 0.15)],
        "constant": [(0.0, 0.0), (0.0, 0.0), (-0.1, 0.1)],
    }.items():
        found = dci(CODES[kind], FACTORS, predictor=few_trees())
        for value, (low, high) in zip(found[:3], limits, strict=True):
            assert low <= value <= high, (kind, found[:3])
        np.testing.assert_allclose(found.importance.sum(0), 0.0 if kind == "constant" else 1.0)


def test_dci_of_numbers_and_its_entropies():
    z = np.random.default_rng(3).normal(size=(200, 2))
    found = dci(z, np.stack([z[:, 0], z[:, 0] + z[:, 1]], -1))
    shares = found.importance / found.importance.sum(1, keepdims=True)
    by_code = 1 + (shares * np.log2(shares)).sum(1)
    np.testing.assert_allclose(found.by_code, by_code, atol=1e-12)
    weights = found.importance.sum(1) / 2
    assert found.disentanglement == pytest.approx(weights @ by_code)
    assert found.skill[0] > 0.9  # R^2


@pytest.mark.slow
def test_scores_of_many_classes():
    """The rows of a table of 4,000 data with factors of 3, 6, 40, 32 and 32 values."""
    factors, codes = made(4000, (3, 6, 40, 32, 32))
    # 20 bins of equal width: ln 20 of ln 40 nats at most for the third factor.
    assert mig(codes["factors"], factors, bins=20).value == pytest.approx(0.885, abs=0.003)
    assert mig(codes["factors"], factors).value > 0.99
    assert abs(mig(codes["noise"], factors).value) < 0.01
    assert sap(codes["factors"], factors).value > 0.98
    assert factor_vae_score(codes["noise"], factors).value == pytest.approx(0.2, abs=0.05)
    rotated = factor_vae_score(codes["rotated"], factors).value, beta_vae_score(codes["rotated"], factors).value
    assert 0.6 < rotated[0] < 0.9 < rotated[1]
    factors, codes = made(500, (3, 6, 4, 5, 5))
    values = {name: dci(codes[name], factors) for name in ("factors", "more", "twice", "rotated", "noise")}
    assert values["factors"].disentanglement == pytest.approx(1.0, abs=0.005)
    assert values["more"].disentanglement == pytest.approx(1.0, abs=0.01)
    assert values["twice"].disentanglement == pytest.approx(1.0, abs=0.005)
    assert values["twice"].completeness == pytest.approx(0.70, abs=0.05)
    assert values["rotated"].disentanglement < 0.6
    assert values["noise"].disentanglement < 0.03
    assert abs(values["noise"].informativeness) < 0.05


def test_half_samples_give_the_error_of_a_mean():
    """Of the mean of N numbers, the error is sd / sqrt N."""
    codes = np.random.default_rng(1).normal(size=(400, 2))
    found = half_sample_error(lambda z, v: float(z[:, 0].mean()), codes, codes, num_halves=400)
    assert found == pytest.approx(codes[:, 0].std() / 20, rel=0.15)


def test_dropped_codes_count_by_the_variance_of_the_prior():
    codes = 0.01 * CODES["factors"]
    assert factor_vae_score(codes, FACTORS, **VOTES).value == 1 / 3
    assert factor_vae_score(codes, FACTORS, prior_variance=1e-4, **VOTES).value == 1.0


@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (np.zeros((5, 2)), np.arange(5)[:, None] % 2, "at least two codes and two factors, got 2 and 1"),
        (np.zeros((5, 1)), np.ones((5, 2), int), "got 1 and 2"),
        (np.zeros((5, 2)), np.ones((4, 2), int), r"got \(5, 2\) and \(4, 2\)"),
        (np.zeros((4, 2)), np.array([[0, 1]] * 4), "factor 0 has one value, 0; leave it out"),
        (np.full((4, 2), np.nan), np.array([[0, 1], [1, 0]] * 2), "must be finite"),
        (np.zeros((4, 2)), np.array([[0.5, 1], [1, 0]] * 2), "needs factors of classes, integers, got float64"),
    ],
)
def test_other_arrays_are_refused(codes, factors, message):
    for score in (mig, factor_vae_score, beta_vae_score):
        with pytest.raises(ValueError, match=message):
            score(codes, factors)


def test_numbers_of_bins_halves_and_repeats_are_checked():
    with pytest.raises(ValueError, match="bins must be at least 2"):
        mig(CODES["noise"], FACTORS, bins=1)
    with pytest.raises(ValueError, match="num_halves must be at least 2"):
        half_sample_error(lambda z, v: 0.0, CODES["noise"], FACTORS, num_halves=1)
    unique = np.stack([np.arange(4), np.arange(4)], -1)
    with pytest.raises(ValueError, match="no value of factor 0 occurs twice"):
        factor_vae_score(np.eye(4), unique)
