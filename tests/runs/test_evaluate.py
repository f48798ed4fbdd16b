"""evaluate.py and sample.py on a finished run: their files, damaged runs, other data, and a stopped evaluation."""

import csv
import importlib
import json
import os
import shutil
import time

import numpy as np
import pytest
import torch
from script_helpers import TINY, call, damage, lines, run

import pyrovae
import pyrovae.evidence.evaluation
import pyrovae.runs.partial
from pyrovae.runs import read_state, write_state
from pyrovae.runs.partial import StoppedEvaluation, own_sources


def test_evaluation_json_has_every_key(place, straight):
    result = run("evaluate", straight, "--num_particles", 300, "--seed", 2, cwd=place)
    assert "k-hat > 0.7" in result.stdout
    summary = json.loads((straight / "evaluation.json").read_text())
    assert set(summary) == {
        "split", "num_data", "elbo", "log_marginal", "log_marginal_guide", "bits_per_dim", "base_measure", "binarize",
        "seed", "seconds",
    }  # fmt: skip
    marginal, guide = summary["log_marginal"], summary["log_marginal_guide"]
    assert set(summary["elbo"]) == {"mean", "std_error", "num_particles"}
    assert set(marginal) == set(guide) == {
        "mean", "std_error", "mc_std_error", "bias_corrected_mean", "num_particles", "proposal", "khat", "ess",
        "served", "ladder",
    }  # fmt: skip
    assert set(marginal["khat"]) == {"max", "share_above_0.7"}
    assert set(marginal["ess"]) == {"min", "median"}
    assert [rung["num_particles"] for rung in marginal["ladder"]] == [1, 10, 100, 300]
    assert marginal["ladder"][-1]["lower_bound"] == marginal["mean"]
    assert (summary["num_data"], marginal["num_particles"], summary["seed"]) == (12, 300, 2)
    assert summary["base_measure"] == "counting"
    assert marginal["proposal"] == "0.6 adapted Laplace t(5) + 0.1 adapted Laplace normal + 0.1 guide + 0.2 prior"
    assert f"proposal: {marginal['proposal']}" in result.stdout
    assert (guide["proposal"], guide["served"]) == ("guide", {"guide": 1.0})
    assert "L_300, guide alone" in result.stdout
    assert sum(marginal["served"].values()) == pytest.approx(1.0)
    rows = list(csv.DictReader(lines(straight / "evaluation.csv")))
    values = np.array([float(row["log_marginal"]) for row in rows])
    assert marginal["mean"] == pytest.approx(values.mean())
    assert guide["mean"] == pytest.approx(np.mean([float(row["log_marginal_guide"]) for row in rows]))
    assert marginal["std_error"] == pytest.approx(values.std(ddof=1) / len(values) ** 0.5)
    errors = np.array([float(row["std_error"]) for row in rows])
    assert marginal["mc_std_error"] == pytest.approx((errors**2).sum() ** 0.5 / len(values))
    assert summary["elbo"]["mean"] < summary["log_marginal"]["mean"]
    assert summary["bits_per_dim"] == pytest.approx(-values.mean() / (12 * np.log(2)))
    assert {row["served"] for row in rows} <= set(marginal["served"])
    run("evaluate", straight, "--num_particles", 30, "--split", "train", "--proposal", "guide", cwd=place)
    summary = json.loads((straight / "evaluation.json").read_text())
    assert summary["num_data"] == 96
    assert summary["log_marginal"] == summary["log_marginal_guide"]
    assert summary["log_marginal"]["proposal"] == "guide"


def test_the_sample_script_writes_samples_and_reconstructions(place, straight):
    before = (straight / "samples.png").read_bytes()
    run("sample", straight, "--num_samples", 10, "--seed", 3, cwd=place)
    assert (straight / "samples.png").read_bytes() != before
    assert (straight / "reconstructions.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_evaluated_on_its_own_split(place, straight):
    arguments = ["--data", "bits.npy", *TINY, "--epochs", 1, "--split_seed", 3, "--out", "split"]
    run("train", *arguments, cwd=place)
    rows = lambda folder: [line.split(",")[0] for line in lines(folder / "evaluation.csv")]  # noqa: E731
    before = rows(place / "split")
    run("evaluate", "split", "--num_particles", 5, cwd=place)
    assert rows(place / "split") == before
    run("evaluate", straight, "--num_particles", 5, cwd=place)
    assert rows(straight) != before


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("weights.safetensors", "flip", "was changed or damaged: its SHA-256 differs from the manifest's"),
        ("weights.safetensors", "cut", "was changed or damaged: its SHA-256 differs from the manifest's"),
        ("weights.safetensors", "remove", "missing"),
        ("config.yaml", "flip", "was changed or damaged: its SHA-256 differs from the manifest's"),
        ("manifest.json", "cut", "is not JSON"),
        ("manifest.json", "remove", "no run folder"),
    ],
)
def test_a_damaged_run_is_refused(straight, tmp_path, capsys, monkeypatch, name, how, message):
    copy = tmp_path / "copy"
    shutil.copytree(straight, copy)
    if how == "remove":
        (copy / name).unlink()
    else:
        damage(copy / name, how)
    code, err = call(capsys, monkeypatch, "evaluate", copy)
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_evaluate_refuses_data_that_changed_since_training(place, straight, capsys, monkeypatch):
    bits = (place / "bits.npy").read_bytes()
    try:
        np.save(place / "bits.npy", 1 - np.load(place / "bits.npy"))
        code, err = call(capsys, monkeypatch, "evaluate", straight)
    finally:
        (place / "bits.npy").write_bytes(bits)
    assert code == 1
    assert "the data differ from those of" in err


