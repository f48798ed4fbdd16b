"""Trainings and evaluations that are killed at random moments, and resumed to the same bytes."""

import random
import shutil
import socket
import time

import numpy as np
import pytest
from script_helpers import TINY, Script, lines, run

KILLS = 34
TRAINING = ["--data", "bits.npy", *TINY, "--patience", "null"]
TRAININGS = {
    "warm-up": ["--kl_weight", "LinearWarmup", "--kl_weight.epochs", 5, "--epochs", 10],
    "capacity": ["--kl_weight", "Capacity", "--kl_weight.final", 2, "--kl_weight.epochs", 5, "--epochs", 10],
    "GECO": ["--kl_weight", "GECO", "--kl_weight.tolerance", 3, "--epochs", 10],
    "stream": ["--data", "counts.npy", "--likelihood", "PoissonLikelihood", "--stream", "true", "--epochs", 10],
    "two processes": ["--epochs", 10],
}
COMPARED = ("weights.safetensors", "posterior.nc", "evaluation.csv")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("kills")
    generator = np.random.default_rng(0)
    np.save(root / "bits.npy", (generator.random((120, 6)) < 0.4).astype(np.uint8))
    np.save(root / "counts.npy", generator.poisson(4, (120, 6)).astype(np.int32))
    run("train", "--help", cwd=root)  # the server's imports would count as time of the first training
    return root


def processes_of(script, arguments, place, size):
    """Start one process, or several as torchrun does."""
    caches = {"XDG_CACHE_HOME": str(place / "cache")}
    if size == 1:
        return [Script(script, arguments, cwd=place, strict=False, env=caches)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **caches}
    ranks = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    return [Script(script, arguments, cwd=place, strict=False, env=env) for env in ranks]


def killed_at(seconds, processes, at):
    """Kill the processes after a time, one after the other; return whether they were still running."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(process.poll() is None for process in processes):
        time.sleep(0.002)
    running = [process for process in at.sample(processes, len(processes)) if process.poll() is None]
    for process in running:
        process.kill()
        time.sleep(at.choice([0, 0.05]))
    for process in processes:
        process.wait()
    if not running:
        assert [process.returncode for process in processes] == [0] * len(processes), processes[0].stderr
    assert not any("Traceback" in process.stderr for process in processes if process not in running)
    return bool(running)


def timed(script, arguments, place, size):
    began = time.monotonic()
    for process in processes_of(script, arguments, place, size):
        assert process.wait() == 0, process.stderr
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAININGS)
def test_a_training_killed_at_random_moments_ends_with_the_same_bytes(place, case):
    size = 2 if case == "two processes" else 1
    arguments = [*TRAINING, *TRAININGS[case], "--out"]
    straight = place / f"{case} straight"
    seconds = timed("train", [*arguments, straight], place, size)
    at, kills, finished, out = random.Random(case), 0, 0, place / case
    while kills < KILLS:
        begin = ["--resume", out] if (out / "manifest.json").exists() else [*arguments, out]
        if killed_at(at.uniform(0, seconds), processes_of("train", begin, place, size), at):
            kills += 1
            continue
        check_same(out, straight)
        finished += 1
        shutil.rmtree(out)
    for process in processes_of("train", ["--resume", out] if out.exists() else [*arguments, out], place, size):
        assert process.wait() == 0, process.stderr
    check_same(out, straight)


def check_same(out, straight):
    assert {path.name for path in out.iterdir()} == {path.name for path in straight.iterdir()}
    for name in COMPARED:
        assert (out / name).read_bytes() == (straight / name).read_bytes(), name
    assert metrics(out) == metrics(straight)


def metrics(folder):
    """The lines of the metrics, without the seconds at their end."""
    return [line.partition('"seconds"')[0] for line in lines(folder / "metrics.jsonl")]


@pytest.mark.slow
def test_an_evaluation_killed_at_random_moments_ends_with_the_same_bytes(place):
    np.save(place / "many.npy", (np.random.default_rng(1).random((1500, 6)) < 0.4).astype(np.uint8))
    run("train", *TRAINING, "--data", "many.npy", "--epochs", 1, "--out", "evaluated", cwd=place)
    arguments = ["evaluated", "--split", "train", "--num_particles", 1000]  # of five blocks
    seconds = timed("evaluate", arguments, place, 1)
    expected = (place / "evaluated/evaluation.csv").read_bytes()
    at, kills, resumed = random.Random(1), 0, 0
    while kills < KILLS or not resumed:
        processes = processes_of("evaluate", arguments, place, 1)
        kills += killed_at(at.uniform(0, seconds), processes, at)
        resumed += "going on from datum" in processes[0].stderr
    assert processes_of("evaluate", arguments, place, 1)[0].wait() == 0
    assert (place / "evaluated/evaluation.csv").read_bytes() == expected
