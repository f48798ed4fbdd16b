"""The studies run from the command line, and print a line for each problem or way."""

import json
import random

import numpy as np
import pytest
from script_helpers import Script, run

RUNS = [
    ("coverage", ["--edges", "--pairs", "20", "--only", "linear, Z = 1"], "linear, Z = 1 "),
    ("chains", ["--num_data", "5", "--num_temperatures", "5", "--only", "two modes"], "two modes"),
    ("brackets", ["--num_data", "25"], "mean gap"),
    ("comparisons", ["--tables", "20"], "12"),
    ("exact", ["--cases", "1", "--only", "ring"], "ring"),
]


@pytest.mark.parametrize(("script", "flags", "line"), RUNS, ids=[script for script, _, _ in RUNS])
def test_a_study_of_errors_prints_its_table(script, flags, line, tmp_path):
    result = run(script, *flags, cwd=tmp_path, check=False)
    assert result.returncode in (0, 1)  # few data say little
    assert line in result.stdout
    assert result.stderr == ""
    assert not list(tmp_path.iterdir())


TRAININGS = [
    ("by_hand", ["--num_particles", "5"], ["by hand", "default", "cosine", "average"]),
    ("scaling", ["--data", "[wine]", "--scalings", "[unit]"], ["unit"]),
]


@pytest.mark.parametrize(("script", "flags", "ways"), TRAININGS, ids=[script for script, _, _ in TRAININGS])
def test_a_study_of_trainings_prints_a_line_for_each_way(script, flags, ways, tmp_path):
    result = run(script, *flags, "--epochs", "1", "--seeds", "[0]", "--num_data", "3", "--json", "x.json", cwd=tmp_path)
    lines = result.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ways
    assert "ELBO" in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(("epochs", "num_particles"), [(1, 2), pytest.param(5, 20, marks=pytest.mark.slow)])
def test_the_study_of_imputed_cells_prints_a_line_for_each_table(tmp_path, epochs, num_particles):
    sizes = ("--epochs", epochs, "--num_particles", num_particles)
    flags = ("--data", "[wine]", "--masks", 1, *sizes, "--json", "x.json")
    result = run("imputation", *flags, cwd=tmp_path)
    header, line = result.stdout.splitlines()
    assert header.split()[:3] == ["table", "column", "mean"]
    assert line.startswith("wine")
    (row,) = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert 0.7 < row["ridge"] < 0.85  # as published
    assert 0.9 < row["column mean"] < 1.1


def test_the_study_of_imputed_cells_compares_with_exact_means(tmp_path):
    sizes = ("--masks", 1, "--epochs", 1, "--num_particles", 2)
    result = run("imputation", "--data", "[oracle,linear]", *sizes, "--json", "x.json", cwd=tmp_path)
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["oracle", "linear"]
    oracle, linear = json.loads((tmp_path / "x.json").read_text())["rows"]
    for key in ("exact", "ridge", "column mean"):
        assert oracle[key] == linear[key]
    for row in (oracle, linear):
        assert row["exact"] < row["ridge"] < row["column mean"]


def test_the_study_of_densities_prints_a_line_for_each_density(tmp_path):
    flags = ("--data", "[wine]", "--splits", 1, "--epochs", 1, "--num_particles", 20, "--json", "x.json")
    result = run("densities", *flags, cwd=tmp_path)
    lines = [line.split("  ")[0] for line in result.stdout.splitlines() if line]
    assert lines == [
        "wine", "model", "independent columns", "normal, full covariance", "multivariate Student-t", "Gaussian mixture",
    ]  # fmt: skip
    (row,) = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert -26 < row["independent columns"] < -21


def test_the_study_of_pooled_intervals_prints_a_line_for_each_way(tmp_path):
    flags = ("--repetitions", 2, "--num_data", 40, "--refits", 2, "--draws", 2, "--epochs", 1, "--num_particles", 20)
    result = run("pooling", *flags, "--json", "x.json", cwd=tmp_path)
    lines = [line.split("  ")[0] for line in result.stdout.splitlines()[1:]]
    assert lines == ["refits", "one fit", "complete cases", "complete data"]
    first, second = json.loads((tmp_path / "x.json").read_text())["rows"]
    for way in lines:
        estimate, error, low, high = first[way]
        assert low < estimate < high
        assert error > 0
        assert estimate != second[way][0]


