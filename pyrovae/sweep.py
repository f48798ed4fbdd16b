"""Many runs of train.py side by side, for the scripts that compare them."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from pyrovae.run import MANIFEST, Run


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
