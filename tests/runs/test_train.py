"""train.py as a user runs it: its files, the user's own arrays and parts, and the same run again."""

import importlib.metadata
import json
import re

import numpy as np
import pytest
import torch
from data_helpers import write_fake_mnist
from safetensors import safe_open
from script_helpers import TINY, call, lines, run

import pyrovae
from pyrovae.runs import parse_training
from pyrovae.runs.versions import installed_version

SMALL = ["--network.hidden", "[6]", "--latent_dim", 2, "--batch_size", 256, "--num_particles", 25]


@pytest.mark.parametrize(
    "flags", [SMALL, pytest.param(["--num_particles", 40], marks=pytest.mark.slow)], ids=["small", "default"]
)
def test_training_by_default_prints_the_table_and_writes_the_configuration(tmp_path, flags):
    result = run("train", "--epochs", 2, *flags, cwd=tmp_path)
    assert "nats per datum" in result.stdout
    baseline = re.search(r"histogram by column +- +(-\d+\.\d+)", result.stdout)
    assert -109 < float(baseline[1]) < -106
    assert re.search(r"VAE +-\d+\.\d+ +-\d+\.\d+ +\d+\.\d+ +\d+\.\d+ +\d+\.\d %", result.stdout)
    assert "ELBO train" in result.stderr
    assert "validation" in result.stderr
    config = (tmp_path / "runs/digits-001/config.yaml").read_text()
    assert "BinomialLikelihood" in config
    assert "total_count: 16" in config
    small = [*SMALL, "--epochs", 1, "--elbo", "Trace_ELBO", "--proposal", "guide"]
    run("train", *small, cwd=tmp_path)
    assert "pyro.infer.Trace_ELBO" in (tmp_path / "runs/digits-002/config.yaml").read_text()


