"""Imputations of a table by a trained run, and the files that they go to."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrovae.data import Table, original, write_csv_rows
from pyrovae.densities import evaluating, isolated_rng
from pyrovae.evidence import Imputation, classify, impute
from pyrovae.programs import ProgramPair
from pyrovae.runs.table_files import NewRows

ROW_NAMES = ("row", "missing", "log_marginal", "std_error", "ess", "khat", "proposal")
CELL_NAMES = ("row", "column", "value", "centre", "mc_std_error", "probability")


class Draws(NamedTuple):
    """Draws of the missing cells by one fit.

    Attributes:
        x: Draws, with shape (M, N, D).
        refit: Number of the refit, from 1; None for the run itself.
    """

    x: Tensor
    refit: int | None


def impute_rows(
    vae: ProgramPair, new: NewRows, device: torch.device, *, labelled: bool, seed: int, **options: Any
) -> Imputation:
    """Impute the missing cells of new rows.

    Args:
        vae: Trained model.
        new: Rows.
        device: Device of the model.
        labelled: Whether its programs have an argument `labels`.
        seed: Random seed.
        **options: Further arguments of `impute`.
    """
    arguments = _arguments(new.table, device)
    if labelled and new.table.labels is not None:
        arguments["labels"] = new.table.labels.to(device)
    with isolated_rng(seed):
        return impute(vae.model, vae.guide, **arguments, **options)


def classify_rows(vae: ProgramPair, new: NewRows, device: torch.device, *, seed: int, **options: Any) -> Tensor:
    """Compute the probabilities of the classes of new rows, with shape (N, K), float64, from their other cells."""
    with isolated_rng(seed), evaluating(vae):
        return classify(vae.model, vae.guide, **_arguments(new.table, device), **options).probabilities.cpu()


def _arguments(table: Table, device: torch.device) -> dict[str, Any]:
    return {**table.arguments(device=device), "mask": table.mask.to(device)}


def write_imputations(
    folder: Path, new: NewRows, imputed: Imputation, draws: Sequence[Draws], classes: Tensor | None = None
) -> tuple[list[Path], int]:
    """Write imputed.csv, draws.csv, imputation.csv and imputed_cells.csv, and classes.csv if there are classes.

    imputed.csv is the file with its missing cells filled. draws.csv has each draw of the whole file below the other, as
    mice's long format: ".imp" is the number of the draw, ".id" that of the row, and ".refit" that of the refit, if any.
    imputation.csv has a line per row, imputed_cells.csv one per filled cell. classes.csv has the probabilities of the
    classes of each row; imputed.csv then has the most probable class where a label is missing.

    Returns:
        The paths of the files, and the number of texts of imputed.csv that got a ' in front (see `write_csv`).
    """
    paths = [folder / name for name in ("imputed.csv", "draws.csv", "imputation.csv", "imputed_cells.csv")]
    completed = new.completed(imputed.value)
    if classes is not None:
        (label,) = new.table.columns.of_role("label")
        paths.append(folder / "classes.csv")
        rows = ((row, *map(float, p)) for row, p in enumerate(classes, start=1))
        write_csv_rows(paths[-1], ("row", *label.levels), rows)
        if new.table.labels is not None:
            place, known = new.names.index(label.name), (new.table.labels >= 0).tolist()
            likely = [label.levels[code] for code in classes.nan_to_num(0.0).argmax(1).tolist()]
            cells = zip(completed[place], known, likely, strict=True)
            completed[place] = [cell if is_known else name for cell, is_known, name in cells]
    num_guarded = write_csv_rows(paths[0], new.names, zip(*completed, strict=True))
    has_refits = any(part.refit is not None for part in draws)
    names = [".imp", ".id", *([".refit"] if has_refits else []), *new.names]
    write_csv_rows(paths[1], names, _long(new, draws, has_refits))
    write_csv_rows(paths[2], ROW_NAMES, _rows(new, imputed))
    write_csv_rows(paths[3], CELL_NAMES, _cells(new, imputed))
    return paths, num_guarded


def _long(new: NewRows, draws: Sequence[Draws], has_refits: bool) -> Iterator[Sequence[Any]]:
    number = 0
    for part in draws:
        for x in part.x:
            number += 1
            for row, cells in enumerate(zip(*new.completed(x), strict=True), start=1):
                yield number, row, *([part.refit] if has_refits else []), *cells


def _rows(new: NewRows, imputed: Imputation) -> Iterator[Sequence[Any]]:
    missing, found = (~new.table.mask).sum(1).tolist(), imputed.log_marginal
    for n, count in enumerate(missing):
        numbers = (float(value[n]) for value in (found.value, found.std_error, found.ess, found.khat))
        yield n + 1, count, *numbers, imputed.components[int(imputed.served[n])]


def _cells(new: NewRows, imputed: Imputation) -> Iterator[Sequence[Any]]:
    for place, column in enumerate(new.table.columns.data):
        rows = (~new.table.mask[:, place]).nonzero().squeeze(1)
        values = imputed.value[rows.to(imputed.value.device), place].cpu().float().numpy()
        shown = original(column, values, np.full(len(rows), np.nan))
        for row, value in zip(rows.tolist(), shown, strict=True):
            errors = (float(part[row, place]) for part in (imputed.std_error, imputed.probability))
            yield row + 1, column.name, value, imputed.centre[place], *(None if e != e else e for e in errors)
