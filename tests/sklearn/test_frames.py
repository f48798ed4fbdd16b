"""`VAEDensity` on frames with mixed columns and missing cells."""

from functools import partial

import numpy as np
import pandas
import pytest
import torch
from sklearn.model_selection import cross_val_score

from pyrovae import MLP, StudentTLikelihood
from pyrovae.columns import Column, Columns
from pyrovae.sklearn import VAEDensity

QUICK = {"network": partial(MLP, hidden=(6,)), "epochs": 3, "num_particles": 20, "random_state": 0}
RNG = np.random.default_rng(0)
N = 90


def mixed():
    region = RNG.integers(0, 3, N)
    frame = pandas.DataFrame(
        {
            "age": (40 + 8 * region + 5 * RNG.normal(size=N)).round(1),
            "sex": pandas.Categorical(np.where(RNG.random(N) < 0.5, "F", "M"), categories=["M", "F"]),
            "region": np.array(["north", "south", "west"])[region],
            "visits": RNG.poisson(3 + 4 * region),
            "smokes": RNG.random(N) < 0.3,
            "born": pandas.Timestamp("1980-01-01") + pandas.to_timedelta(RNG.integers(0, 5000, N), unit="D"),
        }
    )
    frame.loc[3:8, "age"] = np.nan
    frame.loc[5:15, "region"] = None
    return frame


FRAME = mixed()


@pytest.fixture(scope="module")
def density():
    return VAEDensity(2, **QUICK).fit(FRAME)


def test_the_table_decides_the_likelihood(density):
    kinds = {column.name: column.kind for column in density.columns_}
    assert kinds == {
        "age": "real",
        "sex": "binary",
        "region": "category",
        "visits": "count",
        "smokes": "binary",
        "born": "real",
    }
    assert density.feature_names_in_.tolist() == list(FRAME)
    assert np.isfinite(density.score_samples(FRAME)).all()
    assert np.isfinite(cross_val_score(density, FRAME, cv=2)).all()


def test_draws_have_the_columns_types_and_values_of_the_frame(density):
    drawn = density.sample(200)
    assert list(drawn) == list(FRAME)
    assert drawn.dtypes.tolist() == FRAME.dtypes.tolist()
    assert set(drawn["region"]) <= {"north", "south", "west"}
    assert np.isfinite(density.score_samples(drawn)).all()


def test_rows_of_latents_have_the_most_probable_levels(density):
    z = 3 * RNG.normal(size=(20, 2))
    rows = density.inverse_transform(z)
    with torch.no_grad():
        p = density.vae_.model.likelihood(torch.tensor(z, dtype=torch.float32))
        draws = p.sample((3000,))
    for place, column in enumerate(density.columns_.data):
        if column.levels:
            codes = [column.levels.index(str(value)) for value in rows[column.name]]
            shares = (draws[..., place] == torch.tensor(codes)).double().mean(0)
            others = torch.stack(
                [(draws[..., place] == code).double().mean(0) for code in range(len(column.levels))]
            ).amax(0)
            assert (others - shares).max() < 0.06  # 4.6 standard errors of a difference of shares
    ages = draws[..., 0].double()
    error = ages.std(0) / 3000**0.5
    assert ((ages.mean(0) - torch.tensor(rows["age"].to_numpy())).abs() < 5 * error).all()


def test_complete_fills_missing_cells_and_keeps_the_others(density):
    filled = density.complete(FRAME)
    assert not filled.isna().any(axis=None)
    seen = FRAME.notna()
    for name in FRAME:
        assert (filled[name][seen[name]] == FRAME[name][seen[name]]).all()
    assert set(filled["region"]) <= {"north", "south", "west"}


def test_a_level_of_new_rows_that_the_training_rows_do_not_have(density):
    rows = FRAME.head(4).assign(region="abroad")
    with pytest.raises(ValueError, match="column 'region', row 1: the level 'abroad' is none of"):
        density.score_samples(rows)
    lenient = VAEDensity(2, unseen="missing", **QUICK).fit(FRAME)
    with pytest.warns(UserWarning, match="4 cells of X in columns 'region' have levels") as told:
        found = lenient.score_samples(rows)
    assert told[0].filename == __file__
    np.testing.assert_array_equal(found, density.score_samples(rows.assign(region=None)))


def test_identifiers_and_constants_are_left_out_with_a_warning(density):
    frame = FRAME.assign(id=[f"p{row}" for row in range(N)], wave=2)
    with pytest.warns(UserWarning, match=r"leaves out 2 of 8 columns: 'id' \(90 levels .*, 'wave' \(constant"):
        other = VAEDensity(2, **QUICK).fit(frame)
    np.testing.assert_array_equal(other.score_samples(frame), density.score_samples(FRAME))
    drawn = other.sample(3)
    assert (drawn["wave"] == 2).all()
    assert drawn["id"].isna().all()
    assert np.isfinite(other.score_samples(drawn)).all()


