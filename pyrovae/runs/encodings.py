"""Codes of new data by a trained run: data of a file or a split, and the files of codes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.data import Data, read_array, write_csv_rows
from pyrovae.densities import take
from pyrovae.diagnostics import dimension_labels
from pyrovae.evidence import Encoding, encode
from pyrovae.execution import Progress
from pyrovae.programs import ProgramPair
from pyrovae.runs.files import write_whole
from pyrovae.runs.run import Run
from pyrovae.runs.table_data import is_table
from pyrovae.runs.table_files import read_new_rows
from pyrovae.stats import LogMarginal

ENCODING_FILES = ("encoding.csv", "encoding_draws.csv", "tensors.tsv", "metadata.tsv")
SPLITS = ("train", "validation", "test")
_AT_ONCE = 512  # data between two steps of the progress bar
_LABELS = "labels"  # key of the labels in PATH.npz


@dataclass(frozen=True)
class NewData:
    """Data to encode.

    Attributes:
        x: Data, with shape (N, D); NaN where missing.
        conditions: Keyword arguments of the programs: mask and covariates, if any.
        rows: Number of each row in its file: from 1 for tables, from 0 for arrays and images.
        labels: Text of each row's label, empty where missing; None without labels.
    """

    x: Tensor
    conditions: dict[str, Tensor]
    rows: list[int]
    labels: list[str] | None


def read_data(
    run: Run,
    data: Data,
    source: str,
    *,
    covariates: str | None = None,
    unseen: Any = "refuse",
    na_values: Sequence[str] = (),
    flag: str = "FILE",
) -> NewData:
    """Read data for a trained run.

    Args:
        run: Run folder.
        data: Data of the run.
        source: "train", "validation" or "test" for a split of the run's data; a table, for a run on a table; else
            PATH.npy or PATH.npz:KEY, with labels under the key "labels" of the same file, if it has one.
        covariates: Array of covariates for an array of data, PATH.npy or PATH.npz:KEY; None if the model has none.
        unseen: Whether to "refuse" levels that the run does not know, or to treat them as "missing".
        na_values: Further texts that stand for missing cells of a table.
        flag: Flag that gives the source, for messages.

    Raises:
        ValueError: If the data do not fit the run.
        FileNotFoundError: If there is no such file.
    """
    if covariates is not None and (source in SPLITS or data.table is not None):
        raise ValueError("--covariates is for arrays; splits and tables have their own, so omit it")
    of_tables = (unseen, *na_values) != ("refuse",)
    if of_tables and (source in SPLITS or not (data.table is not None or is_table(source))):
        raise ValueError("--unseen and --na_values are for a file of a table; omit them")
    if source in SPLITS:
        return _split(data, source)
    if data.table is not None or is_table(source):
        table = read_new_rows(run, source, unseen=unseen, na_values=na_values).table
        arguments = table.arguments()
        x = arguments.pop("x")
        rows = list(range(1, len(x) + 1))
        return NewData(x, arguments, rows, _levels(table.columns, table.labels))
    return _array(run, data, source, covariates, flag)


def _split(data: Data, split: str) -> NewData:
    x, index = getattr(data, split)[:], getattr(data, f"{split}_index")
    if split == "train" and data.binarize == "dynamic":
        raise ValueError("the training data were binarised anew for each batch; encode validation or test")
    columns = None if data.table is None else data.table.columns
    codes = None if data.labels is None else data.labels[split]
    first = 0 if data.table is None else 1
    labels = _levels(columns, codes)
    return NewData(x, data.conditions(split), [first + row for row in index.tolist()], labels)


def _levels(columns: Any, codes: Tensor | None) -> list[str] | None:
    """Return the texts of labels, given their codes, -1 where missing."""
    if codes is None:
        return None
    levels = columns.of_role("label")[0].levels if columns is not None else None
    return ["" if code < 0 else levels[code] if levels else str(code) for code in codes.tolist()]


def _array(run: Run, data: Data, source: str, covariates: str | None, flag: str) -> NewData:
    array = read_array(source, flag, new_data=True)
    x = torch.from_numpy(array.astype(np.float32).reshape(len(array), -1))
    size = data.test.shape[1]
    if x.shape[1] != size:
        raise ValueError(f"{source} has {x.shape[1]:,} numbers per row, but {run.path} was trained on {size:,}")
    if data.binarize != "none" and not bool(((x == 0) | (x == 1)).all()):
        raise ValueError(
            f"{run.path} was trained on bits, but {source} has other values than 0 and 1; binarise it first"
        )
    conditions: dict[str, Tensor] = {}
    if bool(x.isnan().any()) or data.has_holes:
        conditions["mask"] = ~x.isnan()
    wanted = data.num_covariates
    if (covariates is None) != (wanted == 0):
        need = f"needs --covariates with {wanted} columns" if wanted else "has no covariates, so omit --covariates"
        raise ValueError(f"{run.path} {need}")
    if covariates is not None:
        conditions["covariates"] = _covariates(covariates, len(x), wanted)
    return NewData(x, conditions, list(range(len(x))), _labels_beside(source, len(x)))


def _covariates(source: str, size: int, wanted: int) -> Tensor:
    """Read covariates, with shape (N, C); integers with shape (N,) are classes, as in training."""
    array = read_array(source, "--covariates", new_data=True)
    if array.ndim == 1 and array.dtype.kind != "f":
        classes = torch.from_numpy(array.astype(np.int64))
        if int(classes.min()) < 0 or int(classes.max()) >= wanted:
            raise ValueError(f"--covariates {source}: classes must be 0 to {wanted - 1}, as in training")
        found = torch.nn.functional.one_hot(classes, wanted).float()
    else:
        found = torch.from_numpy(array.astype(np.float32).reshape(len(array), -1))
    if found.shape != (size, wanted):
        raise ValueError(f"--covariates {source} must have shape ({size}, {wanted}), got {tuple(found.shape)}")
    return found


def _labels_beside(source: str, size: int) -> list[str] | None:
    """Read the labels of PATH.npz, under the key "labels", if it has them."""
    stem, is_npz, key = source.partition(".npz")
    path = Path(os.path.expanduser(stem + is_npz))
    if not is_npz or key == f":{_LABELS}":
        return None
    with np.load(path, allow_pickle=False) as content:
        if _LABELS not in content.files:
            return None
        labels = content[_LABELS]
    if labels.shape != (size,) or labels.dtype.kind not in "biufU":
        raise ValueError(f"{path}: labels must be {size} numbers or texts, got shape {labels.shape} of {labels.dtype}")
    return [str(label) for label in labels.tolist()]


def encode_data(
    vae: ProgramPair, new: NewData, device: torch.device | str, *, weighted: bool, num_particles: int, num_draws: int
) -> Encoding:
    """Encode data and show progress; see `encode`. The result is on the CPU."""
    options: dict[str, Any] = {"weighted": weighted, "num_particles": num_particles, "num_draws": num_draws}
    arguments = ((new.x.to(device),), {name: value.to(device) for name, value in new.conditions.items()})
    parts = []
    with Progress(len(new.x), "datum", "codes", shown=weighted) as progress:
        for start in range(0, len(new.x), _AT_ONCE):
            args, kwargs = take(*arguments, slice(start, start + _AT_ONCE))
            parts.append(encode(vae.model, vae.guide, *args, **options, **kwargs))
            progress.update(len(args[0]))
    names = list(parts[0].mean)
    found = {
        field: {name: torch.cat([getattr(one, field)[name].cpu() for one in parts], dim) for name in names}
        for field, dim in (("mean", 0), ("std", 0), ("mean_error", 0), ("draws", 1))
    }
    marginals = [one.log_marginal for one in parts if one.log_marginal is not None]
    log_marginal = (
        LogMarginal(*(torch.cat(field).cpu() for field in zip(*marginals, strict=True))) if marginals else None
    )
    return Encoding(**found, log_marginal=log_marginal)


def latent_names(values: Mapping[str, Tensor], num_leading: int) -> list[str]:
    """Name the latent dimensions, as `dimension_labels`, after so many leading dimensions."""
    return [label for name, value in values.items() for label in dimension_labels(name, value.shape[num_leading:])]


def flat_latents(values: Mapping[str, Tensor], num_leading: int) -> Tensor:
    """Join latents of several sites in one tensor, with the leading dimensions and one for the latent dimensions."""
    parts = [value.reshape(*value.shape[:num_leading], -1).double() for value in values.values()]
    return torch.cat(parts, -1)


def write_encoding(folder: Path, new: NewData, code: Encoding, *, num_draws: int) -> list[Path]:
    """Write encoding.csv, a line per row, and, with draws, encoding_draws.csv, a line per draw and row.

    The columns of encoding.csv are the row, its label, if any, the mean of each latent dimension under its name, such
    as "z[0]", its standard deviation ("z[0] sd"), and with weights log_marginal, std_error, ess and khat.
    """
    names, labels = latent_names(code.mean, 1), [] if new.labels is None else ["label"]
    weights = [] if code.log_marginal is None else ["log_marginal", "std_error", "ess", "khat"]
    head = ["row", *labels, *names, *(f"{name} sd" for name in names), *weights]
    paths = [folder / ENCODING_FILES[0]]
    write_csv_rows(paths[0], head, _rows(new, code))
    if num_draws:
        paths.append(folder / ENCODING_FILES[1])
        write_csv_rows(paths[1], [".draw", "row", *labels, *names], _draws(new, code))
    return paths


def _rows(new: NewData, code: Encoding) -> Iterator[Sequence[Any]]:
    mean, std = flat_latents(code.mean, 1).tolist(), flat_latents(code.std, 1).tolist()
    weights = [] if code.log_marginal is None else [field.tolist() for field in code.log_marginal]
    for n, row in enumerate(new.rows):
        label = [] if new.labels is None else [new.labels[n]]
        yield row, *label, *mean[n], *std[n], *(field[n] for field in weights)


def _draws(new: NewData, code: Encoding) -> Iterator[Sequence[Any]]:
    for number, draw in enumerate(flat_latents(code.draws, 2), start=1):
        for n, z in enumerate(draw.tolist()):
            yield number, new.rows[n], *([] if new.labels is None else [new.labels[n]]), *z


def write_projector(
    folder: str | os.PathLike[str], codes: Tensor, labels: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None
) -> list[Path]:
    """Write tensors.tsv and metadata.tsv for TensorBoard's projector, also at https://projector.tensorflow.org.

    Args:
        folder: Folder of the files; it is made if needed.
        codes: Codes, with shape (N, Z).
        labels: A label of each row, or several by name, which get a header; None for no metadata.tsv.

    Returns:
        The paths of the files.

    Raises:
        ValueError: If codes have another shape, or labels another length.
    """
    if codes.dim() != 2:
        raise ValueError(f"codes must have shape (N, Z), got {tuple(codes.shape)}; flatten the latents of each datum")
    columns = {} if labels is None else dict(labels) if isinstance(labels, Mapping) else {"": labels}
    for name, column in columns.items():
        if len(column) != len(codes):
            raise ValueError(f"labels {name!r} have {len(column)} rows, but there are {len(codes)} codes")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ("\t".join(map(repr, row)) for row in codes.detach().cpu().double().tolist())
    paths = [folder / ENCODING_FILES[2]]
    write_whole(paths[0], "".join(f"{row}\n" for row in rows).encode())
    if columns:
        lines = ["\t".join(map(_cell, row)) for row in zip(*columns.values(), strict=True)]
        head = ["\t".join(map(_cell, columns))] if len(columns) > 1 else []
        paths.append(folder / ENCODING_FILES[3])
        write_whole(paths[1], "".join(f"{line}\n" for line in head + lines).encode())
    return paths


def _cell(value: Any) -> str:
    """Write a text as one cell, without tabs and line breaks."""
    return " ".join(str(value).split()) or "-"
