"""Published results: their closed forms, the trainings of their protocols, and what the script prints."""

import json
import re
from functools import partial
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import protocols
import published as study
import pytest
import torch
from data_helpers import write_fake_mnist
from protocols import PROTOCOLS
from script_helpers import call, run
from sklearn.decomposition import PCA

from pyrovae.runs import Run, parse_training

SMALL = ("--", "--num_validation", "20", "--network.hidden", "[8]", "--execution", "recorded", "--latent_dim", "3")


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The shortest run of a protocol, its folder and its output."""
    path = tmp_path_factory.mktemp("followed")
    write_fake_mnist(path / "data", 120, 30)
    flags = ("--epochs", 1, "--seeds", "[0,1]", "--num_data", 12, "--num_particles", 20, "--out", "table.json")
    return path, run("published", "vae-mlp400", *flags, *SMALL, cwd=path).stdout


@pytest.mark.slow
def test_a_protocol_sets_published_and_own_values_side_by_side(followed):
    path, text = followed
    assert "4 trainings of at most 1 epochs. With log p(x) of 12 test data they take about" in text
    assert "shortened (at most 1 of 500 epochs; 12 of 10,000 test data; changed by --num_validation 20" in text
    written = json.loads((path / "table.json").read_text())
    assert written["flags"]["changes"] == list(SMALL[1:])
    assert "latent_dims" not in written["flags"]
    assert written["label"].startswith("shortened (at most 1 of 500 epochs")
    assert written["source"].startswith("Rezende and Mohamed")
    row, other = written["rows"].values()
    assert other["published"] is other["difference"] is None
    (parent,) = (one for one in (path / "published/vae-mlp400").iterdir() if one.is_dir())
    made = [json.loads((parent / f"VAE-400-400-{seed}-12-200-20.json").read_text())["values"] for seed in (0, 1)]
    bounds = np.array([one["bound"] for one in made])
    assert bounds.shape == (2, 12)
    assert row["bound"] == pytest.approx(bounds.mean())
    assert row["sd"] == pytest.approx(bounds.mean(1).std(ddof=1))
    assert row["difference"] == pytest.approx(bounds.mean() + 89.9)
    assert row["epochs"] == 1
    line = next(line for line in text.splitlines() if line.startswith("VAE, 400-400 "))
    assert line.split()[2:4] == ["-89.90", f"{bounds.mean():.2f}"]


@pytest.mark.slow
def test_a_protocol_is_followed_by_train_py(followed):
    path, _ = followed
    (folder,) = (path / "published/vae-mlp400").glob("*/VAE-400-400-1")
    saved = Run(folder)
    config = saved.config()
    assert (config.lr, config.batch_size, config.binarize, config.seed) == (1e-4, 100, "static", 1)
    assert config.lr_schedule.init_args.milestones == [200, 350]
    data = saved.data(config, data_dir=str(path / "data"))
    assert [len(x) for x in (data.train, data.validation, data.test)] == [100, 20, 30]


@pytest.mark.slow
def test_the_same_command_trains_nothing_again(followed):
    path, text = followed
    stamps = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.name != "table.json"}
    flags = ("--epochs", 1, "--seeds", "[0,1]", "--num_data", 12, "--num_particles", 20, "--out", "table.json")
    assert run("published", "vae-mlp400", *flags, *SMALL, cwd=path).stdout == text
    assert stamps == {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.name != "table.json"}


@pytest.mark.slow
def test_the_ladder_of_estimators_runs_on_the_first_decoder(followed):
    path, _ = followed
    flags = ("--epochs", 1, "--num_data", 3, "--num_particles", 20, "--temperatures", "[5,1001]")
    text = run("published", "wu-ais", *flags, *SMALL, cwd=path).stdout
    assert "3 test data; nats per datum; AIS with 16 chains" in text
    assert "AIS from prior, T = 1,001" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name != "vae-mlp400"])
def test_each_protocol_runs(followed, name):
    path, _ = followed
    flags = ("--epochs", 1, "--seeds", "[0]", "--num_data", 2, "--num_particles", 20, "--out", f"{name}.json")
    text = run("published", name, *flags, *SMALL, cwd=path).stdout
    assert text.splitlines()[-2].startswith("shortened (at most 1 of ")
    assert set(json.loads((path / f"{name}.json").read_text())["rows"]) == set(PROTOCOLS[name].variants)


@pytest.mark.slow
def test_the_gaps_sum_to_the_distance_from_the_guides_elbo(followed):
    path, _ = followed
    flags = ("--epochs", 1, "--num_data", 4, "--num_particles", 200, "--out", "gaps.json")
    run("published", "cremer-gaps", *flags, *SMALL, cwd=path)
    made = json.loads((path / "gaps.json").read_text())
    assert made["label"].startswith("shortened (4 of 1,000 images;")
    assert set(made["rows"]) == {"test", "train"}
    assert made["rows"]["test"] != made["rows"]["train"]
    for rows in made["rows"].values():
        gaps = rows["approximation_gap"]["mean"] + rows["amortisation_gap"]["mean"]
        assert rows["log_marginal"]["mean"] - rows["guide_elbo"]["mean"] == pytest.approx(gaps, abs=1e-6)
    stamps = {file: file.stat().st_mtime_ns for file in path.rglob("*-gaps-*")}
    assert len(stamps) == 2
    run("published", "cremer-gaps", *flags, *SMALL, cwd=path)
    assert stamps == {file: file.stat().st_mtime_ns for file in stamps}
    assert json.loads((path / "gaps.json").read_text()) == made


def test_every_protocol_has_flags_that_train_py_takes(monkeypatch, tmp_path, capsys):
    given = {}
    monkeypatch.setattr(protocols, "train_all", lambda script, runs, jobs: given.update(runs))
    options = {"seeds": [3, 4], "num_data": 10_000, "data_dir": "mnist", "jobs": 2}
    for name, protocol in PROTOCOLS.items():
        given.clear()
        full = protocols.train(name, tmp_path, epochs=None, full=True, changes=[], **options)
        assert full.label.startswith("complete protocol")
        assert len(given) == len(set(given)) == 2 * len(protocol.variants)
        assert list(given) == list(full.folders.values())
        for (_, seed), folder in full.folders.items():
            flags = parse_training(given[folder])
            assert (flags.seed, flags.epochs, flags.data, flags.data_dir) == (seed, protocol.epochs, "mnist", "mnist")
    capsys.readouterr()
    short = protocols.train("rainforth", tmp_path, epochs=None, full=False, changes=["--lr", "1"], **options)
    assert short.label.startswith("shortened (at most 13 of 3,280 epochs; changed by --lr 1)")
    assert "6 trainings of at most 13 epochs" in capsys.readouterr().out
    assert all(flags[-2:] == ["--lr", "1"] for flags in given.values() if "13" in flags)


def test_the_published_values_are_those_of_the_guide():
    guide = files("pyrovae").joinpath("guide/published.md").read_text()
    for name, protocol in PROTOCOLS.items():
        (row,) = (line for line in guide.splitlines() if line.startswith(f"| `{name}`"))
        for variant in protocol.variants.values():
            if variant.published is not None:
                assert re.search(rf"{variant.published:g}\b", row), (name, row)


def test_the_label_says_in_what_a_study_is_not_the_published_one():
    label = partial(protocols._label, PROTOCOLS["vae-mlp400"])
    assert label(500, 10_000, [], []) == label(500, None, [], []) == protocols._COMPLETE
    assert label(5000, None, [], []).startswith("changed (at most 5,000 epochs in place of 500)")
    assert label(5, 30, [], []).startswith("shortened (at most 5 of 500 epochs; 30 of 10,000 test data)")
    assert label(500, None, ["--lr", "1"], []).startswith("changed (changed by --lr 1)")
    assert label(500, None, [], ["3 of 1,000 test data"]).startswith("shortened (3 of 1,000 test data)")


@pytest.mark.parametrize(
    ("flags", "reasons"),
    [
        ({}, []),
        ({"num_data": 60}, ["60 of 1,000 test data with 1,000 temperatures"]),
        (
            {"num_data": 9, "temperatures": [10_000]},
            ["9 of 50 test data with 10,000 temperatures", "without 1,000 temperatures"],
        ),
    ],
)
def test_the_ladder_of_estimators_is_complete_with_all_images_and_temperatures(monkeypatch, tmp_path, flags, reasons):
    given, commands = {}, []

    def train(*_, **options):
        given.update(options)
        return protocols.Trained(None, {0: tmp_path / "run"}, "")

    def run_command(command, check):
        commands.append(command)
        values = {"guide": [-2.0, -3.0], "AIS": [-2.0, -2.0]}
        rows = {name: {"value": value, "std_error": [0.1, 0.1], "seconds": 1.0} for name, value in values.items()}
        Path(command[-1]).write_text(json.dumps({"rows": rows}))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(study, "train", train)
    monkeypatch.setattr(study.subprocess, "run", run_command)
    names = ("runs", "epochs", "full", "data_dir", "jobs")
    settings = dict.fromkeys(names) | {"data_dir": "my data", "seed": 0, "num_particles": 10, "num_data": None}
    settings["changes"] = ["--device", "cpu"]
    made = study.wu_ais(SimpleNamespace(**settings | {"temperatures": [1000, 10_000]} | flags))
    assert len(made["rows"]) == len(commands)
    for command, row in zip(commands, made["rows"].values(), strict=True):
        assert command[command.index("--data_dir") + 1] == "my data"
        assert command[command.index("--device") + 1] == "cpu"
        assert row["guide"]["difference"] == pytest.approx(-0.5)
        assert row["guide"]["difference_std_error"] == pytest.approx(0.5)
        assert (row["AIS"]["mean"], row["AIS"]["difference"]) == (-2.0, None)
    assert given["shortened"] == reasons
    sizes = [int(command[command.index("--num_data") + 1]) for command in commands]
    assert sizes == {0: [1000, 50], 1: [60, 50], 2: [9]}[len(reasons)]


def test_a_row_has_means_over_seeds_and_data_and_the_spread_over_seeds():
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(9, generator=generator, dtype=torch.float64) for _ in range(3)]
    by_seed = [{key: one + i for i, key in enumerate(("bound", "log_marginal", "elbo", "epochs"))} for one in made]
    row = protocols._row(by_seed, -2.0)
    means = [one.mean().item() for one in made]
    assert row["bound"] == pytest.approx(np.mean(means))
    assert row["elbo"] == pytest.approx(np.mean(means) + 2)
    assert row["sd"] == pytest.approx(np.std(means, ddof=1))
    assert row["difference"] == pytest.approx(np.mean(means) + 2)
    assert protocols._row(by_seed[:1], None)["sd"] is None


def test_every_flag_belongs_to_a_result():
    used = set().union(*(result.flags for result in study.RESULTS.values()))
    assert used == {
        *("data_dir", "epochs", "folds", "full", "jobs", "latent_dims", "num_data", "num_particles", "out", "runs"),
        *("seed", "seeds", "steps", "temperatures"),
    }


def test_probabilistic_pca_has_the_density_of_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 6)) + rng.normal(size=(400, 6)) * 0.3
    expected = PCA(2).fit(x)  # whose covariance divides by N - 1
    scaled = x.mean(0) + (x - x.mean(0)) * np.sqrt(400 / 399)
    found = study.probabilistic_pca(torch.from_numpy(scaled), 2)
    assert found.log_prob(torch.from_numpy(x)).numpy() == pytest.approx(expected.score_samples(x), abs=1e-9)


@pytest.mark.parametrize(("steps", "most"), [(20, 12.0), pytest.param(1000, 0.02, marks=pytest.mark.slow)])
def test_a_linear_vae_nears_probabilistic_pca(tmp_path, steps, most):
    flags = ("--latent_dims", "[1]", "--steps", steps, "--num_particles", 50, "--out", "ppca.json")
    result = run("published", "ppca", *flags, cwd=tmp_path)
    header, row = result.stdout.splitlines()[-3:-1]
    assert header.split()[:2] == ["Z", "probabilistic"]
    assert row.split()[0] == "1"
    written = json.loads((tmp_path / "ppca.json").read_text())
    used = {"latent_dims": [1], "steps": steps, "num_particles": 50, "seed": 0, "runs": "published/ppca"}
    assert written["flags"] == {"name": "ppca", **used, "changes": []}
    (found,) = written["rows"]
    assert run("published", "ppca", *flags, cwd=tmp_path).stdout.splitlines()[1:] == result.stdout.splitlines()[1:]
    assert abs(found["difference"]) < most  # nats
    assert found["vae"] - found["ppca"] == pytest.approx(found["difference"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("pca",), "ppca or k-fold; did you mean ppca?"),
        (
            ("ppca", "--seeds", "[0]"),
            "--seeds: ppca does not use it, only --latent_dims, ",
        ),
        (("k-fold", "--", "--lr", "1"), "k-fold takes no flags of train.py; omit --lr 1"),
        (("ppca", "--latent_dims", "[3,62]"), "--latent_dims: probabilistic PCA needs fewer latents than 61, the rank"),
    ],
)
def test_wrong_names_and_numbers_are_refused_in_one_line(capsys, monkeypatch, flags, message):
    code, err = call(capsys, monkeypatch, "published", *flags)
    assert code == 1
    assert message in err
