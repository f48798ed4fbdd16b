"""Tables that the scripts read and write: new rows for a run, and completed, drawn or scored rows in original units."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyrovae.columns import Columns
from pyrovae.data import NA_VALUES, Data, Table, original, read_raw, read_table, write_csv_rows
from pyrovae.plots import prior_samples
from pyrovae.programs import ProgramPair
from pyrovae.runs.fitting import device_of
from pyrovae.runs.parser import Parser
from pyrovae.runs.run import Run

_AT_ONCE = 1000  # rows that are drawn at once


@dataclass(frozen=True)
class NewRows:
    """Rows of a file for a trained run.

    Attributes:
        table: The rows as the model takes them.
        cells: Cells of all columns of the file as texts, None where empty.
    """

    table: Table
    cells: dict[str, list[str | None]]

    @property
    def names(self) -> list[str]:
        """Names of all columns of the file, in its order."""
        return list(self.cells)

    def completed(self, values: Tensor, labels: Tensor | None = None) -> list[list[Any]]:
        """Return all columns of the file, with the missing cells of the data replaced by values in original units.

        Observed cells, and columns that the model does not read, are the texts of the file.

        Args:
            values: Values like `table.x`, with shape (N, D). Only those of missing cells are used.
            labels: Codes of the labels to fill in, with shape (N,), -1 for none; None for none at all. The file must
                have labels.
        """
        holes, x = ~self.table.mask.numpy(), values.detach().cpu().float().numpy()
        found: dict[str, list[Any]] = {name: list(cells) for name, cells in self.cells.items()}
        for place, column in enumerate(self.table.columns.data):
            rows = np.flatnonzero(holes[:, place])
            filled = original(column, x[rows, place], np.full(len(rows), np.nan))
            for row, value in zip(rows.tolist(), filled, strict=True):
                found[column.name][row] = value
        if labels is not None and self.table.labels is not None:
            (label,) = self.table.columns.of_role("label")
            rows = (labels >= 0).nonzero().flatten().numpy()
            filled = original(label, labels[rows].float().numpy(), np.full(len(rows), np.nan))
            for row, value in zip(rows.tolist(), filled, strict=True):
                found[label.name][row] = value
        return list(found.values())


def add_table_flags(parser: Parser) -> None:
    """Add the flags of scripts that read rows for a trained run."""
    unseen = "what to do with levels that the run does not know"
    parser.add_argument("--unseen", type=Literal["refuse", "missing"], default="refuse", help=unseen)
    texts = "further texts that stand for missing cells"
    parser.add_argument("--na_values", type=list[str], default=[], help=texts, may_be_empty=True)
    parser.add_argument("--out", type=str | None, default=None, help="folder of the files (default: the run folder)")


def check_not_input(source: str, out: Path, names: Sequence[str]) -> None:
    """Check before a computation that no file that it writes is the one it reads.

    Args:
        source: Path of the input.
        out: Folder of the output.
        names: Names of the files of the output.

    Raises:
        ValueError: If a file of the output is the input.
    """
    for name in names:
        if (out / name).resolve() == Path(source).resolve():
            raise ValueError(f"--out {out}: {name} would replace the input {source}; choose another folder")


def trained_rows(table: Table, training: Table) -> Tensor:
    """Return whether each row equals a training row in all its data and covariates, with shape (N,), bool.

    Numbers of such rows are transductive: they are better than those of new rows, and no estimate of them.

    Args:
        table: N rows, read with the columns of the run.
        training: Training rows of the run.
    """
    known = set(_keys(training))
    return torch.tensor([key in known for key in _keys(table)], dtype=torch.bool)


def _keys(table: Table) -> list[bytes]:
    """Return bytes of each row that are equal for rows with equal data and covariates."""
    parts = [np.where(np.isnan(table.values), np.nan, table.values) + 0.0]  # one kind of NaN, and of 0
    if table.covariates is not None:
        parts.append(table.covariates.double().numpy() + 0.0)
    return [row.tobytes() for row in np.concatenate(parts, axis=1)]


def trained_line(trained: Tensor, what: str) -> str:
    """Say how many rows the model was trained on, and that their numbers are no estimate of those of new rows.

    Args:
        trained: Whether each row equals a training row, with shape (N,), bool.
        what: Noun of what is computed, such as "log p(x)".

    Returns:
        One line.
    """
    count = int(trained.sum())
    if not count:
        return f"{what} of held-out rows: none of the {len(trained):,} equals a training row"
    return (
        f"{what} of {count:,} of {len(trained):,} rows is transductive, of rows that the model was trained on, and no "
        "measure of held-out rows"
    )


def columns_of(run: Run) -> Columns:
    """Return the columns of a run on a table.

    Raises:
        ValueError: If its data are an array or images.
    """
    columns = run.columns()
    if columns is None:
        name = run.manifest["data"]["name"]
        raise ValueError(
            f"{run.path} was trained on {name}, which is no table; give a run on a CSV, TSV or Parquet file"
        )
    return columns


def read_new_rows(run: Run, path: str, *, unseen: Any = "refuse", na_values: Sequence[str] = ()) -> NewRows:
    """Read rows for a trained run, whose columns are found by name.

    Args:
        run: Run folder.
        path: CSV, TSV or Parquet file.
        unseen: Whether to "refuse" levels that the run does not know, or to treat them as "missing".
        na_values: Further texts that stand for missing cells.

    Raises:
        ValueError: If the run is not on a table, or the file does not fit its columns.
        FileNotFoundError: If there is no such file.
    """
    columns = columns_of(run)
    table = read_table(path, columns=columns, new_data=True, unseen=unseen, na_values=(*NA_VALUES, *na_values))
    return NewRows(table, read_raw(path).columns)


def write_samples(run: Run, vae: ProgramPair, data: Data, *, size: int, seed: int) -> Path:
    """Write samples.csv: draws from the model in original units.

    A model with covariates is given those of the test rows in turn. The column ".given" has their numbers in the file,
    from 1.

    Returns:
        The path of the file.
    """
    table = data.table
    assert table is not None
    device = device_of(vae)
    given = data.covariates is not None
    conditions = {} if data.covariates is None else {"covariates": data.covariates["test"].to(device)}

    def rows() -> Iterator[Sequence[Any]]:
        for page, start in enumerate(range(0, size, _AT_ONCE)):
            index = torch.arange(start, min(start + _AT_ONCE, size)) % len(data.test)
            x = torch.zeros(len(index), data.test.shape[1], device=device)
            page_seed = int(np.random.SeedSequence([seed, page]).generate_state(1)[0])
            covariates = {key: value[index.to(device)] for key, value in conditions.items()}
            draws, _ = prior_samples(vae.model, x, seed=page_seed, **covariates)
            values = draws.cpu().float().numpy()
            nothing = np.full(len(values), np.nan)
            columns = [original(column, values[:, d], nothing) for d, column in enumerate(table.columns.data)]
            if given:
                columns = [(data.test_index[index] + 1).tolist(), *columns]
            yield from zip(*columns, strict=True)

    names = [column.name for column in table.columns.data]
    path = run.path / "samples.csv"
    write_csv_rows(path, [".given", *names] if given else names, rows())
    return path
