"""The scripts as a reader runs them: in a folder of their own, by command line, killed and resumed."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import write_fake_mnist
from safetensors import safe_open
from script_helpers import SCRIPTS, TINY, call, help_of, lines, run, start

import pyrovae
import pyrovae.evidence.evaluation
import pyrovae.runs.report

OWN_MODULE = """
import pathlib
import pyro.distributions as dist
import torch
from pyrovae import Encoder, Likelihood, Prior

pathlib.Path(__file__).with_suffix(".imported").touch()

class StudentTPrior(Prior):
    def __init__(self, latent_dim: int, df: float = 5.0) -> None:
        super().__init__(latent_dim)
        self.df = df
        self.register_buffer("loc", torch.zeros(latent_dim))

    def forward(self, covariates=None):
        return dist.StudentT(self.df, self.loc, 1.0).to_event(1)

class LazyPrior(StudentTPrior):
    def __init__(self, latent_dim: int) -> None:
        self.loc = torch.nn.Parameter(torch.zeros(latent_dim))

class CauchyLikelihood(Likelihood):
    def __init__(self, network, scale: float = 1.0) -> None:
        super().__init__(network)
        self.scale = scale

    def forward(self, z, covariates=None):
        return dist.Cauchy(self.outputs(z, covariates), self.scale).to_event(1)

class TiedEncoder(Encoder):
    @classmethod
    def num_outputs(cls, latent_dim: int) -> int:
        return latent_dim + 1

    def forward(self, x, covariates=None):
        outputs = self.outputs(x, covariates)
        return dist.Normal(outputs[..., :-1], outputs[..., -1:].exp()).to_event(1)

