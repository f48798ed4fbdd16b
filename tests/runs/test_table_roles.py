"""Columns with a use of their own, as a user runs the scripts: labels with holes, case weights, groups, covariates."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from script_helpers import TINY, run
from test_table_scripts import read, write

from pyrovae.data import read_table
from pyrovae.runs import fitting, parse_training, resolve, training_data

N = 120


def clusters(seed=0):
    """Two clusters of rows whose label is known for a third, with weights, groups, a covariate and a split."""
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=N)
    return {
        "a": [f"{value:.2f}" for value in 10 * label + rng.normal(size=N)],
        "b": [f"{value:.2f}" for value in -8 * label + rng.normal(size=N)],
        "kind": [["one", "two"][value] if rng.random() < 0.5 else "" for value in label],
        "w": [str(1 + 3 * value) for value in label],
        "school": [f"s{i % 30}" for i in range(N)],
        "dose": [f"{value:.2f}" for value in rng.normal(size=N)],
    }, label


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("roles")
    write(path / "rows.csv", clusters()[0])
    return path


FLAGS = ("--data", "rows.csv", *TINY)


def test_a_label_with_holes_is_learned_from_both_kinds_of_rows_and_filled(folder):
    result = run(
        *("train", *FLAGS, "--label", "kind", "--columns.w.kind", "drop", "--columns.school.kind", "drop"),
        *("--program", "MixtureVAE", "--elbo", "TraceEnum_ELBO", "--lr", 0.05, "--epochs", 15, "--out", "labels"),
        cwd=folder,
    )
    found = re.search(
        r"classification error, labels hidden: (\d+\.\d) % \(s\.e\. \d+\.\d\) of (\d+) test rows", result.stdout
    )
    assert float(found[1]) < 10
    assert json.loads((folder / "labels/evaluation.json").read_text())["classification"]["num_data"] == int(found[2])
    assert "num_classes: 2" in (folder / "labels/config.yaml").read_text()
    assert "held out: the model was not trained on these rows" in result.stdout
    evaluated = run("evaluate", "labels", "--num_particles", 20, "--split", "train", cwd=folder)
    assert "the model was trained on these rows: the numbers are transductive" in evaluated.stdout
    measure = json.loads((folder / "labels/evaluation.json").read_text())["base_measure"]
    assert measure == "lebesgue"  # of log p(x), not of x and the label
    assert "independent columns" in result.stdout
    run("sample", "labels", "--num_samples", 30, cwd=folder)
    assert len(read(folder / "labels/samples.csv")) == 30
    result = run("impute", "labels", "rows.csv", "--draws", 2, "--num_particles", 30, cwd=folder)
    assert re.search(r"the imputation of \d+ of \d+ rows is transductive", result.stdout)
    truth = [["one", "two"][value] for value in clusters()[1]]
    filled, classes = read(folder / "labels/imputed.csv"), read(folder / "labels/classes.csv")
    given = read(folder / "rows.csv")
    assert all(row["kind"] == before["kind"] for row, before in zip(filled, given, strict=True) if before["kind"])
    without = sum(not row["kind"] for row in given)
    assert re.search(rf"kind +{without} +mode\n", result.stdout)
    draws = read(folder / "labels/draws.csv")
    assert all(row["kind"] == (before["kind"] or row["kind"]) for row, before in zip(draws, 2 * given, strict=True))
    assert np.mean([row["kind"] == right for row, right in zip(draws, 2 * truth, strict=True)]) > 0.95
    wrong = [row["kind"] != right for row, right in zip(filled, truth, strict=True)]
    assert np.mean(wrong) < 0.05
    assert all(float(row["one"]) + float(row["two"]) == pytest.approx(1) for row in classes)


def test_case_weights_multiply_the_objective_the_means_and_the_classification_error(folder):
    flags = (*FLAGS, "--label", "kind", "--columns.school.kind", "drop", "--program", "MixtureVAE", "--epochs", 2)
    flags += ("--elbo", "ClassificationELBO")
    result = run("train", *flags, "--weights", "w", "--out", "weights", cwd=folder)
    assert re.search(r"classification error, labels hidden: .* rows with a label, by case weights\n", result.stdout)
    table = read_table(folder / "rows.csv", columns=str(folder / "weights/columns.yaml")).part("train")
    known, w = table.labels >= 0, table.weights.double()
    config = yaml.safe_load((folder / "weights/config.yaml").read_text())["elbo"]["init_args"]
    assert config["num_labelled"] == pytest.approx(len(table) * (w[known].sum() / w.sum()).item())
    summary = json.loads((folder / "weights/evaluation.json").read_text())
    with (folder / "weights/evaluation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    w, values = (np.array([float(row[key]) for row in rows]) for key in ("weight", "log_marginal"))
    assert set(w) == {1.0, 4.0}
    mean = (w * values).sum() / w.sum()
    error = np.sqrt((w**2 * (values - mean) ** 2).sum()) / w.sum() * np.sqrt(len(w) / (len(w) - 1))
    assert summary["log_marginal"]["mean"] == pytest.approx(mean, rel=1e-6)
    assert summary["log_marginal"]["std_error"] == pytest.approx(error, rel=1e-5)
    run("train", *flags, "--columns.w.kind", "drop", "--out", "plain", cwd=folder)
    files = [(folder / name / "weights.safetensors").read_bytes() for name in ("weights", "plain")]
    assert len(files[0]) == len(files[1])
    assert files[0] != files[1]  # the weights enter the objective
    shutil.copytree(folder / "weights", folder / "weights2")  # as another seed would have it
    result = run("compare", "weights", "weights2", cwd=folder)
    assert f"{mean:.2f}" in result.stdout
    found = run("score", "weights", "rows.csv", "--num_particles", 20, "--references", 30, cwd=folder)
    assert "means and their s.e. are weighted by case weights" in found.stdout
    scores, rows = read(folder / "weights/scores.csv"), read(folder / "rows.csv")
    values, w = (np.array([float(row[key]) for row in part]) for part, key in ((scores, "log_marginal"), (rows, "w")))
    assert re.search(rf"all +{N} +{(w * values).sum() / w.sum():.2f} ", found.stdout)


def test_the_rows_of_a_group_lie_in_one_split_and_covariates_are_given(folder):
    flags = ("--group", "school", "--covariates", "dose", "--columns.kind.kind", "drop", "--columns.w.kind", "drop")
    run("train", *FLAGS, *flags, "--epochs", 2, "--out", "groups", cwd=folder)
    rows = read(folder / "rows.csv")
    test = {rows[int(row["row"])]["school"] for row in read(folder / "groups/evaluation.csv")}
    count = sum(row["school"] in test for row in rows)
    assert count == len(read(folder / "groups/evaluation.csv"))
    run("sample", "groups", "--num_samples", 40, cwd=folder)
    samples = read(folder / "groups/samples.csv")
    assert list(samples[0]) == [".given", "a", "b"]
    assert {rows[int(row[".given"]) - 1]["school"] for row in samples} <= test
    result = run("score", "groups", "rows.csv", "--num_particles", 20, "--references", 30, cwd=folder)
    scores = read(folder / "groups/scores.csv")
    assert len(scores) == N
    trained = read_table(folder / "rows.csv", columns=str(folder / "groups/columns.yaml")).splits == 0
    assert [row["trained_on"] == "yes" for row in scores] == trained.tolist()
    assert f"log p(x) of {int(trained.sum())} of {N} rows is transductive" in result.stdout
    for name, rows in (("trained on", trained), ("not trained on", ~trained)):
        values = np.array([float(row["log_marginal"]) for row, used in zip(scores, rows, strict=True) if used])
        error = values.std(ddof=1) / len(values) ** 0.5
        assert re.search(rf"{name} +{len(values)} +{values.mean():.2f} +{error:.2f}\n", result.stdout)


def test_refits_draw_whole_groups_with_their_weights(folder, monkeypatch):
    monkeypatch.chdir(folder)
    flags = parse_training([*map(str, FLAGS), "--group", "school", "--weights", "w", "--columns.kind.kind", "drop"])
    data = training_data(flags)
    given = {}
    monkeypatch.setattr(fitting, "refit", lambda make, train, **options: given.update(options, train=train))
    fitting.refits(resolve(flags, data), data, 3, seed=5)
    train = data.table.part("train")
    assert torch.equal(given["group"], train.group)
    assert torch.equal(given["weights"], train.weights)
    assert torch.equal(given["train"], train.x)
    assert (given["refits"], given["seed"]) == (3, 5)
