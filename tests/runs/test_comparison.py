"""Runs side by side: paired differences, their errors, and what is not comparable."""

import json
import math
import re
import runpy
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from script_helpers import path_of, run

from pyrovae.runs import Run
from pyrovae.runs.comparison import Evaluated, compare, marginal_to_arviz, meaning_of_intervals, plot_comparison
from pyrovae.runs.readers import sealed
from pyrovae.stats import crossed_mean_and_std_error

ABOUT = {"data (SHA-256)": "abc", "binarisation": "none", "split": "test", "base measure": "counting"}


def evaluated(name, value, std_error=0.0, rows=None, **about):
    value = torch.as_tensor(value, dtype=torch.float64)
    rows = torch.arange(len(value)) if rows is None else rows
    return Evaluated(name, value, torch.full_like(value, std_error), rows, {**ABOUT, **about}, "guide, K = 10")


def test_differences_are_paired_and_sorted():
    datum = 10 * torch.randn(400, dtype=torch.float64)  # shared by both runs, so it drops out
    noise = 0.1 * torch.randn(400, dtype=torch.float64)
    found = compare([evaluated("worse", datum - 1 + noise, 0.3), evaluated("better", datum, 0.4)])
    assert list(found) == ["better", "worse"]
    assert found["better"].difference is None
    row = found["worse"]
    assert row.difference == pytest.approx(-1 + noise.mean().item())
    assert row.difference_std_error == pytest.approx(noise.std().item() / 20)
    assert row.difference_mc_std_error == pytest.approx(0.5 / 20)
    assert row.std_error > 0.4
    assert plot_comparison(found).axes


def test_the_interval_of_two_runs_is_students():
    values = np.random.default_rng(0).standard_normal((2, 5))
    found = compare([evaluated("a", values[0]), evaluated("b", values[1])])
    best, worse = list(found)
    row = found[worse]
    gap = values["ab".index(worse)] - values["ab".index(best)]
    ends = scipy.stats.t.interval(0.95, 4, gap.mean(), scipy.stats.sem(gap))
    assert row.interval == pytest.approx(ends, rel=1e-5)


def test_the_interval_is_nan_where_the_error_over_folds_is_unknown():
    folds = torch.arange(40) % 4 + 1
    weights = (folds == 2).double()  # no weight outside one fold
    runs = [replace(evaluated(name, torch.randn(40)), folds=folds, weights=weights) for name in "ab"]
    found = compare(runs, reference="a")
    assert math.isnan(found["b"].difference_fold_std_error)
    assert all(map(math.isnan, found["b"].interval))
    assert plot_comparison(found).axes


def test_only_folds_with_weight_count():
    folds = torch.arange(40) % 4 + 1
    weights = (folds > 2).double()
    runs = [replace(evaluated(name, torch.randn(40)), folds=folds, weights=weights) for name in "ab"]
    row = compare(runs, reference="a")["b"]
    half = scipy.stats.t.ppf(0.975, 1) * row.difference_fold_std_error  # two folds: one degree of freedom
    assert row.interval == pytest.approx((row.difference - half, row.difference + half), rel=1e-5)


def test_a_named_reference_has_narrower_joint_intervals_than_the_best():
    runs = [evaluated(f"run-{run}", torch.randn(50) - run) for run in range(4)]
    by_best, named = compare(runs), compare(runs, reference="run-2")
    assert named["run-2"].difference is None
    assert named["run-0"].difference == pytest.approx(-by_best["run-2"].difference)
    for found, base, pairs in ((by_best, "run-0", 6), (named, "run-2", 3)):
        critical = scipy.stats.t.ppf(1 - 0.025 / pairs, 49)
        for name, row in found.items():
            if name != base:
                half = critical * row.difference_std_error
                assert row.interval == pytest.approx((row.difference - half, row.difference + half), rel=1e-5)
    assert "all 6 pairs of runs" in meaning_of_intervals(4)
    assert "3 differences from run-2" in meaning_of_intervals(4, "run-2")
    with pytest.raises(ValueError, match="reference must be one of the runs"):
        compare(runs, reference="run-7")


