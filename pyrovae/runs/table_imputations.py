"""Imputations of a table by a trained run, and the files that they go to."""

import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrovae.columns import shown
from pyrovae.data import Table, original, write_csv_rows
from pyrovae.densities import evaluating, isolated_rng
from pyrovae.evidence import Imputation, classify, impute
from pyrovae.execution import Progress
from pyrovae.programs import ProgramPair
from pyrovae.runs.table_files import NewRows
from pyrovae.stats import LogMarginal

ROW_NAMES = ("row", "missing", "log_marginal", "std_error", "ess", "khat", "proposal", "trained_on")
IMPUTATION_FILES = ("imputed.csv", "draws.csv", "imputation.csv", "imputed_cells.csv", "classes.csv")
CELL_NAMES = ("row", "column", "value", "centre", "mc_std_error", "probability", "text")


class Draws(NamedTuple):
    """Draws of the missing cells by one fit.

    Attributes:
        x: Draws, with shape (M, N, D).
        refit: Number of the refit, from 1; None for the run itself.
        labels: Draws of the missing labels, codes with shape (M, N), -1 where a label is known or has no probability;
            None if no label is missing.
    """

    x: Tensor
    refit: int | None
    labels: Tensor | None = None


def impute_rows(
    vae: ProgramPair,
    table: Table,
    device: torch.device,
    *,
    labelled: bool,
    seed: int,
    title: str = "imputation",
    **options: Any,
) -> Imputation:
    """Impute the missing cells of a table and show progress; complete rows cost nothing.

    Args:
        vae: Trained model.
        table: Rows.
        device: Device of the model.
        labelled: Whether its programs have an argument `labels`.
        seed: Random seed.
        title: Name of the computation, for its progress.
        **options: Further arguments of `impute`.

    Returns:
        The imputation, on the CPU. The log p(x) and the errors of rows without missing cells or label are NaN.
    """
    rows = rows_with_holes(table)
    if not bool(rows.any()):
        return _complete(table, options.get("num_draws", 0))
    part = table.rows(rows)
    arguments = _arguments(part, device)
    if labelled and part.labels is not None:
        arguments["labels"] = part.labels.to(device)
    with isolated_rng(seed), warnings.catch_warnings(), Progress(len(part), "row", title) as progress:
        warnings.filterwarnings("ignore", "the conditional mean of column")  # see `median_lines`
        found = impute(vae.model, vae.guide, **arguments, **options, on_progress=progress.update)
    whole = _complete(table, len(found.draws))
    for field in ("value", "std_error", "probability", "served"):
        getattr(whole, field)[rows] = getattr(found, field).to(getattr(whole, field))
    for into, values in zip(whole.log_marginal, found.log_marginal, strict=True):
        into[rows] = values.to(into)
    whole.draws[:, rows] = found.draws.to(whole.draws)
    return whole._replace(centre=found.centre, components=found.components, without_mean=found.without_mean)


def _complete(table: Table, num_draws: int) -> Imputation:
    """Return the imputation of a table as if nothing were missing."""
    x, unknown = table.x, torch.full((len(table),), torch.nan, dtype=torch.float64)
    return Imputation(
        x.clone(),
        ("",) * x.shape[1],
        torch.zeros_like(x, dtype=torch.float64),
        torch.full_like(x, torch.nan, dtype=torch.float64),
        x.repeat(num_draws, 1, 1),
        LogMarginal(*(unknown.clone() for _ in LogMarginal._fields)),
        torch.zeros(len(table), dtype=torch.long),
        (),
    )


def median_lines(table: Table, imputed: Imputation) -> list[str]:
    """Name the columns, if any, that have medians since some of their means do not exist or overflow."""
    names = ", ".join(shown(table.columns.data[place].name) for place in imputed.without_mean)
    if not names:
        return []
    return [
        f"the conditional mean of {names} does not exist or overflows in some rows, so medians take its place; a "
        "likelihood with lighter tails has one"
    ]


def classify_rows(vae: ProgramPair, new: NewRows, device: torch.device, *, seed: int, **options: Any) -> Tensor:
    """Compute the probabilities of the classes of new rows, with shape (N, K), float64, from their other cells."""
    with isolated_rng(seed), evaluating(vae):
        return classify(vae.model, vae.guide, **_arguments(new.table, device), **options).probabilities.cpu()


def missing_labels(table: Table) -> Tensor:
    """Return whether the label of each row is missing, with shape (N,), bool; false if the table has no labels."""
    return torch.zeros(len(table), dtype=torch.bool) if table.labels is None else table.labels < 0


def rows_with_holes(table: Table) -> Tensor:
    """Return whether a cell or the label of each row is missing, with shape (N,), bool."""
    return (~table.mask).any(1) | missing_labels(table)


