"""Roles of columns, splits of rows, arguments of programs, and data frames."""

import datetime
import math
import sys

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyrovae import MLP, VAE, NormalEncoder, NormalLikelihood, StandardNormalPrior, fit, log_marginal
from pyrovae.columns import Column, Columns
from pyrovae.data import read_table
from pyrovae.data.table_splits import draw_split

N = 120
RNG = np.random.default_rng(2)


def rows(**more):
    return {
        "y1": RNG.normal(3, 2, N).round(2).tolist(),
        "y2": [None if i % 7 == 0 else float(i * 37 % 101) / 4 for i in range(N)],
        "region": ["nwse"[i % 4] for i in range(N)],
        "dose": [float(i * 29 % 97) for i in range(N)],
        "weight": [0.5 + i % 3 for i in range(N)],
        "school": [f"school {i // 10}" for i in range(N)],
        "species": [None if i % 5 == 0 else "abc"[i % 3] for i in range(N)],
        **more,
    }


def test_columns_with_roles_leave_x_and_become_tensors():
    given = rows()
    table = read_table(
        given, covariates=["region", "dose"], label="species", weights="weight", group="school", split_seed=3
    )
    assert [column.name for column in table.columns.data] == ["y1", "y2"]
    assert table.x.shape == (N, 2)
    assert table.covariate_names == ("region=e", "region=n", "region=s", "region=w", "dose")
    one_hot = torch.tensor([[float(region == level) for level in "ensw"] for region in given["region"]])
    assert table.covariates[:, :4].equal(one_hot)
    dose = torch.tensor(given["dose"])
    train = dose[table.splits == 0]
    scaled = (dose - train.mean()) / train.std(unbiased=False)
    assert torch.allclose(table.covariates[:, 4], scaled, atol=1e-5)
    assert table.weights.tolist() == given["weight"]
    assert table.labels.tolist() == [-1 if one is None else "abc".index(one) for one in given["species"]]
    assert table.group.tolist() == [i // 10 for i in range(N)]


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_one_group_lie_on_one_side(seed):
    table = read_table(rows(), group="school", split_seed=seed)
    for code in range(12):
        assert len(table.splits[table.group == code].unique()) == 1
    assert table.splits.unique().tolist() == [0, 1, 2]
    assert (table.splits == 0).sum() >= 80


@pytest.mark.parametrize("sizes", [[1, 1, 1], [5, 1, 1], [1, 90, 1], [50, 50, 50, 1], [100] + [1] * 10, [3] * 40])
def test_each_split_has_a_group_if_there_are_three(sizes):
    group = np.repeat(np.arange(len(sizes)), sizes)
    for seed in range(30):
        assert set(draw_split(len(group), group, seed)) == {0, 1, 2}


def test_rows_are_split_in_tenths_by_the_seed_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    table, again, other = read_table(rows()), read_table(rows()), read_table(rows(), split_seed=1)
    assert torch.get_rng_state().equal(before)
    assert table.splits.bincount().tolist() == [96, 12, 12]
    assert table.splits.equal(again.splits)
    assert not table.splits.equal(other.splits)


def test_a_column_of_splits_is_followed():
    words = ["train"] * 100 + ["validation"] * 15 + ["test"] * 5
    table = read_table(rows(part=words), split="part")
    assert table.splits.tolist() == [0] * 100 + [1] * 15 + [2] * 5
    assert len(table.part("test")) == 5
    assert table.part("test").x.nan_to_num(-1).equal(table.x[115:].nan_to_num(-1))
    with pytest.raises(ValueError, match="column 'part', row 3 is 'Train'; write train, validation or test"):
        read_table(rows(part=["train", "train", "Train", *words[3:]]), split="part")
    with pytest.raises(ValueError, match="column 'part', row 1 is missing"):
        read_table(rows(part=[None, *words[1:]]), split="part")
    with pytest.raises(ValueError, match="has no training row"):
        read_table(rows(part=["test"] * N), split="part")
    crossed = [words[i * 7 % N] for i in range(N)]
    with pytest.raises(ValueError, match="column 'school', row 16: the rows of group 'school 1' lie in train and"):
        read_table(rows(part=crossed), split="part", group="school")


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        ({"label": "specie"}, {}, r"column 'specie' is unknown \(did you mean species\?\)"),
        ({"label": "species", "group": "species"}, {}, "column 'species' has two roles"),
        ({"label": "y1"}, {}, "column 'y1': a label needs classes, but it has"),
        (
            {"covariates": ["y2"]},
            {},
            "column 'y2', row 1 is missing, as 17 further cells; a covariate needs every cell: remove these rows",
        ),
        ({"covariates": ["c"]}, {"c": [1] * N}, "column 'c' is no covariate: constant"),
        ({"weights": "w"}, {"w": [-1.0] + [1.0] * (N - 1)}, "column 'w', row 1 is negative"),
        ({"weights": "w"}, {"w": [None] + [1.0] * (N - 1)}, "column 'w', row 1 is missing"),
        ({"weights": "w"}, {"w": ["heavy"] + [1.0] * (N - 1)}, "column 'w', row 1: 'heavy' is no number"),
        ({"weights": "w"}, {"w": [0] * N}, "column 'w': the weights of the training rows sum to 0"),
        ({"group": "g"}, {"g": [None] + ["a"] * (N - 1)}, "column 'g', row 1 is missing, but every row needs a group"),
        ({"na_values": "NA"}, {}, "must be lists of texts"),
        ({"na_values_by_column": {"y1": "NA"}}, {}, "must be lists of texts"),
        ({"na_values_by_column": {"y9": ["NA"]}}, {}, "column 'y9' is unknown"),
        ({"unseen": "ignore"}, {}, "unseen must be 'refuse' or 'missing'"),
        ({"new_data": True}, {}, "new_data needs complete columns"),
    ],
)
def test_a_wrong_role_is_refused(options, more, message):
    with pytest.raises(ValueError, match=message):
        read_table(rows(**more), **options)


