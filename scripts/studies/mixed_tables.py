"""Log p(x) and errors of imputed cells of a mixed table, beside independent columns and the columns' means and modes.

python scripts/studies/mixed_tables.py --data survey.csv --columns columns.yaml --splits 5
python scripts/studies/mixed_tables.py --data survey.csv --columns columns.yaml --splits 0 --masks '[deleted.csv]'
python scripts/studies/mixed_tables.py --data Adult --masks '[Missing20_1.csv,Missing50_1.csv]'   # a folder of HI-VAE

--data is a table and --columns its columns, as `train.py --describe true` writes them. A folder --data is one of the
repository of HI-VAE (Nazabal et al., Pattern Recognition 2020), with data.csv and data_types.csv, which may be gzipped.
Numbers of its kind "pos" are log-normal, as x + 1 if some are 0; with --zeros hurdle a log-normal beside exact zeros.

Each split trains on 80 % of the rows and compares log p(x) of the others with that of independent columns with the same
likelihoods, in the columns' own units. Each mask names the cells to delete, a row and a column from 1 in each line; the
model trains on all rows without them. The errors are those of HI-VAE: the share of wrong levels, the mean distance of
ordered levels divided by their number, and for numbers the root mean squared error divided by the column's range, each
a mean over columns. Their standard errors are over rows, from 400 bootstrap samples.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import csv
import gzip
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyro
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor

from pyrovae import (
    MLP,
    Blueprint,
    Column,
    Columns,
    ImportanceWeightedELBO,
    fit,
    impute,
    log_marginal,
    read_table,
)
from pyrovae.baselines import fit_baselines
from pyrovae.data import Table
from pyrovae.evidence import GuideProposal
from pyrovae.execution import Progress
from pyrovae.likelihoods import MixedLikelihood
from pyrovae.runs import check_writable, make_parser, parse_flags, run_script, write_json
from pyrovae.runs.tables import aligned
from pyrovae.stats import mean_and_std_error

_BOOTSTRAP = 400
_KINDS = {"cat": "category", "ordinal": "ordered", "pos": "positive", "real": "real", "count": "count"}
_SPLIT = "split of the rows"


class Source(NamedTuple):
    """Cells of a table as texts by name of the column, "" where missing, and the columns."""

    cells: dict[str, list[str]]
    columns: Columns

    @property
    def num_rows(self) -> int:
        """Number of rows N."""
        return len(next(iter(self.cells.values())))


def main() -> int:
    """Train on each split and under each mask, and print the tables."""
    parser = make_parser(prog="mixed_tables.py", description=__doc__)
    add = parser.add_argument
    add("--data", type=str, required=True, help="table, or folder in the format of HI-VAE")
    add("--columns", type=str | None, default=None, help="YAML file of the columns; not for a folder (default: none)")
    zeros = "likelihood of HI-VAE's pos with zeros, of a folder (default: shifted)"
    add("--zeros", type=Literal["shifted", "hurdle"] | None, default=None, help=zeros)
    add("--splits", type=NonNegativeInt, default=1, help="number of splits, 0, 1, ...")
    add(
        "--masks",
        type=list[str] | None,
        default=None,
        help="files of deleted cells, in a folder --data (default: none)",
    )
    add("--latent_dim", type=PositiveInt, default=10, help="dimension of z")
    add("--hidden", type=PositiveInt, default=128, help="size of each of two hidden layers")
    add("--epochs", type=PositiveInt, default=100, help="passes over the training rows")
    add("--batch_size", type=PositiveInt, default=128, help="rows of a step")
    add("--particles", type=PositiveInt, default=5, help="draws of the importance-weighted bound")
    add("--num_data", type=PositiveInt, default=2000, help="largest number of test rows for log p(x)")
    add("--num_particles", type=PositiveInt, default=200, help="draws K per row")
    add("--json", type=str | None, default=None, help="file for the numbers (default: none)")
    flags = parse_flags(parser, sys.argv[1:])
    if flags.json:
        check_writable("--json", flags.json)
    if not (flags.splits or flags.masks):
        raise ValueError("--splits 0: there is nothing to train; give at least one split, or --masks")
    source, masks = read_source(flags), flags.masks or []
    found: dict[str, list[Any]] = {"splits": [], "masks": []}
    with Progress(flags.splits + len(masks), "training") as progress:
        for split in range(flags.splits):
            found["splits"].append({"split": split, **density(source, split, flags)})
            progress.update()
        for name in masks:
            deleted = read_mask(Path(flags.data) / name if Path(flags.data).is_dir() else Path(name), source)
            found["masks"].append({"mask": name, **imputation(source, deleted, flags)})
            progress.update()
    if flags.json:
        write_json(Path(flags.json), {"flags": vars(flags), **found})
    print_tables(found)
    return 0


def read_source(flags: Any) -> Source:
    """Read the cells and the columns of a table or of a folder in the format of HI-VAE."""
    path = Path(flags.data)
    if path.is_dir():
        if flags.columns is not None:
            raise ValueError(f"--columns {flags.columns}: the folder {path} has the kinds itself; leave --columns out")
        return read_folder(path, flags.zeros or "shifted")
    if flags.zeros is not None:
        raise ValueError(f"--zeros {flags.zeros}: this is for a folder of HI-VAE; name the likelihood in --columns")
    if flags.columns is None:
        raise ValueError(f"{path}: give --columns, a file that train.py --data {path} --describe true writes")
    columns = read_table(path, columns=flags.columns).columns
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, *rows = csv.reader(file)
    return Source({name: [row[place] for row in rows] for place, name in enumerate(header)}, bare(columns))


def read_folder(folder: Path, zeros: str) -> Source:
    """Read data.csv and data_types.csv of HI-VAE."""
    types = [dict(zip(("type", "dim", "nclass"), row, strict=False)) for row in lines(folder / "data_types.csv")[1:]]
    cells, columns = {}, []
    for place, (kind, texts) in enumerate(zip(types, zip(*lines(folder / "data.csv"), strict=True), strict=True)):
        name = f"x{place + 1}"
        cells[name] = ["" if text.lower() == "nan" else text for text in texts]
        word = _KINDS[kind["type"]]
        levels: tuple[str, ...] = ()
        likelihood = None
        if kind["nclass"]:
            cells[name] = [text and f"{float(text):.0f}" for text in cells[name]]
            levels = tuple(str(level) for level in range(1, int(kind["nclass"]) + 1))
            word = "binary" if len(levels) == 2 else word
        elif word == "positive" and any(text and float(text) == 0 for text in texts):
            if zeros == "hurdle":
                likelihood = "HurdleLogNormalLikelihood"
            else:
                cells[name] = [text and repr(float(text) + 1) for text in cells[name]]
        columns.append(Column(name, word, levels=levels, likelihood=likelihood))
    return Source(cells, Columns(tuple(columns)))


def lines(path: Path) -> list[list[str]]:
    """Read the cells of a CSV file, or of the gzipped file with the suffix .gz."""
    zipped = path if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    if zipped.exists() and (path == zipped or not path.exists()):
        with gzip.open(zipped, "rt") as file:
            return list(csv.reader(file))
    with path.open(newline="") as file:
        return list(csv.reader(file))


def bare(columns: Columns) -> Columns:
    """Return the columns without numbers, to be completed from other rows."""
    kept = ("name", "kind", "role", "levels", "format", "na_values", "reason", "likelihood", "arguments")
    return Columns(tuple(Column(**{key: getattr(column, key) for key in kept}) for column in columns))


def read_mask(path: Path, source: Source) -> np.ndarray:
    """Read which cells to delete, with shape (N, D)."""
    names = list(source.cells)
    deleted = np.zeros((source.num_rows, len(names)), dtype=bool)
    for number, cells in enumerate(lines(path), 1):
        row, column = (int(cell) if cell.isdecimal() else 0 for cell in (*cells, "", "")[:2])
        if len(cells) != 2 or not (0 < row <= len(deleted) and 0 < column <= len(names)):
            raise ValueError(
                f"{path}, line {number}: expected a row from 1 to {len(deleted):,} and a column from 1 to "
                f"{len(names)}, got {','.join(cells)!r:.80}"
            )
        deleted[row - 1, column - 1] = True
    return deleted[:, [names.index(column.name) for column in source.columns.data]]


def as_table(source: Source, splits: list[str], deleted: np.ndarray | None = None) -> Table:
    """Read the table with a column of splits, and without the deleted cells of its data."""
    cells = dict(source.cells)
    if deleted is not None:
        for column, gone in zip(source.columns.data, deleted.T, strict=True):
            texts = zip(cells[column.name], gone, strict=True)
            cells[column.name] = ["" if hidden else text for text, hidden in texts]
    columns = Columns((*source.columns, Column(_SPLIT, "category", role="split")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*cells, _SPLIT])
            writer.writerows(zip(*cells.values(), splits, strict=True))
        return read_table(path, columns=columns)


def density(source: Source, split: int, flags: Any) -> dict[str, Any]:
    """Train on 80 % of the rows, and compare log p(x) of others with that of independent columns."""
    order = np.random.RandomState(split).permutation(source.num_rows)
    words = np.full(source.num_rows, "train", dtype=object)
    words[order[int(0.8 * source.num_rows) :]] = "test"
    table = as_table(source, words.tolist())
    vae = trained(table, split, flags)
    given = {name: value[: flags.num_data] for name, value in table.arguments("test").items()}
    with torch.no_grad():
        found = log_marginal(vae.model, vae.guide, **given, num_particles=flags.num_particles)
    likelihood = partial(MixedLikelihood, columns=table.columns)
    baseline = fit_baselines(table.part("train").x, likelihood, seed=split)["independent columns"]
    log_p = baseline.log_prob(given["x"])
    gap, error = mean_and_std_error(found.value - log_p)
    return {
        "model": found.value.mean().item(),
        "independent columns": log_p.mean().item(),
        "difference": gap,
        "std_error": error,
        "num_data": len(log_p),
        "k-hat > 0.7": float((found.khat > 0.7).double().mean()),
    }


def trained(table: Table, seed: int, flags: Any) -> Any:
    """Train on the training rows of a table."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    network = partial(MLP, hidden=[flags.hidden, flags.hidden], activation="tanh")
    vae = Blueprint.of(table, latent_dim=flags.latent_dim, network=network).vae()
    elbo, sizes = ImportanceWeightedELBO(flags.particles), {"epochs": flags.epochs, "batch_size": flags.batch_size}
    fit(vae.model, vae.guide, table.arguments("train"), elbo=elbo, seed=seed, **sizes)
    return vae.eval()


