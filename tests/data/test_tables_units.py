"""Numbers of the training rows alone, digits that float32 would lose, and values back in original units."""

import csv
import math

import numpy as np
import pytest
import torch

from pyrovae.columns import Column, Columns, grid_of
from pyrovae.data import read_columns, read_table, write_csv

N = 100
RNG = np.random.default_rng(1)


def mixed():
    return {
        "age": RNG.normal(40, 9, N).round(1).tolist(),
        "income": np.exp(RNG.normal(8, 1, N)).round(2).tolist(),
        "share": RNG.uniform(0.1, 0.9, N).round(3).tolist(),
        "visits": RNG.poisson(6, N).tolist(),
        "sex": [None if i % 9 == 0 else "FM"[i % 2] for i in range(N)],
        "region": [f"r{i % 3}" for i in range(N)],
        "grade": [1 + i % 4 for i in range(N)],
        "day": [str(np.datetime64("2019-03-01") + np.timedelta64(int(d), "D")) for d in RNG.integers(0, 700, N)],
        "text": [f"t{i}" for i in range(N)],
    }


def lists(frame):
    """A frame of pandas, or a mapping, as lists with None for missing cells."""
    cells = {name: list(frame[name]) for name in frame}
    return {name: [None if cell is None or cell != cell else cell for cell in column] for name, column in cells.items()}


@pytest.mark.parametrize("name", ["age", "income", "share", "visits", "sex", "region", "grade", "day"])
@pytest.mark.parametrize("split", [1, 2])
def test_a_validation_or_test_row_changes_no_number(name, split):
    rows = mixed()
    table = read_table(rows)
    row = int((table.splits == split).nonzero()[0])
    new = {"age": 999.75, "income": 10.0**7, "share": 0.9999, "visits": 4000, "day": "2000-01-01"}
    for cell in (new.get(name, rows[name][row - 1]), None):
        changed = {key: list(cells) for key, cells in rows.items()}
        changed[name][row] = cell
        assert read_table(changed).columns.to_dict() == table.columns.to_dict()


def test_the_numbers_are_those_of_the_observed_training_cells():
    rows = mixed()
    rows["age"][:30] = [None] * 30
    table = read_table(rows)
    train = (table.splits == 0).numpy()
    x = np.array([math.nan if cell is None else cell for cell in rows["age"]])[train]
    observed = x[~np.isnan(x)]
    column = table.columns["age"]
    assert (column.low, column.high) == (observed.min(), observed.max())
    assert column.centre == pytest.approx(observed.mean())
    assert column.spread == pytest.approx(observed.std())
    assert column.missing == np.isnan(x).mean()
    assert column.resolution == 0.1
    assert table.columns["income"].resolution == pytest.approx(
        round(np.diff(np.unique(np.array(rows["income"])[train])).min(), 2)
    )


def test_the_resolution_has_no_rounding_errors():
    cells = [0.1 + 0.2, 0.3, *(0.1 * i for i in range(20))]  # the first two differ by 5.6e-17
    table = read_table({"a": cells}, columns=Columns((Column("a", "real"),)))
    assert table.columns["a"].resolution == 0.1


@pytest.mark.parametrize("first", [1.7e9, 4_015_550_123.25, -9.9e9])
def test_large_numbers_keep_their_digits(first):
    cells = [first + 0.25 * i for i in RNG.permutation(N)]
    table = read_table({"a": cells, "b": RNG.normal(0, 1, N).tolist()})
    column = table.columns["a"]
    assert column.origin != 0
    assert len(np.unique(np.float32(cells))) < 5
    assert (table.x[:, 0].double() + column.origin).tolist() == cells
    assert column.resolution == 0.25
    assert lists(table.to_frame())["a"] == cells
    assert column.centre == pytest.approx(np.mean([cells[i] - column.origin for i in (table.splits == 0).nonzero()]))


def test_amounts_far_from_zero_keep_their_cents_and_show_their_range():
    cents = np.round(1e9 + 3000 * RNG.normal(size=N), 2)
    cents[1] = cents[0] + 0.01
    rows = {"amount": cents.tolist(), "other": RNG.normal(size=N).tolist(), "s": ["train"] * N}
    table = read_table(rows, split="s")
    column = table.columns["amount"]
    assert column.resolution == column.grid == 0.01
    assert f"{cents.min():,.2f} .. {cents.max():,.2f}" in str(table.columns)
    draws = list(table.to_frame(table.x + 0.125)["amount"])
    assert all(repr(value) == f"{value:.15g}" or f"{value:.15g}" == f"{value:.1f}".rstrip("0") for value in draws)
    assert np.abs(np.array(draws) - cents - 0.125).max() < 1e-3


