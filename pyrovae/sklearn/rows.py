"""Rows of data, arrays and frames, to the arguments of programs, and data of programs back to values."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyrovae.columns import KINDS, Column, Columns, grid_of
from pyrovae.data import Table, read_columns, read_table
from pyrovae.sklearn.forms import SPLIT, Form, is_frame

Unseen = Literal["refuse", "missing"]
_FEW = 10  # values of a column, beyond which it may be a measurement


def draw_splits(num_rows: int, validation_fraction: float, seed: int) -> list[str]:
    """Draw "train" or "validation" for each of N rows; floor(validation_fraction N) are validation rows."""
    count = int(validation_fraction * num_rows)
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = set(order[:count])
    return ["validation" if row in held_out else "train" for row in range(num_rows)]


class TableRows:
    """Rows whose columns have kinds, units and missing cells, read by `read_table`.

    Args:
        table: Table of the training data.
        form: Form of the rows.
        unseen: What to do with levels that the training data do not have.

    Attributes:
        columns: The columns, without that of the splits.
    """

    def __init__(self, table: Table, form: Form, unseen: Unseen) -> None:
        self.columns = Columns(tuple(column for column in table.columns if column.name != SPLIT))
        self.form, self.unseen = form, unseen
        self._empty = _with_rows(dataclasses.replace(table, columns=self.columns, notes={}, unseen={}), slice(0))

    @classmethod
    def read(
        cls,
        rows: Any,
        form: Form,
        splits: list[str],
        columns: Any,
        unseen: Unseen,
    ) -> tuple[TableRows, Table]:
        """Read training data.

        Args:
            rows: Array with shape (N, D), float64, NaN where missing, or frame.
            form: Form of the rows.
            splits: "train" or "validation" for each row.
            columns: Columns, the path of a YAML file of them, kinds by name, or None. Kinds that are not given are
                guessed for a frame and real for an array.
            unseen: What to do with levels that the training data do not have.

        Returns:
            The rows, and the table of the training data.

        Raises:
            ValueError: If the rows are no such table, or the columns do not fit.
        """
        if SPLIT in form.names:
            raise ValueError(f"column {SPLIT!r} has a name that is reserved; rename it")
        source = form.source(rows, splits)
        schema = _schema(rows, form, source, splits, columns)
        if schema is None:
            table = _read(source, split=SPLIT, unseen=unseen)
        else:
            schema = Columns((*schema, Column(SPLIT, "category", role="split")))
            table = _read(source, columns=schema, unseen=unseen)
        _warn_of_unseen(table, stacklevel=4)
        found = cls(table, form, unseen)
        known = set(columns) if isinstance(columns, Mapping) else set() if columns is None else set(form.names)
        found._warn_of_dropped(known)
        if not is_frame(rows):
            _warn_of_few_values(rows, form, found.columns, known)
        return found, dataclasses.replace(table, columns=found.columns)

    def table(self, rows: Any) -> Table:
        """Read further rows: a frame with the same columns, or an array of the columns in their order."""
        table = _read(self.form.source(rows), columns=self.columns, new_data=True, unseen=self.unseen)
        _warn_of_unseen(table, stacklevel=6)
        return table

    def arguments(self, rows: Any) -> dict[str, Tensor]:
        """Return x and, if a cell is missing, its mask, both with shape (N, D)."""
        return self.table(rows).arguments()

    def values(self, x: Tensor) -> dict[str, list[Any]]:
        """Return data, with shape (N, D), in original units by column."""
        return _by_name(self._empty.to_frame(x))

    def completed(self, rows: Any, x: Tensor) -> dict[str, list[Any]]:
        """Return completed rows in original units by column, where observed cells keep their digits."""
        return _by_name(self.table(rows).to_frame(x))

    def _warn_of_dropped(self, known: set[str]) -> None:
        dropped = [column for column in self.columns if column.kind == "drop" and column.name not in known]
        if dropped:
            listed = ", ".join(f"{column.name!r:.40} ({column.reason})" for column in dropped[:5])
            more = f" and {len(dropped) - 5} more" if len(dropped) > 5 else ""
            warnings.warn(
                f"the density leaves out {len(dropped)} of {len(self.columns)} columns: {listed}{more}; remove them, "
                "or give their kinds by columns=",
                stacklevel=4,
            )


class NumberRows:
    """Rows of numbers for a likelihood of whole rows, in the units that they have.

    Args:
        x: Training data, with shape (N, D), float64; NaN where missing.
        form: Form of the rows.
        likelihood: Name of the likelihood.
        are_counts: Whether the likelihood is one of counts.
        structured_by: Name of a network of images or sequences, whose input has no place for missing cells; None for
            another network.

    Attributes:
        columns: The columns, all real or all counts.
        structured_by: As given.

    Raises:
        ValueError: If a column has no observed cell, or values that float32 does not tell apart.
    """

    def __init__(
        self, x: np.ndarray, form: Form, *, likelihood: str, are_counts: bool, structured_by: str | None
    ) -> None:
        self.form, self.structured_by = form, structured_by
        kind = "count" if are_counts else "real"
        self.columns = Columns(
            tuple(_number_column(name, kind, values, likelihood) for name, values in zip(form.names, x.T, strict=True))
        )

    def arguments(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return x and, if a cell is missing, its mask, both with shape (N, D)."""
        x = torch.from_numpy(rows.astype(np.float32))
        mask = ~x.isnan()
        if bool(mask.all()):
            return {"x": x}
        if self.structured_by:
            raise ValueError(f"{self.structured_by} needs rows without missing cells, but X has some; fill them")
        return {"x": x, "mask": mask}

    def values(self, x: Tensor) -> dict[str, np.ndarray]:
        """Return data, with shape (N, D), by column."""
        return dict(zip(self.form.names, x.double().cpu().numpy().T, strict=True))

    def completed(self, rows: np.ndarray, x: Tensor) -> dict[str, np.ndarray]:
        """Return completed rows by column, where observed cells keep their digits."""
        filled = np.where(np.isnan(rows), x.double().cpu().numpy(), rows)
        return dict(zip(self.form.names, filled.T, strict=True))


