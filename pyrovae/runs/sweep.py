"""Parallel runs of train.py, for the scripts that compare them."""

import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from pyrovae.execution import Progress
from pyrovae.programs import ProgramPair
from pyrovae.runs.files import from_plain, to_plain, write_json
from pyrovae.runs.parser import flags_and_values
from pyrovae.runs.reading import read_json
from pyrovae.runs.run import MANIFEST, WEIGHTS, Run

_OF_MACHINE = {"--data_dir", "--device", "--threads", "--execution"}  # flags that change no number but its rounding


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
                return f"training of {path.name} was not started"
            made = [] if begun else _write_flags(path, runs[path])
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            processes.append(process)
        _, errors = process.communicate()
        if not (path / MANIFEST).is_file():
            _remove_flags(path, made)
        if not process.returncode:
            return None
        last = (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        return f"training of {path.name} failed: {last.removeprefix(f'{script.name}: error: ')}"

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
    pairs = [list(flags[start:stop]) for start, stop in zip(starts, [*starts[1:], len(flags)], strict=True)]
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
        ValueError: If a training fails.
    """
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


def on_test_data(path: Path, num_data: int) -> tuple[ProgramPair, Tensor, dict[str, Tensor]]:
    """Load a run: return the trained model, its first test data x with shape (N, D), and their covariates."""
    run = Run(path)
    config = run.config()
    data = run.data(config)
    return run.vae(config), data.test[:num_data], {k: v[:num_data] for k, v in data.conditions("test").items()}


def load_or_compute(
    run: Path, settings: Sequence[int], compute: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Load named float64 tensors that were computed from a run, or compute and save them.

    They stand beside the run, in NAME-SETTINGS.json, with the hash of its weights. Those of other weights are not used.

    Args:
        run: Finished run.
        settings: Numbers on which the tensors depend.
        compute: Function that computes the tensors.
    """
    file = run.with_name("-".join([run.name, *map(str, settings)]) + ".json")
    weights = Run(run).manifest["files"][WEIGHTS]
    saved = read_json(file) if file.exists() else {}
    if saved.get("weights") != weights:
        saved = {"weights": weights, "values": {key: to_plain(value) for key, value in compute().items()}}
        write_json(file, saved)
    return {key: from_plain(value) for key, value in saved["values"].items()}