@pytest.mark.parametrize(
    ("num_runs", "num_data", "least"),
    [pytest.param(12, 100, 0.02, marks=pytest.mark.slow), (4, 30, 0.02), (2, 5, 0.03)],
)
def test_equal_runs_seldom_seem_different(num_runs, num_data, least):
    # 2,000 tables: the share of false alarms is known within 0.015 (three standard errors), so 0.07 is never reached by
    # chance, and two standard errors from the best give 0.7 (12 runs) and 0.11 (2 runs of 5 data).
    study = runpy.run_path(str(path_of("comparisons")))
    generator = torch.Generator().manual_seed(0)
    joint, naive = study["false_alarms"]("normal", num_runs, num_data, 2000, generator)
    assert least < joint < 0.06
    assert naive > 0.09


@pytest.mark.parametrize("key", ABOUT)
def test_compare_refuses_runs_that_differ_in_data_or_protocol(key):
    with pytest.raises(ValueError, match="not comparable") as refusal:
        compare([evaluated("a", [1.0, 2.0]), evaluated("b", [1.0, 2.0], **{key: "other"})])
    assert key in str(refusal.value)
    assert "other" in str(refusal.value)


def test_compare_refuses_runs_with_different_test_rows():
    with pytest.raises(ValueError, match="test rows differ"):
        compare([evaluated("a", [1.0, 2.0]), evaluated("b", [1.0, 2.0], rows=torch.tensor([1, 0]))])


def test_the_standard_error_over_runs_and_data_agrees_with_a_simulation():
    # values[s, n] = run[s] + datum[n]; the error of the mean is known. 2,000 tables, so 10 % is six standard errors.
    runs, data = 0.5 * torch.randn(2000, 4, 1), 2 * torch.randn(2000, 1, 50)
    true = math.sqrt(0.25 / 4 + 4 / 50)
    found = [crossed_mean_and_std_error(table)[1] for table in runs + data]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(true, rel=0.1)
    one_run = crossed_mean_and_std_error(data[0])
    assert one_run[1] == pytest.approx(data[0].std().item() / math.sqrt(50))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_arviz_sums_and_compares_the_exported_marginal_log_p():
    import arviz

    log_p = {"a": torch.randn(60, dtype=torch.float64) - 90}
    log_p["b"] = log_p["a"] - 1 + 0.3 * torch.randn(60, dtype=torch.float64)
    trees = {name: marginal_to_arviz(value, torch.zeros(60, 2)) for name, value in log_p.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its k-hat
        loo = arviz.loo(trees["a"])
        table = arviz.compare(trees)
    found = loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd  # ArviZ 0.x and 1.x
    assert float(found) == pytest.approx(log_p["a"].sum().item(), abs=1e-3)
    away = log_p["a"] - log_p["b"]
    assert abs(table["elpd_diff"]).max() == pytest.approx(abs(away.sum().item()), rel=0.1)  # 1.x rounds
    assert table["dse"].max() == pytest.approx(away.std().item() * 60**0.5, rel=0.3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    np.save(root / "bits.npy", np.random.default_rng(0).integers(0, 2, (60, 6)))
    np.save(root / "others.npy", np.random.default_rng(1).integers(0, 2, (60, 6)))
    for name, data in (("a", "bits"), ("b", "bits"), ("c", "others")):
        flags = [
            "--data",
            f"{data}.npy",
            "--network.hidden",
            "[4]",
            "--latent_dim",
            "2",
            "--epochs",
            "1",
            "--out",
            name,
        ]
        script(root, "train", *flags, "--num_particles", "30", "--seed", "1" if name == "b" else "0")
    return root


def script(cwd, name, *arguments, check=True):
    return run(name, *arguments, cwd=cwd, check=check)


def test_compare_prints_differences_and_writes_a_figure(runs):
    result = script(runs, "compare", "a", "b", "--figure", "differences.png")
    values = {name: Evaluated.of(runs / name).value.mean().item() for name in "ab"}
    assert f"{max(values.values()):.2f}" in result.stdout
    assert f"{min(values.values()) - max(values.values()):+.2f}" in result.stdout
    assert (runs / "differences.png").read_bytes().startswith(b"\x89PNG")
    assert "95 % interval: Student's t over data" in result.stdout
    worst = min(values, key=values.get)
    named = script(runs, "compare", "a", "b", "--reference", f"./{worst}")
    assert f"differences from {worst}" in named.stdout
    assert f"{max(values.values()) - min(values.values()):+.2f}" in named.stdout


def test_compare_refuses_invalid_folders_in_one_line(runs, tmp_path):
    for arguments, message in (
        (["a", "c"], "not comparable: their data"),
        (["a"], "two different run folders or more"),
        (["a", "nowhere"], "no run folder"),
        (["a", "b", "--reference", "c"], "reference must be one of the runs a, b, got c"),
    ):
        result = script(runs, "compare", *arguments, check=False)
        assert result.returncode == 1
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "value", "named"), [("binarize", "static", "binarisation"), ("base_measure", "lebesgue", "base measure")]
)
def test_compare_refuses_a_run_with_another_binarisation_or_base_measure(runs, tmp_path, key, value, named):
    shutil.copytree(runs / "b", tmp_path / "b")
    summary = json.loads((tmp_path / "b/evaluation.json").read_text())
    assert summary[key] not in (None, value)
    (tmp_path / "b/evaluation.json").write_text(json.dumps({**summary, key: value}))
    with pytest.raises(ValueError, match=r"evaluation\.json was changed or damaged"):
        Evaluated.of(tmp_path / "b")
    Run(tmp_path / "b").record_evaluation()
    with pytest.raises(ValueError, match=f"not comparable: their {named}"):
        compare([Evaluated.of(runs / "a"), Evaluated.of(tmp_path / "b")])