def imputation(source: Source, deleted: np.ndarray, flags: Any) -> dict[str, Any]:
    """Train without the deleted cells, impute them, and return the errors by kind of column."""
    everyone = ["train"] * source.num_rows
    complete, table = as_table(source, everyone), as_table(source, everyone, deleted)
    vae = trained(table, 0, flags)
    sizes = {"num_particles": flags.num_particles, "num_draws": 0}
    found = impute(vae.model, vae.guide, **table.arguments("train"), proposal=GuideProposal(), **sizes)
    origins = np.array([column.origin for column in table.columns.data])
    model = found.value.double().numpy() + origins
    truth, columns = complete.values, complete.columns.data
    scored = deleted & ~np.isnan(truth)
    plain = np.stack([centre_of(column, cells) for column, cells in zip(columns, table.values.T, strict=True)])
    weights = torch.from_numpy(np.random.default_rng(0).poisson(1.0, (_BOOTSTRAP, len(truth)))).double()
    result: dict[str, Any] = {"k-hat > 0.7": float((found.log_marginal.khat > 0.7).double().mean())}
    for word, kinds in GROUPS.items():
        places = [place for place, column in enumerate(columns) if column.kind in kinds]
        if not places:
            continue
        group = [columns[place] for place in places]
        losses = [losses_of(group, truth[:, places], filled[:, places]) for filled in (model, plain[None])]
        one = torch.ones(1, len(truth), dtype=torch.float64)
        errors = [error_of(group, loss, scored[:, places], one).item() for loss in losses]
        again = [error_of(group, loss, scored[:, places], weights) for loss in losses]
        std_error = (again[0] - again[1]).std().item()
        result[word] = {"model": errors[0], "plain": errors[1], "std_error": std_error}
    return result


