"""evaluate.py and sample.py on a finished run: their files, damaged runs, other data, and a stopped evaluation."""

import csv
import json
import shutil

import numpy as np
import pytest
from script_helpers import TINY, call, damage, lines, run

import pyrovae
import pyrovae.evidence.evaluation
import pyrovae.runs.report


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


def test_an_interrupted_evaluation_resumes_to_the_same_evaluation_json(place, straight, monkeypatch, capsys):
    again = place / "interrupted"
    shutil.copytree(straight, again)
    flags = [again, "--num_particles", 40, "--split", "train", "--target_std_error", 0.5]
    run("evaluate", *flags, cwd=place)
    whole = (again / "evaluation.csv").read_bytes()
    monkeypatch.setattr(pyrovae.evidence.evaluation, "BLOCK", 20)
    assert call(capsys, monkeypatch, "evaluate", *flags)[0] == 0
    blocks = (again / "evaluation.csv").read_bytes()
    assert blocks != whole  # other blocks, other seeds
    write_state, written = pyrovae.runs.report.write_state, []

    def stop_after_two(path, state):
        write_state(path, state)
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(pyrovae.runs.report, "write_state", stop_after_two)
    code, message = call(capsys, monkeypatch, "evaluate", *flags)
    assert (code, "Traceback" in message) == (130, False)
    assert (again / "evaluation.csv").read_bytes() == blocks  # the last whole one stands
    assert call(capsys, monkeypatch, "evaluate", *flags)[0] == 0
    assert len(written) == 4  # of five blocks, the last one commits nothing
    assert (again / "evaluation.csv").read_bytes() == blocks
    assert not written[0].exists()
    # Other flags start from the beginning, and so does a damaged state.
    written[0].write_bytes(b"no state")
    assert call(capsys, monkeypatch, "evaluate", again, "--num_particles", 40)[0] == 0
    assert not written[0].exists()