def test_constant_weights_are_weights():
    assert read_table(rows(w=[1] * N), weights="w").weights.tolist() == [1] * N


def test_new_rows_are_read_by_the_columns_of_a_fit():
    table = read_table(rows(), covariates=["dose"], label="species", weights="weight", group="school")
    fresh = {"dose": [5.0, 6.0], "y2": [None, 2.5], "y1": [1000.0, None], "region": ["n", "n"], "text": ["", "x"]}
    new = read_table(fresh, columns=table.columns, new_data=True)
    assert new.columns == table.columns
    assert new.x.nan_to_num(-1).tolist() == [[1000.0, -1, 1], [-1, 2.5, 1]]
    assert new.splits.tolist() == [2, 2]
    assert (new.weights, new.labels, new.group) == (None, None, None)
    without_groups = read_table({**fresh, "school": [None, "a"]}, columns=table.columns, new_data=True)
    assert torch.equal(without_groups.x.nan_to_num(), new.x.nan_to_num())
    with pytest.raises(ValueError, match=r"has no column 'weight' \(weight\)"):
        read_table(fresh, columns=table.columns)
    assert read_table({**fresh, "weight": [2, 0.5]}, columns=table.columns, new_data=True).weights.tolist() == [2, 0.5]
    for odd, words in ((None, "row 2 is missing"), (-1, "row 2 is negative"), ("x", "row 2: 'x' is no number")):
        new = read_table({**fresh, "weight": [2, odd]}, columns=table.columns, new_data=True)
        assert new.weights is None
        assert any(words in line and "not weighted" in line for line in new.questions)


def test_columns_of_a_fit_keep_their_numbers():
    table = read_table(rows())
    other = rows()
    other["y1"] = [value * 7 for value in other["y1"]]
    assert read_table(other, columns=table.columns).columns == table.columns


def test_a_changed_word_changes_the_kind():
    table = read_table(rows(grade=[1 + i % 4 for i in range(N)]))
    assert table.columns["grade"].kind == "ordered"
    for kind in ("category", "count", "real", "positive", "drop"):
        text = table.columns.to_dict()
        text["grade"]["kind"] = kind
        changed = read_table(rows(grade=[1 + i % 4 for i in range(N)]), columns=Columns.from_dict(text))
        assert changed.columns["grade"].kind == kind
        assert changed.columns.is_complete
        assert changed.x.shape[1] == table.x.shape[1] - (kind == "drop")


