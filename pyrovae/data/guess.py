"""Guesses of the kind of a column, with questions in words where another kind is as likely."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from pyrovae.columns import Column, date_text, shown
from pyrovae.data.cells import EXACT, Cells, number, number_as_text, values_of
from pyrovae.data.moments import smallest_gap
from pyrovae.data.table_files import RawTable

_FEW = 10  # distinct numbers that may be levels
_SOME = 20  # distinct whole numbers that may be ordered levels
_MANY_LEVELS = 100
_MOST_LEVELS = 1000
_SKEWED = 1.0
_ID = re.compile(r"(.*[^a-z])?(id|uuid|key|index|rownames|row_number)", re.IGNORECASE)
_CODES = {-1, -7, -8, -9, -88, -99, -888, -999, -8888, -9999, 99, 999, 9999, 99999, 999999}
_GROUPS = r"\d{1,3}([.,'\u2019 \u00a0\u202f]\d{3})+"
# Texts that are numbers for people, the first form that one of them has, what to do, and whether a few are levels.
_NUMBERS = (
    (
        re.compile(r"[+-]?\d[\d.,]*\s*%|[+-]?[$\u00a3\u20ac]\s*\d[\d.,]*|\d[\d.,]*\s*[$\u00a3\u20ac]", re.ASCII),
        "numbers with a sign",
        "remove the sign, and commas between thousands",
        True,
    ),
    (
        re.compile(r"[+-]?\d+,\d+|[+-]?\d{1,3}(,\d{3})+(\.\d+)?|[+-]?\d{1,3}(\.\d{3})+,\d+", re.ASCII),
        "numbers with a decimal comma, or a comma between thousands",
        "write a point, and no comma between thousands",
        False,
    ),
    (
        re.compile(rf"[+-]?{_GROUPS}([.,]\d+)?|\u2212(\d+|{_GROUPS})([.,]\d+)?"),
        "numbers, but not as programs write them",
        "write nothing between thousands, a point before decimals, and - for a minus",
        True,
    ),
)
_DATE = re.compile(r"\d{1,2}[./-]\d{1,2}[./-](\d{4}|\d{2})([ T].*)?|\d{4}[./]\d{1,2}[./]\d{1,2}([ T].*)?", re.ASCII)
_THREE_DIGITS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})?|0", re.ASCII)


class Question(NamedTuple):
    """Question to the user.

    Attributes:
        fact: What was found in the column.
        advice: What to write if the guess is wrong.
    """

    fact: str
    advice: str

    def __str__(self) -> str:
        return f"{self.fact}: {self.advice}"


def guess(table: RawTable, cells: Cells, train: np.ndarray) -> tuple[Column, list[Question]]:
    """Guess what a column is.

    * No value, or one value: dropped. Two: binary.
    * Texts: categories; dropped if there are as many levels as rows, or nearly.
    * Dates and times in ISO 8601: real, in days.
    * Numbers with 3 to 10 values, each in five rows on average: ordered, and a question.
    * Whole numbers from 0 or 1: count. Exact zeros, a gap, and larger numbers: positive, with a likelihood that has
      zeros. In [0, 1] with fractions, of which some exceed 0.5: interval. Above 0 and skewed (skewness above 1, and
      reduced by the logarithm): positive. Else real.
    * Whole numbers that number the rows: dropped.

    Levels and the support are those of all rows. The skewness is that of the training rows.

    Args:
        table: Table.
        cells: Cells of the column.
        train: Whether each row is a training row, with shape (N,).

    Returns:
        The column without its numbers, and questions to the user.
    """
    name = cells.name
    if name in table.levels and cells.counts:
        return _declared(table, name, cells)
    if len(cells.counts) < 2:
        only = f"constant: {next(iter(cells.counts))!r:.40}" if cells.counts else "no observed value"
        return Column(name, "drop", reason=only), []
    if cells.numbers is None:
        return _guess_texts(name, cells)
    if cells.format:
        return _guess_dates(name, cells, train)
    column, questions = _guess_numbers(name, cells, values_of(cells), train)
    return column, [*(_thousands(cells.counts) if table.delimiter == ";" else []), *questions]


def levels_of(table: RawTable, cells: Cells) -> tuple[str, ...]:
    """Return the levels that occur: as the source declares them, else numbers by size, else texts in their order."""
    if cells.name in table.levels:
        return table.levels[cells.name]
    if cells.numbers is not None and not cells.format:
        return tuple(number_as_text(value) for value in sorted(set(cells.numbers.values())))
    return tuple(sorted(cells.counts))


def _declared(table: RawTable, name: str, cells: Cells) -> tuple[Column, list[Question]]:
    """Take the levels of a categorical column of a data frame."""
    levels = table.levels[name]
    if len(levels) < 2:
        return Column(name, "drop", reason=f"constant: {levels[0]!r:.40}"), []
    if name in table.ordered and len(levels) > 2:
        return Column(name, "ordered", levels=levels), []
    if _is_identifier(len(cells.counts), cells.num_observed):
        return _identifier(name, cells)
    return Column(name, "binary" if len(levels) == 2 else "category", levels=levels), []


def _is_identifier(num_levels: int, num_observed: int) -> bool:
    """Whether texts have as many levels as rows, or nearly: at most two rows a level on average."""
    return num_levels == num_observed or num_levels > max(_FEW, num_observed / 2) or num_levels > _MOST_LEVELS


def _identifier(name: str, cells: Cells) -> tuple[Column, list[Question]]:
    many = f"{len(cells.counts):,} levels in {cells.num_observed:,} rows"
    asked = []
    if len(cells.counts) < cells.num_observed:
        asked = [Question(many, "if rows of one level belong together, such as those of one patient, name it as group")]
    return Column(name, "drop", reason=f"{many}: an identifier or free text"), asked


def _guess_texts(name: str, cells: Cells) -> tuple[Column, list[Question]]:
    if cells.odd and len(cells.counts) > 2:
        first, many = cells.odd[0], sum(cells.counts[text] for text in cells.odd)
        noun = "date" if any("-" in text[1:] for text in list(cells.counts)[:5]) else "number"
        are_no = f"is no {noun}" if many == 1 else f"are no {noun}s"
        problem = f"{many:,} of {cells.num_observed:,} cells {are_no}, the first {first!r:.40}"
        return Column(name, "drop", reason=problem), [
            Question(
                f"{problem} in row {cells.first(first) + 1:,}",
                "if they stand for missing values, name them in na_values; else correct them, or write kind: category",
            )
        ]
    nearly, may_be_levels = _nearly(cells)
    if len(cells.counts) == 2:
        return Column(name, "binary", levels=tuple(sorted(cells.counts))), [*nearly, *_alike(cells)]
    if nearly and (len(cells.counts) > _FEW or not may_be_levels):
        return Column(name, "drop", reason=nearly[0].fact), nearly
    if _is_identifier(len(cells.counts), cells.num_observed):
        return _identifier(name, cells)
    asked = [*nearly, *_alike(cells)]
    if len(cells.counts) > _MANY_LEVELS:
        asked.append(Question(f"it has {len(cells.counts):,} levels", "join rare levels, or write kind: drop"))
    single = [text for text, count in cells.counts.items() if count == 1]
    if single:
        few = f"{len(single):,} of {len(cells.counts):,} levels stand in one row, such as {shown(single[0])!r}"
        asked.append(Question(few, "join rare levels, since one row tells little of them, or write kind: drop"))
    return Column(name, "category", levels=tuple(sorted(cells.counts))), asked


def _nearly(cells: Cells) -> tuple[list[Question], bool]:
    """Ask about texts that are all dates for people, or numbers of which some are written for people.

    Returns:
        The question, if any, and whether a few such texts are levels.
    """
    texts = list(cells.counts)
    if all(_DATE.fullmatch(text) for text in texts):
        return [_looks_like(texts[0], "dates in another format", "write dates as 2024-01-31")], True
    odd = [text for text in texts if number(text) is None]
    if all(any(pattern.fullmatch(text) for pattern, *_ in _NUMBERS) for text in odd):
        for pattern, what, advice, may_be_levels in _NUMBERS:
            found = next((text for text in odd if pattern.fullmatch(text)), None)
            if found is not None:
                return [_looks_like(found, what, advice)], may_be_levels
    return [], True


def _looks_like(text: str, what: str, advice: str) -> Question:
    return Question(f"cells such as {text!r:.40} look like {what}", advice)


def _thousands(texts: Iterable[str]) -> list[Question]:
    """Ask about points of which each has three digits behind it, in a file whose decimals may be commas."""
    points = [text for text in texts if "." in text]
    if not points or not all(_THREE_DIGITS.fullmatch(text) for text in texts):
        return []
    fact = f"cells such as {points[0]!r:.40} have three digits behind the point, in a file with ';' between cells"
    return [Question(fact, "read as decimals; if the points stand between thousands, remove them")]


def _alike(cells: Cells) -> list[Question]:
    """Ask about levels that differ only in case or in spaces."""
    groups: dict[str, list[str]] = {}
    for text in sorted(cells.counts):
        groups.setdefault(" ".join(text.split()).casefold(), []).append(text)
    alike = [group for group in groups.values() if len(group) > 1]
    if not alike:
        return []
    names = " and ".join(repr(shown(text)) for text in alike[0][:3])
    fact = f"{names} differ only in case or spaces" + (f", as do {len(alike) - 1:,} others" if len(alike) > 1 else "")
    return [Question(fact, "read as different levels; if they are one, write them alike")]


def _guess_dates(name: str, cells: Cells, train: np.ndarray) -> tuple[Column, list[Question]]:
    if len(cells.counts) == 2:
        return Column(name, "binary", levels=tuple(sorted(cells.counts))), []
    column, values = Column(name, "real", format=cells.format), values_of(cells)
    asked = _spikes(values, lambda value: date_text(value, cells.format))
    return (column, asked) if _varies(values, train) else (_constant(name), [])


def _varies(values: np.ndarray, train: np.ndarray) -> bool:
    observed = values[train & ~np.isnan(values)]
    return len(observed) > 1 and bool(observed.min() < observed.max())


def _constant(name: str) -> Column:
    return Column(name, "drop", reason="constant in the training rows")


def _guess_numbers(name: str, cells: Cells, values: np.ndarray, train: np.ndarray) -> tuple[Column, list[Question]]:
    observed = values[~np.isnan(values)]
    distinct, counts = np.unique(observed, return_counts=True)
    low, high = float(distinct[0]), float(distinct[-1])
    are_whole = bool((distinct == np.floor(distinct)).all())
    if len(distinct) < 2:
        return Column(name, "drop", reason=f"constant: {number_as_text(low)}"), []
    levels = tuple(number_as_text(value) for value in distinct[: _SOME + 1])
    if len(distinct) == 2:
        return Column(name, "binary", levels=levels), _spikes(values, number_as_text)
    if are_whole and len(distinct) == len(observed) and (high - low == len(distinct) - 1 or _ID.fullmatch(name)):
        many = f"{len(distinct):,} whole numbers in as many rows"
        advice = "dropped as an identifier; if it is a time or a measurement, write kind: real"
        return Column(name, "drop", reason=f"{many}: an identifier"), [Question(many, advice)]
    spikes = _spikes(values, number_as_text)
    are_counts = are_whole and low in (0, 1)
    if len(distinct) <= min(_FEW, len(observed) / 5) and not (are_counts and high >= 2 * len(distinct)):
        return Column(name, "ordered", levels=levels), [*spikes, _few(levels, are_whole and low >= 0)]
    if not _varies(values, train):
        return _constant(name), []
    trained = values[train & ~np.isnan(values)]
    zeros = int(counts[distinct == 0].sum()) if low == 0 else 0
    column: dict[str, Any] = {"kind": "real"}
    asked = list(spikes)
    if zeros and high > 1 and _apart(distinct, counts) and zeros > 0.05 * len(observed):
        column = {"kind": "positive", "likelihood": "HurdleLogNormalLikelihood"}
        asked = [
            Question(
                f"{zeros:,} of {len(observed):,} cells are exactly 0, the next value is {number_as_text(distinct[1])}",
                "read as zeros beside positive numbers; if 0 stands for missing, name it in na_values of the column; "
                "if it is a count, write kind: count and remove the likelihood",
            ),
            *(question for question in spikes if not question.fact.startswith(_spike_of("0"))),
        ]
    elif are_counts and high < EXACT:
        column = {"kind": "count"}
        if len(distinct) <= _SOME:
            asked.append(
                Question(
                    f"it has {len(distinct)} values, {levels[0]} to {levels[-1]}",
                    "read as count; if they are steps of a scale, write kind: ordered; if codes without order, "
                    "category",
                )
            )
    elif low >= 0 and 0.5 < high <= 1:
        column = {"kind": "interval"}
        asked.append(Question("it lies in [0, 1]", "read as a share; if it is no share, write kind: positive or real"))
        ends = int(counts[(distinct == 0) | (distinct == 1)].sum())
        if ends:
            asked = [
                *asked[len(spikes) :],
                Question(
                    f"{ends:,} of {len(observed):,} cells are exactly 0 or 1",
                    "a beta density is not defined there, so read with such cells beside it; if that is wrong, write "
                    "kind: real and remove the likelihood",
                ),
            ]
            column["likelihood"] = "ZeroOneInflatedBetaLikelihood"
    elif low > 0 and _skewness(trained) > _SKEWED and abs(_skewness(np.log(trained))) < _skewness(trained):
        column = {"kind": "positive"}
    if column["kind"] == "real" or (column["kind"] == "interval" and "likelihood" not in column):
        asked += _many_ties(distinct, counts, len(observed))
    if column["kind"] in ("real", "positive"):
        asked += _odd_value(distinct, counts)
    if are_whole and len(distinct) == len(observed):
        asked.append(
            Question(
                f"{len(distinct):,} different whole numbers in as many rows",
                f"read as {column['kind']}; if they are an identifier, write kind: drop",
            )
        )
    return Column(name, **column), asked


def _apart(distinct: np.ndarray, counts: np.ndarray) -> bool:
    """Return whether the first value, 0, is far from the next, compared with the gaps between the others."""
    return len(distinct) > 2 and bool(distinct[1] > 10 * smallest_gap(distinct[1:], counts[1:])[0])


def _odd_value(distinct: np.ndarray, counts: np.ndarray) -> list[Question]:
    """Ask about a value between repeated values that are all much further apart, such as a mistyped cell."""
    gap, place = smallest_gap(distinct, counts)
    if place is None:
        return []
    return [
        Question(
            f"the value {number_as_text(float(distinct[place]))} is nearer to its neighbour than {gap:g}, the smallest "
            "gap between values that occur more than once",
            f"correct it if it is mistyped; learned scales have the floor {gap:g}, unless you write another resolution",
        )
    ]


def _few(levels: tuple[str, ...], may_count: bool) -> Question:
    """Ask about a numeric column with few values."""
    count = "if they count something, count; " if may_count else ""
    return Question(
        f"it has {len(levels)} values ({', '.join(levels)})",
        f"read as ordered; if they are codes without order, write kind: category; {count}if a measurement, real",
    )


def _skewness(x: np.ndarray) -> float:
    centred = x - x.mean()
    variance = (centred**2).mean()
    return float((centred**3).mean() / variance**1.5) if variance > 0 else 0.0


def _spike_of(value: str) -> str:
    return f"the value {value} "


def _spikes(values: np.ndarray, write: Any) -> list[Question]:
    """Ask about repeated values at the ends that are far from the rest, and about codes of missing values there.

    Far means: the gap to the next value exceeds the standard deviation of the rest, and three times every other gap. A
    code, such as -9, is also asked about if it is the only negative value.
    """
    distinct, counts = np.unique(values[~np.isnan(values)], return_counts=True)
    asked = []
    for end, next_ in ((0, 1), (-1, -2)):
        rest = np.delete(distinct, end)
        weights = np.delete(counts, end)
        value, gap = float(distinct[end]), abs(float(distinct[next_] - distinct[end]))
        mean = np.average(rest, weights=weights)
        spread = float(np.sqrt(np.average((rest - mean) ** 2, weights=weights)))
        largest_gap = float(np.diff(rest).max()) if len(rest) > 1 else 0.0
        is_far = len(rest) > 1 and gap > spread and gap > 3 * largest_gap and (counts[end] > 1 or value in _CODES)
        if is_far or (end == 0 and value in _CODES and rest[0] >= 0):
            rows = f"{counts[end]:,} {'rows' if counts[end] > 1 else 'row'}"
            asked.append(
                Question(
                    f"{_spike_of(write(value))}stands in {rows}, the next is {write(float(distinct[next_]))}",
                    "if it stands for missing, name it in na_values of the column",
                )
            )
    return asked


def _many_ties(distinct: np.ndarray, counts: np.ndarray, num_observed: int) -> list[Question]:
    """Ask about a continuous column of which one value makes a fifth or more."""
    most = int(counts.argmax())
    if counts[most] < 0.2 * num_observed:
        return []
    return [
        Question(
            f"{counts[most]:,} of {num_observed:,} cells are exactly {number_as_text(float(distinct[most]))}",
            "a density has a spike there; prefer a likelihood for rounded values, or kind: ordered",
        )
    ]
