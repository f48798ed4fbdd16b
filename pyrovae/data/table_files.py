"""Tables as columns of texts: CSV, TSV, Parquet, and data frames of pandas and polars."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae.data.untrusted import check_size, open_regular

LIMIT = 2**29  # bytes of a file of text
PARQUET_LIMIT = 2**31  # bytes of a Parquet file
_MOST_CELLS = 2 * 10**8
_LONGEST_CELL = 2**17  # letters
_LONGEST_LINE = 2**24  # bytes
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_SIGNATURES = {  # of files that are no table of text
    b"\x80": "a pickle, which may run code when it is read",
    b"\x93NUMPY": "a NumPy array",
    b"PK\x03\x04": "a zip file, such as .npz or .xlsx",
    b"\x1f\x8b": "compressed by gzip",
    b"PAR1": "a Parquet file",
    b"\xff\xfe": "encoded in UTF-16",
    b"\xfe\xff": "encoded in UTF-16",
}
_UNNAMED = "rownames"  # R writes row names under an empty name


@dataclass
class RawTable:
    """Table as it was given: columns of texts.

    Attributes:
        name: Path of the file, or "data frame".
        columns: Cells by column, stripped of surrounding white space; None for cells without a value.
        texts: Columns whose source says that they hold texts, even if all of them look like numbers.
        levels: Levels that the source declares, in order.
        ordered: Columns whose declared levels are ordered.
        notes: Sentences for the user, by column; "" for the whole table.
        delimiter: Letter between the cells of a file of text; "" for other sources.
    """

    name: str
    columns: dict[str, list[str | None]]
    texts: set[str] = field(default_factory=set)
    levels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ordered: set[str] = field(default_factory=set)
    notes: dict[str, list[str]] = field(default_factory=dict)
    delimiter: str = ""

    @property
    def num_rows(self) -> int:
        """Number of rows N."""
        return len(next(iter(self.columns.values())))

    def place(self, column: str, row: int | None = None) -> str:
        """Name a column, and a row counted from 0, for an error message, which counts from 1 without the header."""
        return f"{self.name}, column {column!r:.80}" + ("" if row is None else f", row {row + 1:,}")


def read_raw(source: Any, *, names: Sequence[str] | None = None, delimiter: str | None = None) -> RawTable:
    """Read a file, a data frame or a mapping of names to lists as columns of texts.

    Args:
        source: Path of a CSV, TSV or Parquet file, a frame of pandas or polars, or a mapping.
        names: Names of the columns of a text file without a header; None if its first line has them.
        delimiter: Letter between the cells of a text file; None for a tab in .tsv, and in .csv for a comma, or for
            ";", a tab or "|" if the header has one of them and no comma.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If a Parquet file is given and pandas or pyarrow is missing.
        ValueError: If it is no table, or not rectangular, with the file, column and row.
    """
    if not isinstance(source, str | os.PathLike):
        return _checked(_read_frame(source))
    path = Path(os.path.expanduser(source))
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; check the path of the table")
    if path.suffix.lower() in (".parquet", ".pq"):
        return _checked(_read_parquet(path))
    if path.suffix.lower() not in (*_DELIMITERS, ".txt", ".data", ".dat") or (
        delimiter is None and path.suffix.lower() not in _DELIMITERS
    ):
        raise ValueError(
            f"{path} is no table of a known format; give .csv, .tsv or .parquet, or a data frame, or delimiter= for "
            "another text file"
        )
    return _checked(_read_text(path, names, delimiter or _DELIMITERS[path.suffix.lower()]))


def _checked(table: RawTable) -> RawTable:
    if not table.columns or not table.num_rows:
        raise ValueError(f"{table.name} has no rows; give a table with at least one row below its header")
    if table.num_rows * len(table.columns) > _MOST_CELLS:
        raise ValueError(
            f"{table.name} has {table.num_rows:,} x {len(table.columns):,} cells, but at most {_MOST_CELLS:,} are "
            "read; leave out columns or rows"
        )
    for name in table.columns:
        if not 0 < len(name) <= 200 or not name.isprintable():
            raise ValueError(
                f"{table.name}: the name {name!r:.80} of a column must have 1 to 200 printable letters; rename it"
            )
    return table


# Text files


def _read_text(path: Path, names: Sequence[str] | None, delimiter: str) -> RawTable:
    check_size(path, LIMIT)
    with open_regular(path) as file:
        start = file.peek(8)[:8]
        for signature, words in _SIGNATURES.items():
            if start.startswith(signature):
                raise ValueError(f"{path} is {words}; give a table of text in UTF-8, .csv or .tsv, or a .parquet file")
        lines = _lines(file, path)
        reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
        rows = _rows(reader, path)
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{path} is empty; give a table with a header and at least one row")
        other = _other_delimiter(names or first, delimiter)
        if other is not None:
            table = _read_text(path, names, other)
            table.notes.setdefault("", []).append(f"cells are separated by {other!r}")
            return table
        header = _header(path, names or first)
        if names is not None and len(first) != len(names):
            raise ValueError(f"{path} has {len(first)} cells in its first row, but names= gives {len(names)}")
        cells: list[list[str | None]] = [[] for _ in header]
        known: list[dict[str, str]] = [{} for _ in header]  # equal texts are kept once
        for count, row in enumerate(chain([first], rows) if names is not None else rows, 1):
            if len(row) != len(header):
                cells_of_row = "1 cell" if len(row) == 1 else f"{len(row)} cells"
                raise ValueError(
                    f"{path}, row {count:,} (line {reader.line_num:,}) has {cells_of_row}, but the header has "
                    f"{len(header)}; correct the row, or quote cells that contain {delimiter!r}"
                )
            for column, texts, cell in zip(cells, known, row, strict=True):
                stripped = cell.strip()
                column.append(texts.setdefault(stripped, stripped))
    table = RawTable(str(path), dict(zip(header, cells, strict=True)), delimiter=delimiter)
    if names is None and all(_is_number(name) for name in header if name != _UNNAMED):
        table.notes[""] = ["the header holds numbers alone; if the file has no header, write one as its first line"]
    return table


def _lines(file: Iterable[bytes], path: Path) -> Iterator[str]:
    for count, raw in enumerate(_raw_lines(file, path), 1):
        if b"\0" in raw:
            raise ValueError(
                f"{path}, line {count:,} has a NUL byte, so the file is damaged or no text; save it as CSV in UTF-8"
            )
        try:
            yield raw.decode("utf-8-sig" if count == 1 else "utf-8")
        except UnicodeDecodeError as error:
            before = raw[: error.start].decode("utf-8", errors="replace")
            raise ValueError(
                f"{path}, line {count:,} is not encoded in UTF-8 after {before[-20:]!r} (byte "
                f"0x{raw[error.start]:02x}); save the file in UTF-8, or convert it by iconv -f latin1 -t utf-8"
            ) from error


def _raw_lines(file: Any, path: Path) -> Iterator[bytes]:
    while raw := file.readline(_LONGEST_LINE + 1):
        if len(raw) > _LONGEST_LINE:
            raise ValueError(f"{path} has a line of more than {_LONGEST_LINE:,} bytes; give one row a line")
        yield raw


def _rows(reader: Any, path: Path) -> Iterator[list[str]]:
    """Yield the rows. Empty lines at the end of the file are left out, others are refused."""
    empty = 0
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            advice = "close its quotes, and double those inside a cell"
            if "new-line character" in str(error):  # a return without a line feed, as old systems wrote
                error, advice = csv.Error("it has a return without a line feed"), "save it with usual ends of lines"
            raise ValueError(f"{path}, line {reader.line_num:,} is no valid CSV ({error}); {advice}") from error
        if not row:
            empty = empty or reader.line_num
            continue
        if empty:
            raise ValueError(f"{path}, line {empty:,} is empty, and rows follow it; remove it")
        if max(map(len, row)) > _LONGEST_CELL:
            raise ValueError(f"{path}, line {reader.line_num:,} has a cell of more than {_LONGEST_CELL:,} letters")
        yield row


def _other_delimiter(row: Sequence[str], delimiter: str) -> str | None:
    """Return what separates the cells of a header without a comma; None if nothing does."""
    if len(row) > 1 or delimiter != ",":
        return None
    return next((letter for letter in ";\t|" if letter in row[0]), None)


def _header(path: Path, row: Sequence[str]) -> list[str]:
    header = [str(name).strip() for name in row]
    # write_csv guards names that a spreadsheet would run.
    header = [name[1:] if name[:1] == "'" and name[1:2] in ("=", "+", "-", "@") else name for name in header]
    if header[0] == "" and _UNNAMED not in header:
        header[0] = _UNNAMED
    return _unique(header, str(path))


def _unique(header: list[str], name: str) -> list[str]:
    seen: dict[str, int] = {}
    for place, column in enumerate(header, 1):
        if not column:
            raise ValueError(f"{name}: column {place} has no name; name every column in the header")
        if column in seen:
            raise ValueError(
                f"{name}: columns {seen[column]} and {place} have the same name {column!r:.80}; rename one"
            )
        seen[column] = place
    return header


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# Frames


def _read_parquet(path: Path) -> RawTable:
    check_size(path, PARQUET_LIMIT)
    try:
        import pandas
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{path} needs pandas and pyarrow, but {error.name} is not installed; run pip install 'pyrovae[table]', or "
            "give a .csv file"
        ) from error
    try:
        with open_regular(path) as file:
            about = pyarrow.parquet.ParquetFile(file).metadata
            if about.num_rows * about.num_columns > _MOST_CELLS:
                raise ValueError(f"it has more than {_MOST_CELLS:,} cells")
        with open_regular(path) as file:
            frame = pandas.read_parquet(file, engine="pyarrow")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        problem = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as a Parquet file ({problem}); write it again") from error
    if any(name is not None for name in frame.index.names):  # pandas keeps a named index as columns of the file
        frame = frame.reset_index()
    table = _read_frame(frame)
    table.name = str(path)
    return table


def _read_frame(frame: Any) -> RawTable:
    """Read a frame of pandas or polars, known by the module of its class, or a mapping of names to lists."""
    module = type(frame).__module__.split(".")[0]
    if isinstance(frame, Mapping):
        names, table = list(frame), RawTable("mapping", {})
    elif module in ("pandas", "polars") and hasattr(frame, "columns"):
        names, table = list(frame.columns), RawTable("data frame", {})
    else:
        raise ValueError(
            f"a table must be a path, a data frame of pandas or polars, or a mapping of names to lists, got "
            f"{type(frame).__name__}"
        )
    header = _unique([str(name).strip() for name in names], table.name)
    for name, key in zip(header, names, strict=True):
        values = frame[key]
        if module == "pandas":
            _declare_levels(table, name, values)
        dtype = str(getattr(values, "dtype", ""))
        if not isinstance(values, list | tuple):
            values = (
                values.astype(object).tolist()
                if dtype == "category"
                else values.tolist()
                if module != "polars"
                else values.to_list()
            )
        if dtype.lower() == "float32":
            values = [None if value is None else np.float32(value) for value in values]
        cells = [_cell(value, table.place(name, row)) for row, value in enumerate(values)]
        if any(isinstance(value, str) for value in values):
            table.texts.add(name)
        table.columns[name] = cells
    lengths = {len(cells) for cells in table.columns.values()}
    if len(lengths) > 1:
        raise ValueError(f"{table.name}: columns must have equal lengths, got {sorted(lengths)}")
    return table


def _declare_levels(table: RawTable, name: str, values: Any) -> None:
    about = getattr(values, "cat", None) if str(values.dtype) == "category" else None
    if about is None:
        return
    table.levels[name] = tuple(_cell(level, table.place(name)) or "" for level in about.categories)
    if about.ordered:
        table.ordered.add(name)


def _cell(value: Any, place: str) -> str | None:
    """Write a value of a frame as a text; None for None, NaN, NaT and NA."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, str):
        if len(value) > _LONGEST_CELL:
            raise ValueError(f"{place} has more than {_LONGEST_CELL:,} letters")
        return value.strip()
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | float | np.integer | np.floating):
        return None if math.isnan(value) else str(value)
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    if type(value).__name__ == "Decimal":
        return str(value)
    raise ValueError(
        f"{place} holds a {type(value).__name__}; a cell must be a number, a text, true or false, a date, or missing"
    )
