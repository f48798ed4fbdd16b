"""One column of a table."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

NUMERIC = ("real", "positive", "interval", "count")
LEVELLED = ("binary", "category", "ordered")
KINDS = (*NUMERIC, *LEVELLED, "drop")
ROLES = ("data", "covariate", "label", "weight", "group", "split", "drop")
FORMATS = ("", "date", "datetime", "datetime utc")
# The resolution is the smallest gap between values. If this share of the cells has values that occur more than once,
# and those are this many times as far apart, single values such as a mistyped cell do not count.
COMMON_SHARE, ODD_FACTOR = 0.9, 10
DROPPED_BY_FLAG = "by --columns"
"""Reason of a column that a flag drops; other reasons are facts about its values."""

DEFAULT_LIKELIHOODS = {
    "real": "NormalLikelihood",
    "positive": "LogNormalLikelihood",
    "interval": "BetaLikelihood",
    "count": "NegativeBinomialLikelihood",
    "binary": "BernoulliLikelihood",
    "category": "CategoricalLikelihood",
    "ordered": "OrderedLogisticLikelihood",
}
"""Likelihood of each kind, unless a column names another."""

_OF_LEVELS = ("BernoulliLikelihood", "CategoricalLikelihood", "OrderedLogisticLikelihood")
_LONGEST_NAME = 200  # letters
_NUMBERS = ("resolution", "low", "high", "centre", "spread", "log_centre", "log_spread")


@dataclass(frozen=True)
class Column:
    """Column of a table. Its numbers describe the observed cells of the training rows alone.

    A number of a table is x = value - origin, in the column's own unit. A level is its code 0, 1, ..., the place in
    `levels`. A column is complete if it has all numbers that its kind needs; `read_table` completes it.

    Attributes:
        name: Name of the column.
        kind: Kind: "real", "positive" (above 0, or at least 0 if a likelihood is named), "interval" (in (0, 1), or in
            [0, 1] if a likelihood is named), "count" (0, 1, 2, ...), "binary" (two levels), "category", "ordered"
            (levels in increasing order), or "drop".
        role: Use: "data", "covariate", "label", "weight", "group", "split" or "drop".
        levels: Levels of a binary, category or ordered column, as texts; empty while unknown.
        format: Text format of a real column in days since 1970-01-01: "date", "datetime" or "datetime utc"; "" for
            numbers.
        origin: Number subtracted in float64 when the table is read; not 0 for real columns alone.
        resolution: Smallest gap between distinct values, the floor of learned scales; None while unknown.
        grid: Step of which all x are multiples, that of rounded likelihoods; None if there is none, or while unknown.
        low: Smallest value, origin included; None while unknown.
        high: Largest value, origin included; None while unknown.
        centre: Mean of x; None while unknown.
        spread: Standard deviation of x, with divisor n; None while unknown.
        log_centre: Mean of log x over the cells above 0 of a positive column; None otherwise.
        log_spread: Standard deviation of log x over the cells above 0 of a positive column; None otherwise.
        missing: Share of missing cells, in [0, 1]; None while unknown.
        na_values: Texts that stand for missing cells of this column, beside those of every column.
        reason: Why the column is dropped.
        likelihood: Name of a likelihood; None for that of the kind.
        arguments: Arguments of the likelihood by name.

    Raises:
        ValueError: If a value is not of the stated form, with the column's name.
    """

    name: str
    kind: str
    role: str = "data"
    levels: tuple[str, ...] = ()
    format: str = ""
    origin: float = 0.0
    resolution: float | None = None
    grid: float | None = None
    low: float | None = None
    high: float | None = None
    centre: float | None = None
    spread: float | None = None
    log_centre: float | None = None
    log_spread: float | None = None
    missing: float | None = None
    na_values: tuple[str, ...] = ()
    reason: str = ""
    likelihood: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not _is_name(self.name):
            raise ValueError(
                f"a column needs a name of 1 to {_LONGEST_NAME} printable letters, got {self.name!r:.80}; rename it"
            )
        for key, known in (("kind", KINDS), ("role", ROLES), ("format", FORMATS)):
            if getattr(self, key) not in known:
                self._fail(unknown(key, getattr(self, key), known))
        if self.kind == "drop":
            object.__setattr__(self, "role", "drop")
        self._check_levels()
        self._check_numbers()
        self._check_likelihood()

    def _check_levels(self) -> None:
        if not isinstance(self.levels, list | tuple) or not all(type(level) is str for level in self.levels):
            self._fail(f"levels must be texts, got {self.levels!r:.80}; write them in quotes, such as ['no', 'yes']")
        object.__setattr__(self, "levels", tuple(self.levels))
        if not isinstance(self.na_values, list | tuple) or not all(type(code) is str for code in self.na_values):
            self._fail(f"na_values must be texts, got {self.na_values!r:.80}; write them in quotes, such as ['-9']")
        object.__setattr__(self, "na_values", tuple(self.na_values))
        if self.levels and self.kind not in LEVELLED:
            self._fail(f"kind {self.kind} has no levels; remove them, or use one of {', '.join(LEVELLED)}")
        if len(set(self.levels)) < len(self.levels):
            twice = Counter(self.levels).most_common(1)[0][0]
            self._fail(f"level {twice!r:.80} is there twice; name each level once")
        if "" in self.levels:
            self._fail("a level is an empty text; name it, or treat empty cells as missing")
        if self.levels and (len(self.levels) < 2 or (self.kind == "binary" and len(self.levels) > 2)):
            needed = "two levels" if self.kind == "binary" else "at least two levels"
            self._fail(f"kind {self.kind} needs {needed}, got {len(self.levels)}; use category, or drop the column")

    def _check_numbers(self) -> None:
        for key in ("origin", "missing", "grid", *_NUMBERS):
            value = getattr(self, key)
            if value is None and key != "origin":
                continue
            if type(value) not in (int, float) or not math.isfinite(value):
                self._fail(f"{key} must be a finite number, got {value!r:.80}; write it such as 0.5 or 1.0e-3")
            if value <= 0 and key in ("resolution", "grid", "spread", "log_spread"):
                self._fail(f"{key} must be above 0, got {value:g}")
            if key in ("grid", *_NUMBERS) and self.kind not in NUMERIC:
                self._fail(f"kind {self.kind} has no {key}; remove it")
            object.__setattr__(self, key, float(value))
        if self.missing is not None and not 0 <= self.missing <= 1:
            self._fail(f"missing must be a share in [0, 1], got {self.missing:g}")
        if self.low is not None and self.high is not None and self.low > self.high:
            self._fail(f"low must not be above high, got {self.low:g} and {self.high:g}")
        for key, default in (("origin", 0.0), ("format", "")):
            if self.kind != "real" and getattr(self, key) != default:
                self._fail(f"kind {self.kind} has no {key}, got {getattr(self, key)!r}; remove it, or use kind real")
        if self.kind != "positive" and not (self.log_centre is None and self.log_spread is None):
            self._fail(f"kind {self.kind} has no log_centre and log_spread; remove them")

    def _check_likelihood(self) -> None:
        if type(self.reason) is not str:
            self._fail(f"reason must be a text, got {self.reason!r:.80}")
        name = self.likelihood
        if name is not None and not (type(name) is str and all(part.isidentifier() for part in name.split("."))):
            self._fail(f"likelihood must be the name of a class, such as GammaLikelihood, got {name!r:.80}")
        if name is not None and self.kind in LEVELLED and "." not in name and name not in _OF_LEVELS:
            self._fail(f"kind {self.kind} cannot have {name}, which is for numbers; remove the likelihood")
        if not isinstance(self.arguments, Mapping) or not all(type(key) is str for key in self.arguments):
            self._fail(f"arguments must be values by name, got {self.arguments!r:.80}")
        object.__setattr__(self, "arguments", dict(self.arguments))

    def _fail(self, problem: str) -> None:
        raise ValueError(f"column {self.name!r}: {problem}")

    @property
    def is_complete(self) -> bool:
        """Whether the column has all numbers or levels that its kind needs."""
        if self.role in ("drop", "group", "split", "weight"):
            return True
        if self.kind in LEVELLED:
            return bool(self.levels)
        needed = [key for key in _NUMBERS if self.kind == "positive" or not key.startswith("log_")]
        return all(getattr(self, key) is not None for key in needed)

    @property
    def likelihood_name(self) -> str:
        """Name of the likelihood: the column's own, or that of its kind; "" for dropped columns."""
        return self.likelihood or DEFAULT_LIKELIHOODS.get(self.kind, "")


def _is_name(name: Any) -> bool:
    return type(name) is str and 0 < len(name) <= _LONGEST_NAME and name.isprintable() and name == name.strip()


def unknown(what: str, got: Any, known: Iterable[str]) -> str:
    """Return an error message for an unknown word that suggests the nearest known one."""
    near = difflib.get_close_matches(str(got).lower(), list(known), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{what} {got!r:.80} is unknown{hint}; use one of {', '.join(map(repr, known))}"