@pytest.mark.slow
def test_pooled_intervals_of_refits_contain_the_slope_and_are_wider_than_those_of_one_fit(tmp_path):
    assert Script("pooling", ["--repetitions", 24, "--json", "x.json"], cwd=tmp_path).wait(1500) == 0
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    found = {way: np.array([row[way] for row in rows]) for way in ("refits", "one fit", "complete data")}
    estimate, error, low, high = found["refits"].T
    assert ((low < 0.5) & (high > 0.5)).sum() >= 19  # fewer in 1 of 1,000 studies, if 95 % do
    assert abs(estimate.mean() - 0.5) < 4 * estimate.std(ddof=1) / 24**0.5
    assert error.mean() > found["one fit"][:, 1].mean() > found["complete data"][:, 1].mean()


def test_the_study_of_mixed_tables_reads_a_folder_and_a_table(tmp_path):
    rng = random.Random(0)
    rows = [[rng.randint(0, 9), rng.choice("123"), rng.choice([0, 2.5, 7]), rng.choice("1234")] for _ in range(90)]
    (tmp_path / "F").mkdir()
    (tmp_path / "F/data.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    (tmp_path / "F/data_types.csv").write_text("type,dim,nclass\ncount,1,\ncat,3,3\npos,1,\nordinal,4,4\n")
    deleted = [(row, column) for row in range(1, 91, 3) for column in (1, 2, 3, 4)]
    (tmp_path / "F/m.csv").write_text("".join(f"{row},{column}\n" for row, column in deleted))
    sizes = ("--epochs", 1, "--num_data", 9, "--num_particles", 20, "--json", "x.json")
    result = run("mixed_tables", "--data", "F", "--zeros", "hurdle", "--masks", "[m.csv]", *sizes, cwd=tmp_path)
    assert [line.split()[:2] for line in result.stdout.splitlines()[3:]] == [
        ["m.csv", "nominal"], ["m.csv", "ordered"], ["m.csv", "numeric"]
    ]  # fmt: skip
    (mask,) = json.loads((tmp_path / "x.json").read_text())["masks"]
    kept = [row[1] for number, row in enumerate(rows) if number % 3]
    mode = max("123", key=kept.count)
    wrong = [row[1] != mode for row in rows[::3]]
    assert mask["nominal"]["plain"] == pytest.approx(sum(wrong) / len(wrong))
    assert 0 < mask["numeric"]["std_error"] < 0.2

    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{row[0] + 0.5},{row[1]}\n" for row in rows))
    (tmp_path / "c.yaml").write_text("a: {kind: positive}\nb: {kind: category, levels: ['1', '2', '3']}\n")
    result = run("mixed_tables", "--data", "t.csv", "--columns", "c.yaml", "--splits", 2, *sizes, cwd=tmp_path)
    assert "mean difference over splits" in result.stdout
    assert len(json.loads((tmp_path / "x.json").read_text())["splits"]) == 2


def test_the_study_of_mixed_tables_refuses_what_it_would_ignore(tmp_path):
    (tmp_path / "F").mkdir()
    (tmp_path / "F/data.csv").write_text("1,2.5\n3,4.5\n")
    (tmp_path / "F/data_types.csv").write_text("type,dim,nclass\ncount,1,\nreal,1,\n")
    (tmp_path / "F/m.csv").write_text("1,1\n3,1\n")
    (tmp_path / "t.csv").write_text("a\n1\n2\n")
    for flags, words in (
        (("--data", "F", "--columns", "c.yaml"), "--columns c.yaml: the folder F has the kinds itself"),
        (("--data", "t.csv", "--columns", "c.yaml", "--zeros", "hurdle"), "--zeros hurdle: this is for a folder"),
        (("--data", "F", "--splits", 0), "--splits 0: there is nothing to train"),
        (("--data", "F", "--splits", 0, "--masks", "[m.csv]"), "line 2: expected a row from 1 to 2"),
    ):
        result = run("mixed_tables", *flags, cwd=tmp_path, check=False)
        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
        assert words in result.stderr