@pytest.mark.parametrize(
    ("values", "grid"),
    [
        ([3, 7, 12, 18, 25], 1.0),
        ([0.07, 0.21, 1.44, 3.5, 4.9], 0.01),
        ([150, 165, 170, 185, 195], 5.0),
        ([2.5, 7.5, 12.5, 10.0], 2.5),
        ([1e-4, 3e-4, 5e-4], 1e-4),
        ([math.pi, math.e, 2**0.5], None),
        ([1e9, 1.0, 2e9], None),  # float32 does not tell the multiples of 1 apart
    ],
)
def test_the_grid_is_the_largest_usual_step_of_all_values(values, grid):
    assert grid_of(torch.tensor(values, dtype=torch.float64)) == grid
    assert grid_of(-torch.tensor(values, dtype=torch.float64)) == grid


def test_a_resolution_that_is_given_is_the_grid():
    columns = Columns((Column("a", "real", resolution=0.5), Column("b", "real")))
    table = read_table({"a": (np.arange(N) * 1.0).tolist(), "b": RNG.normal(size=N).tolist()}, columns=columns)
    assert (table.columns["a"].resolution, table.columns["a"].grid) == (0.5, 0.5)
    assert table.columns["b"].grid is None


def test_truths_return_as_truths_not_texts():
    rows = {"flag": [None if i % 9 == 4 else i % 3 == 0 for i in range(N)], "a": RNG.normal(size=N).tolist()}
    table = read_table(rows)
    assert table.columns["flag"].levels == ("False", "True")
    assert lists(table.to_frame())["flag"] == rows["flag"]


def test_dates_are_days_with_an_origin_and_return_as_dates():
    days = mixed()["day"]
    table = read_table({"day": days, "b": RNG.normal(0, 1, N).tolist()})
    column = table.columns["day"]
    ordinals = np.array(days, dtype="datetime64[D]").astype(float)  # since 1970-01-01
    assert table.x[:, 0].tolist() == (ordinals - column.origin).tolist()
    assert lists(table.to_frame())["day"] == days
    assert column.format == "date"
    draws = table.x.clone()
    draws[:, 0] += 0.4
    assert lists(table.to_frame(draws))["day"] == days


def test_times_in_zones_return_in_utc():
    times = [f"2021-03-01T{i % 24:02d}:{i % 60:02d}:30+02:00" for i in range(N)]
    table = read_table({"t": times, "b": RNG.normal(0, 1, N).tolist()})
    back = lists(table.to_frame())["t"]
    assert table.columns["t"].format == "datetime utc"
    from datetime import datetime

    assert [datetime.fromisoformat(one) for one in back] == [datetime.fromisoformat(one) for one in times]


def test_cells_return_as_they_were():
    rows = mixed()
    table = read_table(rows)
    assert lists(table.to_frame()) == {name: cells for name, cells in rows.items() if name != "text"}


def test_draws_return_in_original_units_and_long_form():
    table = read_table(mixed())
    draws = table.x.nan_to_num(0).repeat(3, 1, 1)
    draws[1, 0, 0], draws[2, 5, 3] = 41.3, 11.0
    frame = lists(table.to_frame(draws))
    assert list(frame)[:2] == [".imp", ".id"]
    assert frame[".imp"] == [1] * N + [2] * N + [3] * N
    assert frame[".id"] == [*range(1, N + 1)] * 3
    assert frame["age"][N] == 41.3
    assert frame["visits"][2 * N + 5] == 11
    assert lists(table.to_frame(table.x[:7]))["age"] == mixed_age(table, 7)
    with pytest.raises(ValueError, match=r"column 'sex' has codes 0 to 1, got another value"):
        table.to_frame(torch.full((2, 8), 0.5))
    with pytest.raises(ValueError, match=r"draws must have shape \(N, 8\) or \(K, N, 8\), got \(2, 9\)"):
        table.to_frame(torch.zeros(2, 9))


def mixed_age(table, rows):
    return [round(value, 1) for value in table.values[:rows, 0]]


