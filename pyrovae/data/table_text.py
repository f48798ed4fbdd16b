"""Tables as text: the YAML of their columns, values in original units, and CSV files."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pyrovae.columns import LEVELLED, Column, Columns, date_text, shown
from pyrovae.data.cells import is_formula, number, number_as_text
from pyrovae.data.untrusted import parse_yaml, read_bytes

_COLUMNS_LIMIT = 2**23  # bytes of a columns.yaml
# Read from the data
_NUMBERS = ("origin", "low", "high", "resolution", "grid", "centre", "spread", "log_centre", "log_spread", "missing")


def columns_yaml(columns: Columns, notes: Mapping[str, Iterable[object]] | None = None, *, numbers: bool = True) -> str:
    """Write columns as YAML, which `read_columns` reads.

    Args:
        columns: The columns.
        notes: Lines of comment by column; "" for those at the top.
        numbers: Whether to write the moments of the training rows. Without them they are computed when a table is read.
    """
    notes = notes or {}
    lines = [f"# {_comment(note)}" for note in notes.get("", ())]
    for name, plain in columns.to_dict().items():
        lines += [f"# {_comment(note)}" for note in notes.get(name, ())]
        lines.append(f"{_scalar(name)}:")
        for key, value in plain.items():
            if numbers or key not in _NUMBERS:
                lines.append(f"  {key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def _comment(note: object) -> str:
    return shown(str(note), 2000)


def _scalar(value: Any) -> str:
    """Write a value in one line of YAML; texts in quotes, unless they are plain words."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            if value.replace("_", "a").replace(" ", "a").isalnum() and value.isascii() and parse_yaml(value) == value:
                return value
        return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=10**9).strip()
    return yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("\n").removesuffix("\n...")


def _flow(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_quoted(entry) for entry in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_scalar(key)}: {_flow(entry)}' for key, entry in value.items())}}}"
    return _scalar(value)


def _quoted(value: Any) -> str:
    """Write an entry of a list, in quotes, which shows how others are to be added."""
    if isinstance(value, str):
        return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=10**9).strip()
    return _flow(value)


def read_columns(path: str | os.PathLike[str]) -> Columns:
    """Read columns from a YAML file of plain values.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, or a key or a value is not valid, with the column's name.
    """
    path = Path(os.path.expanduser(path))
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; write the columns of a table to it by Table.describe()")
    try:
        plain = parse_yaml(read_bytes(path, _COLUMNS_LIMIT).decode())
        if plain is None:
            raise ValueError("it is empty; write the columns to it by train.py --data TABLE --describe true")
        return Columns.from_dict(plain)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def original(column: Column, x: np.ndarray, exact: np.ndarray) -> list[Any]:
    """Convert values of a column to original units: numbers, whole numbers of counts, levels, and dates in ISO 8601.

    Args:
        column: Column.
        x: Values of x, with shape (N,); NaN for missing cells, which become None.
        exact: Values in original units, with shape (N,), float64, which replace those of x; NaN where x is used.

    Raises:
        ValueError: If a value is no code of a level.
    """
    if column.kind in LEVELLED:
        levels: list[Any] = list(column.levels)
        values = [number(level) for level in levels]
        if all(
            value is not None and math.isfinite(value) and number_as_text(value) == level
            for value, level in zip(values, levels, strict=True)
        ):
            levels = [int(value) if value == int(value) else value for value in values if value is not None]
        elif set(levels) <= {"False", "True"}:
            levels = [level == "True" for level in levels]
        observed = x[~np.isnan(x)]
        if not ((observed >= 0) & (observed < len(levels)) & (observed == np.floor(observed))).all():
            raise ValueError(
                f"column {column.name!r} has codes 0 to {len(levels) - 1}, got another value; give draws of its "
                "likelihood or modes, not means"
            )
        return [None if np.isnan(value) else levels[int(value)] for value in x]
    # The shortest decimal of a float32 is what a cell had. A sum with the origin has rounding errors behind 15 digits.
    plain = [float(str(value)) if np.isnan(own) else own for value, own in zip(x, exact, strict=True)]
    if column.origin:
        shifted = (value + column.origin for value in plain)
        plain = [float(f"{value:.15g}") if np.isnan(own) else own for value, own in zip(shifted, exact, strict=True)]
    return [None if np.isnan(value) else _number(column, float(value)) for value in plain]


def _number(column: Column, plain: float) -> Any:
    if column.format:
        return date_text(plain, column.format)
    return int(plain) if column.kind == "count" and plain == int(plain) else plain


def write_csv(path: str | os.PathLike[str], frame: Any, *, columns: Columns | None = None) -> int:
    """Write a data frame, or a mapping of names to lists, as a CSV file in UTF-8.

    A spreadsheet runs a cell that begins with = + - @, a tab or a return. Such texts get a ' in front, as spreadsheets
    write it, unless they are numbers; `read_table` takes it off again where the rest is a level.

    Args:
        path: Path of the file. It is replaced whole.
        frame: Data frame of pandas or polars, or mapping of names to lists; None, NaN and NA make empty cells.
        columns: Columns whose names and order the file gets; None for those of the frame.

    Returns:
        The number of cells with a ' in front, for a message to the user.

    Raises:
        ValueError: If a column is missing, or the columns differ in length. No file is written.
    """
    names: Sequence[Any] = list(frame) if isinstance(frame, Mapping) else list(frame.columns)
    if columns is not None:
        chosen = [column.name for column in columns if column.name in names]
        absent = [column.name for column in columns.data if column.name not in names]
        if absent:
            raise ValueError(f"the frame has no column {absent[0]!r:.80}; give one with all columns of the data")
        names = chosen
    cells = [_list(frame[name]) for name in names]
    if len({len(column) for column in cells}) > 1:
        raise ValueError(f"columns must have equal lengths, got {sorted({len(column) for column in cells})}")
    return write_csv_rows(path, names, zip(*cells, strict=True))


def write_csv_rows(path: str | os.PathLike[str], names: Iterable[Any], rows: Iterable[Iterable[Any]]) -> int:
    """Write rows as a CSV file in UTF-8, one after the other, as `write_csv` writes a data frame.

    Args:
        path: Path of the file. It is replaced whole, once all rows are written.
        names: Names of the columns.
        rows: Cells of each row.

    Returns:
        The number of cells with a ' in front.
    """
    path = Path(os.path.expanduser(path))
    temporary = path.with_name(f".unfinished-{uuid.uuid4().hex}")
    num_guarded = 0
    try:
        with temporary.open("x", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            for row in chain([map(str, names)], rows):
                cells = [_guarded(value) for value in row]
                writer.writerow([cell for cell, _ in cells])
                num_guarded += sum(guarded for _, guarded in cells)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return num_guarded


def _list(values: Any) -> list[Any]:
    return list(values.to_list() if hasattr(values, "to_list") else values)


def _guarded(value: Any) -> tuple[Any, bool]:
    """Return a cell, and whether it got a ' in front."""
    is_missing = value is None or type(value).__name__ in ("NAType", "NaTType") or value != value
    if is_missing:
        return "", False
    if isinstance(value, str) and is_formula(value):
        return f"'{value}", True
    return value, False
