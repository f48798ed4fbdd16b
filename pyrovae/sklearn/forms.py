"""The form of rows: an array, or a frame of pandas or polars, with the names and types of its columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SPLIT = ".split"  # column with the splits of the training rows


def is_frame(rows: Any) -> bool:
    """Whether rows are a data frame of pandas or polars."""
    return _library(rows) in ("pandas", "polars") and hasattr(rows, "columns")


def _library(rows: Any) -> str:
    return type(rows).__module__.split(".")[0]


@dataclass(frozen=True)
class Form:
    """Form of the rows that an estimator was fitted to.

    Attributes:
        library: "numpy" for arrays, "pandas" or "polars" for frames.
        names: Names of all columns; x0, x1, ... for arrays.
        labels: Labels of a frame's columns, which are no texts if pandas numbers them.
        dtypes: Types of a frame's columns, by name.
    """

    library: str
    names: tuple[str, ...]
    labels: tuple[Any, ...] = ()
    dtypes: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, rows: Any) -> Form:
        """Return the form of rows, an array with shape (N, D) or a frame."""
        if not is_frame(rows):
            return cls("numpy", tuple(f"x{place}" for place in range(rows.shape[1])))
        labels = tuple(rows.columns)
        names = tuple(str(label).strip() for label in labels)
        dtypes = {name: rows[label].dtype for name, label in zip(names, labels, strict=True)}
        return cls(_library(rows), names, labels, dtypes)

    def source(self, rows: Any, splits: Sequence[str] | None = None) -> Any:
        """Return rows, with their splits if given, as `read_table` takes them: a frame, or a mapping of lists."""
        if not is_frame(rows):
            columns = {name: rows[:, place].tolist() for place, name in enumerate(self.names)}
            return columns if splits is None else {**columns, SPLIT: list(splits)}
        if splits is None:
            return rows
        if _library(rows) == "pandas":
            return rows.assign(**{SPLIT: list(splits)})
        return rows.hstack(type(rows)({SPLIT: list(splits)}))

    def rows(self, values: Mapping[str, Sequence[Any]], constants: Mapping[str, Any]) -> Any:
        """Return values in the form of the rows.

        Args:
            values: Values by name, in original units.
            constants: Values of constant columns that are left out. Other columns without values are missing.

        Returns:
            An array with shape (N, D), float64, or a frame whose columns have the types that they had, if these hold
            the values.
        """
        size = len(next(iter(values.values())))
        whole = {name: values[name] if name in values else [constants.get(name)] * size for name in self.names}
        if self.library == "numpy":
            return np.stack([np.asarray(column, dtype=np.float64) for column in whole.values()], axis=1)
        if self.library == "polars":
            import polars

            return polars.DataFrame({name: list(column) for name, column in whole.items()})
        import pandas

        assert self.dtypes is not None
        frame = pandas.DataFrame({name: _restored(column, self.dtypes[name]) for name, column in whole.items()})
        frame.columns = pandas.Index(self.labels)
        return frame

    def constants(self, rows: Any, names: Collection[str]) -> dict[str, Any]:
        """Return the values of constant columns of rows by name; missing cells do not count.

        Args:
            rows: Rows of this form.
            names: Names of the columns that may be constant.
        """
        found = {}
        for place, name in enumerate(self.names):
            if name in names:
                column = rows[:, place] if self.library == "numpy" else rows[self.labels[place]]
                cells = [
                    cell
                    for cell in (column.to_list() if self.library == "polars" else column.tolist())
                    if not _is_missing(cell)
                ]
                if cells and all(cell == cells[0] for cell in cells):
                    found[name] = cells[0]
        return found


def _is_missing(cell: Any) -> bool:
    return cell is None or type(cell).__name__ in ("NAType", "NaTType") or cell != cell


def _restored(values: Sequence[Any], dtype: Any) -> Any:
    """Return the values of a column of pandas in its former type: categories, truth values, dates and float32."""
    import pandas

    if isinstance(dtype, pandas.CategoricalDtype):
        by_text = {str(level).strip(): level for level in dtype.categories}
        return pandas.Categorical([by_text.get(str(value), value) for value in values], dtype=dtype)
    if any(value is None for value in values):
        return list(values)
    if pandas.api.types.is_bool_dtype(dtype):
        return pandas.Series([str(value) == "True" for value in values], dtype=dtype)
    if pandas.api.types.is_datetime64_any_dtype(dtype):
        return pandas.to_datetime(pandas.Series(list(values)), format="ISO8601").astype(dtype)
    if pandas.api.types.is_float_dtype(dtype):
        return pandas.Series(list(values), dtype=dtype)
    return list(values)
