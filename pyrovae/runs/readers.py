"""Files of a run folder, one reader each: their keys, the kinds of their values, and their largest sizes.

A reader refuses a file that does not fit in one line with its path, before it uses any value of it.
"""

import csv
import hashlib
import json
import math
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from pyrovae.runs.files import read_state
from pyrovae.runs.reading import (
    ANY,
    BYTES,
    FLAG,
    NUMBER,
    REAL,
    SUM,
    TENSOR,
    TEXT,
    Each,
    Kind,
    OrNull,
    check_kind,
    one_of,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    whole,
)

FORMAT = 2  # of the manifest; format 1 has no sum of its own

_RESTORE = "restore it from a copy"
_EVALUATE = "write it again with evaluate.py"
_SMALL = 2**20  # bytes of a manifest or an evaluation.json, at most
_LINE = 4096  # bytes of a line of evaluation.csv, at most
_SLACK = 2**30  # bytes of a checkpoint beside those that grow with model and data
_TIMES = 32  # bytes of a checkpoint per byte of model and data, at most

_COUNT, _WHOLE, _MAYBE = whole(1), whole(0), OrNull(NUMBER)
_DRAWS = Kind("a number, at least 1", lambda value: NUMBER.fits(value) and value >= 1)  # their mean
_BINARIZE = one_of("dynamic", "static", "none")
_MANIFEST = {
    "format": whole(1, FORMAT),
    "status": one_of("training", "finished"),
    "files": Each(SUM),
    "data": {
        "name": TEXT,
        "sha256": SUM,
        "rows_sha256?": SUM,
        "binarize": _BINARIZE,
        "shape": [_COUNT],
        "num_dims": _COUNT,
        "num_covariates?": _WHOLE,
        "num_train": _WHOLE,
        "num_validation": _WHOLE,
        "num_test": _WHOLE,
    },
    "device": TEXT,
    "threads": _COUNT,
    "versions": Each(TEXT),
    "sum?": SUM,
}
_ESTIMATE = {
    "mean": _MAYBE,
    "std_error": _MAYBE,
    "mc_std_error": _MAYBE,
    "bias_corrected_mean": _MAYBE,
    "num_particles": _DRAWS,
    "proposal": TEXT,
    "khat": {"max": _MAYBE, "share_above_0.7": NUMBER},
    "ess": {"min": _MAYBE, "median": _MAYBE},
    "served": Each(NUMBER),
    "ladder": [{"num_particles": _COUNT, "lower_bound": _MAYBE, "bias_corrected": _MAYBE, "mc_std_error": _MAYBE}],
}
_ONE_MEASURE = r"(counting|lebesgue( with mass at [-+.\de]{1,20}(, [-+.\de]{1,20}){0,9})?)"
_BY_COLUMN = re.compile(rf"{_ONE_MEASURE}|by column: \d{{1,9}} {_ONE_MEASURE}(; \d{{1,9}} {_ONE_MEASURE})*", re.ASCII)
_MEASURE = Kind(
    "'counting', 'lebesgue', 'lebesgue with mass at' points, or 'by column:' numbers of columns with one of these",
    lambda value: isinstance(value, str) and bool(_BY_COLUMN.fullmatch(value)),
)
_EVALUATION = {
    "split": one_of("train", "validation", "test"),
    "num_data": _COUNT,
    "elbo": {"mean": _MAYBE, "std_error": _MAYBE, "num_particles": _COUNT},
    "log_marginal": _ESTIMATE,
    "log_marginal_guide": _ESTIMATE,
    "bits_per_dim": _MAYBE,
    "base_measure": _MEASURE,
    "binarize": _BINARIZE,
    "seed": _WHOLE,
    "seconds": NUMBER,
    "effective_num_data?": NUMBER,
    "classification?": {"error": _MAYBE, "std_error": _MAYBE, "num_data": _WHOLE},
}