def test_a_column_dropped_for_its_values_is_guessed_again_without_further_missing_values(tmp_path):
    income = [f"{1000 + 7.5 * i}" if i % 40 else "refused" for i in range(N)]
    source, file = tmp_path / "rows.csv", tmp_path / "columns.yaml"
    source.write_text("y,income\n" + "".join(f"{i * 37 % 101},{value}\n" for i, value in enumerate(income)))
    table = read_table(source)
    assert "are no numbers" in table.columns["income"].reason
    text = table.describe()
    assert text.count("kind: drop\n") == 1
    file.write_text(text.replace("kind: drop\n", "kind: drop\n  na_values: [refused]\n"))
    again = read_table(source, columns=str(file))
    assert again.columns["income"].kind == "real"
    assert again.columns["income"].na_values == ("refused",)
    assert int(again.mask[:, -1].sum()) == N - 3
    (line,) = [line for line in again.questions if line.startswith("income: it was dropped")]
    assert "but without 'refused' it is read as real -- to drop it all the same" in line
    # A column that the user drops has no reason, and one whose values are dropped all the same stays dropped.
    by_hand = Columns.from_dict({**table.columns.to_dict(), "income": {"kind": "drop", "na_values": ["refused"]}})
    assert read_table(source, columns=by_hand).columns["income"].kind == "drop"
    file.write_text(text.replace("kind: drop\n", "kind: drop\n  na_values: [absent]\n"))
    assert read_table(source, columns=str(file)).columns["income"].kind == "drop"
    # The columns of a run, with their share of missing cells, stay as they are.
    plain = table.columns.to_dict()
    plain["income"]["na_values"] = ["refused"]
    assert read_table(source, columns=Columns.from_dict(plain)).columns["income"].kind == "drop"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (Column("y1", "category"), "column 'y1': kind category has as many levels as rows, 120; write kind: drop"),
        (Column("y1", "ordered"), "column 'y1': kind ordered has as many levels as rows"),
        (Column("y1", "binary"), "column 'y1': kind binary"),
        (Column("region", "ordered"), "column 'region': kind ordered needs its levels in increasing order"),
        (Column("region", "real"), "column 'region', row 1: 'n' is no number"),
        (Column("y2", "interval"), r"column 'y2', row \d: '.*' is not in \[0, 1\]"),
        (Column("zero", "positive"), "column 'zero', row 1: '0.0' is not above 0"),
        (Column("constant", "real"), "column 'constant' has no two values in the training rows"),
    ],
)
def test_columns_that_do_not_fit_the_table_are_refused(column, message):
    given = rows(zero=[float(i) for i in range(N)], constant=[4.5] * N, y1=[i + 0.5 for i in range(N)])
    with pytest.raises(ValueError, match=message):
        read_table(given, columns=Columns((Column("dose", "real"), column)))


def test_the_arguments_are_those_of_fit_and_log_marginal():
    table = read_table(rows(), covariates=["region"], group="school")
    chosen = [column.name for column in table.columns.data if column.kind == "real"]
    table = read_table(rows(), columns=Columns(tuple(table.columns[name] for name in (*chosen, "region"))))
    dim, more = table.x.shape[1], table.covariates.shape[1]
    vae = VAE(
        prior=StandardNormalPrior(1),
        likelihood=NormalLikelihood(MLP(1 + more, dim)),
        encoder=NormalEncoder(MLP(dim + more, 2)),
    )
    torch.manual_seed(0)
    validation = table.arguments("validation")
    assert set(validation) == {"x", "mask", "covariates"}
    train = table.arguments("train")
    fit(vae.model, vae.guide, train, elbo=Trace_ELBO(), validation=validation, epochs=2)
    result = log_marginal(vae.model, vae.guide, **table.arguments("test"), num_particles=10)
    assert result.value.shape == ((table.splits == 2).sum(),)
    assert result.value.isfinite().all()


def test_complete_tables_have_no_mask():
    assert set(read_table({"a": [1.5, 2.5, 4.75] * 20, "b": ["x", "y", "y"] * 20}).arguments()) == {"x"}
    with pytest.raises(ValueError, match="has no test rows among its 3"):
        read_table({"a": [1.5, 2.5, 4.75], "b": ["x", "y", "y"]}).arguments("test")
    with pytest.raises(ValueError, match="split must be one of train, validation, test"):
        read_table({"a": [1.5, 2.5, 4.75], "b": ["x", "y", "y"]}).part("valid")