def test_the_run_folder_has_the_files_of_its_manifest_and_a_line_of_metrics_per_epoch(straight):
    names = {path.name for path in straight.iterdir()}
    assert names == {
        "config.yaml", "manifest.json", "checkpoint.safetensors", "weights.safetensors", "metrics.jsonl",
        "epochs.safetensors", "posterior.nc", "evaluation.json", "evaluation.csv", "training.png", "samples.png",
        "reconstructions.png",
    }  # fmt: skip
    manifest = json.loads((straight / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert set(manifest["files"]) == {
        "config.yaml", "weights.safetensors", "metrics.jsonl", "posterior.nc", "evaluation.json", "evaluation.csv",
    }  # fmt: skip
    assert {"python", "torch", "pyro-ppl", "pyrovae"} <= set(manifest["versions"])
    assert len(manifest["data"]["sha256"]) == 64
    rows = [json.loads(line) for line in lines(straight / "metrics.jsonl")]
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert set(rows[0]) == {
        "epoch", "train_objective", "train_elbo", "validation_elbo", "validation_reconstruction", "validation_kl",
        "validation_objective", "kl_weight", "kl_target", "learning_rate", "seconds",
    }  # fmt: skip
    with safe_open(straight / "weights.safetensors", framework="pt") as file:
        assert len(file.metadata() or {}) <= 1
    for figure in straight.glob("*.png"):
        assert figure.read_bytes().startswith(b"\x89PNG")
    assert not [path for path in straight.iterdir() if path.read_bytes()[:2] == b"\x80\x04"]  # no pickle


def test_the_saved_weights_are_those_of_the_best_epoch(straight):
    rows = [json.loads(line) for line in lines(straight / "metrics.jsonl")]
    best = max(rows, key=lambda row: row["validation_elbo"])
    state = pyrovae.runs.read_state(straight / "checkpoint.safetensors")
    assert state["best_epoch"] == best["epoch"]
    vae = pyrovae.load(straight)
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(value, state["best"][name], rtol=0, atol=0)
    assert not vae.training


def test_posterior_nc_opens_in_arviz_with_named_dimensions(straight):
    import arviz

    tree = arviz.from_netcdf(straight / "posterior.nc")
    assert dict(tree["posterior"]["z"].sizes) == {"chain": 1, "draw": 100, "datum": 12, "z_dim": 2}
    assert set(tree["sample_stats"]) >= {"log_weight", "khat", "ess", "log_marginal"}
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "datum")
    assert {name: tree[name]["x"].shape for name in ("prior_predictive", "posterior_predictive")} == {
        "prior_predictive": (1, 100, 12, 12),
        "posterior_predictive": (1, 100, 12, 12),
    }
    assert tree["prior_predictive"]["x"].dtype == np.uint8
    assert tree["prior"]["z"].shape == (1, 100, 12, 2)
    means = tree["prior"]["z"].values.reshape(-1, 2).mean(0)
    assert abs(means).max() < 4.5 / 1200**0.5  # as the standard normal has
    weights = torch.from_numpy(tree["sample_stats"]["log_weight"].values[0])
    own = pyrovae.stats.summarize_log_weights(weights)  # of the draws in the file, not of other ones
    for name, value in {"log_marginal": own.value, "ess": own.ess, "khat": own.khat}.items():
        np.testing.assert_allclose(tree["sample_stats"][name].values, value.numpy(), rtol=1e-6, err_msg=name)
    vae = pyrovae.load(straight)
    z = torch.from_numpy(tree["posterior"]["z"].values[0])
    x = torch.from_numpy(tree["observed_data"]["x"].values)
    log_lik = vae.model.likelihood(z).log_prob(x).detach()
    np.testing.assert_allclose(tree["log_likelihood"]["x"].values[0], log_lik.numpy(), rtol=1e-4, atol=1e-4)
    log_w = log_lik + vae.model.prior().log_prob(z) - vae.guide.encoder(x).log_prob(z).detach()
    np.testing.assert_allclose(weights.numpy(), log_w.detach().numpy(), rtol=1e-4, atol=1e-4)


def test_training_again_from_config_yaml_is_bit_identical(place, straight):
    config = straight / "config.yaml"
    run("train", "--config", config, "--out", "again", cwd=place)
    for name in ("weights.safetensors", "config.yaml", "posterior.nc", "evaluation.csv", "samples.png", "training.png"):
        assert (place / "again" / name).read_bytes() == (straight / name).read_bytes(), name


def test_flags_go_above_the_file_of_a_configuration(straight):
    config = parse_training(["--config", str(straight / "config.yaml"), "--seed", "5", "--epochs", "1"])
    assert (config.seed, config.epochs, config.latent_dim) == (5, 1, 2)


def test_a_run_with_an_own_prior_opens_only_if_its_module_is_trusted(place):
    counts = ["--data", "both.npz:counts", "--likelihood", "BinomialLikelihood", "--likelihood.total_count", 8]
    own = ["--prior", "mymodule.StudentTPrior", "--prior.df", 3.5, "--epochs", 2, "--out", "own"]
    run("train", *counts, *TINY, *own, cwd=place)
    marker = place / "mymodule.imported"
    marker.unlink()
    for script, extra in (("evaluate", ["own"]), ("sample", ["own"]), ("train", ["--config", "own/config.yaml"])):
        result = run(script, *extra, cwd=place, check=False)
        assert result.returncode == 1
        assert "--trust_imports mymodule" in result.stderr
    assert not marker.exists()  # it was not imported
    run("evaluate", "own", "--num_particles", 30, "--trust_imports", "mymodule", cwd=place)
    assert marker.exists()
    with pytest.raises(ValueError, match="--trust_imports mymodule"):
        pyrovae.load(place / "own")


def test_a_run_with_an_own_likelihood_and_encoder_is_trained_and_evaluated(place):
    own = ["--likelihood", "mymodule.CauchyLikelihood", "--likelihood.scale", 0.5, "--encoder", "mymodule.TiedEncoder"]
    run("train", "--data", "both.npz:reals", *own, *TINY, "--epochs", 1, "--out", "own-parts", cwd=place)
    run("evaluate", "own-parts", "--num_particles", 30, "--trust_imports", "mymodule", cwd=place)
    held = json.loads((place / "own-parts/evaluation.json").read_text())
    assert held["base_measure"] == "lebesgue"
    assert held["bits_per_dim"] is None
    config = (place / "own-parts/config.yaml").read_text()
    assert "mymodule.CauchyLikelihood" in config
    assert "mymodule.TiedEncoder" in config


@pytest.mark.parametrize("row", [3, 50])
def test_train_names_the_row_of_a_value_outside_the_support(place, row):
    shares = np.full((60, 5), 0.5)
    shares[row, 2] = 1.0
    np.save(place / "shares.npy", shares)
    arguments = ["--data", "shares.npy", "--likelihood", "BetaLikelihood", "--out", "outside"]
    result = run("train", *arguments, cwd=place, check=False)
    assert result.returncode == 1
    assert f"shares.npy, row {row} (" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (place / "outside").exists()


@pytest.mark.slow
def test_a_run_with_a_density_reports_no_bits_per_dim(place):
    arguments = ["--data", "both.npz:reals", "--likelihood", "NormalLikelihood", "--likelihood.scale", "dimension"]
    run("train", *arguments, *TINY, "--epochs", 2, "--out", "reals", cwd=place)
    summary = json.loads((place / "reals/evaluation.json").read_text())
    assert summary["bits_per_dim"] is None
    assert summary["base_measure"] == "lebesgue"


@pytest.mark.parametrize("binarize", ["dynamic", pytest.param("static", marks=pytest.mark.slow)])
def test_train_reads_mnist_from_data_dir_under_every_binarisation(tmp_path, binarize):
    write_fake_mnist(tmp_path, 120, 20)
    network = ["--network", "ConvNet", "--network.channels", "[2,3]", "--latent_dim", 2]
    few = ["--num_particles", 5, "--proposal", "guide"]  # the default's curvature takes seconds here
    run("train", "--data", "mnist", "--data_dir", ".", "--binarize", binarize, *network, "--epochs", 1,
        *few, "--out", "m", cwd=tmp_path)  # fmt: skip
    summary = json.loads((tmp_path / "m/evaluation.json").read_text())
    assert summary["binarize"] == binarize
    assert summary["num_data"] == 20
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "MNIST").rename(moved / "MNIST")
    run("evaluate", tmp_path / "m", *few, "--data_dir", moved, cwd=moved)