class WidePrior(Prior):
    def forward(self, covariates=None):
        return dist.Normal(torch.zeros(7), 1.0).to_event(1)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an array of bits, one of counts, and one of reals."""
    root = tmp_path_factory.mktemp("place")
    generator = np.random.default_rng(0)
    bits = (generator.random((120, 3, 4)) < generator.random((1, 3, 4))).astype(np.uint8)
    np.save(root / "bits.npy", bits)
    np.savez(root / "both.npz", counts=generator.integers(0, 9, (60, 5)), reals=generator.normal(size=(60, 5)))
    (root / "mymodule.py").write_text(OWN_MODULE)
    return root


@pytest.fixture(scope="module")
def straight(place):
    """A finished run of twelve epochs."""
    run("train", "--data", "bits.npy", *TINY, "--epochs", 12, "--out", "straight", cwd=place)
    return place / "straight"


# The main job and its files


def test_the_main_job_in_short(tmp_path):
    result = run("train", "--epochs", 2, "--num_particles", 40, cwd=tmp_path)
    assert "nats per datum" in result.stdout
    baseline = re.search(r"independent pixels +- +(-\d+\.\d+)", result.stdout)
    assert -109 < float(baseline[1]) < -106
    assert re.search(r"VAE +-\d+\.\d+ +-\d+\.\d+ +\d+\.\d+ +\d+\.\d+ +\d+\.\d %", result.stdout)
    assert "ELBO train" in result.stderr
    assert "validation" in result.stderr
    config = (tmp_path / "runs/digits-001/config.yaml").read_text()
    assert "BinomialLikelihood" in config
    assert "total_count: 16" in config
    run("train", "--epochs", 1, *TINY, "--elbo", "Trace_ELBO", "--proposal", "guide", cwd=tmp_path)
    assert "pyro.infer.Trace_ELBO" in (tmp_path / "runs/digits-002/config.yaml").read_text()


def test_the_run_folder_holds_what_it_says(straight):
    names = {path.name for path in straight.iterdir()}
    assert names == {
        "config.yaml", "manifest.json", "checkpoint.safetensors", "weights.safetensors", "metrics.jsonl",
        "posterior.nc", "evaluation.json", "evaluation.csv", "training.png", "samples.png", "reconstructions.png",
    }  # fmt: skip
    manifest = json.loads((straight / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert set(manifest["files"]) == {"config.yaml", "weights.safetensors", "metrics.jsonl", "posterior.nc"}
    assert {"python", "torch", "pyro-ppl", "pyrovae"} <= set(manifest["versions"])
    assert len(manifest["data"]["sha256"]) == 64
    rows = [json.loads(line) for line in lines(straight / "metrics.jsonl")]
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert set(rows[0]) == {
        "epoch", "train_objective", "train_elbo", "validation_elbo", "validation_reconstruction", "validation_kl",
        "validation_objective", "kl_weight", "kl_target", "seconds",
    }  # fmt: skip
    with safe_open(straight / "weights.safetensors", framework="pt") as file:
        assert len(file.metadata() or {}) <= 1
    for figure in straight.glob("*.png"):
        assert figure.read_bytes().startswith(b"\x89PNG")
    assert not [path for path in straight.iterdir() if path.read_bytes()[:2] == b"\x80\x04"]  # no pickle


def test_the_weights_are_the_best_epochs(straight):
    rows = [json.loads(line) for line in lines(straight / "metrics.jsonl")]
    best = max(rows, key=lambda row: row["validation_elbo"])
    state = pyrovae.runs.read_state(straight / "checkpoint.safetensors")
    assert state["best_epoch"] == best["epoch"]
    vae = pyrovae.load(straight)
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(value, state["best"][name], rtol=0, atol=0)
    assert not vae.training


def test_posterior_opens_in_arviz_and_has_names(straight):
    import arviz

    tree = arviz.from_netcdf(straight / "posterior.nc")
    assert dict(tree["posterior"]["z"].sizes) == {"chain": 1, "draw": 100, "datum": 12, "z_dim": 2}
    assert set(tree["sample_stats"]) >= {"log_weight", "khat", "ess", "log_marginal"}
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "datum")
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


def test_config_reproduces_the_run_to_the_bit(place, straight):
    config = straight / "config.yaml"
    run("train", "--config", config, "--out", "again", cwd=place)
    for name in ("weights.safetensors", "config.yaml", "posterior.nc", "evaluation.csv", "samples.png", "training.png"):
        assert (place / "again" / name).read_bytes() == (straight / name).read_bytes(), name
    # Flags go above the file.
    run("train", "--config", config, "--out", "other", "--seed", 5, "--epochs", 1, cwd=place)
    assert (place / "other/weights.safetensors").read_bytes() != (straight / "weights.safetensors").read_bytes()


def test_evaluate_writes_every_key(place, straight):
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


def test_sample_writes_both_grids(place, straight):
    before = (straight / "samples.png").read_bytes()
    run("sample", straight, "--num_samples", 10, "--seed", 3, cwd=place)
    assert (straight / "samples.png").read_bytes() != before
    assert (straight / "reconstructions.png").read_bytes().startswith(b"\x89PNG")


# Killed and resumed


def test_a_run_killed_again_and_again_is_the_run_that_was_not(place, straight):
    arguments = ["--config", straight / "config.yaml", "--out", "killed"]
    killed = place / "killed"
    for stop_at in (2, 9):
        process = start(*(arguments if stop_at == 2 else ["--resume", killed]), cwd=place)
        while len(lines(killed / "metrics.jsonl")) < stop_at and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
    # A line past the commit, and a file beside, as a kill in the middle of a commit may leave them.
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 99')
    (killed / ".unfinished-0.safetensors").touch()
    committed = pyrovae.runs.Run(killed).committed()
    assert len(lines(killed / "metrics.jsonl")) == committed["epoch"]
    run("train", "--resume", killed, cwd=place)
    assert (killed / "weights.safetensors").read_bytes() == (straight / "weights.safetensors").read_bytes()
    assert (killed / "posterior.nc").read_bytes() == (straight / "posterior.nc").read_bytes()
    assert len(lines(killed / "metrics.jsonl")) == 12
    assert {path.name for path in killed.iterdir()} == {path.name for path in straight.iterdir()}
    assert "finished" in run("train", "--resume", killed, cwd=place).stdout


def test_a_run_killed_before_its_first_commit_starts_again(place, straight):
    early = place / "early"
    process = start("--config", straight / "config.yaml", "--out", "early", cwd=place)
    while not (early / "manifest.json").exists() and process.poll() is None:
        time.sleep(0.0005)
    process.kill()
    process.wait()
    (early / "checkpoint.safetensors").unlink(missing_ok=True)
    run("train", "--resume", early, cwd=place)
    assert (early / "weights.safetensors").read_bytes() == (straight / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(place, number, code):
    out = place / f"signal-{code}"
    arguments = ["--data", "bits.npy", *TINY, "--epochs", "4000", "--patience", "null"]
    process = start(*arguments, "--out", out, cwd=place)
    while len(lines(out / "metrics.jsonl")) < 3 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    assert process.wait(60) == code
    assert "Traceback" not in process.stderr
    assert f"--resume {out}" in process.stderr
    state = pyrovae.runs.read_state(out / "checkpoint.safetensors")
    assert state["epoch"] >= 3
    assert len(lines(out / "metrics.jsonl")) == state["epoch"]
    with pytest.raises(ValueError, match="not finished; go on with"):
        pyrovae.load(out)


def test_a_full_disk_stops_in_one_line_and_the_run_resumes(place, straight):
    size = (straight / "checkpoint.safetensors").stat().st_size
    script = f"""
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size - 500}, {size - 500}))
sys.argv = ["train.py", "--config", "{straight}/config.yaml", "--out", "full"]
runpy.run_path("{SCRIPTS}/train.py", run_name="__main__")
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=place, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("train.py: error: cannot write")
    assert "Traceback" not in result.stderr
    state = pyrovae.runs.read_state(place / "full/checkpoint.safetensors")
    assert 0 < state["epoch"] < 12
    run("train", "--resume", "full", cwd=place)
    assert (place / "full/weights.safetensors").read_bytes() == (straight / "weights.safetensors").read_bytes()


