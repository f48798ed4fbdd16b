"""Parallel runs of train.py, and values of their test data, for the scripts that compare them."""

import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae.evidence import evaluate
from pyrovae.execution import Progress
from pyrovae.programs import ProgramPair
from pyrovae.runs.files import from_plain, read_state, to_plain, write_json, write_state
from pyrovae.runs.parser import flags_and_values
from pyrovae.runs.reading import read_json
from pyrovae.runs.resolve import find_device
from pyrovae.runs.run import MANIFEST, WEIGHTS, Run

_OF_MACHINE = {"--data_dir", "--device", "--threads", "--execution"}  # flags that change no number but its rounding
_MEASURED = ("elbo", "bound", "log_marginal")


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments at the first "--" into the script's flags and the flags of train.py."""
    cut = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:cut]), list(argv[cut + 1 :])


def refuse_flags(flags: Sequence[str], taken: Mapping[str, str]) -> None:
    """Check that the flags of train.py are none that the script sets itself.

    Args:
        flags: Flags after "--".
        taken: What to do instead, by the name of each flag that the script sets.

    Raises:
        ValueError: With the first flag that it sets.
    """
    for name, _ in flags_and_values(flags):
        if name in taken:
            raise ValueError(f"--{name} after --: this script sets it; {taken[name]}")