def _epoch(number: Kind) -> dict[str, Any]:
    """Return the kind of a row of metrics whose numbers are of a kind."""
    columns = "train_objective train_elbo validation_elbo validation_reconstruction validation_kl validation_objective"
    columns += " kl_weight kl_target learning_rate? seconds"
    return {"epoch": _COUNT, **dict.fromkeys(columns.split(), OrNull(number))}


# States of the generators of Python and of NumPy. NumPy reads beyond its array if the position is not in it.
_WORD = whole(0, 2**32 - 1)
_RANDOM = (whole(3, 3), (*[_WORD] * 624, whole(0, 624)), OrNull(REAL))
_WORDS = Kind(
    "an array of 624 uint32",
    lambda value: isinstance(value, np.ndarray) and value.shape == (624,) and value.dtype == np.uint32,
)
_NUMPY = (one_of("MT19937"), _WORDS, whole(0, 624), whole(0, 1), REAL)
_LONG = Kind("a text", lambda value: isinstance(value, str))
_CHECKPOINT = {
    "epoch": _WHOLE,
    "step": _WHOLE,
    "seconds": REAL,
    "weighted": FLAG,
    "losses": TENSOR,
    "rows": [_epoch(REAL)],
    "best_epoch": _WHOLE,
    "stop_reason": OrNull(one_of("epochs", "plateau")),
    "values": Each(TENSOR),
    "best": Each(TENSOR),
    "average": Each(TENSOR),
    "learning_rate": {"rates": [REAL], "scheduler": OrNull(Each(ANY))},
    "optimizer": {"state": Each(Each(ANY)), "param_groups": [Each(ANY)]},
    "stepper": {"executions": Each(one_of("eager", "recorded", "compiled")), "refused": OrNull(_LONG)},
    "control": Each(TENSOR),
    "generators": {"torch": BYTES, "random": _RANDOM, "numpy": _NUMPY, "cuda?": BYTES},
}


def read_manifest(path: Path) -> dict[str, Any]:
    """Read manifest.json.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no manifest of format 1 or 2, or was changed since `sealed` made its sum.
    """
    manifest = read_json(path, _SMALL)
    if not isinstance(manifest, dict) or manifest.get("format") not in range(1, FORMAT + 1):
        raise ValueError(f"{path} does not have format 1 or {FORMAT}; load the run with the version that wrote it")
    check_kind(manifest, _MANIFEST, path, _RESTORE)
    about = manifest["data"]
    if math.prod(about["shape"]) != about["num_dims"]:
        raise ValueError(
            f"{path}: a datum of shape {about['shape']} has {math.prod(about['shape'])} values, not "
            f"{about['num_dims']}; {_RESTORE}"
        )
    if (manifest["format"] > 1 or "sum" in manifest) and manifest != sealed(manifest):
        raise ValueError(f"{path} was changed or damaged: its content does not match its own sum; {_RESTORE}")
    return manifest


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with a new `sum`: the SHA-256 of its other keys and values, as JSON with sorted keys."""
    content = {key: value for key, value in manifest.items() if key != "sum"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return {**content, "sum": hashlib.sha256(text.encode()).hexdigest()}


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read evaluation.json.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not have the keys and kinds of an evaluation.
    """
    summary = read_json(path, _SMALL)
    check_kind(summary, _EVALUATION, path, _EVALUATE)
    return summary