# The reader's own


def test_own_arrays_own_prior_and_trust(place):
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


def test_own_likelihood_and_encoder(place):
    own = ["--likelihood", "mymodule.CauchyLikelihood", "--likelihood.scale", 0.5, "--encoder", "mymodule.TiedEncoder"]
    run("train", "--data", "both.npz:reals", *own, *TINY, "--epochs", 1, "--out", "own-parts", cwd=place)
    run("evaluate", "own-parts", "--num_particles", 30, "--trust_imports", "mymodule", cwd=place)
    held = json.loads((place / "own-parts/evaluation.json").read_text())
    assert held["base_measure"] == "lebesgue"
    config = (place / "own-parts/config.yaml").read_text()
    assert "mymodule.CauchyLikelihood" in config
    assert "mymodule.TiedEncoder" in config


@pytest.mark.parametrize("row", [3, 50])
def test_the_row_of_a_value_outside_the_support_is_named(place, row):
    shares = np.full((60, 5), 0.5)
    shares[row, 2] = 1.0
    np.save(place / "shares.npy", shares)
    arguments = ["--data", "shares.npy", "--likelihood", "BetaLikelihood", "--out", "outside"]
    result = run("train", *arguments, cwd=place, check=False)
    assert result.returncode == 1
    assert f"shares.npy, row {row} (" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (place / "outside").exists()


def test_a_run_is_evaluated_on_its_own_split(place, straight):
    arguments = ["--data", "bits.npy", *TINY, "--epochs", 1, "--split_seed", 3, "--out", "split"]
    run("train", *arguments, cwd=place)
    rows = lambda folder: [line.split(",")[0] for line in lines(folder / "evaluation.csv")]  # noqa: E731
    before = rows(place / "split")
    run("evaluate", "split", "--num_particles", 5, cwd=place)
    assert rows(place / "split") == before
    run("evaluate", straight, "--num_particles", 5, cwd=place)
    assert rows(straight) != before


def test_densities_have_no_bits(place):
    arguments = ["--data", "both.npz:reals", "--likelihood", "NormalLikelihood", "--likelihood.scale", "dimension"]
    run("train", *arguments, *TINY, "--epochs", 2, "--out", "reals", cwd=place)
    summary = json.loads((place / "reals/evaluation.json").read_text())
    assert summary["bits_per_dim"] is None
    assert summary["base_measure"] == "lebesgue"


@pytest.mark.parametrize("binarize", ["dynamic", "static"])
def test_mnist_from_a_folder(tmp_path, binarize):
    write_fake_mnist(tmp_path, 120, 20)
    network = ["--network", "ConvNet", "--network.channels", "[2,3]", "--latent_dim", 2]
    few = ["--num_particles", 5, "--proposal", "guide"]  # the default's curvature takes seconds here
    run("train", "--data", "mnist", "--data_dir", ".", "--binarize", binarize, *network, "--epochs", 2,
        *few, "--out", "m", cwd=tmp_path)  # fmt: skip
    summary = json.loads((tmp_path / "m/evaluation.json").read_text())
    assert summary["binarize"] == binarize
    assert summary["num_data"] == 20
    run("evaluate", "m", *few, "--split", "train", cwd=tmp_path)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "MNIST").rename(moved / "MNIST")
    run("evaluate", tmp_path / "m", *few, "--data_dir", moved, cwd=moved)


