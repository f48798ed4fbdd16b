"""Guesses of kinds, the questions about them, and the dropped columns."""

import numpy as np
import pytest

from pyrovae.columns import Columns
from pyrovae.data import original, read_table

N = 200
RNG = np.random.default_rng(0)
NORMAL = RNG.normal(3, 2, N).round(2)
CASES = {
    "two texts": (["yes", "no"] * 100, "binary", ("no", "yes")),
    "booleans": ([True, False] * 100, "binary", ("False", "True")),
    "two numbers": ([1.0, 2.0] * 100, "binary", ("1", "2")),
    "few texts": (["b", "a", "c", "a"] * 50, "category", ("a", "b", "c")),
    "codes with zeros": (["01", "02", "03", "10"] * 50, "category", ("01", "02", "03", "10")),
    "few numbers": ([1, 2, 3, 6] * 50, "ordered", ("1", "2", "3", "6")),
    "few counts": ([1, 2, 3, 37] * 50, "count", ()),
    "few fractions": ([0.5, 1.5, 2.5, -1.5] * 50, "ordered", ("-1.5", "0.5", "1.5", "2.5")),
    "counts": (RNG.negative_binomial(2, 0.1, N).tolist(), "count", ()),
    "skewed": (np.exp(RNG.normal(2, 1, N)).round(3).tolist(), "positive", ()),
    "shares": (RNG.uniform(0.1, 0.9, N).tolist(), "interval", ()),
    "numbers": (NORMAL.tolist(), "real", ()),
    "whole numbers far from zero": (RNG.integers(150, 200, N).tolist(), "real", ()),
    "days": ([str(np.datetime64("2020-01-01") + np.timedelta64(i * 3 % 97, "D")) for i in range(N)], "real", ()),
    "row numbers": (list(range(1, N + 1)), "drop", ()),
    "patient_id": (RNG.permutation(10**6)[:N].tolist(), "drop", ()),
    "free text": ([f"said {i}" for i in range(N)], "drop", ()),
    "nearly free text": ([f"said {i * 2 // 3}" for i in range(N)], "drop", ()),
    "constant": ([4.0] * N, "drop", ()),
    "constant text": (["a", None] * 100, "drop", ()),
    "nothing": ([None, "NA", "?", ""] * 50, "drop", ()),
}


@pytest.fixture(scope="module")
def table():
    return read_table({name: cells for name, (cells, _, _) in CASES.items()})


@pytest.mark.parametrize("name", CASES)
def test_the_kind_of_a_column_is_guessed(table, name):
    _, kind, levels = CASES[name]
    assert (table.columns[name].kind, table.columns[name].levels) == (kind, levels)
    assert bool(table.columns[name].reason) == (kind == "drop")


def test_dropped_columns_say_why(table):
    reasons = {column.name: column.reason for column in table.columns if column.kind == "drop"}
    assert reasons == {
        "row numbers": "200 whole numbers in as many rows: an identifier",
        "patient_id": "200 whole numbers in as many rows: an identifier",
        "free text": "200 levels in 200 rows: an identifier or free text",
        "nearly free text": "133 levels in 200 rows: an identifier or free text",
        "constant": "constant: '4.0'",
        "constant text": "constant: 'a'",
        "nothing": "no observed value",
    }
    assert "no observed value" in str(table.columns)


def questions(cells, name="a"):
    return read_table({name: cells, "b": NORMAL.tolist()[: len(cells)]}).questions


def test_few_numbers_are_asked_about_and_equal_questions_share_a_line():
    table = read_table({"a": [1, 2, 3, 4] * 50, "c": [1, 2, 5] * 66 + [1, 2], "b": NORMAL.tolist()})
    assert table.questions == [
        "a: it has 4 values (1, 2, 3, 4); c: it has 3 values (1, 2, 5) -- read as ordered; if they are codes without "
        "order, write kind: category; if they count something, count; if a measurement, real"
    ]