def stop_after(monkeypatch, number):
    """Let the next evaluation be interrupted after some commits; return the paths of the states that it writes."""
    write_state, written = pyrovae.runs.partial.write_state, []

    def stop(path, state):
        write_state(path, state)
        written.append(path)
        if len(written) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(pyrovae.runs.partial, "write_state", stop)
    return written


@pytest.fixture
def blocks(monkeypatch, tmp_path):
    """Blocks of 20 data, and a cache of the test's own."""
    monkeypatch.setattr(pyrovae.evidence.evaluation, "BLOCK", 20)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/pyrovae/evaluations"


def test_an_interrupted_evaluation_resumes_to_the_same_evaluation_json(place, straight, monkeypatch, capsys, blocks):
    again = place / "interrupted"
    shutil.copytree(straight, again)
    flags = [again, "--num_particles", 40, "--split", "train", "--target_std_error", 0.5]
    run("evaluate", *flags, cwd=place)
    whole = (again / "evaluation.csv").read_bytes()
    assert call(capsys, monkeypatch, "evaluate", *flags)[0] == 0
    uninterrupted = (again / "evaluation.csv").read_bytes()
    assert uninterrupted != whole  # other blocks, other seeds
    files = {path.name for path in again.iterdir()}
    written = stop_after(monkeypatch, 2)
    code, message = call(capsys, monkeypatch, "evaluate", *flags)
    assert (code, "Traceback" in message, "going on" in message) == (130, False, False)
    assert (again / "evaluation.csv").read_bytes() == uninterrupted  # the last whole one stands
    assert {path.name for path in again.iterdir()} == files  # a copy of the folder carries no state
    assert [path.parent for path in written] == [blocks] * 2
    code, message = call(capsys, monkeypatch, "evaluate", *flags)
    assert code == 0
    assert "going on from datum 40 of 96, where an earlier call with the same flags stopped" in message
    assert len(written) == 4  # of five blocks, the last one commits nothing
    assert (again / "evaluation.csv").read_bytes() == uninterrupted
    assert not list(blocks.iterdir())


@pytest.mark.slow
def test_a_stopped_evaluation_is_resumed_by_the_same_flags_alone_and_not_with_fresh(
    straight, monkeypatch, capsys, blocks, tmp_path
):
    again = shutil.copytree(straight, tmp_path / "again")
    monkeypatch.chdir(straight.parent)
    flags = [again, "--num_particles", 10, "--split", "train"]
    stop_after(monkeypatch, 2)
    assert call(capsys, monkeypatch, "evaluate", *flags)[0] == 130
    (state,) = blocks.iterdir()
    for others in (["--seed", 1], ["--split", "test"]):
        code, message = call(capsys, monkeypatch, "evaluate", *flags, *others)
        assert (code, "going on" in message) == (0, False)
    assert list(blocks.iterdir()) == [state]
    code, message = call(capsys, monkeypatch, "evaluate", *flags, "--fresh", "true")
    assert (code, "going on" in message) == (0, False)
    assert not list(blocks.iterdir())


def test_a_forged_state_in_the_run_folder_is_ignored(straight, monkeypatch, capsys, blocks, tmp_path):
    again = shutil.copytree(straight, tmp_path / "again")
    monkeypatch.chdir(straight.parent)
    flags = [again, "--num_particles", 10, "--split", "train"]
    assert call(capsys, monkeypatch, "evaluate", *flags)[0] == 0
    true = (again / "evaluation.csv").read_bytes()
    (state,) = stopped_states(monkeypatch, capsys, flags, blocks)
    found = read_state(state)
    found["state"]["blocks"] = [forged(block) for block in found["state"]["blocks"]]
    for path in (again / "evaluation.partial.safetensors", again / state.name):  # where they were, and any other name
        write_state(path, found)
    state.unlink()
    code, message = call(capsys, monkeypatch, "evaluate", *flags)
    assert (code, "going on" in message) == (0, False)
    assert (again / "evaluation.csv").read_bytes() == true
    assert not (again / "evaluation.partial.safetensors").exists()


