"""Runs that are killed, stopped by a signal or by a full disk, and resumed to the same bytes."""

import json
import shutil
import signal
import time

import pytest
from script_helpers import TINY, Script, call, damage, lines, run, start

import pyrovae
import pyrovae.evidence.evaluation
import pyrovae.runs.report
from pyrovae.runs.readers import sealed


def test_a_run_killed_repeatedly_ends_as_an_uninterrupted_run(place, straight):
    arguments = ["--config", straight / "config.yaml", "--out", "killed"]
    killed = place / "killed"
    for stop_at in (2, 9):
        process = start(*(arguments if stop_at == 2 else ["--resume", killed]), cwd=place)
        while len(lines(killed / "metrics.jsonl")) < stop_at and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
    # A line past the commit, and a file beside, as a kill in the middle of a commit may leave them.
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 99')
    (killed / f".unfinished-{0:032}.safetensors").touch()
    committed = pyrovae.runs.Run(killed).committed()
    assert len(lines(killed / "metrics.jsonl")) == committed["epoch"]
    run("train", "--resume", killed, cwd=place)
    for name in ("weights.safetensors", "posterior.nc", "epochs.safetensors"):
        assert (killed / name).read_bytes() == (straight / name).read_bytes(), name
    assert len(lines(killed / "metrics.jsonl")) == 12
    assert {path.name for path in killed.iterdir()} == {path.name for path in straight.iterdir()}
    assert "finished" in run("train", "--resume", killed, cwd=place).stdout


def test_a_run_killed_before_its_first_commit_starts_again(place, straight):
    early = place / "early"
    process = start("--config", straight / "config.yaml", "--out", "early", cwd=place)
    while not (early / "manifest.json").exists() and process.poll() is None:
        time.sleep(0.0005)
    process.kill()
    process.wait()
    (early / "checkpoint.safetensors").unlink(missing_ok=True)
    run("train", "--resume", early, cwd=place)
    assert (early / "weights.safetensors").read_bytes() == (straight / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.thin(1)
def test_a_signal_finishes_the_step_and_saves(place, number, code):
    out = place / f"signal-{code}"
    arguments = ["--data", "bits.npy", *TINY, "--epochs", "4000", "--patience", "null"]
    process = start(*arguments, "--out", out, cwd=place)
    while len(lines(out / "metrics.jsonl")) < 3 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    assert process.wait(60) == code
    assert "Traceback" not in process.stderr
    assert f"--resume {out}" in process.stderr
    state = pyrovae.runs.read_state(out / "checkpoint.safetensors")
    assert state["epoch"] >= 3
    assert len(lines(out / "metrics.jsonl")) == state["epoch"]
    with pytest.raises(ValueError, match="not finished; resume it with"):
        pyrovae.load(out)


def test_a_full_disk_stops_in_one_line_and_the_run_resumes(place, straight):
    size = (straight / "checkpoint.safetensors").stat().st_size
    flags = ["--config", straight / "config.yaml", "--out", "full"]
    result = Script("train", flags, cwd=place, strict=False, largest=size - 500)
    assert result.wait() == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("train.py: error: cannot write")
    assert "full stays. Resume with: train.py --resume full, or remove the folder" in result.stderr
    assert "Traceback" not in result.stderr
    state = pyrovae.runs.read_state(place / "full/checkpoint.safetensors")
    assert 0 < state["epoch"] < 12
    run("train", "--resume", "full", cwd=place)
    assert (place / "full/weights.safetensors").read_bytes() == (straight / "weights.safetensors").read_bytes()


def test_a_checkpoint_of_another_model_or_damaged_is_refused(place, straight, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    wider = ["--network.hidden", "[7]", *TINY[2:]]
    assert call(capsys, monkeypatch, "train", "--data", "bits.npy", *wider, "--epochs", 1, "--out", "wider")[0] == 0
    copy = tmp_path / "copy"
    shutil.copytree(place / "wider", copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(sealed({**manifest, "status": "training"})))
    shutil.copy(straight / "checkpoint.safetensors", copy)
    code, err = call(capsys, monkeypatch, "train", "--resume", copy)
    assert code == 1
    assert "another model" in err
    damage(copy / "checkpoint.safetensors", "flip")
    code, err = call(capsys, monkeypatch, "train", "--resume", copy)
    assert code == 1
    assert "damaged" in err
    assert (copy / "checkpoint.safetensors").exists()