def train_all(script: Path, runs: Mapping[Path, Sequence[str]], *, jobs: int = 1) -> None:
    """Train all runs that are not finished, each by train.py in a separate process; resume those that were stopped.

    The flags of a run stand beside its folder, in NAME.flags.json, before its training starts. After a failure or a
    signal no other training starts, and the running ones save and stop.

    Args:
        script: Path of train.py.
        runs: Flags of each run folder, without --out.
        jobs: Number of parallel trainings.

    Raises:
        ValueError: If a training fails, with the name of its folder and the last line of its error; before any
            training, if a run was begun with other flags.
    """
    for path, flags in runs.items():
        _check_same_flags(path, flags)
    processes: list[subprocess.Popen[str]] = []
    lock, stopping = threading.Lock(), threading.Event()  # no training starts once the others are stopped

    def train(path: Path) -> str | None:
        begun = (path / MANIFEST).is_file()
        if begun and Run(path).finished:
            return None
        flags = ["--resume", str(path)] if begun else [*runs[path], "--out", str(path)]
        command = [sys.executable, str(script), *flags]
        with lock:
            if stopping.is_set():
                return f"training of {_short(path)} was not started"
            made = [] if begun else _write_flags(path, runs[path])
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            processes.append(process)
        _, errors = process.communicate()
        if not (path / MANIFEST).is_file():
            _remove_flags(path, made)
        if not process.returncode:
            return None
        last = (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        return f"training of {_short(path)} failed: {last.removeprefix(f'{script.name}: error: ')}"

    with ThreadPoolExecutor(jobs) as pool, Progress(len(runs), "run", "training") as progress:
        trainings = [pool.submit(train, path) for path in runs]
        try:
            for training in as_completed(trainings):
                if problem := training.result():
                    raise ValueError(problem)
                progress.update()
        finally:
            with lock:
                stopping.set()
                for training in trainings:
                    training.cancel()
                for process in processes:
                    process.terminate()


def _short(path: Path) -> str:
    """Name a run by its folder, and a fold, whose folder is a number, by its model's folder too."""
    return f"{path.parent.name}/{path.name}" if path.name.isdigit() else path.name


def _flags_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.flags.json")


def _write_flags(path: Path, flags: Sequence[str]) -> list[Path]:
    """Write the flags of a run that is about to begin; return the folders that were made for them, inner ones first."""
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(_flags_file(path), list(flags))
    return made


def _remove_flags(path: Path, made: Sequence[Path]) -> None:
    """Remove the flags of a run that did not begin, and the empty ones of these folders."""
    _flags_file(path).unlink(missing_ok=True)
    for folder in made:
        with suppress(OSError):  # another run has begun there
            folder.rmdir()


def _check_same_flags(path: Path, flags: Sequence[str]) -> None:
    """Check that a run that exists was begun with these flags, as far as they are known.

    Raises:
        ValueError: With the flags of only one of both.
    """
    file = _flags_file(path)
    if not ((path / MANIFEST).is_file() and file.is_file()):
        return
    before, now = ([shlex.join(pair) for pair in _pairs(each)] for each in (read_json(file), flags))
    if before != now:
        gone = " ".join(pair for pair in before if pair not in now)
        new = " ".join(pair for pair in now if pair not in before)
        change = f"{gone or 'without'}; now {new or 'without'}" if gone or new else "the same in another order"
        raise ValueError(f"{path} was trained with other flags ({change}); give another folder, or remove this one")


def _pairs(flags: Sequence[str]) -> list[list[str]]:
    """Split flags into lists of a name and its values, without those of the machine."""
    starts = [place for place, token in enumerate(flags) if token.startswith("--")]
    pairs = [list(flags[start:stop]) for start, stop in pairwise([*starts, len(flags)])]
    return [pair for pair in pairs if pair[0].split("=")[0] not in _OF_MACHINE]


def train_folds(
    script: Path, out: Path, variants: Mapping[str, Sequence[str]], *, folds: int, seed: int = 0, jobs: int = 1
) -> dict[str, Path]:
    """Train each variant once for every fold, by `train_all`; folds that are finished are not trained again.

    All variants have the same folds, and in fold k the seed + k - 1, so that the spread over folds includes the noise
    of training.

    Args:
        script: Path of train.py.
        out: Folder of all runs.
        variants: Flags of each variant by its name.
        folds: Number of folds K.
        seed: Seed of the first fold's training.
        jobs: Number of parallel trainings.

    Returns:
        Folder of the K runs of each variant, OUT/NAME-K-fold, as `Evaluated.of` reads it.

    Raises:
        ValueError: If there are fewer than two folds, or a training fails.
    """
    if folds < 2:
        raise ValueError(f"--folds {folds}: cross-validation needs two folds or more")
    folders = {name: out / f"{name}-{folds}-fold" for name in variants}
    runs = {
        folders[name] / f"{fold:0{len(str(folds))}d}": [
            *flags,
            *f"--folds {folds} --fold {fold} --seed {(seed + fold - 1) % 2**32}".split(),
        ]
        for fold in range(1, folds + 1)
        for name, flags in variants.items()
    }
    train_all(script, runs, jobs=jobs)
    return folders


def without_machine(flags: Sequence[str]) -> list[str]:
    """Return the flags of train.py without those of the machine, which change no number but its rounding."""
    return [token for pair in _pairs(flags) for token in pair]


def device_of(flags: Sequence[str]) -> torch.device:
    """Find the device that flags of train.py name, which evaluates the runs too: CUDA if available by default.

    Raises:
        ValueError: If there is no such device on this machine.
    """
    return find_device(dict(flags_and_values(flags)).get("device") or "auto")


def model_and_data(
    path: Path, num_data: int, *, split: str = "test", device: torch.device | None = None
) -> tuple[ProgramPair, Tensor, dict[str, Tensor]]:
    """Load a run: return the trained model, the first data x of a split with shape (N, D), and their covariates.

    Args:
        path: Finished run.
        num_data: Largest number of data N.
        split: "train", with bits if there are any, "validation" or "test".
        device: Device of model and data; None for the CPU.
    """
    run = Run(path)
    config = run.config()
    data = run.data(config, bits=split == "train")
    x = getattr(data, split)[:num_data].to(device or "cpu")
    conditions = {name: value[:num_data] for name, value in data.conditions(split, x.device).items()}
    return run.vae(config).to(x.device), x, conditions


def measure(
    run: Path,
    num_data: int,
    *,
    guide_particles: int,
    num_particles: int,
    device: torch.device | None = None,
    on_progress: Callable[[int], object] | None = None,
    also: Callable[[ProgramPair, Tensor, dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Load or compute ELBO, L_K and log p(x) of a run's first test data, and resume a computation that was stopped.

    Args:
        run: Finished run.
        num_data: Largest number of data N.
        guide_particles: Number of draws K of the guide per datum, for ELBO and L_K.
        num_particles: Number of draws of the default proposal per datum, for log p(x).
        device: Device of the computation; None for the CPU.
        on_progress: Called with the number of finished data, after each block.
        also: Function of the model, the data and their covariates that computes further values.

    Returns:
        "elbo", "bound" and "log_marginal" in nats, each with shape (N,), and the further values.
    """
    settings = (num_data, guide_particles, num_particles)
    begun = Path(f"{_values_file(run, settings)}.partial")

    def compute() -> dict[str, Tensor]:
        model, x, conditions = model_and_data(run, num_data, device=device)
        weights = Run(run).manifest["files"][WEIGHTS]
        covariates: dict[str, Any] = dict(conditions)
        found = evaluate(
            model.model,
            model.guide,
            x,
            guide_particles=guide_particles,
            num_particles=num_particles,
            on_progress=on_progress,
            commit=lambda state: write_state(begun, {"weights": weights, "state": state}),
            resume=_begun(begun, weights),
            **covariates,
        )
        further = {} if also is None else also(model, x, conditions)
        values = found.elbo, found.guide.log_marginal.value, found.marginal.log_marginal.value
        return dict(zip(_MEASURED, values, strict=True)) | dict(further)

    found = load_or_compute(run, settings, compute, names=_MEASURED)
    begun.unlink(missing_ok=True)
    return found


def _begun(path: Path, weights: str) -> dict[str, Any] | None:
    """Read the state of a stopped computation; None if there is none of these weights that can be read."""
    try:
        saved = read_state(path)
    except (FileNotFoundError, ValueError):
        return None
    return saved["state"] if saved.get("weights") == weights else None


def load_or_compute(
    run: Path,
    settings: Sequence[int | str],
    compute: Callable[[], Mapping[str, Tensor]],
    *,
    names: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Load named float64 tensors that were computed from a run, or compute and save them.

    They stand beside the run, in NAME-SETTINGS.json, with the hash of its weights. Those of other weights, and files
    without the tensors, are computed again.

    Args:
        run: Finished run.
        settings: What the tensors depend on.
        compute: Function that computes the tensors.
        names: Names that the tensors must have.
    """
    file = _values_file(run, settings)
    weights = Run(run).manifest["files"][WEIGHTS]
    values = _saved_values(file, weights)
    if values is None or not set(names) <= set(values):
        made = {key: to_plain(value) for key, value in compute().items()}
        write_json(file, {"weights": weights, "values": made})
        values = {key: from_plain(value) for key, value in made.items()}
    return values


def _values_file(run: Path, settings: Sequence[int | str]) -> Path:
    return run.with_name("-".join([run.name, *map(str, settings)]) + ".json")


def _saved_values(file: Path, weights: str) -> dict[str, Tensor] | None:
    """Read the tensors of a file; None if there is no file, or if it is damaged or of other weights."""
    try:
        saved = read_json(file)
        if saved["weights"] == weights:
            return {key: from_plain(value) for key, value in saved["values"].items()}
    except (FileNotFoundError, AttributeError, KeyError, TypeError, ValueError):
        pass
    return None