def stopped_states(monkeypatch, capsys, flags, blocks):
    """Stop an evaluation after two blocks, and return the files of states."""
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert call(capsys, patch, "evaluate", *flags)[0] == 130
    return list(blocks.iterdir())


def forged(block):
    """A block with a log p(x) that is too high."""
    value, *others = block["marginal"]["log_marginal"]
    return {**block, "marginal": {**block["marginal"], "log_marginal": (value + 1.5, *others)}}


def test_a_state_that_is_damaged_or_of_other_keys_counts_as_none(straight, monkeypatch, capsys, blocks, tmp_path):
    again = shutil.copytree(straight, tmp_path / "again")
    monkeypatch.chdir(straight.parent)
    (path,) = stopped_states(monkeypatch, capsys, [again, "--num_particles", 10, "--split", "train"], blocks)
    state = read_state(path)
    stopped = StoppedEvaluation(state["about"])
    assert stopped.path == path
    assert len(stopped.read()["blocks"]) == 2
    for make in (
        lambda: path.write_bytes(b"no state"),
        lambda: write_state(path, {"about": state["about"]}),
        lambda: write_state(path, {**state, "state": {"about": {}, "blocks": [{"elbo": 3}]}}),
        lambda: write_state(path, {**state, "about": {**state["about"], "weights": "0" * 64}}),
        lambda: path.mkdir(),
    ):
        path.unlink(missing_ok=True)
        make()
        assert stopped.read() is None
        assert "the stopped evaluation is left out" in capsys.readouterr().err
    path.rmdir()
    assert stopped.read() is None
    assert not capsys.readouterr().err


def test_an_evaluation_runs_without_a_cache_of_the_users_own(blocks, capsys):
    def without():
        stopped = StoppedEvaluation({"weights": "0"})
        stopped.write({"blocks": []})
        stopped.remove()
        assert stopped.read() is None
        return capsys.readouterr().err

    blocks.mkdir(parents=True)
    blocks.chmod(0o777)
    assert "others can write there; set XDG_CACHE_HOME" in without()
    assert not list(blocks.iterdir())
    blocks.rmdir()
    blocks.write_text("a file")
    assert "a stopped evaluation cannot be resumed" in without()
    blocks.unlink()
    stopped = StoppedEvaluation({"weights": "0"})
    blocks.rmdir()  # as on a full disk
    stopped.write({"blocks": []})
    assert "could not be resumed from here" in capsys.readouterr().err


def test_states_that_nothing_wrote_to_for_a_month_are_swept(straight, monkeypatch, capsys, blocks, tmp_path):
    again = shutil.copytree(straight, tmp_path / "again")
    monkeypatch.chdir(straight.parent)
    blocks.mkdir(parents=True)
    old, recent = blocks / "old.safetensors", blocks / ".unfinished-1.safetensors"
    for path, days in ((old, 31), (recent, 29)):
        path.touch()
        os.utime(path, (time.time() - days * 86400,) * 2)
    assert call(capsys, monkeypatch, "evaluate", again, "--num_particles", 10)[0] == 0
    assert list(blocks.iterdir()) == [recent]


def test_a_change_of_the_users_own_module_is_no_reason_to_go_on(place, monkeypatch):
    monkeypatch.syspath_prepend(place)
    module = importlib.import_module("mymodule")
    prior = module.StudentTPrior(2)
    before = own_sources(prior)
    assert set(before) == {"mymodule"}
    source = place / "mymodule.py"
    text = source.read_text()
    source.write_text(text.replace("df: float = 5.0", "df: float = 6.0"))
    changed = own_sources(prior)
    source.write_text(text)
    assert changed != before
    assert own_sources(torch.nn.Linear(1, 1)) == {}


def test_the_closing_evaluation_of_a_training_is_resumed(straight, monkeypatch, capsys, blocks, tmp_path):
    monkeypatch.chdir(straight.parent)
    monkeypatch.setattr(pyrovae.evidence.evaluation, "BLOCK", 5)
    flags = ["--config", straight / "config.yaml", "--epochs", 1, "--out"]
    assert call(capsys, monkeypatch, "train", *flags, tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        code, message = call(capsys, patch, "train", *flags, tmp_path / "stopped")
    assert code == 130
    assert len(list(blocks.iterdir())) == 1
    code, message = call(capsys, monkeypatch, "train", "--resume", tmp_path / "stopped")
    assert code == 0
    assert "going on from datum 5 of 12" in message
    assert (tmp_path / "stopped/evaluation.csv").read_bytes() == (tmp_path / "whole/evaluation.csv").read_bytes()
    assert not list(blocks.iterdir())