@pytest.mark.slow
def test_identifiers_and_constants_that_the_user_drops_cause_no_warning(density):
    frame = FRAME.assign(id=[f"p{row}" for row in range(N)], wave=2)
    chosen = VAEDensity(2, columns={"id": "drop", "wave": "drop"}, **QUICK).fit(frame)  # no warning
    np.testing.assert_array_equal(chosen.score_samples(frame), density.score_samples(FRAME))


def test_kinds_and_likelihoods_are_given_by_name():
    density = VAEDensity(
        2,
        columns={"visits": "ordered", "age": "positive"},
        likelihood={"real": StudentTLikelihood, "age": "GammaLikelihood"},
        **QUICK,
    ).fit(FRAME)
    found = {column.name: (column.kind, column.likelihood_name) for column in density.columns_}
    assert found["visits"] == ("ordered", "OrderedLogisticLikelihood")
    assert found["age"] == ("positive", "GammaLikelihood")
    assert found["born"] == ("real", "StudentTLikelihood")
    parts = {type(part).__name__ for part in density.vae_.model.likelihood.parts}
    assert {"GammaLikelihood", "StudentTLikelihood", "OrderedLogisticLikelihood"} <= parts


def test_columns_are_given_whole_or_by_a_file(tmp_path):
    columns = Columns((Column("age", "real"), Column("region", "category"), Column("sex", "drop")))
    (tmp_path / "columns.yaml").write_text("age:\n  kind: real\nregion:\n  kind: category\nsex:\n  kind: drop\n")
    first = VAEDensity(2, columns=columns, **QUICK).fit(FRAME)
    second = VAEDensity(2, columns=tmp_path / "columns.yaml", **QUICK).fit(FRAME)
    assert [column.name for column in first.columns_.data] == ["age", "region"]
    np.testing.assert_array_equal(first.score_samples(FRAME), second.score_samples(FRAME))
    with pytest.raises(ValueError, match="column 'region' has the role covariate; give it the role data or drop"):
        VAEDensity(2, columns=columns.replace("region", role="covariate"), **QUICK).fit(FRAME)


def test_a_frame_of_numbers_agrees_with_the_array_it_holds():
    x = RNG.normal(size=(60, 3)) @ RNG.normal(size=(3, 3))
    frame = pandas.DataFrame(x, columns=["a", "b", "c"])
    of_frame, of_array = VAEDensity(1, **QUICK).fit(frame), VAEDensity(1, **QUICK).fit(x)
    np.testing.assert_array_equal(of_frame.score_samples(frame), of_array.score_samples(x))
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        np.testing.assert_array_equal(of_frame.score_samples(x), of_array.score_samples(x))
    with pytest.warns(UserWarning, match="X has feature names"):
        np.testing.assert_array_equal(of_array.score_samples(frame), of_frame.score_samples(frame))
    with pytest.raises(ValueError, match="feature names should match"):
        of_frame.score_samples(frame.rename(columns={"a": "d"}))
    numbered = VAEDensity(1, **QUICK).fit(pandas.DataFrame(x))
    assert not hasattr(numbered, "feature_names_in_")
    assert list(numbered.sample(2)) == [0, 1, 2]
    np.testing.assert_array_equal(numbered.transform(pandas.DataFrame(x)), of_array.transform(x))


def test_the_output_of_transform_is_a_frame_if_asked():
    density = VAEDensity(2, **QUICK).set_output(transform="pandas").fit(FRAME)
    latents = density.transform(FRAME)
    assert list(latents) == ["vaedensity0", "vaedensity1"]
    assert density.inverse_transform(latents).shape == FRAME.shape


def test_an_infinite_cell_is_refused():
    frame = FRAME.assign(age=FRAME["age"].replace(FRAME["age"][0], np.inf))
    with pytest.raises(ValueError, match="column 'age', row 1 is infinite"):
        VAEDensity(2, **QUICK).fit(frame)


def test_a_frame_of_polars_gives_frames_of_polars(density):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(
        {name: [None if value is None or value != value else value for value in FRAME[name]] for name in FRAME}
    )
    found = VAEDensity(2, **QUICK).fit(frame)
    assert [column.kind for column in found.columns_] == [column.kind for column in density.columns_]
    drawn = found.sample(5)
    assert isinstance(drawn, polars.DataFrame)
    assert np.isfinite(found.score_samples(drawn)).all()
