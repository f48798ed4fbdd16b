"""Many runs of train.py side by side, for the scripts that compare them."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from pyrovae.programs import ProgramPair
from pyrovae.runs.files import read_json, write_json
from pyrovae.runs.run import MANIFEST, Run


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a script's arguments at the first "--": its own flags, and those that go to train.py as they are."""
    cut = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:cut]), list(argv[cut + 1 :])


def train_all(script: Path, runs: Mapping[Path, Sequence[str]], *, jobs: int = 1) -> None:
    """Train runs that are not finished, each by train.py in a process of its own; go on with those that were stopped.

    Args:
        script: Where train.py is.
        runs: The flags of each run folder, without --out.
        jobs: Trainings side by side.

    Raises:
        ValueError: If one fails, with the name of its folder and its last line.
    """

    def train(path: Path) -> str | None:
        if (path / MANIFEST).is_file():
            if Run(path).finished:
                return None
            flags = ["--resume", str(path)]
        else:
            flags = [*runs[path], "--out", str(path)]
        result = subprocess.run([sys.executable, str(script), *flags], capture_output=True, text=True, check=False)
        return f"{path.name}: {result.stderr.strip().splitlines()[-1]}" if result.returncode else None

    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), unit="run", desc="training") as bar:
        for problem in pool.map(train, runs):
            if problem:
                raise ValueError(problem)
            bar.update()


def on_test_data(path: Path, num_data: int) -> tuple[ProgramPair, Tensor, dict[str, Tensor]]:
    """The trained model of a run, and the first of its test data: x with shape (N, D), and covariates."""
    run = Run(path)
    config = run.config()
    data = run.data(config)
    return run.vae(config), data.test[:num_data], {k: v[:num_data] for k, v in data.conditions("test").items()}


def kept(path: Path, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What make gives, by name, in double precision; made once and kept in a JSON file."""
    if not path.exists():
        write_json(path, {key: value.tolist() for key, value in make().items()})
    return {key: torch.tensor(value, dtype=torch.float64) for key, value in read_json(path).items()}