def _warn_of_few_values(x: np.ndarray, form: Form, columns: Columns, known: set[str]) -> None:
    """Warn of columns of an array that hold codes or steps of a scale, unless their kinds are given."""
    few = []
    for name, values in zip(form.names, x.T, strict=True):
        if name in known or columns[name].kind != "real":
            continue
        count = len(np.unique(values[~np.isnan(values)]))
        if count <= min(_FEW, len(x) / 5):
            few.append(f"{name!r} ({count} values)")
    if few:
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        warnings.warn(
            f"columns {', '.join(few[:5])}{more} hold few values, which a density of real numbers fits badly; give "
            f"their kinds, such as columns={{{few[0].split()[0]}: 'ordered'}}, 'binary', 'category', 'count' or 'real'",
            stacklevel=4,
        )


def _read(source: Any, **options: Any) -> Table:
    """Read a table; messages about an array speak of X."""
    try:
        return read_table(source, **options)
    except ValueError as error:
        message = str(error)
        raise ValueError(f"X{message.removeprefix('mapping')}" if message.startswith("mapping") else message) from error


def _warn_of_unseen(table: Table, *, stacklevel: int) -> None:
    """Warn of levels that the training data do not have, which were made missing."""
    if table.unseen:
        count = sum(sum(levels.values()) for levels in table.unseen.values())
        listed = ", ".join(f"{name!r:.40}" for name in list(table.unseen)[:5])
        warnings.warn(
            f"{count:,} cells of X in columns {listed} have levels that the training data do not have, and count as "
            "missing, so that log p(x) leaves them out",
            stacklevel=stacklevel,
        )


def _schema(rows: Any, form: Form, source: Any, splits: list[str], columns: Any) -> Columns | None:
    """Return the columns that are known before the table is read; None to guess all of them."""
    if isinstance(columns, str | os.PathLike):
        columns = read_columns(columns)
    if isinstance(columns, Columns):
        for column in columns:
            if column.role not in ("data", "drop"):
                raise ValueError(
                    f"VAEDensity models every column as data, but column {column.name!r:.80} has the role "
                    f"{column.role}; give it the role data or drop"
                )
        return columns
    kinds = _kinds(columns, form)
    if is_frame(rows):
        if not kinds:
            return None
        guessed = _read(source, split=SPLIT).columns
        schema = tuple(column for column in guessed if column.name != SPLIT)
    else:
        train = np.array([word == "train" for word in splits])
        schema = tuple(_real(name, values[train]) for name, values in zip(form.names, rows.T, strict=True))
    return Columns(tuple(Column(one.name, kinds[one.name]) if one.name in kinds else one for one in schema))


def _kinds(columns: Any, form: Form) -> dict[str, str]:
    """Check kinds by name."""
    if columns is None:
        return {}
    if not isinstance(columns, Mapping):
        raise ValueError(
            "columns must be kinds by name such as {'age': 'real'}, Columns, the path of a YAML file, or None, got "
            f"{type(columns).__name__}"
        )
    for name, kind in columns.items():
        if name not in form.names:
            listed = ", ".join(form.names[:10])
            raise ValueError(f"columns names {name!r:.80}, but X has the columns {listed}; use these names")
        if kind not in KINDS:
            raise ValueError(f"columns[{name!r:.80}] must be one of {', '.join(KINDS)}, got {kind!r:.80}")
    return dict(columns)


def _real(name: str, values: np.ndarray) -> Column:
    """Return a real column of an array; one that is constant or has no observed cell has no density."""
    observed = values[~np.isnan(values)]
    if len(observed) and observed.min() < observed.max():
        return Column(name, "real")
    reason = f"constant in the training rows: {observed[0]:g}" if len(observed) else "no observed value"
    return Column(name, "drop", reason=reason)


def _number_column(name: str, kind: str, values: np.ndarray, likelihood: str) -> Column:
    observed = values[~np.isnan(values)]
    if not len(observed):
        raise ValueError(f"column {name!r:.80} has no observed value; remove it")
    distinct = np.unique(observed)
    lost = len(distinct) - len(np.unique(distinct.astype(np.float32)))
    if lost > 0.01 * len(distinct):
        raise ValueError(
            f"column {name!r:.80} has {lost:,} of {len(distinct):,} values that are not told apart in float32; "
            "subtract a constant, or leave likelihood=None, which does"
        )
    return Column(
        name,
        kind,
        resolution=float(np.diff(distinct).min()) if len(distinct) > 1 else 1.0,
        grid=grid_of(torch.from_numpy(distinct), float(np.spacing(np.abs(distinct).max()))),
        low=float(distinct[0]),
        high=float(distinct[-1]),
        centre=float(observed.mean()),
        spread=float(observed.std()) or 1.0,
        missing=float(np.isnan(values).mean()),
        likelihood=likelihood,
    )


def _with_rows(table: Table, rows: slice) -> Table:
    return dataclasses.replace(table, x=table.x[rows], splits=table.splits[rows], values=table.values[rows])


def _by_name(frame: Any) -> dict[str, list[Any]]:
    names = list(frame) if isinstance(frame, Mapping) else list(frame.columns)
    return {name: list(frame[name]) for name in names}
