"""Pytest plugin: the working folder of the doctests in README and guides, with the runs that the examples load."""

import io
import runpy
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pyro
import pytest

ROOT = Path(__file__).parent.parent
RUNS = {"trained-run.md": {"runs/a": [], "runs/b": ["--prior", "MixturePrior"]}}


@pytest.fixture(autouse=True)
def _folder_of_a_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each page in an empty folder, after a short form of the trainings that its text asks for."""
    if request.path.suffix != ".md":
        yield
        return
    monkeypatch.chdir(request.getfixturevalue("tmp_path"))
    for out, flags in RUNS.get(request.path.name, {}).items():
        short = ["--epochs", "1", "--num_particles", "10", "--proposal", "guide", "--out", out]
        monkeypatch.setattr(sys, "argv", ["train.py", *flags, *short])
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            assert runpy.run_path(str(ROOT / "scripts" / "train.py"))["main"]() == 0
    yield
    pyro.clear_param_store()