FRAME = {
    "number": [1.5 * (i * 7 % 31) if i % 6 else None for i in range(N)],
    "count": [i * 11 % 43 for i in range(N)],
    "flag": [i % 3 == 0 for i in range(N)],
    "text": ["=a" if i % 2 else "b" for i in range(N)],
    "day": [datetime.date(2020, 1, 1) + datetime.timedelta(days=i * 5 % 77) for i in range(N)],
}


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_gives_the_table_of_its_cells(library):
    frame = pytest.importorskip(library).DataFrame(FRAME)
    table, plain = read_table(frame), read_table(FRAME)
    assert table.columns == plain.columns
    assert table.x.nan_to_num(-1).equal(plain.x.nan_to_num(-1))
    assert [column.kind for column in table.columns] == ["real", "count", "binary", "binary", "real"]


def test_frames_of_pandas_with_missing_values_of_every_kind():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(FRAME)
    whole = frame.astype({"count": "Int64", "text": "string", "flag": "boolean", "number": "float32"})
    whole["day"] = pandas.to_datetime(whole["day"])
    whole.loc[4, ["count", "text", "flag", "day"]] = pandas.NA
    table = read_table(whole)
    assert table.mask[4].tolist() == [True, False, False, False, False]
    assert table.columns["number"].resolution == 1.5
    twice = pandas.concat([frame, frame], axis=1)
    with pytest.raises(ValueError, match="columns 1 and 6 have the same name 'number'"):
        read_table(twice)
    with pytest.raises(ValueError, match="column 'number', row 2 is infinite"):
        read_table(frame.assign(number=[1.0, math.inf] * (N // 2)))
    with pytest.raises(ValueError, match="column 'number', row 1 holds a list"):
        read_table(frame.assign(number=[[1]] * N))
    with pytest.raises(ValueError, match="a table must be a path, a data frame"):
        read_table(np.zeros((3, 3)))


def test_parquet_gives_the_table_of_its_frame(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "t.parquet"
    pandas.DataFrame(FRAME).to_parquet(path)
    assert read_table(path).columns == read_table(FRAME).columns
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="cannot be read as a Parquet file"):
        read_table(path)
    assert "pyarrow" in sys.modules


def test_midnights_of_a_frame_are_dates():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"day": FRAME["day"], "count": FRAME["count"]})
    table = read_table(frame)
    assert table.columns["day"].format == "date"
    again = read_table(frame.assign(day=pandas.to_datetime(frame["day"])), columns=table.columns)
    assert again.x.equal(table.x)
    hours = pandas.to_datetime(frame["day"]) + pandas.Timedelta(hours=7)
    with pytest.raises(ValueError, match="column 'day', row 1: '2020-01-01T07:00:00' is no date in ISO 8601"):
        read_table(frame.assign(day=hours), columns=table.columns)


def test_covariates_may_lie_at_the_end_of_their_range():
    """A covariate has no density."""
    cells = {"gain": [0.0, 12.5, 700.25, 31.0] * 30, "share": [0.0, 1.0, 0.25] * 40}
    wide = {
        name: [cell + i / 1000 if cell else cell for i, cell in enumerate(column)] for name, column in cells.items()
    }
    wide["share"] = [min(cell, 1.0) for cell in wide["share"]]
    table = read_table(rows(**wide), covariates=["gain", "share"])
    assert table.covariates.shape == (N, 2)
    assert table.columns["gain"].likelihood is None


@pytest.mark.parametrize(
    ("kind", "cell", "message"), [("positive", 0.0, "is not above 0"), ("interval", 1.0, "is at the end")]
)
def test_a_cell_without_a_density_needs_a_likelihood_of_its_own(kind, cell, message):
    cells = [cell, *(0.001 + i / 200 for i in range(N - 1))]
    with pytest.raises(ValueError, match=f"column 'a', row 1: '{cell}' {message}.* name another likelihood"):
        read_table(rows(a=cells), columns=Columns((Column("a", kind),)))
    assert read_table(rows(a=cells), columns=Columns((Column("a", kind, likelihood="Mine"),))).mask.all()


def test_new_rows_need_no_weights():
    rows = {"x": [0.5 + i % 13 for i in range(60)], "w": [1.0] * 60}
    columns = read_table(rows, weights="w").columns
    new = read_table({"x": [1.5, 2.5], "w": [None, None]}, columns=columns, new_data=True)
    assert new.weights is None
    assert (new.x.flatten() + columns["x"].origin).tolist() == [1.5, 2.5]
