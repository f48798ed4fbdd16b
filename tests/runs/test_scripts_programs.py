"""The scripts with covariates, whole models, users' programs, and schedules of the KL weight."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from script_helpers import TINY, assert_refused, call, lines, run, start

import pyrovae
from pyrovae.runs import build_objective, parse_training, read_state

OWN_MODULE = '''
import pathlib
import pyro
import pyro.distributions as dist
import torch
from torch import nn

pathlib.Path(__file__).with_suffix(".imported").touch()

def normal(outputs):
    loc, log_scale = outputs.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)

class OwnLayers(nn.Module):
    """Two layers of a user."""

    def __init__(self, blueprint, width: int = 3) -> None:
        super().__init__()
        self.width, latent_dim = width, blueprint.latent_dim
        self.down = nn.Linear(width, 2 * latent_dim)
        self.pixels = nn.Linear(latent_dim, blueprint.num_dims)
        self.up, self.top = nn.Linear(blueprint.num_dims, 2 * latent_dim), nn.Linear(latent_dim, 2 * width)

    def model(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            high = pyro.sample("high", dist.Normal(torch.zeros(self.width), 1.0).to_event(1))
            low = pyro.sample("low", normal(self.down(high)))
            pyro.sample("pixels", dist.Bernoulli(logits=self.pixels(low)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            low = pyro.sample("low", normal(self.up(x)))
            pyro.sample("high", normal(self.top(low)))

class Headless(nn.Module):
    def __init__(self, blueprint) -> None:
        super().__init__()
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an array of bits, classes and numbers beside, and a user's module."""
    root = tmp_path_factory.mktemp("place")
    generator = np.random.default_rng(0)
    classes = generator.integers(0, 3, 120)
    shares = generator.random((3, 12))
    np.save(root / "bits.npy", (generator.random((120, 12)) < shares[classes]).astype(np.uint8))
    np.save(root / "classes.npy", classes)
    np.save(root / "numbers.npy", generator.normal(size=(120, 2)))
    (root / "ownmodels.py").write_text(OWN_MODULE)
    return root


@pytest.fixture
def script(place, monkeypatch, capsys):
    """Run a script in this process and in the place; it must succeed."""

    def run_script(name, *arguments):
        monkeypatch.chdir(place)
        code, err = call(capsys, monkeypatch, name, *arguments)
        assert code == 0, err
        return err

    return run_script


def summary(folder):
    return json.loads((folder / "evaluation.json").read_text())


def posterior(folder):
    import arviz

    return arviz.from_netcdf(folder / "posterior.nc")["posterior"]


OWN = ["--program", "ownmodels.OwnLayers", "--elbo", "Trace_ELBO"]
BITS = ["--data", "bits.npy", *TINY, "--epochs", 2]
CLASSES = ["--covariates", "classes.npy"]
RUNS = {
    "classes": (CLASSES, {"z": 2}),
    "numbers": (["--covariates", "numbers.npy", "--prior", "ConditionalNormalPrior"], {"z": 2}),
    "bottom-up": (
        ["--program", "TwoLayerVAE", "--program.direction", "bottom-up", "--elbo", "Trace_ELBO"],
        {"z1": 2, "z2": 1},
    ),
    "top-down": (
        ["--program", "TwoLayerVAE", "--program.top_dim", 3, *CLASSES],
        {"z1": 2, "z2": 3},
    ),
    "mixture": (
        ["--program", "MixtureVAE", "--program.num_classes", 3, "--elbo", "TraceEnum_ELBO", *CLASSES],
        {"y": 3, "z": 2},
    ),
    "bias": (["--output_bias", "data", "--prior", "MixturePrior"], {"z": 2}),
}


SLOW_RUNS = ("numbers", "bottom-up")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW_RUNS else name for name in RUNS]
)
@pytest.mark.thin(1)
def test_each_kind_of_model_is_trained_evaluated_sampled_and_loaded(place, script, name):
    flags, latents = RUNS[name]
    script("train", *BITS, *flags, "--out", name)
    folder = place / name
    trained = summary(folder)
    assert trained["num_data"] == 12
    draws = posterior(folder)
    assert {site: draws[site].shape for site in latents} == {site: (1, 100, 12, size) for site, size in latents.items()}
    script("evaluate", name, "--num_particles", 25)
    again = summary(folder)
    assert again["log_marginal"] == trained["log_marginal"]  # the seed of evaluation is 0 in both
    script("evaluate", name, "--num_particles", 5, "--split", "train")
    before = (folder / "samples.png").read_bytes()
    script("sample", name, "--num_samples", 9, "--seed", 3)
    assert (folder / "samples.png").read_bytes() != before
    vae = pyrovae.load(folder)
    manifest = json.loads((folder / "manifest.json").read_text())["data"]
    given = 0 if "--covariates" not in flags else 2 if "numbers.npy" in flags else 3
    assert manifest["num_covariates"] == given
    kwargs = {"covariates": torch.zeros(4, given)} if given else {}
    assert pyrovae.log_weights(vae.model, vae.guide, torch.zeros(4, 12), **kwargs).shape == (1, 4)