def with_labels(
    vae: ProgramPair,
    new: NewRows,
    device: torch.device,
    draws: Draws,
    classes: Tensor | None,
    *,
    seed: int,
    **options: Any,
) -> Draws:
    """Draw missing labels, if any, and the missing cells of their rows given the drawn labels.

        y ~ p(y|x_obs),  x_mis ~ p(x_mis|x_obs, y)

    Labels and cells that are drawn apart from each other would be independent given x_obs.

    Args:
        vae: Trained model, whose programs have an argument `labels`.
        new: Rows, with labels of which some are missing.
        device: Device of the model.
        draws: Draws of the missing cells. Those of rows without a label are replaced.
        classes: Probabilities p(y|x_obs), with shape (N, K); NaN for rows without an estimate, whose label is not
            drawn; None without labels.
        seed: Random seed.
        **options: Further arguments of `impute`.
    """
    if classes is None or not bool(missing_labels(new.table).any()):
        return draws
    x = draws.x
    rows = missing_labels(new.table) & ~classes.isnan().any(1)
    y = torch.full((len(x), len(new.table)), -1)
    with isolated_rng(seed):
        if bool(rows.any()):
            y[:, rows] = torch.multinomial(classes[rows], len(x), replacement=True).T
        holes = rows & (~new.table.mask).any(1)
        part, found = new.table.rows(holes), x.clone()
        for code in y[:, holes].unique().tolist():
            labels = torch.full((len(part),), code, device=device)
            given = impute(vae.model, vae.guide, **_arguments(part, device), labels=labels, num_draws=len(x), **options)
            chosen = (y[:, holes] == code).unsqueeze(-1)
            found[:, holes] = torch.where(chosen.to(x.device), given.draws.to(x), found[:, holes])
    return Draws(found, draws.refit, y)


def _arguments(table: Table, device: torch.device) -> dict[str, Any]:
    return {**table.arguments(device=device), "mask": table.mask.to(device)}


def write_imputations(
    folder: Path,
    new: NewRows,
    imputed: Imputation,
    draws: Sequence[Draws],
    trained: Tensor,
    classes: Tensor | None = None,
) -> tuple[list[Path], int]:
    """Write imputed.csv, draws.csv, imputation.csv and imputed_cells.csv, and classes.csv if there are classes.

    imputed.csv is the file with its missing cells filled. draws.csv has each draw of the whole file below the other, as
    mice's long format: ".imp" is the number of the draw, ".id" that of the row, and ".refit" that of the refit, if any.
    imputation.csv has a line per row with missing cells, which says whether the row equals a training row;
    imputed_cells.csv has one per filled cell, with the text that the file has there, such as an unknown level.
    classes.csv has the probabilities of the classes of each row. A missing label is a missing cell: imputed.csv has the
    most probable class, draws.csv the drawn one. It stays missing if it has no probabilities.

    Args:
        folder: Folder of the files.
        new: Rows.
        imputed: Their imputation.
        draws: Draws of each fit.
        trained: Whether each row equals a training row, with shape (N,), bool.
        classes: Probabilities of the classes, with shape (N, K); None without labels.

    Returns:
        The paths of the files, and the number of texts of imputed.csv that got a ' in front (see `write_csv`).
    """
    *paths, of_classes = (folder / name for name in IMPUTATION_FILES)
    likely = None
    if classes is not None:
        (label,) = new.table.columns.of_role("label")
        paths.append(of_classes)
        rows = ((row, *map(float, p)) for row, p in enumerate(classes, start=1))
        write_csv_rows(paths[-1], ("row", *label.levels), rows)
        likely = torch.where(missing_labels(new.table) & ~classes.isnan().any(1), classes.nan_to_num(0.0).argmax(1), -1)
    completed = new.completed(imputed.value, likely)
    num_guarded = write_csv_rows(paths[0], new.names, zip(*completed, strict=True))
    has_refits = any(part.refit is not None for part in draws)
    names = [".imp", ".id", *([".refit"] if has_refits else []), *new.names]
    write_csv_rows(paths[1], names, _long(new, draws, has_refits))
    write_csv_rows(paths[2], ROW_NAMES, _rows(new, imputed, trained))
    write_csv_rows(paths[3], CELL_NAMES, chain(_cells(new, imputed), _label_cells(new, classes, likely)))
    return paths, num_guarded


def _long(new: NewRows, draws: Sequence[Draws], has_refits: bool) -> Iterator[Sequence[Any]]:
    number = 0
    for part in draws:
        for draw, x in enumerate(part.x):
            number += 1
            labels = None if part.labels is None else part.labels[draw]
            for row, cells in enumerate(zip(*new.completed(x, labels), strict=True), start=1):
                yield number, row, *([part.refit] if has_refits else []), *cells


def _label_cells(new: NewRows, classes: Tensor | None, likely: Tensor | None) -> Iterator[Sequence[Any]]:
    if classes is None or likely is None:
        return
    (label,) = new.table.columns.of_role("label")
    for row in (likely >= 0).nonzero().flatten().tolist():
        code = int(likely[row])
        yield (
            row + 1,
            label.name,
            label.levels[code],
            "mode",
            None,
            float(classes[row, code]),
            new.cells[label.name][row],
        )


def _rows(new: NewRows, imputed: Imputation, trained: Tensor) -> Iterator[Sequence[Any]]:
    missing, found = (~new.table.mask).sum(1) + missing_labels(new.table), imputed.log_marginal
    for n in missing.nonzero().flatten().tolist():
        numbers = (float(value[n]) for value in (found.value, found.std_error, found.ess, found.khat))
        served = imputed.components[int(imputed.served[n])]
        yield n + 1, int(missing[n]), *numbers, served, "yes" if trained[n] else "no"


def _cells(new: NewRows, imputed: Imputation) -> Iterator[Sequence[Any]]:
    for place, column in enumerate(new.table.columns.data):
        rows = (~new.table.mask[:, place]).nonzero().squeeze(1)
        values = imputed.value[rows.to(imputed.value.device), place].cpu().float().numpy()
        shown = original(column, values, np.full(len(rows), np.nan))
        for row, value in zip(rows.tolist(), shown, strict=True):
            errors = (float(part[row, place]) for part in (imputed.std_error, imputed.probability))
            text = new.cells[column.name][row]
            yield row + 1, column.name, value, imputed.centre[place], *(None if e != e else e for e in errors), text
