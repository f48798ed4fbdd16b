"""The guide's table of programs is that of the zoo. Print it anew with `python tests/programs/test_table.py`."""

import re
from pathlib import Path

from zoo import ZOO

import pyrovae.guide

PAGE = Path(pyrovae.guide.__file__).with_name("programs.md")
FILES = ["zoo.vaes", "zoo.positions", "zoo.series", "zoo.plates", "zoo.supports"]
ESTIMATORS = {"default": "importance", "exact": "exact", "ais": "AIS"}


def row(entry):
    """Write the row of a program: what it is, how it runs on draws, which estimators serve it."""
    if entry.how == "refused":
        return f"| {entry.name} | refused | {entry.reason} |"
    return f"| {entry.name} | {entry.how} | {', '.join(ESTIMATORS[e] for e in ESTIMATORS if e in entry.estimators)} |"


def table():
    """Write the table: by file of the zoo, and what is refused last."""
    by_file = sorted(ZOO.values(), key=lambda entry: FILES.index(entry.build.__module__))
    return "\n".join(map(row, sorted(by_file, key=lambda entry: entry.how == "refused")))


def test_the_table_of_programs_in_the_guide_is_that_of_the_zoo():
    rows = re.findall(r"^\|.*\|$", PAGE.read_text(encoding="utf-8"), flags=re.M)[2:]
    assert "\n".join(rows) == table()


def test_the_zoo_has_at_least_thirty_programs_each_with_a_reference_or_a_reason():
    assert len(ZOO) >= 30
    assert all(entry.reason and entry.refusal for entry in ZOO.values() if entry.how == "refused")
    names = [entry.name for entry in ZOO.values()]
    assert len(set(names)) == len(names)


if __name__ == "__main__":
    print(table())
