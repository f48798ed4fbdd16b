"""Tests of parallel trainings: their failures, and signals."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyrovae.runs.sweep import train_all

# A script in place of train.py. It notes its start, then fails, ends, or waits for SIGTERM and saves.
TRAINING = """
import signal, sys, time
from pathlib import Path

out = Path(sys.argv[sys.argv.index("--out") + 1])

def save(number, frame):
    Path(f"{out}.saved").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
Path(f"{out}.started").touch()
if "fail" in sys.argv:
    while not Path(f"{out.parent / 'long'}.started").exists():
        time.sleep(0.01)
    sys.exit("train.py: error: no data")
if "wait" in sys.argv:
    time.sleep(60)
"""

STUDY = """
import sys
from pathlib import Path
from pyrovae.runs import run_script
from pyrovae.runs.sweep import train_all

folder = Path(sys.argv[1])
run_script(lambda: train_all(folder / "train.py", {folder / name: ["wait"] for name in ("long", "later")}))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(TRAINING)
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"train.py"}


def test_a_failure_stops_the_other_trainings_and_starts_no_more(script):
    start = time.perf_counter()
    runs = {script.parent / name: [what] for name, what in (("long", "wait"), ("bad", "fail"), ("later", "wait"))}
    with pytest.raises(ValueError, match=r"^training of bad failed: no data$"):
        train_all(script, runs, jobs=2)
    assert time.perf_counter() - start < 30
    assert names(script.parent) - {"later.started", "later.saved"} == {"long.started", "long.saved", "bad.started"}


def test_a_training_that_dies_without_a_message_is_named(script):
    script.write_text("import os\nos._exit(3)")
    with pytest.raises(ValueError, match=r"^training of one failed: exit status 3$"):
        train_all(script, {script.parent / "one": []})


def test_sigterm_stops_the_running_training_and_starts_no_other(script):
    study = subprocess.Popen([sys.executable, "-c", STUDY, str(script.parent)])
    deadline = time.monotonic() + 60
    while "long.started" not in names(script.parent) and time.monotonic() < deadline:
        time.sleep(0.05)
    study.send_signal(signal.SIGTERM)
    assert study.wait(30) == 143
    assert names(script.parent) == {"long.started", "long.saved"}
