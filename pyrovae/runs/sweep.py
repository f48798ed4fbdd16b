"""Parallel runs of train.py, for the scripts that compare them."""

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from torch import Tensor

from pyrovae.execution import Progress
from pyrovae.programs import ProgramPair
from pyrovae.runs.files import write_json
from pyrovae.runs.reading import read_json
from pyrovae.runs.run import MANIFEST, Run


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments at the first "--" into the script's flags and the flags of train.py."""
    cut = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:cut]), list(argv[cut + 1 :])


def train_all(script: Path, runs: Mapping[Path, Sequence[str]], *, jobs: int = 1) -> None:
    """Train all runs that are not finished, each by train.py in a separate process; resume those that were stopped.

    After a failure or a signal no other training starts, and the running ones save and stop.

    Args:
        script: Path of train.py.
        runs: Flags of each run folder, without --out.
        jobs: Number of parallel trainings.

    Raises:
        ValueError: If a training fails, with the name of its folder and the last line of its error.
    """
    processes: list[subprocess.Popen[str]] = []
    lock, stopping = threading.Lock(), threading.Event()  # no training starts once the others are stopped

    def train(path: Path) -> str | None:
        if (path / MANIFEST).is_file():
            if Run(path).finished:
                return None
            flags = ["--resume", str(path)]
        else:
            flags = [*runs[path], "--out", str(path)]
        command = [sys.executable, str(script), *flags]
        with lock:
            if stopping.is_set():
                return f"training of {path.name} was not started"
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            processes.append(process)
        _, errors = process.communicate()
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


def load_or_compute(path: Path, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Load named float64 tensors from a JSON file. Compute and save them first if the file does not exist."""
    if not path.exists():
        write_json(path, {key: value.tolist() for key, value in compute().items()})
    return {key: torch.tensor(value, dtype=torch.float64) for key, value in read_json(path).items()}
