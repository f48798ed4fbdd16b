"""Tests of parallel trainings: their failures, and signals."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pyrovae.runs import Run
from pyrovae.runs.sweep import load_or_compute, train_all

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
    return {path.name for path in folder.iterdir() if path.suffix in (".started", ".saved")}


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


def test_a_run_that_was_begun_with_other_flags_is_refused(script):
    script.write_text(
        "import sys\nfrom pathlib import Path\nout = Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "out.mkdir(parents=True)\n(out / 'manifest.json').write_text('{}')"
    )
    folder = script.parent / "table" / "standard-0"
    train_all(script, {folder: ["--lr", "1", "--data", "a b.csv"]})
    train_all(script, {folder.with_name("other"): []})
    before = sorted(folder.parent.iterdir())
    message = r"standard-0 was trained with other flags \(--lr 1; now --lr 2 --epochs 3\); give another folder"
    with pytest.raises(ValueError, match=message):
        train_all(
            script,
            {folder.with_name("new"): [], folder: ["--lr", "2", "--data", "a b.csv", "--epochs", "3"]},
        )
    with pytest.raises(ValueError, match=r"\(another order; now another order\)"):
        train_all(script, {folder: ["--data", "a b.csv", "--lr", "1"]})
    assert sorted(folder.parent.iterdir()) == before


def test_values_of_a_run_are_computed_once_for_the_same_weights(straight):
    made = []

    def compute():
        made.append(len(made))
        return {"elbo": torch.tensor([0.1, -1 / 3], dtype=torch.float64), "count": torch.tensor(made[-1])}

    first, second = (load_or_compute(straight, [5, 20], compute) for _ in range(2))
    assert second["elbo"].tolist() == [0.1, -1 / 3]
    assert first["count"] == second["count"] == 0
    assert load_or_compute(straight, [6, 20], compute)["count"] == 1
    file = straight.with_name("straight-5-20.json")
    file.write_text(file.read_text().replace(Run(straight).manifest["files"]["weights.safetensors"], "of others"))
    assert load_or_compute(straight, [5, 20], compute)["count"] == 2