# Bad input: one line, a code, nothing half-written

BAD_FLAGS = {
    "--prior MixturPrior": "did you mean MixturePrior",
    "--likelihood Bernouli": "did you mean BernoulliLikelihood",
    "--encoder Normal": "did you mean NormalEncoder",
    "--network MPL": "did you mean MLP",
    "--optimizer Adm": "did you mean Adam",
    "--elbo TraceELBO": "did you mean Trace_ELBO",
    "--prior nomodule.Prior": "no module 'nomodule'",
    "--prior mymodule.StudentPrior": "did you mean StudentTPrior",
    "--prior mymodule.dist": "dist is no subclass of",
    "--prior.num_components 3": "StandardNormalPrior has no such option",
    "--prior MixturePrior --prior.num_component 3": "did you mean num_components",
    "--lrr 3": "did you mean lr",
    "--lr fast": "--lr:",
    "--epochs 0": "--epochs:",
    "--latent_dim -2": "--latent_dim:",
    "--device tpu7": "--device tpu7: not to be had here",
    "--data nofile.npy": "no such file",
    "--data both.npz:count": "counts",
    "--data both.npz:counts": "--likelihood BinomialLikelihood --likelihood.total_count 8, or",
    "--data both.npz:reals": "must be named: --likelihood LaplaceLikelihood, or --likelihood NormalLikelihood",
    "--data both.npz:counts --likelihood BinomialLikelihood --likelihood.total_count 3": "the support of Binomial",
    "--data both.npz:counts --likelihood BinomialLikelihood": "--likelihood.total_count: is required",
    "--data both.npz:reals --binarize dynamic": "--binarize dynamic needs grey values",
    "--data grey.npy --likelihood BernoulliLikelihood": "ContinuousBernoulliLikelihood",
    "--data holes.npy --likelihood NormalLikelihood": "NaN",
    "--data short.npy": "short.npy",
    "--network ConvNet --network.shape [9,9]": "give the image's shape",
    "--data both.npz:reals --likelihood NormalLikelihood --likelihood.scale -1": "scale must be a positive number",
    "--optimizer SGD --lr 1e30": "lower the learning rate",
    "--config nofile.yaml": "no such file",
    "--config bad.yaml": "is no YAML file",
    "--config list.yaml": "is no configuration",
    "--config unknown.yaml": "did you mean epochs",
    "--config sly.yaml": "--trust_imports os",
    "--config nested.yaml": "--trust_imports evil",
    "--config hidden.yaml": "--trust_imports evil",
    "--config lookalike.yaml": "--trust_imports torchevil",
    "--config unloaded.yaml": "no such prior",
    "--config arguments.yaml": "must be names and values",
    "--config extra.yaml": "expected class_path and init_args alone",
    "--config none.yaml": "prior must be a name",
    "--config own.yaml --trust_imports broken": "importing broken fails: NameError",
    "--num_particles 0": "--num_particles:",
    "--patience 0": "--patience:",
    "--seed 99999999999999999999": "--seed:",
    "--network.hidden 200": "(a list is written [200,200])",
    "--network.hidden [-3]": "hidden must be at least 1",
    "--prior broken.Prior": "importing broken fails: NameError: name 'nonsense' is not defined (broken.py, line 2)",
    "--prior mymodule.LazyPrior": "a part cannot be made: AttributeError",
    "--prior mymodule.WidePrior": "the parts do not work together",
    "--resume nofolder": "no run folder",
    "--resume straight --seed 3": "leave the flag out",
    "--out taken": "not overwritten",
}