def not_installed(monkeypatch):
    def version(package):
        if package == "pyrovae":
            raise importlib.metadata.PackageNotFoundError(package)
        return installed(package)

    installed = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", version)
    return installed


def test_a_source_tree_that_is_not_installed_has_an_unknown_version(monkeypatch):
    installed = not_installed(monkeypatch)
    assert installed_version("pyrovae") == "unknown"
    assert installed_version("torch") == installed("torch")
    tree = pyrovae.to_arviz({"z": torch.zeros(1, 1)}, observed={})
    assert tree.attrs["inference_library_version"] == "unknown"


@pytest.mark.slow
def test_a_run_from_a_source_tree_that_is_not_installed_has_an_unknown_version(place, capsys, monkeypatch):
    installed = not_installed(monkeypatch)
    monkeypatch.chdir(place)
    flags = ["--data", "bits.npy", *TINY, "--epochs", 1, "--out", "uninstalled"]
    code, err = call(capsys, monkeypatch, "train", *flags)
    assert code == 0, err
    versions = json.loads((place / "uninstalled/manifest.json").read_text())["versions"]
    assert versions["pyrovae"] == installed_version("pyrovae") == "unknown"
    assert versions["torch"] == installed_version("torch") == installed("torch")
    import arviz

    tree = arviz.from_netcdf(place / "uninstalled/posterior.nc")
    assert tree.attrs["inference_library_version"] == "unknown"
