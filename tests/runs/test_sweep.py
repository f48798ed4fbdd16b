"""Tests of parallel trainings: their failures, and signals."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pyrovae.evidence import evaluation
from pyrovae.runs import Run
from pyrovae.runs.files import read_state
from pyrovae.runs.sweep import device_of, load_or_compute, measure, train_all, without_machine

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
    with pytest.raises(ValueError, match=r"\(the same in another order\)"):
        train_all(script, {folder: ["--data", "a b.csv", "--lr", "1"]})
    assert sorted(folder.parent.iterdir()) == before
    with pytest.raises(ValueError, match=r"\(--lr 1; now --lr 2\)"):  # where the data lie changes no number
        train_all(script, {folder: ["--lr", "2", "--data", "a b.csv", "--data_dir", "elsewhere", "--threads", "2"]})


# In place of train.py: makes a run, then kills the study, as a machine does that is out of memory.
KILLING = """
import os, shutil, sys

shutil.copytree({run!r}, sys.argv[sys.argv.index("--out") + 1])
os.kill(os.getppid(), 9)
"""

KILLED = """
import sys
from pathlib import Path
from pyrovae.runs.sweep import train_all

folder = Path(sys.argv[1])
train_all(folder / "train.py", {folder / "table/one": sys.argv[2:]})
"""


def test_a_study_that_was_killed_still_refuses_other_flags(script, straight):
    def study(*flags):
        command = [sys.executable, "-c", KILLED, str(script.parent), *flags]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    script.write_text(KILLING.format(run=str(straight)))
    assert study("--lr", "1").returncode == -signal.SIGKILL
    other = study("--lr", "2")
    assert "one was trained with other flags (--lr 1; now --lr 2)" in other.stderr
    assert study("--lr", "1").returncode == 0
    shutil.rmtree(script.parent / "table/one")
    assert study("--lr", "2").returncode == -signal.SIGKILL  # a new run, whose flags count
    assert study("--lr", "2").returncode == 0
    assert "trained with other flags" in study("--lr", "1").stderr


def test_a_training_that_does_not_begin_leaves_nothing(script):
    (script.parent / "kept").mkdir()
    script.write_text("import sys\nsys.exit('train.py: error: no data')")
    with pytest.raises(ValueError, match="no data"):
        train_all(script, {script.parent / "kept/new/one": [], script.parent / "kept/two": []})
    assert list((script.parent / "kept").iterdir()) == []


def test_values_of_a_run_are_computed_once_for_the_same_weights(straight):
    made = []

    def compute():
        made.append(len(made))
        values = [0.1, -1 / 3, torch.inf, -torch.inf, torch.nan]
        return {"elbo": torch.tensor(values, dtype=torch.float64), "count": torch.tensor(made[-1])}

    first, second = (load_or_compute(straight, [5, 20], compute) for _ in range(2))
    assert second["elbo"][:4].tolist() == [0.1, -1 / 3, torch.inf, -torch.inf]
    assert second["elbo"][4].isnan()
    assert first["count"] == second["count"] == 0
    assert load_or_compute(straight, [6, 20], compute)["count"] == 1
    file = straight.with_name("straight-5-20.json")
    file.write_text(file.read_text().replace(Run(straight).manifest["files"]["weights.safetensors"], "of others"))
    assert load_or_compute(straight, [5, 20], compute)["count"] == 2
    weights = Run(straight).manifest["files"]["weights.safetensors"]
    head = f'{{"weights": "{weights}", "values": '
    damaged = ["", "[]", "{}", f"{head}3}}", f"{head}{{}}}}"]
    for place, text in enumerate(damaged):
        file.write_text(text)
        assert load_or_compute(straight, [5, 20], compute, names=["elbo"])["count"] == 3 + place


def test_a_stopped_evaluation_of_a_run_goes_on(straight, monkeypatch):
    draws = {"guide_particles": 30, "num_particles": 20}
    whole = measure(straight, 3, **draws)
    straight.with_name("straight-3-30-20.json").unlink()
    monkeypatch.setattr(evaluation, "BLOCK", 1)
    apart = measure(straight, 3, **draws)
    straight.with_name("straight-3-30-20.json").unlink()
    assert set(whole) == {"elbo", "bound", "log_marginal"}
    assert all(len(value) == 3 for value in whole.values())

    def stop(count):
        if count:
            raise KeyboardInterrupt

    partial = straight.with_name("straight-3-30-20.json.partial")
    with pytest.raises(KeyboardInterrupt):
        measure(straight, 3, **draws, on_progress=stop)
    assert len(read_state(partial)["state"]["blocks"]) == 1
    done = []
    again = measure(straight, 3, **draws, on_progress=done.append)
    assert done == [1, 1, 1]
    assert {key: value.tolist() for key, value in again.items()} == {k: v.tolist() for k, v in apart.items()}
    assert not partial.exists()
    straight.with_name("straight-3-30-20.json").unlink()
    partial.write_text("damaged")
    assert measure(straight, 3, **draws)["bound"].tolist() == apart["bound"].tolist()


def test_the_flags_of_the_machine_change_no_protocol():
    flags = ["--lr", "1", "--device", "cuda", "--threads=2", "--execution", "eager", "--kl_weight", "Beta"]
    assert without_machine(flags) == ["--lr", "1", "--kl_weight", "Beta"]
    assert without_machine([]) == []
    assert device_of(["--lr", "1", "--device", "cpu"]).type == "cpu"
    with pytest.raises(ValueError, match="--device fish: no such device"):
        device_of(["--device", "fish"])


def test_failed_folds_are_named_with_their_model(script):
    script.write_text("import sys\nsys.exit('train.py: error: no data')")
    with pytest.raises(ValueError, match="training of flow-3-fold/01 failed: no data"):
        train_all(script, {script.parent / "flow-3-fold/01": []})
