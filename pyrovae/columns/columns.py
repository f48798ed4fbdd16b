"""All columns of a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pyrovae.columns.column import LEVELLED, NUMERIC, Column, unknown

_FIELDS = {field.name: field for field in fields(Column)}
_WIDEST = 30  # letters of a printed cell
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Columns:
    """Columns of a table, in order and by name.

    Attributes:
        columns: The columns in the order of the table.

    Raises:
        ValueError: If there is no column, or two have the same name.

    Example:
        >>> columns = Columns((
        ...     Column("age", "positive", low=20, high=80, resolution=1, missing=0.031),
        ...     Column("sex", "binary", levels=("F", "M"), missing=0),
        ...     Column("id", "drop", reason="as many levels as rows", missing=0),
        ... ))
        >>> print(columns)
        column  kind      values    missing  likelihood              resolution
        age     positive  20 .. 80    3.1 %  LogNormalLikelihood              1
        sex     binary    F, M            0  BernoulliLikelihood
        id      drop                      0  as many levels as rows
        >>> Columns.from_dict(columns.to_dict()) == columns
        True
        >>> columns["sex"].levels
        ('F', 'M')
    """

    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        if not self.columns:
            raise ValueError("a table needs at least one column, got none")
        seen: set[str] = set()
        for name in self.names:
            if name in seen:
                raise ValueError(f"column {name!r} is there twice; give each column its own name")
            seen.add(name)

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(unknown("column", name, self.names))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns."""
        return tuple(column.name for column in self.columns)

    @property
    def data(self) -> tuple[Column, ...]:
        """The D columns of x, in order."""
        return self.of_role("data")

    @property
    def is_complete(self) -> bool:
        """Whether every column is complete."""
        return all(column.is_complete for column in self.columns)

    def of_role(self, role: str) -> tuple[Column, ...]:
        """Return the columns of a role, in order."""
        return tuple(column for column in self.columns if column.role == role)

    def replace(self, name: str, **changes: Any) -> Columns:
        """Return the columns with changes to one of them.

        Args:
            name: Name of the column.
            changes: New values of its attributes.

        Raises:
            KeyError: If there is no such column.
            ValueError: If a value is not valid.
        """
        changed = replace(self[name], **changes)
        return Columns(tuple(changed if column.name == name else column for column in self.columns))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return plain values by column, without those that are the default. They fit into JSON and YAML."""
        return {column.name: _plain(column) for column in self.columns}

    @classmethod
    def from_dict(cls, plain: Any) -> Columns:
        """Make columns from plain values, as `to_dict` gives them.

        So that a user may change the word of a kind and nothing else, values that the new kind does not use are
        ignored: levels of numbers; a format, origin, resolution, grid, range and moments of levels; the reason for a
        drop.

        Args:
            plain: Mapping of names to mappings of attributes to values.

        Raises:
            ValueError: If the structure, a key or a value is not valid, with the column's name.
        """
        if not isinstance(plain, Mapping):
            raise ValueError(f"columns must be a mapping of names to attributes, got {plain!r:.80}")
        return cls(tuple(_column(name, entry) for name, entry in plain.items()))

    def __str__(self) -> str:
        has_roles = any(column.role not in ("data", "drop") for column in self.columns)
        head = ("column", "kind", *(("role",) if has_roles else ()), "values", "missing", "likelihood", "resolution")
        rows = [head, *(_row(column, has_roles) for column in self.columns)]
        widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
        right = {head.index("missing"), head.index("resolution")}
        lines = []
        for row in rows:
            cells = [
                cell.rjust(width) if place in right else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


def _plain(column: Column) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, field in _FIELDS.items():
        value = getattr(column, key)
        default = {} if field.default is MISSING else field.default
        if key == "name" or value == default or (key == "role" and column.kind == "drop"):
            continue
        plain[key] = list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, dict) else value
    return plain


def _column(name: Any, entry: Any) -> Column:
    if type(name) is not str:
        raise ValueError(f"the name of a column must be a text, got {name!r:.80}; write it in quotes")
    if not isinstance(entry, Mapping):
        raise ValueError(f"column {name!r:.80} needs attributes, such as kind: real, got {entry!r:.80}")
    known = [key for key in _FIELDS if key != "name"]
    for key in entry:
        if key not in known:
            raise ValueError(f"column {name!r:.80}: {unknown('key', key, known)}")
    if "kind" not in entry:
        raise ValueError(f"column {name!r:.80} has no kind; write kind: real, or another")
    unused: tuple[str, ...] = ()
    if entry["kind"] not in LEVELLED:
        unused += ("levels",)
    if entry["kind"] not in NUMERIC:
        unused += ("format", "origin", "resolution", "grid", "low", "high", "centre", "spread")
    if entry["kind"] != "positive":
        unused += ("log_centre", "log_spread")
    if entry["kind"] != "drop":
        unused += ("reason",)
    return Column(name, **{key: value for key, value in entry.items() if key not in unused})


def _row(column: Column, has_roles: bool) -> tuple[str, ...]:
    share = column.missing
    missing = "" if share is None else "0" if share == 0 else f"{100 * share:.1f} %" if share >= 5e-4 else "< 0.1 %"
    last = column.reason if column.kind == "drop" else column.likelihood_name if column.role == "data" else ""
    resolution = "" if column.resolution is None else f"{column.resolution:g}"
    if column.format and column.resolution is not None:
        resolution += " days"
    role = (column.role,) if has_roles else ()
    return (shown(column.name, 40), column.kind, *role, _values(column), missing, shown(last, 100), resolution)


def _values(column: Column) -> str:
    if column.levels:
        listed = ", ".join(shown(level) for level in column.levels)
        return listed if len(listed) <= _WIDEST else f"{len(column.levels):,} levels"
    if column.low is None or column.high is None:
        return ""
    return f"{number_text(column, column.low)} .. {number_text(column, column.high)}"


def number_text(column: Column, value: float) -> str:
    """Write a value of a numeric column: a number, or a date in ISO 8601."""
    if column.format:
        return date_text(value, column.format)
    if value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    if abs(value) >= 1e6 and column.resolution is not None:  # with the digits that tell neighbouring values apart
        return f"{value:,.{max(0, min(6, -math.floor(math.log10(column.resolution))))}f}"
    return f"{value:,.6g}"


def date_text(days: float, form: str) -> str:
    """Write days since 1970-01-01 in ISO 8601.

    Args:
        days: Days, with fractions.
        form: "date" to round to the day, "datetime" or "datetime utc" to round to the microsecond.

    Raises:
        ValueError: If the date lies outside the years 1 to 9999.
    """
    try:
        when = _EPOCH + timedelta(days=round(days) if form == "date" else days)
    except OverflowError as error:
        raise ValueError(f"{days:g} days since 1970-01-01 lie outside the years 1 to 9999") from error
    if form == "date":
        return when.date().isoformat()
    return when.isoformat() if form == "datetime utc" else when.replace(tzinfo=None).isoformat()


def shown(text: str, longest: int = _WIDEST) -> str:
    """Write a text of a stranger on one line: control characters escaped, and cut to a number of letters."""
    safe = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[: longest + 1])
    return safe if len(safe) <= longest else safe[: longest - 3] + "..."