@pytest.mark.parametrize(
    ("code", "rest"),
    [
        (-9, RNG.integers(0, 40, N - 3).tolist()),
        (-9, [0, 1, 2] * 65 + [0, 1]),
        (-99, RNG.uniform(0, 1, N - 3).tolist()),
        (999, RNG.integers(20, 80, N - 3).tolist()),
        (0, RNG.normal(120, 10, N - 3).round().tolist()),
        (99999, np.exp(RNG.normal(6, 1, N - 3)).clip(0, 9000).round(1).tolist()),
    ],
)
def test_a_value_far_from_the_rest_is_asked_about(code, rest):
    asked = [question for question in questions([*rest, code, code, code]) if "stands for missing" in question]
    assert len(asked) == 1
    assert f"the value {code} stands in 3 rows" in asked[0]
    assert "name it in na_values" in asked[0]


def test_ordinary_columns_are_not_asked_about():
    for cells in (NORMAL, RNG.standard_t(3, N), RNG.poisson(20, N), RNG.exponential(1, N), RNG.integers(0, 100, N)):
        assert questions(cells.tolist()) == []


def test_zeros_beside_large_numbers_get_a_likelihood_that_has_them():
    cells = [0.0] * 100 + np.exp(RNG.normal(7, 1, 100)).round(2).tolist()
    table = read_table({"gain": cells, "b": NORMAL.tolist()})
    column = table.columns["gain"]
    assert (column.kind, column.likelihood) == ("positive", "HurdleLogNormalLikelihood")
    assert "100 of 200 cells are exactly 0" in table.questions[0]
    train = table.part("train").values[:, 0]
    assert column.log_centre == pytest.approx(np.log(train[train > 0]).mean())
    assert column.log_spread == pytest.approx(np.log(train[train > 0]).std())


def test_zeros_and_ones_in_an_interval_are_asked_about():
    cells = [0.0, 1.0, *RNG.uniform(0.01, 0.99, N - 2).tolist()]
    table = read_table({"a": cells, "b": NORMAL.tolist()})
    assert (table.columns["a"].kind, table.columns["a"].likelihood) == ("interval", "ZeroOneInflatedBetaLikelihood")
    assert any("2 of 200 cells are exactly 0 or 1" in question for question in table.questions)


def test_a_word_among_numbers_or_dates_is_asked_about_not_made_a_level():
    table = read_table({"a": [*map(str, NORMAL[:-2]), "unknown", "unknown"], "b": NORMAL.tolist()})
    assert table.columns["a"].reason == "2 of 200 cells are no numbers, the first 'unknown'"
    assert "'unknown' in row 199" in table.questions[0]


@pytest.mark.parametrize("words", ["no number", "no date"])
def test_a_word_in_a_file_among_numbers_or_dates_names_its_row(tmp_path, words):
    cells = [f"{i * 7 % 31}.25" if "number" in words else f"2020-01-{1 + i % 28:02d}" for i in range(60)]
    cells[40] = "2020-02-30" if "date" in words else "abc"
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["a,b", *(f"{cell},{i % 2}" for i, cell in enumerate(cells))]))
    table = read_table(path)
    assert table.columns["a"].kind == "drop"
    assert f"1 of 60 cells is {words}, the first {cells[40]!r} in row 41" in table.questions[0]


def test_decimal_commas_are_asked_about(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["a;b", *(f"{i * 7 % 31},5;{i % 2}" for i in range(60))]))
    table = read_table(path, delimiter=";")
    assert table.columns["a"].kind == "drop"
    assert "look like numbers with a decimal comma" in table.questions[0]


@pytest.mark.parametrize(
    ("delimiter", "cells", "asked"),
    [
        (";", ["421", "7.509", "12.542"], True),
        (";", ["421", "7.5", "12.542"], False),
        (";", ["0.421", "7.509"], False),
        (",", ["421", "7.509", "12.542"], False),
    ],
)
def test_points_that_may_stand_between_thousands_are_asked_about(tmp_path, delimiter, cells, asked):
    numbers = [*cells, *(f"{i}.{i * 37 % 900 + 100}" for i in range(1, 60))]
    path = tmp_path / "t.csv"
    path.write_text("\n".join([f"a{delimiter}b", *(f"{cell}{delimiter}{i % 2}" for i, cell in enumerate(numbers))]))
    found = [one for one in read_table(path).questions if "three digits behind the point" in one]
    assert bool(found) == asked


