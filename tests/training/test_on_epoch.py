"""The function that `fit` calls after each epoch: its numbers, the weights it sees, and that training is unchanged."""

import sys
import types
from itertools import takewhile
from pathlib import Path

import pyro
import pytest
import torch
from oracles import LinearGaussian
from pyro.infer import Trace_ELBO

from pyrovae import encode, fit

GUIDE = Path(__file__).parents[2] / "pyrovae" / "guide" / "training.md"


def problem(seed=0):
    oracle = LinearGaussian(data_dim=3, latent_dim=1, seed=1)
    pyro.set_rng_seed(seed)
    vae = oracle.vae(sd_factor=1.0)
    return vae, oracle.data(40)


def trained(**options):
    vae, x = problem()
    options = {"elbo": Trace_ELBO(), "epochs": 3, "batch_size": 20, "validation": x[:10]} | options
    history = fit(vae.model, vae.guide, x, **options)
    return vae, x, history


def test_it_gets_the_rows_of_the_history_one_by_one():
    seen = []
    _, _, history = trained(on_epoch=seen.append)
    assert seen == history.rows
    assert [row["epoch"] for row in seen] == [1, 2, 3]
    seen[0]["epoch"] = 9  # a copy
    assert history["epoch"] == [1, 2, 3]


def test_its_draws_and_modes_leave_training_alone():
    plain, _, _ = trained()
    vae, x = problem()
    codes = []

    def look(row):
        vae.eval()
        torch.rand(7)
        codes.append(encode(vae.model, vae.guide, x).mean["z"])

    options = {"elbo": Trace_ELBO(), "epochs": 3, "batch_size": 20, "validation": x[:10]}
    fit(vae.model, vae.guide, x, **options, on_epoch=look)
    assert len(codes) == 3
    assert vae.model.likelihood.training
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(vae.state_dict()[name], value, rtol=0, atol=0)


def test_it_sees_the_averaged_weights_that_were_validated():
    vae, x = problem()
    seen = []

    def look(row):
        seen.append((row["validation_elbo"], vae.model.likelihood.network.weight.detach().clone()))

    history = fit(
        vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=3, batch_size=20, validation=x, average=0.9, on_epoch=look
    )
    torch.testing.assert_close(vae.model.likelihood.network.weight, seen[history.best_epoch - 1][1], rtol=0, atol=0)


def test_an_epoch_whose_function_fails_is_not_committed():
    committed = []

    def fail(row):
        if row["epoch"] == 2:
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        trained(on_epoch=fail, commit=lambda state: committed.append(state["epoch"]))
    assert committed == [1]


def test_the_start_is_told_once_with_the_initial_weights_and_not_when_resumed():
    vae, x = problem()
    initial, calls, committed = vae.model.likelihood.network.weight.detach().clone(), [], []

    def look():
        torch.rand(7)
        vae.eval()
        calls.append(vae.model.likelihood.network.weight.detach().clone())

    options = {"elbo": Trace_ELBO(), "epochs": 3, "batch_size": 20, "validation": x[:10]}
    history = fit(vae.model, vae.guide, x, **options, on_start=look, commit=committed.append)
    plain, _, without = trained()
    assert history["train_elbo"] == without["train_elbo"]
    assert vae.model.likelihood.training
    torch.testing.assert_close(
        vae.model.likelihood.network.weight, plain.model.likelihood.network.weight, rtol=0, atol=0
    )
    (first,) = calls
    assert torch.equal(first, initial)
    fit(vae.model, vae.guide, x, **options, on_start=look, resume=committed[0])
    assert len(calls) == 1


class Writer:
    """Stand-in for TensorBoard's SummaryWriter, if it is not installed."""

    def __init__(self, folder):
        self.scalars = []
        Writer.last = self

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, float(value), step))

    def close(self):
        self.closed = True


def test_the_example_for_tensorboard_in_the_guide_runs(monkeypatch, tmp_path):
    lines = GUIDE.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.endswith("import SummaryWriter"))
    code = [line.removeprefix("    ") for line in takewhile(lambda line: line.startswith("    "), lines[first:])]
    assert len(code) == 8
    monkeypatch.chdir(tmp_path)
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        fake = types.ModuleType("torch.utils.tensorboard")
        fake.SummaryWriter = Writer
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    vae, x = problem()
    names = {"vae": vae, "x": x, "held_out": x[:10], "fit": fit, "Trace_ELBO": Trace_ELBO}
    exec("\n".join(code), names)
    if "fake" in locals():
        assert Writer.last.closed
        steps = [step for tag, _, step in Writer.last.scalars if tag == "validation_elbo"]
        assert steps == list(range(1, len(steps) + 1))
        assert all(isinstance(value, float) for _, value, _ in Writer.last.scalars)
    else:
        assert list(tmp_path.rglob("events.out.tfevents.*"))
