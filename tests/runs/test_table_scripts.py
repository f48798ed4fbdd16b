"""Tables from train.py to imputations, scores and samples, as a user runs the scripts."""

import csv
import json
import math
import re

import numpy as np
import pytest
import torch
import yaml
from script_helpers import TINY, assert_refused, call, run

import pyrovae
from pyrovae.columns import Columns
from pyrovae.data import read_columns, read_table
from pyrovae.runs.fitting import make_vae

N = 90
COUNT = ["--columns.visits.kind", "count"]  # without it, whole numbers from 6 on are read as real


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows)
        writer.writerows(zip(*rows.values(), strict=True))
    return path


def survey(seed=0):
    """Six columns with holes, an identifier and a weight, as texts."""
    rng = np.random.default_rng(seed)
    height = rng.normal(170, 8, N).round(1)
    rows = {
        "id": [f"p{i:03d}" for i in range(N)],
        "height": [f"{value:.1f}" for value in height],
        "income": [f"{value:.2f}" for value in np.exp(7 + 0.05 * (height - 170) + 0.3 * rng.normal(size=N))],
        "visits": [str(value) for value in rng.poisson(15, N)],
        "sex": ["FM"[int(value > 170)] for value in height],
        "region": [f"r{value}" for value in rng.integers(3, size=N)],
    }
    for name in ("height", "income", "sex", "region"):
        for row in rng.choice(N, 15, replace=False):
            rows[name][row] = ""
    return rows


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def refused(capsys, monkeypatch):
    """A check that a script refuses its flags in one line with some words."""

    def check(words, script, *arguments, cwd):
        monkeypatch.chdir(cwd)
        code, err = call(capsys, monkeypatch, script, *arguments)
        assert_refused(script, code, err, words)

    return check


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with survey.csv and a run on it, and what train.py printed."""
    folder = tmp_path_factory.mktemp("table")
    write(folder / "survey.csv", survey())
    result = run("train", *COUNT, "--data", "survey.csv", "--epochs", 3, *TINY, "--out", "run", cwd=folder)
    return folder, result.stdout


def test_training_on_a_table_prints_its_columns_and_keeps_them(trained):
    folder, printed = trained
    assert re.search(r"height +real +\S+ \.\. \S+ +1\d\.\d % +NormalLikelihood +0\.1", printed)
    assert re.search(r"id +drop", printed)
    assert "missing at random" in printed
    kept = read_columns(folder / "run" / "columns.yaml")
    guessed = read_table(folder / "survey.csv").columns
    assert [column for column in kept if column.name != "visits"] == [c for c in guessed if c.name != "visits"]
    assert "columns.yaml" in json.loads((folder / "run" / "manifest.json").read_text())["files"]
    assert json.loads((folder / "run" / "evaluation.json").read_text())["base_measure"] == (
        "by column: 2 lebesgue; 3 counting"
    )
    assert not list((folder / "run").glob("samples*.png"))


def test_the_columns_that_describe_prints_train_the_same_model(trained):
    folder, _ = trained
    result = run("train", *COUNT, "--data", "survey.csv", "--describe", "true", cwd=folder)
    assert "height" in yaml.safe_load(result.stdout)
    assert "likelihood" in result.stderr  # the table of the columns
    held_out = 2 * (N // 10)
    assert f"values and missing cells: of the {N - held_out} training rows of {N}\n" in result.stderr
    (folder / "columns.yaml").write_text(result.stdout)
    run(
        "train", "--data", "survey.csv", "--columns", "columns.yaml", "--epochs", 3, *TINY, "--out", "again", cwd=folder
    )
    assert (folder / "again/weights.safetensors").read_bytes() == (folder / "run/weights.safetensors").read_bytes()


@pytest.mark.slow
def test_the_configuration_of_a_run_on_a_table_trains_the_same_model(trained):
    folder, _ = trained
    run("train", "--config", "run/config.yaml", "--out", "config", cwd=folder)
    assert (folder / "config/weights.safetensors").read_bytes() == (folder / "run/weights.safetensors").read_bytes()


CHANGED = [
    *("train", "--data", "survey.csv", "--epochs", 1, *TINY),
    *("--columns.income.likelihood", "GammaLikelihood", "--columns.income.likelihood.concentration", "dimension"),
    *("--columns.visits.kind", "real", "--columns.height.na_values", "170.0,-9"),
    *("--likelihood", "StudentTLikelihood", "--likelihood.df", 5),
]


def check_changed(path):
    columns = read_columns(path)
    assert columns["income"].likelihood == "GammaLikelihood"
    assert columns["visits"].kind == "real"
    assert columns["height"].na_values == ("170.0", "-9")


def test_flags_change_single_columns(trained):
    folder, _ = trained
    (folder / "changed.yaml").write_text(run(*CHANGED, "--describe", "true", cwd=folder).stdout)
    check_changed(folder / "changed.yaml")


@pytest.mark.slow
def test_flags_change_single_columns_and_the_run_keeps_the_change(trained):
    folder, _ = trained
    run(*CHANGED, "--out", "changed", cwd=folder)
    check_changed(folder / "changed" / "columns.yaml")
    likelihood = pyrovae.runs.load(folder / "changed").model.likelihood
    names = sorted(type(part).__name__ for part in likelihood.parts)
    assert names == ["BernoulliLikelihood", "CategoricalLikelihood", "GammaLikelihood", "StudentTLikelihood"]


def test_imputed_files_keep_the_cells_of_the_file_and_fill_the_holes(trained):
    folder, _ = trained
    result = run("impute", "run", "survey.csv", "--draws", 3, "--num_particles", 40, cwd=folder)
    assert "too narrow" in result.stdout
    given, filled = read(folder / "survey.csv"), read(folder / "run/imputed.csv")
    draws, about = read(folder / "run/draws.csv"), read(folder / "run/imputation.csv")
    assert list(filled[0]) == list(given[0])
    assert len(filled) == N
    assert "imputation: " in result.stderr
    assert len(draws) == 3 * N
    assert [(row[".imp"], row[".id"]) for row in draws[::N]] == [("1", "1"), ("2", "1"), ("3", "1")]
    holes, missing = 0, {n: [*row.values()].count("") for n, row in enumerate(given, start=1) if "" in row.values()}
    assert {int(row["row"]): int(row["missing"]) for row in about} == missing
    for n, row in enumerate(given):
        for name, cell in row.items():
            if cell:
                assert {filled[n][name], *(draws[m * N + n][name] for m in range(3))} == {cell}
                continue
            holes += 1
            values = {filled[n][name], *(draws[m * N + n][name] for m in range(3))}
            if name == "sex":
                assert values <= {"F", "M"}
            elif name == "region":
                assert values <= {"r0", "r1", "r2"}
            else:
                assert all(math.isfinite(float(value)) for value in values)
    assert holes == 60
    assert len(read(folder / "run/imputed_cells.csv")) == holes


def test_draws_of_refits_are_numbered_and_differ_between_refits(trained):
    folder, _ = trained
    flags = ("--draws", 4, "--refits", 2, "--num_particles", 30, "--out", "refits")
    result = run("impute", "run", "survey.csv", *flags, cwd=folder)
    assert "too narrow" not in result.stdout
    draws = read(folder / "refits/draws.csv")
    assert [row[".refit"] for row in draws[::N]] == ["1", "1", "2", "2"]
    first = next(n for n, row in enumerate(read(folder / "survey.csv")) if not row["height"])
    assert len({draws[m * N + first]["height"] for m in range(4)}) == 4


def test_scores_rank_a_strange_row_lowest_and_name_its_column(trained):
    folder, _ = trained
    rows = survey(1)
    for name in rows:
        rows[name] = rows[name][:12]
    rows["height"][4] = "31.0"
    rows["sex"][4] = "F"
    rows = {name: rows[name] for name in reversed(rows)}  # columns are found by name
    write(folder / "new.csv", rows)
    run("score", "run", "new.csv", "--num_particles", 60, "--out", "scores", cwd=folder)
    scores, cells = read(folder / "scores/scores.csv"), read(folder / "scores/cells.csv")
    assert len(scores) == 12
    assert scores[4]["worst_column"] == "height"
    assert float(scores[4]["worst_share_below"]) == 0
    assert scores[4]["rank"] == "1"
    observed = [
        sum(cell != "" for cell in line) for line in zip(*(rows[name] for name in rows if name != "id"), strict=True)
    ]
    assert [int(row["observed"]) for row in scores] == observed
    assert len(cells) == sum(observed)
    vae, columns = pyrovae.runs.load(folder / "run"), read_columns(folder / "run/columns.yaml")
    table = read_table(folder / "new.csv", columns=columns, new_data=True)
    with torch.no_grad():
        exact = pyrovae.log_marginal(vae.model, vae.guide, **table.arguments(), num_particles=1000).value
    assert [float(row["log_marginal"]) for row in scores] == pytest.approx(exact.tolist(), abs=0.5)


def test_samples_are_rows_in_original_units(trained):
    folder, _ = trained
    run("sample", "run", "--num_samples", 1200, cwd=folder)
    samples = read(folder / "run/samples.csv")
    assert len(samples) == 1200
    assert list(samples[0]) == ["height", "income", "visits", "sex", "region"]
    heights = np.array([float(row["height"]) for row in samples])
    assert 165 < heights.mean() < 175
    assert 5 < heights.std() < 13
    assert {row["region"] for row in samples} == {"r0", "r1", "r2"}
    assert all(row["visits"].isdigit() for row in samples)


def test_an_evaluation_reads_the_same_table_and_refuses_a_changed_one(trained, refused):
    folder, _ = trained
    run("evaluate", "run", "--num_particles", 20, cwd=folder)
    rows = survey()
    rows["height"][3] = "170.5"
    original = (folder / "survey.csv").read_bytes()
    write(folder / "survey.csv", rows)
    try:
        refused("the data differ from those of run", "evaluate", "run", "--num_particles", 20, cwd=folder)
    finally:
        (folder / "survey.csv").write_bytes(original)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--columns.heigth.kind", "real"], "did you mean height"),
        (["--columns.height.kin", "real"], "did you mean kind"),
        (["--columns.height.kind"], "needs a value"),
        (["--columns.height.kind", "category2"], "kind 'category2' is unknown"),
        (["--columns.visits.likelihood", "BinomialLikelihood"], "needs total_count"),
        (["--columns.visits.likelihood", "nomodule.Mine"], "neither installed"),
        (["--columns.height.likelihood", "GammaLikelihood", "--columns.height.likelihood.foo", "1"], "no such option"),
        (["--columns", "none.yaml"], "no such file"),
        (["--covariates", "nothing"], "nothing"),
        (["--label", "wine"], "wine"),
        (["--weights", "sex"], "sex"),
        (["--binarize", "dynamic"], "for arrays and images"),
        (["--stream", "true"], "for arrays and images"),
        (["--num_validation", "5"], "name the splits of a table's rows by --split"),
        (["--mask_extra", "1"], "below 1"),
        (["--likelihood", "BetaLikelihood"], "column 'height'"),
    ],
)
def test_a_wrong_flag_of_a_table_is_refused_in_one_line(flags, words, trained, refused, tmp_path):
    folder, _ = trained
    refused(words, "train", "--data", folder / "survey.csv", *flags, "--epochs", 1, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flag", [["--describe", "true"], ["--label", "y"], ["--columns.a.kind", "real"], ["--unseen", "missing"]]
)
def test_flags_of_tables_are_refused_for_images(flag, refused, tmp_path):
    refused("needs a table", "train", *flag, cwd=tmp_path)


def test_a_columns_file_runs_no_code(trained, refused, tmp_path):
    folder, _ = trained
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    columns = read_table(folder / "survey.csv").columns.to_dict()
    columns["height"]["likelihood"] = "evil.Likelihood"
    (tmp_path / "columns.yaml").write_text(yaml.safe_dump(columns))
    flags = ("--data", folder / "survey.csv", "--columns", "columns.yaml", "--epochs", 1)
    refused("--trust_imports evil", "train", *flags, cwd=tmp_path)
    assert not (tmp_path / "ran").exists()
    assert Columns.from_dict(columns)["height"].likelihood == "evil.Likelihood"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.pop("income"), "income"),
        (lambda rows: rows["region"].__setitem__(2, "r9"), "row 3"),
        (lambda rows: rows["height"].__setitem__(2, "tall"), "row 3"),
    ],
)
@pytest.mark.parametrize("script", ["impute", "score"])
def test_new_rows_that_do_not_fit_are_refused_with_column_and_row(script, change, words, trained, refused, tmp_path):
    folder, _ = trained
    rows = survey(2)
    change(rows)
    write(tmp_path / "new.csv", rows)
    refused(words, script, folder / "run", "new.csv", "--out", "out", cwd=tmp_path)
    assert not (tmp_path / "out").exists()


def test_unseen_levels_may_be_missing(trained, tmp_path):
    folder, _ = trained
    rows = survey(2)
    rows["region"][2] = "r9"
    write(tmp_path / "new.csv", rows)
    flags = ("--unseen", "missing", "--draws", 1, "--num_particles", 10, "--out", "out")
    result = run("impute", str(folder / "run"), "new.csv", *flags, cwd=tmp_path)
    assert "r9 (1)" in result.stdout
    assert read(tmp_path / "out/imputed.csv")[2]["region"] in {"r0", "r1", "r2"}


@pytest.mark.parametrize(
    ("script", "name"),
    [("score", "cells.csv"), ("impute", "imputed.csv"), ("impute", "classes.csv"), ("encode", "encoding.csv")],
)
def test_a_table_is_not_replaced_by_the_files_about_it(script, name, trained, refused):
    place, _ = trained
    folder = place / "given"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes((place / "survey.csv").read_bytes())
    refused(f"{name} would replace the input given/{name}", script, "run", f"given/{name}", "--out", "given", cwd=place)
    assert (folder / name).read_bytes() == (place / "survey.csv").read_bytes()


@pytest.mark.parametrize("flags", [["--unseen", "missing"], ["--na_values", "[-]"]])
def test_encode_refuses_flags_of_tables_for_a_split(flags, trained, refused):
    refused("--unseen and --na_values are for a file of a table", "encode", "run", "test", *flags, cwd=trained[0])


def test_naming_the_default_likelihood_changes_nothing(tmp_path):
    rng = np.random.default_rng(0)
    write(tmp_path / "t.csv", {name: rng.normal(size=60).round(3).tolist() for name in "ab"})

    def parts(*flags):
        config = pyrovae.runs.parse_training(["--data", str(tmp_path / "t.csv"), *flags])
        data = pyrovae.runs.training_data(config)
        return str(make_vae(pyrovae.runs.resolve(config, data), data).model.likelihood.parts)

    assert parts("--likelihood", "NormalLikelihood") == parts()
    by_column = parts("--columns.a.likelihood", "StudentTLikelihood", "--columns.b.likelihood", "StudentTLikelihood")
    assert parts("--likelihood", "StudentTLikelihood") == by_column
    assert parts("--likelihood", "NormalLikelihood", "--likelihood.scale", "global") != parts()


def test_a_table_script_refuses_a_run_on_images(straight, refused, tmp_path):
    write(tmp_path / "new.csv", survey())
    for script in ("impute", "score"):
        refused("no table", script, straight, "new.csv", cwd=tmp_path)


def described(folder, *flags):
    return yaml.safe_load(run("train", "--data", "survey.csv", "--describe", "true", *flags, cwd=folder).stdout)


def test_texts_of_missing_cells_may_have_spaces(tmp_path):
    rows = survey()
    rows["sex"] = ["no" if cell == "F" else "no answer" if cell == "" else cell for cell in rows["sex"]]
    write(tmp_path / "survey.csv", rows)
    for flags in (["--na_values", "no answer"], ["--columns.sex.na_values", "[no answer]"]):
        assert described(tmp_path, *flags)["sex"]["levels"] == ["M", "no"]
    assert described(tmp_path, "--columns.sex.kind", "ordered", "--columns.sex.levels", "no answer,no,M")["sex"][
        "levels"
    ] == ["no answer", "no", "M"]


def test_numbers_are_those_of_the_training_rows_of_these_flags(tmp_path):
    rows = survey() | {"school": [f"s{i % 30}" for i in range(N)]}
    write(tmp_path / "survey.csv", rows)
    by_flag = ("train", "--data", "survey.csv", "--epochs", 1, *TINY)
    run(*by_flag, "--columns.school.role", "group", "--columns.visits.kind", "real", "--out", "role", cwd=tmp_path)
    run(*by_flag, "--group", "school", "--columns.visits.kind", "real", "--out", "group", cwd=tmp_path)
    ours, theirs = (read_columns(tmp_path / run_folder / "columns.yaml") for run_folder in ("role", "group"))
    assert [column for column in ours if column.name != "school"] == [c for c in theirs if c.name != "school"]
    run("train", "--config", "group/config.yaml", "--split_seed", 1, "--out", "other", cwd=tmp_path)
    found = read_columns(tmp_path / "other/columns.yaml")["height"]
    fresh = read_table(tmp_path / "survey.csv", group="school", split_seed=1).columns["height"]
    assert (found.centre, found.spread) == (fresh.centre, fresh.spread)
    assert found.centre != read_columns(tmp_path / "group/columns.yaml")["height"].centre


def test_another_kind_takes_the_likelihood_of_the_old_one_away(tmp_path):
    rows = survey()
    rows["income"] = ["0" if i % 3 == 0 else cell for i, cell in enumerate(rows["income"])]
    write(tmp_path / "survey.csv", rows)
    assert described(tmp_path)["income"]["likelihood"] == "HurdleLogNormalLikelihood"
    assert "likelihood" not in described(tmp_path, "--columns.income.kind", "real")["income"]
    changed = described(tmp_path, "--columns.income.kind", "real", "--columns.income.likelihood", "LaplaceLikelihood")
    assert changed["income"]["likelihood"] == "LaplaceLikelihood"
    with pytest.raises(ValueError, match="cannot have HurdleLogNormalLikelihood"):
        Columns.from_dict({"x": {"kind": "ordered", "likelihood": "HurdleLogNormalLikelihood"}})


def test_a_changed_file_of_columns_is_found(trained, refused):
    folder, _ = trained
    path = folder / "run" / "columns.yaml"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"kind: count", b"kind: real"))
    try:
        refused("columns.yaml was changed or damaged", "sample", "run", cwd=folder)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--refits", 1], "at least two"), (["--draws", 5, "--refits", 2], "a multiple of --refits 2, such as 8")],
)
def test_draws_that_refits_cannot_share_are_refused(flags, words, trained, refused):
    folder, _ = trained
    refused(words, "impute", "run", "survey.csv", *flags, cwd=folder)


def test_encode_reads_a_table_with_holes(trained, tmp_path):
    folder, _ = trained
    write(tmp_path / "new.csv", survey(2))
    run("encode", str(folder / "run"), "new.csv", "--out", "codes", cwd=tmp_path)
    rows = read(tmp_path / "codes/encoding.csv")
    assert [row["row"] for row in rows] == [str(n) for n in range(1, N + 1)]
    assert list(rows[0]) == ["row", "z[0]", "z[1]", "z[0] sd", "z[1] sd"]
    vae = pyrovae.load(folder / "run")
    table = read_table(tmp_path / "new.csv", columns=read_columns(folder / "run/columns.yaml"), new_data=True)
    code = pyrovae.encode(vae.model, vae.guide, **table.arguments())
    assert [float(row["z[0]"]) for row in rows] == pytest.approx(code.mean["z"][:, 0].tolist(), rel=1e-4, abs=1e-5)