@pytest.mark.slow
def test_a_run_with_the_labels_of_digits_is_trained_evaluated_and_sampled(place, script):
    script("train", *TINY, "--covariates", "labels", "--epochs", 1, "--out", "labels")
    script("evaluate", "labels", "--num_particles", 5)
    script("sample", "labels", "--num_samples", 20)
    assert summary(place / "labels")["num_data"] == 179
    assert "covariates: labels" in (place / "labels/config.yaml").read_text()


@pytest.mark.slow
def test_covariates_that_tell_the_data_raise_their_probability(place, script):
    # The classes hold all that there is to know of x but noise; the gain is some nats, the errors are tenths.
    for name, flags in (("told", CLASSES), ("untold", [])):
        arguments = ["--data", "bits.npy", *TINY, *flags, "--epochs", 40, "--lr", 0.02, "--latent_dim", 1]
        script("train", *arguments, "--out", name)
    told, untold = (summary(place / name)["log_marginal"]["mean"] for name in ("told", "untold"))
    assert told > untold + 0.2


@pytest.mark.slow
def test_evaluate_refuses_a_run_whose_covariates_changed(place, script, capsys, monkeypatch):
    np.save(place / "mine.npy", np.arange(120) % 2)
    script("train", *BITS, "--covariates", "mine.npy", "--out", "mine")
    assert f"covariates: {place / 'mine.npy'}" in (place / "mine/config.yaml").read_text()
    np.save(place / "mine.npy", np.arange(120) % 2 == 0)
    code, err = call(capsys, monkeypatch, "evaluate", "mine")
    assert code == 1
    assert "the data differ from those of mine" in err


# A user's program


@pytest.mark.slow
def test_a_run_with_an_own_program_opens_only_if_its_module_is_trusted(place):
    run("train", *BITS, *OWN, "--program.width", 4, "--out", "own", cwd=place)
    draws = posterior(place / "own")
    assert (draws["high"].shape[-1], draws["low"].shape[-1]) == (4, 2)
    marker = place / "ownmodels.imported"
    marker.unlink()
    for script, extra in (("evaluate", ["own"]), ("sample", ["own"]), ("train", ["--config", "own/config.yaml"])):
        result = run(script, *extra, cwd=place, check=False)
        assert result.returncode == 1
        assert "--trust_imports ownmodels" in result.stderr
    with pytest.raises(ValueError, match="--trust_imports ownmodels"):
        pyrovae.load(place / "own")
    assert not marker.exists()  # it was not imported
    run("evaluate", "own", "--num_particles", 30, "--trust_imports", "ownmodels", cwd=place)
    run("sample", "own", "--num_samples", 4, "--trust_imports", "ownmodels", cwd=place)
    assert marker.exists()


@pytest.mark.slow
def test_a_run_with_an_own_program_is_loaded_and_resumed(place, script, monkeypatch):
    arguments = ["--data", "bits.npy", *TINY, *OWN, "--epochs", 3]
    script("train", *arguments, "--out", "straight")
    vae = pyrovae.load("straight", trust_imports=["ownmodels"])
    assert pyrovae.log_marginal(vae.model, vae.guide, torch.zeros(4, 12), num_particles=5).value.shape == (4,)
    assert vae.width == 3
    best = read_state(place / "straight/checkpoint.safetensors")["best"]
    for name, value in vae.state_dict().items():
        assert torch.equal(value, best[f"model.{name}"])
    _interrupted(place, "own-resumed", arguments, "--trust_imports", "ownmodels")
    assert (place / "own-resumed/weights.safetensors").read_bytes() == (
        place / "straight/weights.safetensors"
    ).read_bytes()


def _interrupted(place, out, arguments, *with_resume):
    """Run the training, killed after its first epoch, and again to its end."""
    process = start(*arguments, "--out", out, cwd=place)
    while len(lines(place / out / "metrics.jsonl")) < 1 and process.poll() is None:
        pass
    process.kill()
    process.wait()
    run("train", "--resume", out, *with_resume, cwd=place)