GROUPS = {
    "nominal": ("binary", "category"),
    "ordered": ("ordered",),
    "numeric": ("real", "positive", "interval", "count"),
}


def centre_of(column: Column, cells: np.ndarray) -> float:
    """Return the mode of levels without order, the median of ordered ones, and the mean of numbers."""
    seen = cells[~np.isnan(cells)]
    if column.kind in GROUPS["nominal"]:
        return float(np.bincount(seen.astype(int)).argmax())
    return float(np.median(seen)) if column.kind == "ordered" else float(seen.mean())


def losses_of(columns: list[Column], truth: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """Return the loss of each cell, with shape (N, columns)."""
    if columns[0].kind in GROUPS["nominal"]:
        return (truth != filled).astype(float)
    if columns[0].kind == "ordered":
        return np.abs(truth - filled) / [len(column.levels) for column in columns]
    return np.square((truth - filled) / (np.nanmax(truth, axis=0) - np.nanmin(truth, axis=0)))


def error_of(columns: list[Column], losses: np.ndarray, scored: np.ndarray, weights: Tensor) -> Tensor:
    """Return the mean over columns of the errors, with shape (B,), for weights of rows with shape (B, N)."""
    total = weights @ torch.from_numpy(np.where(scored, losses, 0))
    mean = total / (weights @ torch.from_numpy(scored).double())
    return (mean.sqrt() if columns[0].kind in GROUPS["numeric"] else mean).mean(1)


def print_tables(found: dict[str, list[Any]]) -> None:
    """Print log p(x) by split, and the errors by mask and kind of column."""
    rows = [["split", "log p(x)", "independent columns", "difference", "s.e.", "rows"]]
    for one in found["splits"]:
        numbers = [f"{one[key]:.3f}" for key in ("model", "independent columns", "difference", "std_error")]
        rows.append([str(one["split"]), *numbers, f"{one['num_data']:,}"])
    if found["splits"]:
        print(aligned(rows))
    if len(found["splits"]) > 1:
        gaps = torch.tensor([one["difference"] for one in found["splits"]], dtype=torch.float64)
        mean, error = mean_and_std_error(gaps)
        print(f"mean difference over splits {mean:.3f}, s.e. {error:.3f}")
    rows = [["mask", "cells", "error", "mean or mode", "difference", "s.e."]]
    for one in found["masks"]:
        for word in [word for word in GROUPS if word in one]:
            error = one[word]
            gap = error["model"] - error["plain"]
            numbers = [f"{number:.4f}" for number in (error["model"], error["plain"], gap, error["std_error"])]
            rows.append([one["mask"], word, *numbers])
    if found["masks"]:
        print(aligned(rows))


if __name__ == "__main__":
    run_script(main)