def read_values(path: Path, num_data: int, sha256: str) -> dict[str, Tensor]:
    """Read the rows and the values of log p(x) from evaluation.csv.

    Args:
        path: Path of the file.
        num_data: Number of data N that it should have.
        sha256: SHA-256 that it should have, in hexadecimal.

    Returns:
        "row", int64; "log_marginal" and "std_error", float64, in nats, the latter infinite for a single draw; and
        "weight", float64, if the data have case weights. Each has shape (N,).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it was changed, has other columns or another number of data, NaN, or anything else than numbers.
    """
    found = {key: array("d") for key in ("row", "log_marginal", "std_error")}
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            for number, entry in enumerate(_lines(file, digest, {*found, "num_particles"}), start=2):
                if len(found["row"]) == num_data:
                    raise ValueError(f"it has more rows than the {num_data:,} data of evaluation.json")
                found["row"].append(_number(entry, "row", number, r"\d{1,15}"))
                found["log_marginal"].append(_number(entry, "log_marginal", number))
                unknown = entry["std_error"] == "inf" and entry["num_particles"] == "1"
                found["std_error"].append(math.inf if unknown else _number(entry, "std_error", number, _POSITIVE))
                if "weight" in entry:
                    found.setdefault("weight", array("d")).append(_number(entry, "weight", number, _POSITIVE))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is damaged or from another version ({error}); {_EVALUATE}") from error
    if digest.hexdigest() != sha256:
        raise ValueError(
            f"{path} was changed or damaged: its SHA-256 differs from the manifest's; {_EVALUATE}, or restore it"
        )
    if len(found["row"]) < num_data:
        raise ValueError(f"{path} has {len(found['row']):,} data, but evaluation.json {num_data:,}; {_EVALUATE}")
    columns = {key: torch.from_numpy(np.array(column)) for key, column in found.items()}
    return {**columns, "row": columns["row"].long()}


def _lines(file: BinaryIO, digest: Any, needed: set[str]) -> Iterator[dict[str, str]]:
    """Read the lines of a CSV file that has the needed columns, each column once, and add its bytes to a digest."""

    def decoded() -> Iterator[str]:
        while line := file.readline(_LINE):
            digest.update(line)
            if not line.endswith(b"\n"):
                raise ValueError(f"it has a line of more than {_LINE} bytes, or its last line does not end")
            yield line.decode()

    lines = csv.reader(decoded(), strict=True)
    header = next(lines, [])
    if len(set(header)) < len(header) or not needed <= set(header):
        raise ValueError(f"its columns are {', '.join(header)[:200]!r}")
    for line in lines:
        if len(line) != len(header):
            raise ValueError(f"line {lines.line_num} has {len(line)} entries, not {len(header)}")
        yield dict(zip(header, line, strict=True))


_POSITIVE = r"\d+(\.\d+)?(e[-+]?\d+)?"


def _number(entry: dict[str, str], key: str, line: int, pattern: str = f"-?{_POSITIVE}") -> float:
    """Read a finite number as Python writes it."""
    if re.fullmatch(pattern, entry[key], re.ASCII) is None or not math.isfinite(value := float(entry[key])):
        raise ValueError(f"{key} in line {line} is {entry[key][:40]!r}, no finite number of its kind")
    return value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl, one row per epoch.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line does not have the keys and kinds of a row.
    """
    rows = []
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        try:
            row = parse_json(line.decode())
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is not JSON ({error}); {_RESTORE}") from error
        check_kind(row, {**_epoch(NUMBER), "epoch": whole(number, number)}, path, f"see line {number}; {_RESTORE}")
        rows.append(row)
    return rows


def read_checkpoint(path: Path, largest: int | None = None) -> dict[str, Any]:
    """Read checkpoint.safetensors, a state of `fit`.

    Args:
        path: Path of the file.
        largest: Bytes of model and data together; the file may have some times as many. None for no limit.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, too large, or does not have the keys and kinds of a state of `fit`.
    """
    state = read_state(path, largest=None if largest is None else _SLACK + _TIMES * largest)
    check_kind(state, _CHECKPOINT, path, _RESTORE)
    epochs = [row["epoch"] for row in state["rows"]]
    if len(epochs) != state["epoch"] or epochs != list(range(1, len(epochs) + 1)) or state["best_epoch"] > len(epochs):
        raise ValueError(
            f"{path} has rows of {len(epochs)} epochs and a best epoch {state['best_epoch']}, but {state['epoch']} "
            f"finished epochs; {_RESTORE}"
        )
    return state
