"""`VAEDensity` on arrays: exact densities, and what scikit-learn does with estimators."""

import pickle
import random
import re
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pyro
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from pyrovae import MLP, NormalLikelihood
from pyrovae.columns import Column, Columns
from pyrovae.sklearn import VAEDensity

QUICK = {"network": partial(MLP, hidden=(6,)), "epochs": 3, "num_particles": 20, "random_state": 0}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 2)) @ RNG.normal(size=(2, 4)) + 0.3 * RNG.normal(size=(80, 4)) + 5


@pytest.fixture(scope="module")
def density():
    return VAEDensity(2, **QUICK).fit(X)


def states():
    """The states of all global random generators."""
    numpy_state = np.random.get_state()
    return random.getstate(), torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2]


def normal_log_density(loc, covariance, x):
    return torch.distributions.MultivariateNormal(torch.tensor(loc), torch.tensor(covariance)).log_prob(torch.tensor(x))


def exact(density, x):
    """Log p(x) of a fitted linear-Gaussian model by its closed form, for each pattern of observed cells.

    The weights are differences of means of p(x|z), in the units of x.
    """
    with torch.no_grad():
        p = density.vae_.model.likelihood(torch.cat([torch.zeros(1, 2), torch.eye(2)]))
        mean, variance = p.mean.double().numpy(), p.variance.double().numpy()
    loc = mean[0] + [column.origin for column in density.columns_.data]
    weight = (mean[1:] - mean[0]).T
    covariance = weight @ weight.T + np.diag(variance[0])
    seen = ~np.isnan(x)
    return np.array(
        [normal_log_density(loc[m], covariance[np.ix_(m, m)], row[m]).item() for row, m in zip(x, seen, strict=True)]
    )


def test_score_samples_is_the_log_density_in_the_units_of_the_data():
    rng = np.random.default_rng(1)
    weight, unit, shift = rng.normal(size=(2, 4)), np.array([1.0, 1e3, 1e-3, 1.0]), np.array([0.0, 5e3, 0.0, 1e7])
    x = (rng.normal(size=(1000, 2)) @ weight + 0.5 * rng.normal(size=(1000, 4))) * unit + shift
    covariance = (weight.T @ weight + 0.25 * np.eye(4)) * np.outer(unit, unit)
    train, test = x[:600].copy(), x[600:700]
    train[rng.random(train.shape) < 0.1] = np.nan
    density = VAEDensity(
        2,
        likelihood={"real": partial(NormalLikelihood, scale="dimension")},
        network=partial(MLP, hidden=()),
        epochs=25,
        learning_rate=0.05,
        num_particles=500,
        random_state=0,
    ).fit(train)
    for rows in (test[:25], train[:25]):
        log_p, std_error = density.score_samples(rows, return_std=True)
        assert log_p.dtype == np.float64
        assert (np.abs(log_p - exact(density, rows)) < 5 * std_error).all()
        assert std_error.max() < 0.08
    # Eight parameters of loadings, four means and four variances from 600 rows cost about 16 / 1200 = 0.013 nats.
    truth = normal_log_density(shift, covariance, test)
    assert abs(density.score(test) - truth.mean().item()) < 0.1
    assert density.score(test) == pytest.approx(density.score_samples(test).mean())


def test_a_row_without_observed_cells_has_log_density_zero(density):
    x = X[:3].copy()
    x[1] = np.nan
    log_p, std_error = density.score_samples(x, return_std=True)
    assert (log_p[1], std_error[1]) == (0, 0)
    assert (log_p[[0, 2]] < 0).all()


def test_latents_and_rows_have_the_shapes_of_the_data(density):
    z = density.transform(X)
    assert z.shape == (80, 2)
    assert density.inverse_transform(z).shape == density.sample(80).shape == (80, 4)
    assert density.get_feature_names_out().tolist() == ["vaedensity0", "vaedensity1"]
    assert density.n_iter_ == len(density.history_) == 3
    assert [column.name for column in density.columns_] == ["x0", "x1", "x2", "x3"]