@pytest.fixture(scope="module")
def traps(place, straight):
    np.save(place / "grey.npy", np.random.default_rng(1).random((40, 6)))
    holes = np.ones((40, 3))
    holes[7, 2] = np.nan
    np.save(place / "holes.npy", holes)
    (place / "short.npy").write_bytes((place / "bits.npy").read_bytes()[:-9])
    (place / "bad.yaml").write_text("a: [")
    (place / "list.yaml").write_text("- 1")
    (place / "unknown.yaml").write_text("epoch: 3")
    (place / "sly.yaml").write_text("prior: os.system")
    (place / "nested.yaml").write_text(
        "prior: {class_path: pyrovae.MixturePrior, init_args: {num_components: {class_path: evil.Thing}}}"
    )
    (place / "evil.py").write_text("import pathlib; pathlib.Path('was-here').touch()")
    adam = "optimizer: {class_path: torch.optim.Adam, init_args: {betas: '[evil.Thing, 0.9]'}}"
    (place / "hidden.yaml").write_text(adam)
    (place / "lookalike.yaml").write_text("prior: torchevil.X")
    (place / "unloaded.yaml").write_text("prior: torch.utils.tensorboard.Prior")
    (place / "arguments.yaml").write_text("prior: {class_path: MixturePrior, init_args: 3}")
    (place / "extra.yaml").write_text("prior: {class_path: MixturePrior, dict_kwargs: {a: 1}}")
    (place / "none.yaml").write_text("prior: null")
    (place / "own.yaml").write_text("prior: broken.Prior")
    (place / "broken.py").write_text("import torch\nnonsense")
    (place / "taken").mkdir()
    (place / "taken/file").touch()
    return place


def whats_there(folder):
    passing = {"__pycache__", "runs", "mymodule.imported"}
    return sorted(path for path in folder.rglob("*") if not passing & {*path.parts} or path.parent.name == "runs")


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_input_is_one_line(traps, capsys, monkeypatch, flags):
    monkeypatch.chdir(traps)
    before = whats_there(traps)
    code, err = call(capsys, monkeypatch, "train", *flags.split())
    assert code == 1
    message = re.split(r"[\r\n]", err.strip())[-1]
    assert message.startswith("train.py: error: ")
    assert BAD_FLAGS[flags] in message
    assert len(re.findall("error:", err)) == 1
    assert whats_there(traps) == before


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[-3] ^= 4
    elif how == "cut":
        content = content[:-20]
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("weights.safetensors", "flip", "SHA-256 is not the manifest's"),
        ("weights.safetensors", "cut", "SHA-256 is not the manifest's"),
        ("weights.safetensors", "remove", "missing"),
        ("config.yaml", "flip", "SHA-256 is not the manifest's"),
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


def test_a_checkpoint_of_another_model_or_damaged_is_refused(place, straight, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    wider = ["--network.hidden", "[7]", *TINY[2:]]
    assert call(capsys, monkeypatch, "train", "--data", "bits.npy", *wider, "--epochs", 1, "--out", "wider")[0] == 0
    copy = tmp_path / "copy"
    shutil.copytree(place / "wider", copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "status": "training"}))
    shutil.copy(straight / "checkpoint.safetensors", copy)
    code, err = call(capsys, monkeypatch, "train", "--resume", copy)
    assert code == 1
    assert "another model" in err
    damage(copy / "checkpoint.safetensors", "flip")
    code, err = call(capsys, monkeypatch, "train", "--resume", copy)
    assert code == 1
    assert "damaged" in err
    assert (copy / "checkpoint.safetensors").exists()


def test_other_data_are_refused_at_evaluation(place, straight, capsys, monkeypatch):
    bits = (place / "bits.npy").read_bytes()
    try:
        np.save(place / "bits.npy", 1 - np.load(place / "bits.npy"))
        code, err = call(capsys, monkeypatch, "evaluate", straight)
    finally:
        (place / "bits.npy").write_bytes(bits)
    assert code == 1
    assert "not the data that" in err


def test_help_lists_the_parts(capsys, monkeypatch):
    text = help_of(capsys, monkeypatch, "train")
    for name in ("MixturePrior", "NormalLikelihood", "NormalEncoder", "ConvNet", "Trace_ELBO", "Adam"):
        assert re.search(rf"^ +{name} +\w", text, re.MULTILINE), name
    assert "python scripts/train.py --resume" in text


def test_no_script_is_left_out():
    text = "".join(file.read_text() for file in Path(__file__).parents[1].rglob("test_*.py"))
    for script in SCRIPTS.rglob("*.py"):
        if "run_script(main)" not in script.read_text():
            continue  # a part of another
        assert any(call in text for call in (f'run("{script.stem}"', f', "{script.stem}"', f"/{script.name}"))
        assert os.access(script, os.R_OK)


def test_an_interrupted_evaluation_goes_on_to_the_same_file(place, straight, monkeypatch, capsys):
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
    # Other flags begin anew; a damaged state too.
    written[0].write_bytes(b"no state")
    assert call(capsys, monkeypatch, "evaluate", again, "--num_particles", 40)[0] == 0
    assert not written[0].exists()
