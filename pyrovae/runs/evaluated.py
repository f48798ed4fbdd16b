"""Evaluations of log p(x) per datum: of one run, or of the runs that hold out the K folds of a cross-validation."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae.runs.reading import check_kind, read_yaml, whole
from pyrovae.runs.run import CONFIG, MANIFEST, Run

# Keys of a configuration that folds of one model may differ in; the last three are numbers of the training rows.
_MAY_DIFFER = {"fold", "seed", "device", "threads", "execution", "data_dir", "num_data", "num_labelled", "total_steps"}
_MOST_FOLDS = 1_000_000


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Last evaluation of a run, or of the K runs of a cross-validation.

    Attributes:
        name: Path of the run folder, or of the folder of the K run folders, as given.
        value: log p(x) in nats, with shape (N,).
        std_error: Its Monte Carlo standard error, with shape (N,).
        rows: Rows of the data in their source, with shape (N,).
        about: Properties that comparable evaluations share: SHA-256 of the data, binarisation, split, base measure.
        protocol: Proposal and number of draws.
        weights: Case weights of the data, with shape (N,); None if there are none.
        folds: Fold that holds out each datum, 1 to K, with shape (N,), int64; None for a single split.
        mixed: Whether folds differ in their protocol.
    """

    name: str
    value: Tensor
    std_error: Tensor
    rows: Tensor
    about: dict[str, str]
    protocol: str
    weights: Tensor | None = None
    folds: Tensor | None = None
    mixed: bool = False

    @classmethod
    def of(cls, path: str | Path) -> "Evaluated":
        """Read the evaluation of a run folder, or those of a folder with the K run folders of a cross-validation.

        The data of a cross-validation are all N rows in the order of their source, each with the log p(x) of the model
        that was not trained on it.

        Raises:
            ValueError: If the folder is no finished run and no whole cross-validation of one configuration, or an
                evaluation is missing, changed, not of the test data, or not finite.
        """
        path = Path(path)
        if not (path / MANIFEST).exists() and (folders := fold_folders(path)):
            return _of_folds(path, folders)
        return _of_run(Run(path), str(path))


def fold_folders(path: Path) -> list[Path]:
    """List the run folders in a folder."""
    try:
        return sorted(folder for folder in path.iterdir() if (folder / MANIFEST).is_file())
    except OSError:
        return []


def _of_run(run: Run, name: str) -> Evaluated:
    summary, columns = run.evaluation()
    about = {
        "data (SHA-256)": run.manifest["data"]["sha256"][:12],
        "binarisation": summary["binarize"],
        "split": summary["split"],
        "base measure": summary["base_measure"],
    }
    marginal = summary["log_marginal"]
    protocol = f"{marginal['proposal']}, K = {marginal['num_particles']:,}"
    values = columns["log_marginal"], columns["std_error"], columns["row"]
    return Evaluated(name, *values, about, protocol, columns.get("weight"))


def _of_folds(path: Path, folders: list[Path]) -> Evaluated:
    """Join the evaluations of the K runs of a cross-validation."""
    runs, configs = [Run(folder) for folder in folders], []
    for run in runs:
        config = read_yaml(run.path / CONFIG)
        if not isinstance(config, dict) or config.get("folds") is None:
            raise ValueError(f"{run.path} is no fold of a cross-validation: it was trained without --folds; remove it")
        check_kind(
            config,
            {"folds": whole(2, _MOST_FOLDS), "fold": whole(1, _MOST_FOLDS)},
            run.path / CONFIG,
            "restore it from a copy",
        )
        configs.append(config)
    numbers, count = [config["fold"] for config in configs], configs[0]["folds"]
    for (first, one), (other, two) in pairwise(zip(runs, configs, strict=True)):
        differing = sorted({key for key, a, b in _pairs(one, two) if a != b})
        if differing:
            raise ValueError(
                f"{first.path} and {other.path} are no folds of one model: they differ in {', '.join(differing)}; give "
                "each model a folder of its own"
            )
    twice = [number for number in set(numbers) if numbers.count(number) > 1]
    if twice:
        raise ValueError(f"{path} has fold {twice[0]} of {count} twice; give each model a folder of its own")
    if missing := sorted({*range(1, count + 1)} - {*numbers}):
        listed = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise ValueError(f"{path} lacks {len(missing)} of {count} folds ({listed}); train them first")
    parts = [_of_run(run, str(run.path)) for run in runs]
    for part, run in zip(parts, runs, strict=True):
        if part.about["split"] != "test":
            raise ValueError(
                f"{run.path}: its last evaluation is of {part.about['split']} data; evaluate its test data"
            )
    about = _about_folds(path, runs, parts)
    fold = torch.cat([torch.full_like(part.rows, number) for part, number in zip(parts, numbers, strict=True)])
    rows = torch.cat([part.rows for part in parts])
    order = rows.argsort()
    size = sum(runs[0].manifest["data"][f"num_{split}"] for split in ("train", "validation", "test"))
    if not torch.equal(rows[order], torch.arange(size)):
        raise ValueError(f"{path}: the folds do not hold out each of the {size:,} data once; train them again")
    weights = [part.weights for part in parts if part.weights is not None]
    return Evaluated(
        str(path),
        torch.cat([part.value for part in parts])[order],
        torch.cat([part.std_error for part in parts])[order],
        rows[order],
        about,
        "; ".join(dict.fromkeys(part.protocol for part in parts)),
        torch.cat(weights)[order] if len(weights) == len(parts) else None,
        fold[order],
        mixed=len({part.protocol for part in parts}) > 1,
    )


def _about_folds(path: Path, runs: list[Run], parts: list[Evaluated]) -> dict[str, str]:
    """Return the properties that all folds share. The SHA-256 of a table depends on the fold, that of its rows not.

    Raises:
        ValueError: If the folds do not share them.
    """
    shared = []
    for part, run in zip(parts, runs, strict=True):
        digest = run.manifest["data"].get("rows_sha256", run.manifest["data"]["sha256"])
        shared.append({**part.about, "data (SHA-256)": digest[:12]})
    for about, run in zip(shared, runs, strict=True):
        for key, value in about.items():
            if value != shared[0][key]:
                raise ValueError(
                    f"{path}: the {key} of {runs[0].path.name} and {run.path.name} is {shared[0][key]} and {value}; "
                    "train all folds on the same data (and with the same --columns, if a table)"
                )
    if "rows_sha256" in runs[0].manifest["data"]:  # covariates too, and the columns' numbers
        joined = "".join(sorted(run.manifest["data"]["sha256"] for run in runs))
        return {**shared[0], "data (SHA-256)": hashlib.sha256(joined.encode()).hexdigest()[:12]}
    return shared[0]


def _pairs(one: Any, two: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Pair the values of two configurations by the first key of their place, without those that folds may differ in."""
    if isinstance(one, dict) and isinstance(two, dict):
        for name in one.keys() | two.keys():
            if name not in _MAY_DIFFER:
                yield from _pairs(one.get(name), two.get(name), key or str(name))
    else:
        yield key, one, two