def test_the_mean_of_the_guide_is_the_latent_and_that_of_the_likelihood_the_row(density):
    z = density.transform(X[:5])
    x = torch.tensor(X[:5], dtype=torch.float32)
    with torch.no_grad():
        q = density.vae_.guide.encoder(x)
        p = density.vae_.model.likelihood(torch.tensor(z, dtype=torch.float32))
    np.testing.assert_allclose(z, q.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(density.inverse_transform(z), p.mean, rtol=1e-5)


def test_a_guide_without_a_mean_in_closed_form_has_that_of_its_draws():
    density = VAEDensity(2, encoder="FlowEncoder", **QUICK).fit(X)
    with torch.no_grad():
        draws = density.vae_.guide.encoder(torch.tensor(X[:5], dtype=torch.float32)).sample((4000,))
    error = draws.std(0).numpy() * (1 / 1000 + 1 / 4000) ** 0.5
    assert np.abs((density.transform(X[:5]) - draws.mean(0).numpy()) / error).max() < 5


def test_no_call_changes_a_global_random_state_and_equal_seeds_give_equal_bits(density):
    pyro.set_rng_seed(7)
    before = states()
    other = VAEDensity(2, **QUICK).fit(X)
    calls = (
        lambda d: d.transform(X),
        lambda d: d.score_samples(X[:20]),
        lambda d: d.sample(5),
        lambda d: d.inverse_transform(np.zeros((2, 2))),
        lambda d: d.complete(np.where(X > 5, X, np.nan)),
    )
    for call in calls:
        first = call(other)
        assert states() == before
        torch.rand(1)
        before = states()
        np.testing.assert_array_equal(first, call(density))
    VAEDensity(2, **{**QUICK, "random_state": None}).fit(X).sample(2)
    assert states() == before
    assert not np.array_equal(VAEDensity(2, **{**QUICK, "random_state": 1}).fit(X).transform(X), density.transform(X))


def test_draws_differ_by_their_random_state(density):
    assert not np.array_equal(density.sample(5), density.sample(5, random_state=1))
    generator = np.random.RandomState(0)
    assert not np.array_equal(density.sample(5, generator), density.sample(5, generator))


@pytest.mark.parametrize(
    "scaler", [StandardScaler(), pytest.param(QuantileTransformer(n_quantiles=20), marks=pytest.mark.slow)]
)
def test_a_pipeline_scores_the_scaled_data(scaler):
    pipeline = make_pipeline(scaler, VAEDensity(2, **QUICK)).fit(X)
    by_hand = pipeline[-1].score_samples(pipeline[0].transform(X[:9]))
    np.testing.assert_array_equal(pipeline.score_samples(X[:9]), by_hand)
    assert pipeline.score(X[:9]) == by_hand.mean()
    assert pipeline.transform(X).shape == (80, 2)
    assert pipeline.inverse_transform(pipeline.transform(X)).shape == X.shape


def test_cross_validation_and_a_grid_use_the_held_out_score():
    few = {**QUICK, "epochs": 1}
    scores = cross_val_score(VAEDensity(1, **few), X, cv=2)
    first = VAEDensity(1, **few).fit(X[40:]).score(X[:40])
    assert scores[0] == first
    grid = GridSearchCV(VAEDensity(**few), {"latent_dim": [1, 2]}, cv=2).fit(X)
    np.testing.assert_allclose(grid.cv_results_["mean_test_score"][0], scores.mean())
    assert grid.transform(X).shape == (80, grid.best_params_["latent_dim"])


def test_a_clone_has_the_parameters_and_not_the_fit(density):
    twin = clone(density)
    assert repr(twin.get_params()) == repr(density.get_params())
    assert not hasattr(twin, "vae_")
    np.testing.assert_array_equal(twin.fit(X).transform(X), density.transform(X))


def test_copies_from_a_pickle_keep_their_own_values(density, tmp_path):
    joblib.dump(density, tmp_path / "density.joblib")
    first, second = pickle.loads(pickle.dumps(density)), joblib.load(tmp_path / "density.joblib")
    before = density.score_samples(X[:9])
    with torch.no_grad():
        for value in first.vae_.parameters():
            value.add_(1)
    np.testing.assert_array_equal(density.score_samples(X[:9]), before)
    np.testing.assert_array_equal(second.score_samples(X[:9]), before)
    np.testing.assert_array_equal(second.sample(3), density.sample(3))
    assert not np.array_equal(first.score_samples(X[:9]), before)


def test_a_fit_leaves_the_objective_of_the_user_as_it_was():
    from pyrovae import FactorVAEELBO

    elbo = FactorVAEELBO(2)
    before = pickle.dumps(elbo.state_dict())
    VAEDensity(2, elbo=elbo, **QUICK).fit(X)
    assert pickle.dumps(elbo.state_dict()) == before


def test_all_rows_train_without_validation_rows():
    density = VAEDensity(2, validation_fraction=0, patience=1, **QUICK).fit(X)
    assert density.n_iter_ == 3
    assert density.history_["validation_elbo"] == [None] * 3
    assert density.columns_["x0"].low == X[:, 0].min()


def test_a_constant_column_is_left_out_and_given_back():
    x = np.column_stack([X, np.full(80, 7.0), np.full(80, np.nan)])
    with pytest.warns(
        UserWarning, match=r"leaves out 2 of 6 columns: 'x4' \(constant .*7\), 'x5' \(no observed value\)"
    ):
        density = VAEDensity(2, **QUICK).fit(x)
    np.testing.assert_array_equal(density.score_samples(x[:5]), VAEDensity(2, **QUICK).fit(X).score_samples(X[:5]))
    drawn = density.sample(3)
    assert (drawn[:, 4] == 7).all()
    assert np.isnan(drawn[:, 5]).all()


def test_few_values_of_an_array_are_asked_about_unless_their_kind_is_given():
    x = np.column_stack([X, RNG.integers(0, 2, 80)])
    with pytest.warns(UserWarning, match=r"columns 'x4' \(2 values\) hold few values.*columns=\{'x4': 'ordered'\}"):
        VAEDensity(2, **QUICK).fit(x)
    VAEDensity(2, columns={"x4": "real"}, **QUICK).fit(x)
    density = VAEDensity(2, columns={"x4": "binary"}, **QUICK).fit(x)
    assert set(density.sample(50)[:, 4]) == set(density.inverse_transform(RNG.normal(size=(50, 2)))[:, 4]) | {0, 1}


@pytest.mark.parametrize("likelihood", ["PoissonLikelihood", "BernoulliLikelihood"])
def test_a_likelihood_of_the_whole_row_scores_it(likelihood):
    """The likelihood has no scale: without a dependence on z, log p(x) is that of independent entries."""
    x = RNG.poisson(2.0, size=(60, 3)).astype(float)
    x = x if likelihood.startswith("P") else np.minimum(x, 1)
    density = VAEDensity(1, likelihood=likelihood, **QUICK).fit(x)
    network = density.vae_.model.likelihood.network
    with torch.no_grad():
        for value in network.parameters():
            value.zero_()
        p = density.vae_.model.likelihood(torch.zeros(1, 1))
        expected = p.log_prob(torch.tensor(x[:7], dtype=torch.float32)).numpy()
    log_p, std_error = density.set_params(num_particles=400).score_samples(x[:7], return_std=True)
    assert (np.abs(log_p - expected) < 5 * std_error).all()
    assert std_error.max() < 0.05
    x[0, 1] = np.nan
    assert np.isfinite(density.score_samples(x[:1])).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"likelihood": "NormaLikelihood"}, "likelihood 'NormaLikelihood' is unknown; did you mean 'NormalLikelihood'"),
        ({"prior": 3}, "prior must be a class, functools.partial of one, its name, or None, got int"),
        ({"likelihood": {"reel": "NormalLikelihood"}}, "likelihood names 'reel', which is no column of X and no kind"),
        ({"columns": {"x9": "real"}}, "columns names 'x9', but X has the columns x0, x1, x2, x3"),
        ({"columns": {"x1": "rela"}}, r"columns\['x1'\] must be one of real, positive"),
        ({"columns": {"x1": "count"}}, "X, column 'x1', row 1"),
        ({"columns": {"x1": "real"}, "likelihood": NormalLikelihood}, "columns needs likelihood=None or a mapping"),
        ({"columns": 3}, "columns must be kinds by name"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \[0, 1\), got 1.0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"device": "gpu"}, "device must be 'auto', 'cpu', or a GPU"),
        ({"unseen": "drop"}, "unseen must be 'refuse' or 'missing'"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
    ],
)
def test_a_wrong_parameter_is_refused_by_fit_in_one_line(parameters, message):
    with pytest.raises(ValueError, match=message) as error:
        VAEDensity(**{**QUICK, **parameters}).fit(X)
    assert "\n" not in str(error.value)


def test_columns_that_are_not_named_are_ignored():
    density = VAEDensity(1, columns=Columns((Column("x0", "real"), Column("x2", "real"))), **QUICK).fit(X)
    assert [column.name for column in density.columns_] == ["x0", "x2"]
    other = X.copy()
    other[:, [1, 3]] = np.nan
    np.testing.assert_array_equal(density.score_samples(X[:9]), density.score_samples(other[:9]))


def test_latents_of_another_width_are_refused(density):
    with pytest.raises(ValueError, match=r"X must have shape \(N, 2\), one column per latent, got \(3, 5\)"):
        density.inverse_transform(np.zeros((3, 5)))


def test_a_large_share_of_high_khats_is_told(density):
    with pytest.warns(UserWarning, match=r"k-hat is above 0.7 for 100.0 % of the data"):
        clone(density).set_params(num_particles=50)._warn_of_khat(torch.ones(5))


def test_the_library_does_not_import_the_estimator():
    package = Path(__file__).parents[2] / "pyrovae"
    for path in package.rglob("*.py"):
        found = re.search(r"^\s*(from|import) pyrovae\.sklearn", path.read_text(), flags=re.M)
        assert path.parent.name == "sklearn" or not found, path
