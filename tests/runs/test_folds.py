"""Cross-validation: who holds out which datum, errors over folds, what is refused, and what ArviZ is given."""

import json
import math
import shutil
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from script_helpers import Script, assert_refused, call, run

from pyrovae.data import fold_rows, fold_splits, load_data, read_table
from pyrovae.runs import Run
from pyrovae.runs import sweep as sweep_module
from pyrovae.runs.comparison import Evaluated, compare, compare_folds, meaning_of_intervals
from pyrovae.runs.export import kfold_to_arviz
from pyrovae.runs.files import sha256_of
from pyrovae.runs.readers import sealed
from pyrovae.runs.sweep import train_folds
from pyrovae.stats import clustered_mean_and_std_error, mean_and_std_error

# z ~ N(0, I), x | z ~ N(mean of the training rows + z, I), so x ~ N(mean, 2 I), with the exact posterior as guide.
MEAN_MODEL = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn

class MeanModel(nn.Module):
    def __init__(self, blueprint) -> None:
        super().__init__()
        zeros = torch.zeros(blueprint.num_dims)
        self.register_buffer("mean", zeros if blueprint.x is None else blueprint.x.mean(0))
        self.unused = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.mean), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.mean + z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal((x - self.mean) / 2 + 0 * self.unused, 0.5**0.5).to_event(1))