@pytest.mark.parametrize("levels", [("inf", "mid", "sup"), ("-inf", "a", "b")])
def test_a_level_may_be_called_inf(levels):
    table = read_table({"a": list(levels) * 30, "b": NORMAL[:90].tolist()})
    assert table.columns["a"].levels == levels
    assert original(table.columns["a"], table.x[:3, 0].numpy(), np.full(3, np.nan)) == list(levels)


def test_rare_levels_and_repeated_identifiers_are_asked_about():
    asked = questions(["a", "b"] * 90 + ["c"] * 19 + ["d"])
    assert asked == [
        "a: 1 of 4 levels stand in one row, such as 'd' -- join rare levels, since one row tells little of them, or "
        "write kind: drop"
    ]
    assert "name it as group" in questions([f"p{i * 2 // 3}" for i in range(N)])[0]


@pytest.mark.parametrize("step", [1e-3, -1e-5])
def test_one_mistyped_cell_is_asked_about_and_does_not_change_the_resolution(step):
    cells = 100 + 0.5 * np.random.default_rng(0).integers(14, size=600)
    place = cells.tolist().index(103.0)
    cells[place] += step
    table = read_table({"a": cells.tolist(), "b": np.random.default_rng(1).normal(size=600).tolist()})
    assert table.columns["a"].resolution == 0.5
    assert table.columns["b"].resolution < 1e-4
    assert len(table.questions) == 1
    assert f"the value {cells[place]:.10g} is nearer to its neighbour than 0.5" in table.questions[0]
    from_zero = read_table({"a": (cells - 100).tolist()})  # neither zeros beside positive numbers
    assert (from_zero.columns["a"].kind, from_zero.columns["a"].likelihood) == ("real", None)


@pytest.mark.parametrize(
    ("cells", "kind", "words"),
    [
        (RNG.permutation(10**8)[:N].tolist(), "real", "200 different whole numbers in as many rows"),
        (["Yes", "yes ", "no"] * 60, "category", "'Yes' and 'yes' differ only in case or spaces"),
        ([f"{i / 7:.1f}%" for i in range(N)], "drop", "look like numbers with a sign -- remove the sign"),
        ([f"$ {i * 1234:,}" for i in range(N)], "drop", "look like numbers with a sign -- remove the sign"),
        ([f"{i % 12 + 1}/{i % 28 + 1}/2019" for i in range(N)], "drop", "look like dates in another format"),
        (
            ["12", "12,5"] * 40 + [f"{i},5" for i in range(60)],
            "drop",
            "such as '12,5' look like numbers with a decimal comma",
        ),
        (
            ["12", "12,04"] * 40 + [f"{i},29" for i in range(60)],
            "drop",
            "a decimal comma, or a comma between thousands",
        ),
        (["950", "1,234"] * 40 + [f"{i},000" for i in range(1, 60)], "drop", "or a comma between thousands -- write a"),
        ([f"{i},234,567" for i in range(N)], "drop", "or a comma between thousands"),
        ([f"{i}.234,5" for i in range(N)], "drop", "or a comma between thousands"),
        ([f"{i} 234" for i in range(N)], "drop", "but not as programs write them -- write nothing between thousands"),
        ([f"\u2212{i}" if i % 2 else f"{i}" for i in range(N)], "drop", "but not as programs write them"),
        (["\u22121,5", "\u22122,5", "3"] * 5 + [f"\u2212{i},5" for i in range(60)], "drop", "a point before decimals"),
        ([f"1 {i},5" for i in range(100, 180)], "drop", "a point before decimals, and - for a minus"),
        (["0", "5%"] * 90, "binary", "look like numbers with a sign"),
        (["1,5", "2,5"] * 90, "binary", "look like numbers with a decimal comma"),
    ],
)
def test_what_is_nearly_a_number_a_date_an_identifier_or_a_level_is_asked_about(cells, kind, words):
    table = read_table({"a": cells, "b": NORMAL.tolist()[: len(cells)]})
    assert table.columns["a"].kind == kind
    assert any(words in question for question in table.questions), table.questions
    assert "free text" not in table.columns["a"].reason


def test_few_levels_that_are_nearly_numbers_stay_levels():
    table = read_table({"a": ["5%", "10%", "20%"] * 60})
    assert table.columns["a"].levels == ("10%", "20%", "5%")
    assert "look like numbers with a sign" in table.questions[0]


