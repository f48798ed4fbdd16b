"""Cells of a column: missing ones, numbers, dates, and levels."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from pyrovae.columns import LEVELLED, Column
from pyrovae.data.table_files import RawTable

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_CODE = re.compile(r"[+-]?0\d+", re.ASCII)  # 007 and 02139 are names, not numbers
_INFINITE = re.compile(r"([+-]?)inf(inity)?", re.ASCII | re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d([.,]\d+)?)?(Z|[+-]\d\d:\d\d)?", re.ASCII)
_EPOCH = datetime(1970, 1, 1)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_LARGEST = 3.4e38  # of float32
_ENDS = ", where the likelihood of the kind has no density"
EXACT = 2**24  # whole numbers below it are exact in float32


def number(text: str) -> float | None:
    """Read a decimal number, or an infinity; None for other texts, among them those with leading zeros."""
    if _NUMBER.fullmatch(text):
        return None if _CODE.fullmatch(text) else float(text)
    if match := _INFINITE.fullmatch(text):
        return -math.inf if match[1] == "-" else math.inf
    return None


def number_as_text(value: float) -> str:
    """Write a number as a level: whole numbers without a point."""
    whole = math.isfinite(value) and value == round(value) and abs(value) < 2**53
    return str(int(value)) if whole else repr(float(value))


def _read_number(text: str) -> tuple[float, str] | None:
    value = number(text)
    return None if value is None else (value, "")


def date(text: str) -> tuple[float, str] | None:
    """Read a date or a time in ISO 8601: days since 1970-01-01, and the format; None for other texts."""
    is_date = bool(_DATE.fullmatch(text))
    if not is_date and not _TIME.fullmatch(text):
        return None
    try:
        when = datetime.fromisoformat(text.replace(",", "."))
    except ValueError:  # such as February 30
        return None
    form = "date" if is_date else "datetime" if when.tzinfo is None else "datetime utc"
    when = when if when.tzinfo is None else when.astimezone(UTC).replace(tzinfo=None)
    return (when - _EPOCH) / timedelta(days=1), form


def is_formula(text: str) -> bool:
    """Whether a spreadsheet might run a text: it begins with = + - @, a tab or a return, and is no number."""
    return text.startswith(_FORMULA) and number(text) is None


@dataclass
class Cells:
    """Cells of a column without the missing ones.

    Attributes:
        name: Name of the column.
        texts: Cells, with None for missing ones.
        counts: Number of rows of each text.
        numbers: Number of each text; None if a text is no number and no date.
        format: Format of dates; "" for numbers.
        odd: Texts that are no numbers, or no dates, in a column where nearly all others are.
        is_text: Whether the source says that the cells are texts.
    """

    name: str
    texts: list[str | None]
    counts: Counter[str]
    numbers: dict[str, float] | None = None
    format: str = ""
    odd: tuple[str, ...] = ()
    is_text: bool = False

    @property
    def num_observed(self) -> int:
        """Number of observed cells."""
        return self.counts.total()

    def first(self, text: str) -> int:
        """Return the first row of a text, counted from 0."""
        return self.texts.index(text)


def without_missing(table: RawTable, na_values: Collection[str], by_column: dict[str, Collection[str]]) -> None:
    """Replace the texts of missing cells by None, in place. A code that is a number also stands for its other forms."""
    for name, cells in table.columns.items():
        codes = {str(code).strip() for code in (*na_values, *by_column.get(name, ()))}
        numbers = {number(code) for code in codes} - {None}
        missing = {
            text for text in set(cells) if text is not None and (text in codes or (numbers and number(text) in numbers))
        }
        table.columns[name] = [None if cell in missing else cell for cell in cells]


def parse(table: RawTable, name: str) -> Cells:
    """Parse the cells of a column as numbers or dates, if all of them are."""
    texts = table.columns[name]
    cells = Cells(name, texts, Counter(text for text in texts if text is not None), is_text=name in table.texts)
    for read in (_read_number, date):
        found = {text: read(text) for text in cells.counts}
        fits = {text: reading for text, reading in found.items() if reading is not None}
        forms = {form for _, form in fits.values()}
        if len(fits) == len(found) and fits:
            if cells.is_text and forms == {""}:  # numbers that the source calls texts are levels
                return cells
            if forms == {"date", "datetime"}:
                forms = {"datetime"}
            if forms == {"datetime"} and all(value == math.floor(value) for value, _ in fits.values()):
                forms = {"date"}  # data frames write the time of midnight
            if len(forms) == 1:
                cells.numbers, cells.format = {text: value for text, (value, _) in fits.items()}, forms.pop()
                _check_finite(table, cells)
            return cells
        if sum(cells.counts[text] for text in fits) >= 0.8 * cells.num_observed and len(fits) > 2:
            cells.odd = tuple(text for text in found if text not in fits)
    return cells


def _check_finite(table: RawTable, cells: Cells) -> None:
    for text, value in (cells.numbers or {}).items():
        if math.isinf(value):
            raise ValueError(
                f"{table.place(cells.name, cells.first(text))} is infinite ({text!r:.40}); correct it, or add it to "
                "na_values"
            )


def values_of(cells: Cells) -> np.ndarray:
    """Return the numbers of a column, with shape (N,), float64; NaN for missing cells."""
    numbers: dict[str | None, float] = {None: math.nan}
    numbers.update((cells.numbers or {}).items())
    return np.array([numbers[text] for text in cells.texts], dtype=np.float64)


def convert(
    table: RawTable, cells: Cells, column: Column, *, unseen: str = "refuse", counted: dict[str, int] | None = None
) -> np.ndarray:
    """Convert a column to numbers in original units, or to codes of levels, and check that they fit its kind.

    Args:
        table: Table, for error messages.
        cells: Cells of the column.
        column: Column, with levels if its kind has some.
        unseen: "refuse" to refuse unknown levels, "missing" to treat them as missing.
        counted: Mapping that receives the number of rows of each unknown level.

    Returns:
        The values, with shape (N,), float64; NaN for missing cells.

    Raises:
        ValueError: If a cell does not fit, with file, column, row and cell.
    """
    if column.kind in LEVELLED:
        return _codes(table, cells, column, unseen, counted)
    values: dict[str | None, float] = {None: math.nan}
    known = cells.numbers if cells.format == column.format else None
    for text in cells.counts:
        value = known[text] if known is not None else _value(text, column.format)
        problem = "is no " + (f"{column.format} in ISO 8601" if column.format else "number")
        if value is not None:
            problem = _misfit(value, column)
        if value is None or problem:
            advice = "name another likelihood, " * problem.endswith(_ENDS)
            raise ValueError(
                f"{table.place(cells.name, cells.first(text))}: {text!r:.40} {problem}; {advice}correct it, add it to "
                f"na_values, or change kind {column.kind}"
            )
        values[text] = value
    return np.array([values[text] for text in cells.texts], dtype=np.float64)


def _value(text: str, form: str) -> float | None:
    if not form:
        return number(text)
    reading = date(text)
    if reading is None or (form == "datetime utc") != (reading[1] == "datetime utc"):
        return None
    return reading[0] if form != "date" or reading[0] == math.floor(reading[0]) else None


def _misfit(value: float, column: Column) -> str:
    """Say how a number does not fit the kind of its column; "" if it does."""
    if math.isinf(value):
        return "is infinite"
    if abs(value - column.origin) > _LARGEST:
        return "is too large for float32"
    if column.kind == "count":
        if value < 0 or value != math.floor(value):
            return "is no count 0, 1, 2, ..."
        return f"is a count beyond {EXACT:,}, where float32 is not exact" if value >= EXACT else ""
    has_ends = column.likelihood is not None or column.role != "data"
    if column.kind == "positive" and (value < 0 or (value == 0 and not has_ends)):
        return "is not above 0" + _ENDS * (value == 0)
    if column.kind == "interval" and not 0 <= value <= 1:
        return "is not in [0, 1]"
    return "is at the end of (0, 1)" + _ENDS if column.kind == "interval" and value in (0, 1) and not has_ends else ""


def level_codes(levels: Iterable[str], texts: Iterable[str]) -> dict[str, int]:
    """Return the codes of those texts that are levels.

    If all levels are numbers, 1.0 and 1 are the same level. A text with the guard of `write_csv` is its level too.
    """
    codes = {level: code for code, level in enumerate(levels)}
    numeric = all((value := number(level)) is not None and number_as_text(value) == level for level in codes)
    found = {}
    for text in texts:
        level = text
        if level not in codes and numeric and (value := number(text)) is not None and math.isfinite(value):
            level = number_as_text(value)
        if level not in codes and text.startswith("'") and is_formula(text[1:]):
            level = text[1:]
        if level in codes:
            found[text] = codes[level]
    return found


def _codes(table: RawTable, cells: Cells, column: Column, unseen: str, counted: dict[str, int] | None) -> np.ndarray:
    codes: dict[str | None, float] = {None: math.nan}
    codes.update(level_codes(column.levels, cells.counts).items())
    for text in cells.counts:
        if text in codes:
            continue
        if unseen != "missing":
            listed = ", ".join(f"{level!r:.40}" for level in column.levels[:10])
            more = ", ..." if len(column.levels) > 10 else ""
            raise ValueError(
                f"{table.place(cells.name, cells.first(text))}: the level {text!r:.40} is none of {listed}{more}; add "
                "it to the levels, correct it, or treat such cells as missing by --unseen missing (in Python, "
                "unseen='missing')"
            )
        codes[text] = math.nan
        if counted is not None:
            counted[text] = cells.counts[text]
    return np.array([codes[text] for text in cells.texts], dtype=np.float64)
