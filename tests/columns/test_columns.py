"""The schema: what it accepts, what it refuses, and how it is printed."""

import json

import pytest

from pyrovae.columns import KINDS, Column, Columns

NUMBERS = {"low": 1.0, "high": 9.0, "resolution": 0.5, "centre": 3.0, "spread": 2.0}


def full(kind):
    if kind == "drop":
        return Column("x", kind, reason="constant")
    if kind in ("binary", "category", "ordered"):
        return Column("x", kind, levels=("no", "yes"), missing=0.25)
    logs = {"log_centre": 1.0, "log_spread": 0.5} if kind == "positive" else {}
    return Column("x", kind, **NUMBERS, **logs, arguments={"df": 3.5})


@pytest.mark.parametrize("kind", KINDS)
def test_columns_return_from_json(kind):
    columns = Columns((full(kind),))
    assert Columns.from_dict(json.loads(json.dumps(columns.to_dict()))) == columns
    assert columns.is_complete
    assert hash(columns) == hash(Columns((full(kind),)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "reel"}, r"column 'x': kind 'reel' is unknown \(did you mean real\?\)"),
        ({"kind": "real", "spraed": 1.0}, r"column 'x': key 'spraed' is unknown \(did you mean spread\?\)"),
        ({}, "column 'x' has no kind"),
        ("real", "column 'x' needs attributes"),
        ({"kind": "real", "role": "target"}, "column 'x': role 'target' is unknown"),
        ({"kind": "binary", "levels": [False, True]}, "column 'x': levels must be texts, .* write them in quotes"),
        ({"kind": "binary", "levels": "ab"}, "column 'x': levels must be texts"),
        ({"kind": "binary", "levels": ["a", "b", "c"]}, "column 'x': kind binary needs two levels, got 3"),
        ({"kind": "category", "levels": ["a", "b", "a"]}, "column 'x': level 'a' is there twice"),
        ({"kind": "category", "levels": ["a", ""]}, "column 'x': a level is an empty text"),
        ({"kind": "real", "spread": 0.0}, "column 'x': spread must be above 0"),
        ({"kind": "real", "centre": float("nan")}, "column 'x': centre must be a finite number"),
        ({"kind": "real", "resolution": "1e-3"}, r"column 'x': resolution must be a finite number.* such as .*1.0e-3"),
        ({"kind": "real", "centre": True}, "column 'x': centre must be a finite number"),
        ({"kind": "real", "missing": 1.5}, "column 'x': missing must be a share"),
        ({"kind": "count", "origin": 3.0}, "column 'x': kind count has no origin"),
        ({"kind": "count", "format": "date"}, "column 'x': kind count has no format"),
        ({"kind": "real", "low": 2.0, "high": 1.0}, "column 'x': low must not be above high"),
        ({"kind": "real", "likelihood": "os.system('x')"}, "column 'x': likelihood must be the name of a class"),
        ({"kind": "real", "arguments": [1]}, "column 'x': arguments must be values by name"),
        ({"kind": "drop", "reason": 3}, "column 'x': reason must be a text"),
    ],
)
def test_an_invalid_entry_is_refused_with_the_name_of_its_column(entry, message):
    with pytest.raises(ValueError, match=message) as caught:
        Columns.from_dict({"x": entry})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", " x", "a\nb", "\x1b[2J", "x" * 201, 3])
def test_a_name_must_be_printable(name):
    with pytest.raises(ValueError, match="name"):
        Columns.from_dict({name: {"kind": "real"}})


def test_one_word_may_be_changed_without_the_rest():
    """Levels of a number, and moments of levels, are left out, not refused."""
    ordered = {"kind": "ordered", "levels": ["1", "2"]}
    assert Columns.from_dict({"x": {**ordered, "kind": "count"}})["x"] == Column("x", "count")
    positive = {"kind": "positive", **NUMBERS, "log_centre": 0.0, "log_spread": 1.0}
    assert Columns.from_dict({"x": {**positive, "kind": "real"}})["x"] == Column("x", "real", **NUMBERS)
    assert Columns.from_dict({"x": {**positive, "kind": "category"}})["x"] == Column("x", "category")


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(ValueError, match="column 'a' is there twice"):
        Columns((Column("a", "real"), Column("a", "count")))


def test_a_column_without_its_numbers_is_not_complete():
    assert not Column("x", "positive", **NUMBERS).is_complete
    assert Column("x", "real", **NUMBERS).is_complete
    assert not Column("x", "category").is_complete
    assert Column("x", "category", role="group").is_complete


def test_replace_changes_one_column():
    columns = Columns((Column("a", "real"), Column("b", "count")))
    changed = columns.replace("b", role="covariate")
    assert changed.data == (Column("a", "real"),)
    assert changed.of_role("covariate") == (Column("b", "count", role="covariate"),)
    with pytest.raises(KeyError, match="did you mean b"):
        columns.replace("B", role="covariate")


def test_the_table_shows_ranges_dates_levels_and_roles_on_one_line_each():
    columns = Columns(
        (
            Column("day", "real", format="date", low=0.0, high=365.0, resolution=1.0, missing=0),
            Column("income", "positive", low=812.0, high=190400.0, resolution=0.01, missing=0.12),
            Column("region", "category", role="covariate", levels=tuple(f"region {i}" for i in range(9)), missing=0),
            Column("odd", "binary", levels=("a\nb", "\x1b[2J"), missing=1e-5),
        )
    )
    assert str(columns).splitlines() == [
        "column  kind      role       values                    missing  likelihood           resolution",
        "day     real      data       1970-01-01 .. 1971-01-01        0  NormalLikelihood         1 days",
        "income  positive  data       812 .. 190,400             12.0 %  LogNormalLikelihood        0.01",
        "region  category  covariate  9 levels                        0",
        r"odd     binary    data       a\nb, \x1b[2J             < 0.1 %  BernoulliLikelihood",
    ]
