"""Processes beside each other: locks of run folders, and temporary files that only the dead leave to be swept."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from script_helpers import TINY, Script, assert_refused, lines, start

from pyrovae.runs import Run, write_whole
from pyrovae.runs.locks import is_locked, locked, sweep, unfinished

LONG = ["--data", "bits.npy", *TINY, "--epochs", "100000", "--patience", "null", "--execution", "eager"]
SECONDS = {
    (*LONG, "--out", "busy"): "--out busy is in use: another process is training there; choose another folder",
    ("--resume", "busy"): "busy: another process is writing this run; wait for its end, or stop it",
}


def strays_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith((".new-", ".unfinished-")))


def test_a_second_training_of_a_run_is_refused_in_one_line(place):
    training = start(*LONG, "--out", "busy", cwd=place)
    while len(lines(place / "busy/metrics.jsonl")) < 2 and training.poll() is None:
        time.sleep(0.001)
    for arguments, words in SECONDS.items():
        second = Script("train", arguments, cwd=place)
        assert_refused("train", second.wait(60), second.stderr, words)
        assert len(second.stderr.splitlines()) == 1
    assert training.poll() is None, training.stderr
    training.kill()
    training.wait()
    with Run(place / "busy").locked():  # the lock ends with its process, however it ends
        assert is_locked(place / "busy")
    again = Script("train", [*LONG, "--out", "busy"], cwd=place)
    assert_refused("train", again.wait(60), again.stderr, "--out busy already exists and is not an empty folder")


def test_an_evaluation_beside_another_is_refused_in_one_line(place, straight):
    with Run(straight).locked():
        second = Script("evaluate", [straight, "--num_particles", 5], cwd=place)
        assert_refused("evaluate", second.wait(60), second.stderr, "another process is writing this run")
    first = Script("evaluate", [straight, "--num_particles", 5], cwd=place)
    assert first.wait(60) == 0


def test_the_next_training_sweeps_what_killed_ones_left_but_not_what_live_ones_make(place):
    folder = place / "beside"
    stale = folder / ".new-0123abc_"
    stale.mkdir(parents=True)
    (stale / "config.yaml").touch()
    new, live = (lambda: folder / ".new-live"), folder / ".new-live"
    with unfinished(lambda: new().mkdir() or live):
        both = [Script("train", ["--data", place / "bits.npy", *TINY, "--epochs", 1, "--out", folder / name], cwd=place)
                for name in ("one", "two")]  # fmt: skip
        assert [process.wait(100) for process in both] == [0, 0]
        assert strays_in(folder) == [".new-live"]
    assert strays_in(folder) == []
    assert {path.name for path in folder.iterdir()} == {"one", "two"}


def test_the_next_evaluation_sweeps_unfinished_files(place, straight):
    stray = straight / f".unfinished-{0:032}.json"
    stray.touch()
    assert Script("evaluate", [straight, "--num_particles", 5], cwd=place).wait(60) == 0
    assert strays_in(straight) == []


def test_a_write_sweeps_the_temporary_file_of_a_killed_process_alone(tmp_path):
    script = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import importlib.util
spec = importlib.util.spec_from_file_location("locks", Path(sys.argv[2]) / "pyrovae/runs/locks.py")
locks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(locks)
path = Path(sys.argv[1])
with locks.unfinished(lambda: path.touch() or path):
    print("made", flush=True)
    time.sleep(60)
"""
    root = Path(__file__).parents[2]
    paths = [tmp_path / f".unfinished-{number:032}" for number in range(2)]
    processes = []
    for path in paths:
        command = [sys.executable, "-c", script, str(path), str(root)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    try:
        assert [process.stdout.readline() for process in processes] == ["made\n", "made\n"]
        write_whole(tmp_path / "file", b"1")
        assert strays_in(tmp_path) == [path.name for path in paths]
        processes[0].kill()
        processes[0].wait()
        write_whole(tmp_path / "file", b"2")
        assert strays_in(tmp_path) == [paths[1].name]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
    sweep(tmp_path, ".unfinished-", ".*")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_temporary_folder_that_is_swept_before_its_lock_is_made_again(tmp_path):
    made = []

    def make():
        made.append(tmp_path / f".new-{len(made)}")
        made[-1].mkdir()
        if len(made) == 1:
            sweep(tmp_path, ".new-", ".*")  # as another process may
        return made[-1]

    with unfinished(make) as folder:
        assert folder == made[1]
        sweep(tmp_path, ".new-", ".*")
        assert folder.is_dir()
    assert not folder.exists()


def test_a_folder_is_locked_once(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="another process is writing this run"), locked(tmp_path):
        pass
    assert not is_locked(tmp_path)


def test_sweeping_neither_waits_for_a_pipe_nor_follows_a_link(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    (tmp_path / ".new-link").symlink_to(kept)
    subprocess.run(["mkfifo", tmp_path / ".new-pipe"], check=True)
    sweep(tmp_path, ".new-", ".*")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    assert (kept / "file").exists()