# Objectives and warm-up


BOUND = ["--elbo", "ImportanceWeightedELBO", "--elbo.num_particles", "7", "--elbo.gradient", "dreg"]


def test_flags_build_an_importance_weighted_bound():
    bound = build_objective(parse_training(BOUND)).elbo
    assert isinstance(bound, pyrovae.ImportanceWeightedELBO)
    assert (bound.num_particles, bound.gradient) == (7, "dreg")


@pytest.mark.slow
def test_train_builds_an_importance_weighted_bound_from_its_flags(place, script):
    script("train", "--data", "bits.npy", *TINY, *BOUND, "--epochs", 1, "--out", "bound")
    written = (place / "bound/config.yaml").read_text()
    assert "class_path: pyrovae.ImportanceWeightedELBO" in written
    assert "num_particles: 7" in written
    assert "gradient: dreg" in written
    script("evaluate", "bound", "--num_particles", 5)


@pytest.mark.slow
def test_train_builds_a_capacity_and_a_constraint_from_their_flags(place, script):
    capacity = ["--kl_weight", "Capacity", "--kl_weight.final", 25, "--kl_weight.epochs", 4]
    script("train", "--data", "bits.npy", *TINY, *capacity, "--epochs", 2, "--out", "capacity")
    rows = [json.loads(line) for line in lines(place / "capacity/metrics.jsonl")]
    assert [row["kl_target"] for row in rows] == [pytest.approx(25 * t / 4) for t in (5 / 6, 11 / 6)]
    assert [row["kl_weight"] for row in rows] == [100.0, 100.0]
    geco = ["--kl_weight", "GECO", "--kl_weight.tolerance", 6.5, "--epochs", 4]
    script("train", "--data", "bits.npy", *TINY, *geco, "--out", "geco")
    rows = [json.loads(line) for line in lines(place / "geco/metrics.jsonl")]
    assert len({row["kl_weight"] for row in rows}) == 4
    assert all(row["train_elbo"] is None for row in rows)
    assert (place / "geco/training.png").read_bytes().startswith(b"\x89PNG")
    _interrupted(place, "geco2", ["--data", "bits.npy", *TINY, *geco])
    assert (place / "geco2/weights.safetensors").read_bytes() == (place / "geco/weights.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_with_warm_up_records_its_weight_and_resumes_bit_identically(place, script):
    warm = ["--kl_weight", "LinearWarmup", "--kl_weight.epochs", 1.5]
    arguments = ["--data", "bits.npy", *TINY, *warm, "--epochs", 5]
    script("train", *arguments, "--out", "warm")
    rows = [json.loads(line) for line in lines(place / "warm/metrics.jsonl")]
    assert [row["train_elbo"] is None for row in rows] == [True, True, False, False, False]
    assert [row["kl_weight"] for row in rows] == [pytest.approx(5 / 6 / 1.5), 1.0, 1.0, 1.0, 1.0]
    assert all(isinstance(row["validation_elbo"], float) for row in rows)
    assert (place / "warm/training.png").read_bytes().startswith(b"\x89PNG")
    _interrupted(place, "warmer", arguments)
    for name in ("weights.safetensors", "posterior.nc"):
        assert (place / "warmer" / name).read_bytes() == (place / "warm" / name).read_bytes()
    again = [json.loads(line) for line in lines(place / "warmer/metrics.jsonl")]
    assert [{**row, "seconds": 0} for row in again] == [{**row, "seconds": 0} for row in rows]


# What is refused, and help

BAD_FLAGS = {
    "--program TwoLayerVEA": "did you mean TwoLayerVAE",
    "--program TwoLayerModel": "did you mean TwoLayerVAE",
    "--program TwoLayerVAE --program.top_dims 3": "did you mean top_dim",
    "--program TwoLayerVAE --program.direction up": "direction",
    "--program TwoLayerVAE --prior CategoricalPrior": "cannot be mapped to it",
    "--program TwoLayerVAE --program.direction bottom-up --prior VampPrior": "top-down",
    "--program TwoLayerVAE --program.direction bottom-up": "order, z2, z1, but it draws z1, z2; use --elbo Trace_ELBO",
    "--program ownmodels.OwnLayers": "use --elbo Trace_ELBO",
    "--program ownmodels.OwnLayers --prior VampPrior": "OwnLayers never makes a prior from its blueprint",
    "--program ownmodels.OwnLayers --network GatedMLP": "--network pyrovae.GatedMLP would change nothing",
    "--program MixtureVAE": "latent 'y' (OneHotCategorical) has none; use --elbo TraceEnum_ELBO",
    "--program MixtureVAE --program.num_classes 1": "num_classes must be at least 2",
    "--program ownmodels.Headless": "has no model; define the programs model and guide",
    "--program ownmodels.OwnLayer": "did you mean OwnLayers",
    "--program ownmodels.normal": "normal is no subclass of torch.nn.Module; derive it",
    "--program ownmodels.OwnLayers --covariates classes.npy": "the parts do not work together",
    "--program ownmodels.OwnLayers --program.width wide": "width",
    "--prior ConditionalNormalPrior": "ConditionalNormalPrior needs covariates; give --covariates labels, PATH.npy or",
    "--program TwoLayerVAE --prior ConditionalNormalPrior": "error: the parts do not work together: Conditional",
    "--covariates labels": "has no labels; give an array",
    "--covariates label": "did you mean labels",
    "--covariates none.npy": "no such file",
    "--covariates short.npy": "must have 120 rows for bits.npy, got 60",
    "--kl_weight LinearWarmUp": "did you mean LinearWarmup",
    "--kl_weight LinearWarmup --kl_weight.epochs 0": "epochs must be positive",
    "--kl_weight LinearWarmup --kl_weight.epoch 2": "did you mean epochs",
    "--output_bias date": "--output_bias",
    "--kl_weight Beta --kl_weight.beta -1": "error: --kl_weight Beta: beta must be at least 0, got -1",
    "--kl_weight CyclicalWarmup --kl_weight.cycles 0": "error: --kl_weight CyclicalWarmup: cycles must be",
    "--elbo Trace_ELBO --elbo.num_particles 0": "--elbo.num_particles 0: expected a whole number, at least 1",
    "--elbo Trace_ELBO --elbo.num_particles 2.5": "--elbo.num_particles 2.5: expected a whole number, at least 1",
    "--kl_weight GECO": "--kl_weight GECO needs --kl_weight.tolerance, a number",
    "--kl_weight Capacity --elbo ImportanceWeightedELBO": "Capacity needs an objective split into",
    "--kl_weight FreeBits --kl_weight.per pixel": "--kl_weight",
    "--elbo ImportanceWeightedElbo": "did you mean ImportanceWeightedELBO",
    "--elbo ImportanceWeightedELBO --elbo.gradient reinforce": "reinforce",
    "--elbo ImportanceWeightedELBO --elbo.num_particles 0": "num_particles must be at least 1, got 0",
    "--elbo RenyiELBO --elbo.alpha=-.inf --elbo.gradient dreg": "needs a bound with second derivatives",
    "--program MixtureVAE --elbo ImportanceWeightedELBO": "latent 'y' (OneHotCategorical) has none",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_train_refuses_invalid_flags_of_programs_and_objectives_in_one_line(place, capsys, monkeypatch, flags):
    monkeypatch.chdir(place)
    np.save(place / "short.npy", np.zeros(60))
    code, err = call(capsys, monkeypatch, "train", "--data", "bits.npy", *TINY, *flags.split(), "--out", "bad")
    assert_refused("train", code, err, BAD_FLAGS[flags])
    assert not (place / "bad").exists()


def test_the_estimators_script_tabulates_every_estimator_and_resumes_from_its_file(place, capsys, monkeypatch):
    run("train", "--data", "bits.npy", *TINY, "--epochs", 1, "--out", "side", cwd=place)
    flags = ["--num_data", 4, "--guide", "[20,30]", "--default", "[20]", "--ais_prior", "[]", "--ais_guide", "[]"]
    table = run("estimators", "side", *flags, "--ais_laplace", "[2]", "--out", "side.json", cwd=place).stdout
    for name in ("guide, K = 20", "guide, K = 30", "default, K = 20", "AIS from Laplace, T = 2"):
        assert name in table
    rows = json.loads((place / "side.json").read_text())["rows"]
    assert len(rows) == 4
    assert all(len(row["value"]) == 4 and row["seconds"] > 0 for row in rows.values())
    assert not (place / "side.json.partial").exists()
    again = run("estimators", "side", *flags, "--ais_laplace", "[2]", "--out", "side.json", cwd=place).stdout
    assert again == table  # all of it was there
    written = json.loads((place / "side.json").read_text())
    for row in written["rows"].values():
        row["std_error"][0] = "inf"  # as of annealing with too few temperatures
    (place / "side.json").write_text(json.dumps(written))
    again = run("estimators", "side", *flags, "--ais_laplace", "[2]", "--out", "side.json", cwd=place).stdout
    assert " inf " in again
    other = run("estimators", "side", "--num_data", 5, "--out", "side.json", cwd=place, check=False)
    assert other.returncode == 1
    assert "another run, seed or number of data" in other.stderr


def test_the_benchmark_script_times_every_way_and_writes_its_numbers(place):
    flags = [
        "--parts",
        "[floor,steps]",
        "--batch_sizes",
        "[20]",
        "--execution",
        "[eager,recorded]",
        "--rounds",
        2,
        "--steps",
        2,
    ]
    table = run("benchmark", *flags, "--json", "speed.json", cwd=place).stdout
    for way in ("ours, eager", "ours, recorded", "hand-written", "Pyro SVI.step"):
        assert way in table
    tables = json.loads((place / "speed.json").read_text())["tables"]
    assert [table["title"] for table in tables] == ["the machine", "training step, batch 20: ms"]


@pytest.mark.slow
def test_the_benchmark_script_compares_the_default_with_annealing(place):
    flags = ["--parts", "[annealing]", "--execution", "[recorded]", "--rounds", 2, "--threads", 1]
    printed = run("benchmark", *flags, "--json", "annealed.json", cwd=place).stdout
    assert "default, K = 1,000, minus annealing, 50 data: " in printed
    times, difference = json.loads((place / "annealed.json").read_text())["tables"]
    assert [row["way"] for row in times["rows"]] == ["ours, recorded", "products of 10 steps"]
    found = difference["rows"]
    assert abs(found["difference"]) < 5 * math.hypot(found["std_error"], found["mc_std_error"]) < 0.1


# Schedules of the learning rate, averages, clipping


@pytest.mark.slow
def test_a_run_with_a_schedule_an_average_and_clipping_resumes_to_the_same_bytes(place, script):
    flags = ["--lr_schedule", "OneCycleLR", "--lr_warmup", 0.5, "--average", 0.9, "--clip", 2]
    arguments = ["--data", "bits.npy", *TINY, "--epochs", 40, "--patience", "null", *flags]
    script("train", *arguments, "--out", "scheduled")
    config = yaml.safe_load((place / "scheduled/config.yaml").read_text())
    data = json.loads((place / "scheduled/manifest.json").read_text())["data"]
    assert config["lr_schedule"]["init_args"]["total_steps"] == 40 * math.ceil(data["num_train"] / 16)
    assert config["lr_schedule"]["init_args"]["max_lr"] == config["lr"]
    assert (config["lr_warmup"], config["average"], config["clip"]) == (0.5, 0.9, 2.0)
    rows = [json.loads(line) for line in lines(place / "scheduled/metrics.jsonl")]
    assert max(row["learning_rate"] for row in rows) == pytest.approx(config["lr"], rel=0.05)
    assert rows[-1]["learning_rate"] < 1e-3 * config["lr"]
    _interrupted(place, "scheduled-again", arguments)
    for name in ("weights.safetensors", "evaluation.csv"):
        assert (place / "scheduled-again" / name).read_bytes() == (place / "scheduled" / name).read_bytes()


def test_a_schedule_of_the_users_own_is_trained_by_its_import_path(place, script):
    (place / "ownschedule.py").write_text(
        "from torch.optim.lr_scheduler import LRScheduler\n"
        "class Halving(LRScheduler):\n"
        "    every_step = True\n"
        "    def __init__(self, optimizer, period: int):\n"
        "        self.period = period\n"
        "        super().__init__(optimizer)\n"
        "    def get_lr(self):\n"
        "        return [rate * 0.5 ** (self.last_epoch // self.period) for rate in self.base_lrs]\n"
    )
    own = ["--lr_schedule", "ownschedule.Halving", "--lr_schedule.period", 3]
    script("train", "--data", "bits.npy", *TINY, "--epochs", 2, *own, "--out", "own-schedule")
    rows = [json.loads(line) for line in lines(place / "own-schedule/metrics.jsonl")]
    data = json.loads((place / "own-schedule/manifest.json").read_text())["data"]
    last = 2 * math.ceil(data["num_train"] / 16) - 1
    assert rows[-1]["learning_rate"] == 1e-3 * 0.5 ** (last // 3)
    script("evaluate", "own-schedule", "--num_particles", 5, "--trust_imports", "ownschedule")