def changed(text, column, value):
    """Write a value into the second line of a table."""
    lines = [line.split(",") for line in text.splitlines()]
    lines[2][lines[0].index(column)] = value
    return "".join(f"{','.join(line)}\n" for line in lines)


ALTERED = {
    "NaN": (lambda text: changed(text, "log_marginal", "nan"), "log_marginal in line 3 is 'nan'"),
    "infinity": (lambda text: changed(text, "log_marginal", "-inf"), "log_marginal in line 3 is '-inf'"),
    "a number that overflows": (lambda text: changed(text, "log_marginal", "1e999"), "log_marginal in line 3"),
    "digits with a line": (lambda text: changed(text, "log_marginal", "-1_0.5"), "log_marginal in line 3"),
    "foreign digits": (lambda text: changed(text, "log_marginal", "\u0661"), "log_marginal in line 3"),
    "an unknown error": (lambda text: changed(text, "std_error", "inf"), "std_error in line 3 is 'inf'"),
    "a negative error": (lambda text: changed(text, "std_error", "-0.1"), "std_error in line 3"),
    "half a row": (lambda text: changed(text, "row", "1.5"), "row in line 3 is '1.5'"),
    "a row of many digits": (lambda text: changed(text, "row", "9" * 40), "row in line 3"),
    "a missing line": (lambda text: text[: text.rstrip().rindex("\n") + 1], "5 data, but evaluation.json 6"),
    "a line twice": (lambda text: text + text.splitlines()[-1] + "\n", "more rows than the 6 data of evaluation.json"),
    "a cut": (lambda text: text[:-9], "its last line does not end"),
    "a long line": (lambda text: text + "1" * 10_000, "a line of more than"),
    "an open quote": (lambda text: text + '"1\n', "unexpected end of data"),
    "a column twice": (lambda text: text.replace("ess,", "log_marginal,", 1), "its columns are"),
    "no column": (lambda text: text.replace("std_error,", "error,", 1), "its columns are"),
    "more entries": (lambda text: text.replace("\n", ",\n", 2).replace(",\n", "\n", 1), "entries, not"),
    "nothing": (lambda text: "", "its columns are"),
    "bytes": (lambda text: text.encode() + b"\xff\xfe\n", "can't decode byte 0xff"),
    "zeros": (lambda text: text.encode() + bytes(10_000), "a line of more than"),
}


@pytest.mark.parametrize(("alter", "words"), ALTERED.values(), ids=ALTERED)
def test_compare_refuses_a_table_that_is_not_of_finite_numbers(runs, tmp_path, alter, words):
    shutil.copytree(runs / "b", tmp_path / "b")
    path = tmp_path / "b/evaluation.csv"
    content = alter(path.read_text())
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    Run(tmp_path / "b").record_evaluation()  # as one who changed both
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        Evaluated.of(tmp_path / "b")
    assert str(path) in str(refusal.value)
    assert "evaluate.py" in str(refusal.value)