def test_missing_codes_match_numbers_in_every_form():
    cells = ["-9", "-9.0", "-9.00", "3", "4.5", *map(str, NORMAL[:-5])]
    table = read_table({"a": [float(cell) for cell in cells]}, na_values_by_column={"a": ["-9"]})
    assert table.mask[:5, 0].tolist() == [False, False, False, True, True]
    assert table.columns["a"].na_values == ("-9",)
    again = read_table({"a": [-9.0, 3.5]}, columns=table.columns, new_data=True)
    assert again.mask[:, 0].tolist() == [False, True]


def test_zeros_are_not_missing():
    table = read_table({"a": [0] * 10 + [1] * 10, "b": [0.0] * 20, "c": [None] * 20})
    assert table.mask.all()
    assert table.columns["b"].reason == "constant: '0.0'"


def test_an_ordered_factor_of_a_frame_keeps_its_order():
    pandas = pytest.importorskip("pandas")
    cells = pandas.Categorical(["low", "high", "mid", None] * 10, ["low", "mid", "high"], ordered=True)
    table = read_table(pandas.DataFrame({"a": cells, "b": pandas.Categorical(["y", "x"] * 20, ["y", "x"])}))
    assert (table.columns["a"].kind, table.columns["a"].levels) == ("ordered", ("low", "mid", "high"))
    assert table.columns["b"].levels == ("y", "x")
    assert table.x[:4, 0].nan_to_num(-1).tolist() == [0, 2, 1, -1]


def test_the_columns_return_from_their_description(table, tmp_path):
    path = tmp_path / "columns.yaml"
    path.write_text(table.describe())
    again = read_table({name: cells for name, (cells, _, _) in CASES.items()}, columns=path)
    assert again.columns.to_dict() == table.columns.to_dict()
    assert again.x.equal(table.x) or again.x.nan_to_num(-1).equal(table.x.nan_to_num(-1))
    assert Columns.from_dict(table.columns.to_dict()) == table.columns


def test_levels_without_a_training_row_are_asked_about():
    cells = ["a", "b"] * 100
    split = read_table({"a": cells, "b": NORMAL.tolist()}).splits
    row = int((split == 2).nonzero()[0])
    asked = questions([*cells[:row], "c", *cells[row + 1 :]])
    assert any("1 of 3 levels stand in no training row, such as 'c'" in question for question in asked)


def test_values_that_float32_does_not_tell_apart_are_asked_about():
    cells = [float(2**30 * (i % 2) + i) for i in range(N)]
    assert any("of 200 values are not told apart in float32" in question for question in questions(cells))


def test_codes_of_missing_cells_may_be_written_into_the_file_of_columns(tmp_path):
    given = {"a": [*NORMAL.tolist()[:-2], 99.0, 99.0], "b": ["x", "y"] * 100}
    table = read_table(given)
    assert "the value 99 stands in 2 rows" in table.questions[0]
    path = tmp_path / "columns.yaml"
    path.write_text(table.describe().replace("  kind: real\n", '  kind: real\n  na_values: ["99"]\n'))
    again = read_table(given, columns=path)
    assert (~again.mask).nonzero().tolist() == [[198, 0], [199, 0]]
    assert again.columns["a"].high == max(NORMAL[row] for row in (again.splits == 0).nonzero() if row < 198)


def test_a_measurement_below_one_is_no_share():
    """A change of units, such as from g to kg, does not make a share of a weight."""
    grams = np.exp(RNG.normal(3, 0.7, N)).round(1)
    for unit in (1.0, 1000.0):
        assert read_table({"a": (grams / unit).tolist(), "b": NORMAL.tolist()}).columns["a"].kind == "positive"


def test_the_sex_of_the_diabetes_data_is_binary():
    from sklearn.datasets import load_diabetes

    table = read_table(load_diabetes(as_frame=True, scaled=False).frame)
    kinds = {column.name: column.kind for column in table.columns}
    assert kinds.pop("sex") == "binary"
    assert set(kinds.values()) == {"real"}
    assert table.columns["bmi"].resolution == 0.1