def test_without_pandas_a_mapping_returns(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    frame = read_table(mixed()).to_frame()
    assert type(frame) is dict
    assert frame["visits"][:3] == [int(count) for count in frame["visits"][:3]]


def test_texts_that_a_spreadsheet_would_run_are_guarded_and_return(tmp_path):
    levels = ["=cmd()", "+A1", "-B2", "@SUM(1)", "plain", "-3 to 0", "<=50K"]
    rows = {
        "text": [levels[i % 7] for i in range(N)],
        "number": [-1.5 * (i % 23) - 0.25 for i in range(N)],
        "@name": RNG.normal(0, 1, N).tolist(),
        "many": RNG.poisson(5, N).tolist(),
    }
    table = read_table(rows)
    path = tmp_path / "out.csv"
    guarded = write_csv(path, table.to_frame(), columns=table.columns)
    with path.open(newline="", encoding="utf-8") as file:
        header, *lines = list(csv.reader(file))
    assert header == ["text", "number", "'@name", "many"]
    assert guarded == 1 + sum(level not in ("plain", "<=50K") for level in rows["text"])
    for line, text, number in zip(lines, rows["text"], rows["number"], strict=True):
        assert line[0] == (text if text in ("plain", "<=50K") else f"'{text}")
        assert line[1] == repr(number)  # numbers stay numbers
    again = read_table(path, columns=table.columns)
    assert again.x.equal(table.x)


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "out.csv"
    write_csv(path, {"a": [1, None]})
    assert path.read_text() == "a\n1\n\n" or path.read_text() == 'a\n1\n""\n'
    before = path.read_text()
    with pytest.raises(ValueError, match=r"columns must have equal lengths, got \[1, 2\]"):
        write_csv(path, {"a": [1, 2], "b": [1]})
    with pytest.raises(ValueError, match="the frame has no column 'b'"):
        write_csv(path, {"a": [1, 2]}, columns=Columns((Column("a", "real"), Column("b", "real"))))
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age: {kind: reel}", "column 'age': kind 'reel' is unknown"),
        ("age: {kind: real, spraed: 1}", "column 'age': key 'spraed' is unknown .*spread"),
        ("sex: {kind: binary, levels: [no, yes]}", "column 'sex': levels must be texts.* in quotes"),
        ("age: {kind: real}\nage: {kind: count}", "the key 'age' is there twice"),
        ("1: {kind: real}", "the name of a column must be a text"),
        ("- a", "columns must be a mapping"),
        ("", "it is empty; write the columns to it by train.py"),
        ("a: !!python/object:os.system {}", "tag"),
        ("a: &x {kind: real}\nb: *x", "aliases are refused"),
        ("a: {kind: real", "expected"),
    ],
)
def test_a_file_of_columns_is_checked_key_by_key(tmp_path, text, message):
    path = tmp_path / "columns.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_columns(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_strange_names_and_levels_return_from_yaml(tmp_path):
    names = ["no", "1", "~", "a: b", "#x", "ä 😀", "'q\"", "2020-01-01", "null", "-", "x\x7f"[:1], "{}", "*a", "e1"]
    rows = {name: [names[i % 5] for i in range(50)] for name in names}
    table = read_table(rows)
    path = tmp_path / "columns.yaml"
    path.write_text(table.describe(), encoding="utf-8")
    assert read_columns(path).names == table.columns.names
    assert read_columns(path)["no"].levels == table.columns["no"].levels


def test_a_centre_that_is_given_is_that_of_its_origin():
    cells = [1e9 + 0.25 * i for i in RNG.permutation(N)]
    given = Columns((Column("a", "real", centre=1e9), Column("b", "real", origin=1e9, centre=3.0)))
    columns = read_table({"a": cells, "b": cells}, columns=given).columns
    assert (columns["a"].origin, columns["a"].centre) == (0, 1e9)
    assert (columns["b"].origin, columns["b"].centre) == (1e9, 3.0)


def test_dates_become_levels_by_one_word(tmp_path):
    days = [f"2020-01-{1 + i % 9:02d}" for i in range(N)]
    path = tmp_path / "columns.yaml"
    path.write_text(read_table({"day": days}).describe().replace("kind: real", "kind: category"))
    assert read_table({"day": days}, columns=path).columns["day"].levels == tuple(sorted(set(days)))