def test_compare_refuses_a_number_that_was_changed(runs, tmp_path):
    shutil.copytree(runs / "b", tmp_path / "b")
    path = tmp_path / "b/evaluation.csv"
    before = Evaluated.of(tmp_path / "b").value
    path.write_text(changed(path.read_text(), "log_marginal", "-1.25"))
    result = script(runs, "compare", "a", tmp_path / "b", check=False)
    assert result.returncode == 1
    assert "evaluation.csv was changed or damaged: its SHA-256 differs from the manifest's" in result.stderr
    script(runs, "evaluate", tmp_path / "b", "--num_particles", "30")
    assert torch.equal(Evaluated.of(tmp_path / "b").value, before)


def test_compare_refuses_an_evaluation_without_a_checksum_or_of_another_run(runs, tmp_path):
    shutil.copytree(runs / "b", tmp_path / "b")
    for name in ("evaluation.json", "evaluation.csv"):
        shutil.copy(runs / "a" / name, tmp_path / "b")
    with pytest.raises(ValueError, match="was changed or damaged"):
        Evaluated.of(tmp_path / "b")
    manifest = json.loads((tmp_path / "b/manifest.json").read_text())
    del manifest["files"]["evaluation.csv"]
    (tmp_path / "b/manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(ValueError, match="has no evaluation with a checksum"):
        Evaluated.of(tmp_path / "b")


def test_compare_takes_the_unknown_error_of_a_single_draw(runs, tmp_path):
    for name in "ab":
        shutil.copytree(runs / name, tmp_path / name)
        script(runs, "evaluate", tmp_path / name, "--num_particles", "1", "--proposal", "guide")
    assert Evaluated.of(tmp_path / "a").std_error.isinf().all()
    assert "inf" in script(runs, "compare", tmp_path / "a", tmp_path / "b").stdout


@pytest.mark.slow  # CI trains a table by the script itself
def test_the_swap_script_trains_and_tabulates_combinations_and_resumes(runs):
    training = ["--data", "bits.npy", "--network.hidden", "[4]", "--latent_dim", "2", "--epochs", "2"]
    table = ["--out", "table", "--seeds", "[0,1]", "--only", "two-layer-program", "--num_particles", "20"]
    result = script(runs, "swap", *table, "--ladder", "[5,20]", "--", *training)
    assert "two-layer-program" in result.stdout
    rows = json.loads((runs / "table/table.json").read_text())["rows"]
    assert set(rows) == {"standard", "two-layer-program"}
    assert rows["standard"]["difference"] == 0
    assert len(rows["standard"]["ladder"]) == 2
    stamps = {path: path.stat().st_mtime_ns for path in (runs / "table").glob("*/weights.safetensors")}
    assert len(stamps) == 4
    again = script(runs, "swap", *table, "--ladder", "[5,20]", "--", *training)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert again.stdout == result.stdout
    wrong = script(runs, "swap", "--out", "table", "--only", "flow-priors", check=False)
    assert "did you mean flow-prior" in wrong.stderr
    failed = script(runs, "swap", "--out", "other", "--only", "low-rank", "--", "--epochz", "3", check=False)
    assert failed.returncode == 1
    assert "--epochz: no such flag" in failed.stderr


@pytest.mark.slow
def test_the_betas_script_finds_a_smaller_kl_for_a_larger_beta(runs):
    training = ["--data", "bits.npy", "--network.hidden", "[8]", "--latent_dim", "2", "--epochs", "40"]
    flags = ["--out", "dial", "--betas", "[4,0.1]", "--num_particles", "25", "--", *training, "--lr", "0.01"]
    result = script(runs, "betas", *flags)
    rows = json.loads((runs / "dial/betas.json").read_text())["betas"]
    assert list(rows) == ["0.1", "4"]
    low, high = rows.values()
    assert low["kl"] > high["kl"] + 0.1
    assert low["reconstruction"] > high["reconstruction"]
    assert low["log_marginal"] > low["elbo"]
    assert (runs / "dial/betas.png").read_bytes().startswith(b"\x89PNG")
    assert script(runs, "betas", *flags).stdout == result.stdout  # all of it was there


def test_the_betas_script_refuses_a_beta_below_zero(runs):
    result = script(runs, "betas", "--out", "none", "--betas", "[-1]", check=False)
    assert result.returncode == 1
    assert "--betas" in result.stderr
    assert not (runs / "none").exists()


def test_the_bounds_script_pairs_differences_over_data_and_seeds():
    module = runpy.run_path(str(path_of("bounds")))
    datum, seed = torch.randn(500, dtype=torch.float64) * 5, torch.tensor([[0.3], [-0.3]], dtype=torch.float64)
    better = torch.tensor([[0.1], [0.2]], dtype=torch.float64)  # of each seed
    one, few = {"bound": datum + seed}, {"bound": datum + seed + 1}
    found = {("VAE", 1): one, ("VAE", 5): one, ("IWAE", 1): one, ("IWAE", 5): few}
    found["DReG", 5] = {"bound": few["bound"] + better}
    gains = module["compared"](found)
    assert list(gains) == [
        "VAE, k = 5, over VAE, k = 1",
        "IWAE, k = 5, over IWAE, k = 1",
        "IWAE, k = 5, over VAE, k = 5",
        "DReG, k = 5, over IWAE, k = 5",
    ]
    assert [row["gain"] for row in gains.values()] == pytest.approx([0, 1, 1, 0.15])
    last = gains["DReG, k = 5, over IWAE, k = 5"]
    assert last["sd"] == pytest.approx(0.1 / 2**0.5)
    assert last["std_error"] == pytest.approx(0.05)
    values = {"log_marginal": one["bound"], "elbo": one["bound"], "activity": torch.tensor([[0.5, 0.0], [0.02, 0.011]])}
    row = module["summary"]({**one, **values})
    assert row["active"] == 1.5
    assert row["bound"] == pytest.approx(datum.mean().item())
    assert row["bound_sd"] == pytest.approx(0.6 / 2**0.5)
    assert module["over_seeds"](one["bound"][:1]) is None  # one seed has no spread
    assert module["number"](None, ".2f") == "-"


def test_the_gradients_script_measures_known_biases_and_writes_a_figure(tmp_path):
    flags = ["--out", "g.png", "--particles", "[8]", "--num_copies", "4000"]
    table = script(tmp_path, "gradients", *flags).stdout
    found = {name: row["8"] for name, row in json.loads((tmp_path / "g.json").read_text())["estimators"].items()}
    for name in ("pathwise", "VIMCO"):
        error = math.hypot(found[name]["std_error"], found["DReG"]["std_error"])
        assert abs(found[name]["mean"] - found["DReG"]["mean"]) < 5 * error
    assert abs(found["STL"]["mean"] - found["DReG"]["mean"]) > 20 * found["STL"]["std_error"]  # it is biased
    assert found["DReG"]["snr"] > 10 * found["pathwise"]["snr"]
    assert f"{found['DReG']['snr']:.4f}" in table
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    wrong = script(tmp_path, "gradients", "--out", "g.pdf", check=False)
    assert "give a name that ends in .png" in wrong.stderr


@pytest.mark.slow  # five trainings
def test_the_bounds_script_trains_each_objective_and_compares_their_bounds(runs):
    training = ["--data", "bits.npy", "--network.hidden", "[8]", "--latent_dim", "2", "--epochs", "3"]
    flags = [
        "--out",
        "bounds",
        "--draws",
        "[1,4]",
        "--seeds",
        "[0]",
        "--guide_particles",
        "30",
        "--num_particles",
        "30",
    ]
    result = script(runs, "bounds", *flags, "--", *training)
    made = json.loads((runs / "bounds/bounds.json").read_text())
    assert list(made["rows"]) == ["VAE, k = 1", "VAE, k = 4", "IWAE, k = 4", "DReG, k = 1", "DReG, k = 4"]
    for row in made["rows"].values():
        assert row["elbo"] < row["bound"] < 0
        assert 0 <= row["active"] <= 2
    assert len({row["bound"] for row in made["rows"].values()}) == 5
    assert script(runs, "bounds", *flags, "--", *training).stdout == result.stdout
    twice = script(runs, "bounds", "--out", "none", "--draws", "[1,1]", check=False)
    assert "--draws [1,1]: 1 is given twice; give each value once" in twice.stderr