"""
N, FOLDS = 31, 2


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the runs of two folds in a/."""
    root = tmp_path_factory.mktemp("place")
    np.save(root / "bits.npy", np.random.default_rng(0).integers(0, 2, (N, 3)))
    (root / "meanmodel.py").write_text(MEAN_MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for fold in range(1, FOLDS + 1):
            flags = "--data bits.npy --program meanmodel.MeanModel --epochs 1 --proposal guide --num_particles 5"
            code = code_of(patch, "train", *flags.split(), "--folds", FOLDS, "--fold", fold, "--out", f"a/{fold}")
            assert code == 0
    return root


def code_of(patch, script, *arguments):
    class Nothing:
        @staticmethod
        def readouterr():
            return type("Output", (), {"err": ""})

    return call(Nothing, patch, script, *arguments)[0]


@pytest.mark.parametrize(("size", "folds"), [(31, 3), (100, 10), (1797, 10), (11, 2), (12, 12)])
def test_each_row_is_held_out_once_and_the_splits_are_disjoint(size, folds):
    held_out = []
    for number in range(1, folds + 1):
        parts = fold_rows(size, 5, (number, folds))
        assert torch.cat(list(parts.values())).sort().values.equal(torch.arange(size))
        assert len(parts["validation"]) == max(1, size // 10)
        assert len(parts["test"]) in (size // folds, size // folds + 1)
        held_out.append(parts["test"])
        splits = fold_splits(size, None, 5, (number, folds))
        assert np.flatnonzero(splits == 2).tolist() == sorted(parts["test"].tolist())
    assert torch.cat(held_out).sort().values.equal(torch.arange(size))


def test_fold_ten_of_ten_is_the_split_without_folds():
    alone, last = load_data("digits"), load_data("digits", fold=(10, 10))
    for split in ("train", "validation", "test"):
        assert getattr(alone, f"{split}_index").equal(getattr(last, f"{split}_index"))
        assert getattr(alone, split).equal(getattr(last, split))


@pytest.mark.parametrize("seed", range(5))
def test_whole_groups_are_held_out_once(seed):
    group = np.random.default_rng(seed).integers(0, 9, 90)
    group[:40] = 3  # one large group
    times = np.zeros(90)
    for number in range(1, 5):
        splits = fold_splits(90, group, seed, (number, 4))
        assert set(splits) == {0, 1, 2}
        assert all(len(set(splits[group == one])) == 1 for one in range(9))
        times += splits == 2
    assert (times == 1).all()


def test_folds_that_cannot_be_drawn_are_refused():
    rows = {"y": [float(i) for i in range(40)], "g": ["ab"[i % 2] for i in range(40)], "s": ["train"] * 40}
    for options, words in (
        ({"group": "g", "fold": (1, 3)}, "the rows have only 2 groups; use at most 2 folds"),
        ({"group": "g", "fold": (1, 2)}, "training and validation need one each"),
        ({"split": "s", "fold": (1, 2)}, "has the splits, but --folds draws them"),
        ({"fold": (1, 50)}, "there are only 40 rows; use fewer folds"),
    ):
        with pytest.raises(ValueError, match=words):
            read_table(rows, **options)
    with pytest.raises(ValueError, match="mnist has a test set of its own"):
        load_data("mnist", fold=(1, 5))


def test_held_out_log_p_is_that_of_the_model_trained_without_the_datum(place):
    x = np.load(place / "bits.npy").astype(float)
    order, ends, expected = torch.randperm(N, generator=torch.Generator().manual_seed(0)).numpy(), [0, 16, 31], {}
    for start, end in pairwise(ends):
        before = [order[(start - 1 - i) % N] for i in range(3)]  # the validation rows
        mean = x[[row for row in order if row not in {*order[start:end], *before}]].mean(0)
        for row in order[start:end]:
            expected[row] = -0.25 * ((x[row] - mean) ** 2).sum() - 1.5 * math.log(4 * math.pi)
    found = Evaluated.of(place / "a")
    assert found.rows.equal(torch.arange(N))
    assert found.value.numpy() == pytest.approx([expected[row] for row in range(N)], abs=1e-5)
    assert [(found.folds == fold).sum().item() for fold in (1, 2)] == [16, 15]


def altered(place, root, fold, manifest=None, config=None):
    """Copy the folds to root, and change the manifest or the configuration of one, as one who changed the sums too."""
    shutil.copytree(place / "a", root / "b")
    path = root / "b" / fold
    content = json.loads((path / "manifest.json").read_text())
    if config is not None:
        text = (path / "config.yaml").read_text()
        assert config[0] in text
        (path / "config.yaml").write_text(text.replace(*config))
        content["files"]["config.yaml"] = sha256_of(path / "config.yaml")
    content["data"] |= manifest or {}
    (path / "manifest.json").write_text(json.dumps(sealed(content)))
    return root / "b"


def test_folders_that_are_no_whole_cross_validation_are_refused(place, tmp_path):
    def refused(folder, words):
        with pytest.raises(ValueError, match=words):
            Evaluated.of(folder)
        shutil.rmtree(tmp_path / "b")

    folder = altered(place, tmp_path, "1")
    shutil.rmtree(folder / "2")
    refused(folder, r"lacks 1 of 2 folds \(2\); train them first")
    folder = altered(place, tmp_path, "1")
    shutil.copytree(folder / "1", folder / "4")
    refused(folder, "has fold 1 of 2 twice")
    refused(altered(place, tmp_path, "2", config=("latent_dim: 10", "latent_dim: 3")), "they differ in latent_dim")
    refused(altered(place, tmp_path, "2", config=("folds: 2", "folds: null")), "it was trained without --folds")
    refused(altered(place, tmp_path, "2", {"sha256": "0" * 64}), "data .SHA-256. of 1 and 2 is")
    folder = altered(place, tmp_path, "2")
    summary = json.loads((folder / "2/evaluation.json").read_text())
    (folder / "2/evaluation.json").write_text(json.dumps({**summary, "split": "validation"}))
    Run(folder / "2").record_evaluation()
    refused(folder, "its last evaluation is of validation data")


def test_compare_prints_errors_over_folds_and_refuses_other_folds(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    shutil.copytree(place / "a", tmp_path / "b")
    code = code_of(monkeypatch, "compare", "a", tmp_path / "b")
    printed = capsys.readouterr().out
    assert code == 0
    assert "31 data, each held out by one of 2 folds" in printed
    assert "s.e. folds" in printed
    assert "+0.00 to +0.00" in printed
    assert "the wider of Student's t over data and over folds" in printed
    code, err = call(capsys, monkeypatch, "compare", "a", "a/1")
    assert_refused("compare", code, err, "a/1 is a run on a single split, the other a cross-validation")
    assert code_of(monkeypatch, "compare", "a", tmp_path / "b", "--folds", "2") == 0
    capsys.readouterr()
    code, err = call(capsys, monkeypatch, "compare", "a", tmp_path / "b", "--folds", "3")
    assert_refused("compare", code, err, "a has 2 folds, not the 3 of --folds; give the folder of those folds")
    code, err = call(capsys, monkeypatch, "compare", "a/1", "a/2", "--folds", "2")
    assert_refused("compare", code, err, "a/1 has a single split, not the 2 of --folds")
    mine = Evaluated.of("a")
    other = Evaluated(**{**vars(mine), "name": "other", "folds": mine.folds.flip(0)})
    with pytest.raises(ValueError, match="their folds differ; train both with the same data, --folds, --split_seed"):
        compare([mine, other])


def test_other_proposals_are_named_also_of_one_fold(place, tmp_path):
    one = altered(place, tmp_path, "1")
    summary = json.loads((one / "1/evaluation.json").read_text())
    summary["log_marginal"]["num_particles"] = 7
    (one / "1/evaluation.json").write_text(json.dumps(summary))
    Run(one / "1").record_evaluation()
    mixed = Evaluated.of(one)
    for other in (place / "a", one):
        text = compare_folds({"x": other, "y": one}, "x")[1]
        assert "the proposals differ, so small differences may come from them" in text
        assert mixed.protocol in text
    assert compare_folds({"x": place / "a", "y": place / "a"}, "x")[1].endswith("proposal of all: guide, K = 5")


BAD = {
    "swap --out new --folds 1": "--folds 1: cross-validation needs two folds or more",
    "train --folds 3": "--folds 3 needs --fold",
    "train --fold 3": "--fold 3 needs --folds",
    "train --folds 3 --fold 4": "--fold 4: the folds are 1 to 3",
    "train --folds 1 --fold 1": "--folds 1: cross-validation needs two folds or more",
    "swap --out new --folds 3 --seeds [0,1]": "with --folds each fold is trained once",
    "train --folds 3 --fold 1 --num_validation 9": "--num_validation: in cross-validation a tenth of the data",
}


@pytest.mark.parametrize("command", BAD)
def test_wrong_folds_are_refused_in_one_line(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script, *flags = command.split()
    assert_refused(script, *call(capsys, monkeypatch, script, *flags), BAD[command])
    assert not list(tmp_path.iterdir())


def test_all_variants_have_the_same_folds_and_seeds(monkeypatch):
    found = {}
    monkeypatch.setattr(sweep_module, "train_all", lambda script, runs, jobs: found.update(runs))
    folders = train_folds(Path("train.py"), Path("out"), {"a": [], "b": ["--lr", "1"]}, folds=10, seed=4)
    assert folders == {"a": Path("out/a-10-fold"), "b": Path("out/b-10-fold")}
    assert len(found) == 20
    assert found[Path("out/a-10-fold/03")] == ["--folds", "10", "--fold", "3", "--seed", "6"]
    assert found[Path("out/b-10-fold/03")] == ["--lr", "1", "--folds", "10", "--fold", "3", "--seed", "6"]


@pytest.mark.parametrize("folds", [(), ("--folds", "2")])
def test_a_combination_wins_over_the_flags_for_all(monkeypatch, capsys, folds):
    found = {}

    def train_all(script, runs, jobs):
        found.update(runs)
        raise ValueError("enough")

    monkeypatch.setattr(sweep_module, "train_all", train_all)
    flags = ("--out", "new", "--only", "mixture-prior", *folds, "--", "--prior", "VampPrior")
    assert call(capsys, monkeypatch, "swap", *flags) == (1, "swap.py: error: enough\n")
    priors = {path: flags[len(flags) - 1 - flags[::-1].index("--prior") + 1] for path, flags in found.items()}
    assert set(priors.values()) == {"VampPrior", "MixturePrior"}
    assert all((prior == "MixturePrior") == ("mixture-prior" in str(path)) for path, prior in priors.items())


def test_the_error_over_folds_is_that_of_equal_and_unequal_clusters():
    values = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    folds = torch.arange(40) % 5
    means = [values[folds == fold].mean().item() for fold in range(5)]
    expected = np.mean(means), np.std(means, ddof=1) / 5**0.5
    assert clustered_mean_and_std_error(values, folds) == pytest.approx(expected)
    weights = torch.arange(40.0) % 3  # a third has weight 0
    w, v, f = weights.numpy(), values.numpy(), folds.numpy()
    mean = (w * v).sum() / w.sum()
    totals = [(w * (v - mean))[f == fold].sum() / w.sum() for fold in range(5)]
    expected = mean, math.sqrt(5 / 4 * np.square(totals).sum())
    assert clustered_mean_and_std_error(values, folds, weights) == pytest.approx(expected)
    alone = clustered_mean_and_std_error(values, torch.arange(40), weights)
    assert alone == pytest.approx(mean_and_std_error(values, weights))
    assert math.isnan(clustered_mean_and_std_error(values, torch.zeros(40))[1])
    with pytest.raises(ValueError, match=r"cluster must have shape \(40,\)"):
        clustered_mean_and_std_error(values, torch.arange(3))


def evaluated(name, value, folds):
    zero = torch.zeros_like(value)
    return Evaluated(name, value, zero, torch.arange(len(value)), {"data": "x"}, "", folds=folds)


def test_intervals_cover_differences_whose_folds_share_a_training_set():
    # d_n = fold's effect + noise, in 300 tables of 5 folds of 20. By data alone the coverage is 0.63.
    generator = torch.Generator().manual_seed(0)
    folds = torch.arange(100) % 5 + 1
    covered, by_data, squares = 0, 0, []
    for _ in range(300):
        effect = 0.5 * torch.randn(5, generator=generator, dtype=torch.float64)
        d = effect[folds - 1] + torch.randn(100, generator=generator, dtype=torch.float64)
        row = compare([evaluated("a", d * 0, folds), evaluated("b", d, folds)], reference="a")["b"]
        covered += row.interval[0] <= 0 <= row.interval[1]
        by_data += abs(row.difference) < 1.98 * row.difference_std_error
        squares.append(row.difference_fold_std_error**2)
    assert covered / 300 > 0.93
    assert by_data / 300 < 0.75
    assert np.mean(squares) == pytest.approx(0.25 / 5 + 1 / 100, rel=0.16)  # four standard errors
    assert "over folds" in meaning_of_intervals(3, "a", folds=True)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_arviz_compares_cross_validations():
    import arviz

    generator = torch.Generator().manual_seed(0)
    a = torch.randn(60, generator=generator, dtype=torch.float64) - 9
    b = a - 1 + 0.3 * torch.randn(60, generator=generator, dtype=torch.float64)
    folds = torch.arange(60) % 5
    results = {name: kfold_to_arviz(value, folds, data_index=60 - folds) for name, value in (("a", a), ("b", b))}
    assert f"{a.sum():.2f}" in str(results["a"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas
        table = arviz.compare(results)
    assert list(table.index) == ["a", "b"]
    away = a - b
    assert abs(table["elpd_diff"]).max() == pytest.approx(away.sum().item(), rel=0.02)  # 1.x rounds
    assert table["dse"].max() == pytest.approx(away.std().item() * 60**0.5, rel=0.05)
    assert table["se"]["a"] == pytest.approx(a.std().item() * 60**0.5, rel=0.05)
    kind = getattr(results["a"], "kind", None)
    assert kind in (None, "loo_kfold")
    with pytest.raises(ValueError, match="log_p and folds must have one shape"):
        kfold_to_arviz(a, folds[:5])


@pytest.mark.slow
def test_the_swap_script_cross_validates_and_resumes(tmp_path):
    np.save(tmp_path / "bits.npy", np.random.default_rng(0).integers(0, 2, (60, 6)))
    table = ["--out", "table", "--folds", "2", "--only", "flow-prior", "--num_particles", "20"]
    training = ["--", "--data", "bits.npy", "--network.hidden", "[4]", "--latent_dim", "2", "--epochs", "1"]
    result = run("swap", *table, *training, cwd=tmp_path)
    rows = json.loads((tmp_path / "table/table-2-fold.json").read_text())["rows"]
    assert set(rows) == {"standard", "flow-prior"}
    assert rows["standard"]["mean"] == pytest.approx(
        Evaluated.of(tmp_path / "table/standard-2-fold").value.mean().item()
    )
    shutil.rmtree(tmp_path / "table/flow-prior-2-fold/2")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "table").glob("*/*/weights.safetensors")}
    assert len(stamps) == 3
    assert run("swap", *table, *training, cwd=tmp_path).stdout == result.stdout
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


@pytest.mark.slow
def test_the_published_study_says_its_cost_and_that_it_is_shortened(tmp_path):
    flags = ["k-fold", "--folds", "2", "--epochs", "1", "--num_particles", "20", "--out", "x.json"]
    result = Script("published", flags, cwd=tmp_path)
    result.wait(1500)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("4 trainings of at most 1 epochs, about 1 min on one idle core")
    assert "not the full study, which has 10 folds and 300 epochs" in result.stdout
    assert set(json.loads((tmp_path / "x.json").read_text())["rows"]) == {"standard", "flow-prior"}
