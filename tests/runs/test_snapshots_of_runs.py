"""Snapshots of a training: the epochs that are kept, that training goes on unchanged, resuming, and damaged files."""

from argparse import Namespace
from itertools import pairwise
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from script_helpers import damage
from torch import nn

from pyrovae import fit
from pyrovae.data import Data
from pyrovae.runs import Snapshots, SnapshotWriter, read_snapshots
from pyrovae.runs.snapshots import kept_epochs, write_snapshots
from pyrovae.training import StoppedError
from pyrovae.training.svi import _call_apart


def test_kept_epochs_rise_to_the_last_in_geometric_steps():
    for epochs in range(1, 400):
        chosen = kept_epochs(epochs)
        assert chosen[:2] == (0, 1)
        assert chosen[-1] == epochs
        assert len(chosen) == min(10, epochs + 1)
        assert list(chosen) == sorted(set(chosen))
    exact = [10000 ** (k / 8) for k in range(9)]
    assert all(abs(found / value - 1) < 0.12 for found, value in zip(kept_epochs(10000)[1:], exact, strict=True))


class Counting(nn.Module):
    """A layer whose first run sets its scale from the data, and that counts its runs."""

    def __init__(self):
        super().__init__()
        self.linear, self.drop, self.runs = nn.Linear(3, 4), nn.Dropout(0.2), 0
        self.register_buffer("scale", torch.tensor(torch.nan))

    def forward(self, x):
        if self.scale.isnan():
            self.scale.copy_(x.std())
        self.runs += 1
        return self.drop(self.linear(x / self.scale))


def programs():
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    encoder, decoder = Counting(), nn.Linear(2, 3)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), pyro.param("scale", torch.ones(3))).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def parameters():
        return [*encoder.parameters(), *decoder.parameters()]

    return SimpleNamespace(model=model, guide=guide, parameters=parameters, encoder=encoder)


def dataset():
    x = torch.randn(70, 3, generator=torch.Generator().manual_seed(0))
    parts = {"train": x[:50], "validation": x[50:60], "test": x[60:]}
    index = {f"{name}_index": torch.arange(len(part)) for name, part in parts.items()}
    return Data("x", **parts, shape=(3,), binarize="none", sha256="0", **index)


def trained(folder=None, *, epochs=5, made=None, **options):
    made, data = made or programs(), dataset()
    if folder is not None:
        writer = SnapshotWriter(folder, Namespace(epochs=epochs, seed=3), data, made)
        options |= {"on_start": writer.start, "on_epoch": writer.after_epoch}
    settings = {"elbo": Trace_ELBO(), "epochs": epochs, "batch_size": 25, "validation": data.validation}
    history = fit(made.model, made.guide, data.train, **settings, **options)
    if folder is not None:
        writer.finish(history.best_epoch)
    store = pyro.get_param_store()
    return history, {name: store[name].detach().clone() for name in store}, made


@pytest.mark.filterwarnings("ignore::pyrovae.execution.NotRecordedWarning")
def test_training_with_snapshots_is_that_without(tmp_path):
    options = {"execution": "eager", "skip_support_check": True}
    history, values, made = trained(**options)
    again, with_snapshots, other = trained(tmp_path, **options)
    assert values.keys() == with_snapshots.keys()
    for name, value in values.items():
        torch.testing.assert_close(with_snapshots[name], value, rtol=0, atol=0)
    drop = "seconds"
    assert [{**row, drop: 0} for row in again.rows] == [{**row, drop: 0} for row in history.rows]
    assert (other.encoder.runs, other.encoder.scale) == (made.encoder.runs, made.encoder.scale)
    found = read_snapshots(tmp_path)
    assert list(found.by_epoch) == [0, 1, 2, 3, 4, 5]
    assert found.reason == ""
    assert len(found.by_epoch[0].mean) == 10
    means = [one.mean for one in found.by_epoch.values()]
    assert all(not torch.equal(a, b) for a, b in pairwise(means))


def test_a_resumed_training_has_the_snapshots_of_an_uninterrupted_one(tmp_path):
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    options = {"execution": "eager", "skip_support_check": True}
    trained(tmp_path / "straight", **options)
    committed, calls = [], iter(range(1000))
    stop = {"commit": committed.append, "should_stop": lambda: next(calls) == 6}
    made = programs()
    with pytest.raises(StoppedError, match="in epoch 4"):
        trained(tmp_path / "stopped", made=made, **options, **stop)
    found = read_snapshots(tmp_path / "stopped")
    assert list(found.by_epoch) == [0, 1, 2, 3]
    ahead = found._replace(by_epoch={**found.by_epoch, 4: found.by_epoch[0]})  # killed before the commit
    write_snapshots(tmp_path / "stopped", ahead)
    trained(tmp_path / "stopped", made=made, resume=committed[-1], **options)
    assert list(read_snapshots(tmp_path / "stopped").by_epoch) == [0, 1, 2, 3, 4, 5]
    a, b = ((tmp_path / name / "epochs.safetensors").read_bytes() for name in ("straight", "stopped"))
    assert a == b


def test_the_epoch_that_is_kept_in_the_end_joins_if_it_is_none_of_the_others(tmp_path):
    writer = SnapshotWriter(tmp_path, Namespace(epochs=100, seed=0), dataset(), programs())
    writer.start()
    for epoch in range(1, 20):
        writer.after_epoch({"epoch": epoch})
    writer.finish(7)
    assert list(read_snapshots(tmp_path).by_epoch) == sorted({*kept_epochs(100)[:7], 7})
    assert kept_epochs(100)[6] < 20 < kept_epochs(100)[7]
    writer.start()  # again from the beginning
    assert list(read_snapshots(tmp_path).by_epoch) == [0]


def test_programs_without_codes_keep_one_reason_and_train_on(tmp_path):
    made, calls = programs(), []

    def guide(x):
        calls.append(1)
        if len(x) == 10 and not torch.is_grad_enabled():
            raise RuntimeError("no such\ndata")
        return made.guide(x)

    broken = SimpleNamespace(model=made.model, guide=guide, parameters=made.parameters)
    writer = SnapshotWriter(tmp_path, Namespace(epochs=3, seed=0), dataset(), broken)
    writer.start()
    count = len(calls)
    writer.after_epoch({"epoch": 1})
    writer.finish(1)
    assert len(calls) == count  # not tried again
    found = read_snapshots(tmp_path)
    assert found.by_epoch == {}
    assert "no such" in found.reason
    assert "\n" not in found.reason


def test_rank_0_alone_calls_the_functions_of_the_user():
    _call_apart(SimpleNamespace(workers=SimpleNamespace(rank=1)), pytest.fail)


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    folder = tmp_path_factory.mktemp("some")
    writer = SnapshotWriter(folder, Namespace(epochs=2, seed=0), dataset(), programs())
    writer.start()
    writer.after_epoch({"epoch": 1})
    return folder


def test_what_is_written_is_read_and_the_prior_stands_once(some):
    found = read_snapshots(some)
    assert torch.equal(found.by_epoch[0].prior, found.by_epoch[1].prior)
    assert found.by_epoch[0].prior.shape == (1000, 2)
    assert (some / "epochs.safetensors").stat().st_size < 1.7 * 1000 * 2 * 4


@pytest.mark.parametrize("how", ["flip", "cut", "folder", "missing", "text"])
def test_a_file_that_cannot_be_read_is_a_sentence(some, tmp_path, how):
    path = tmp_path / "epochs.safetensors"
    if how == "folder":
        path.mkdir()
    elif how != "missing":
        path.write_bytes(b"no safetensors" if how == "text" else (some / path.name).read_bytes())
        damage(path, how)
    found = read_snapshots(tmp_path)
    assert isinstance(found, str)
    assert "epochs.safetensors" in found


@pytest.mark.parametrize(
    "change",
    [
        {"rows": torch.tensor([3, 3])},
        {"rows": torch.tensor([0.5, 1.0])},
        {"mean": torch.zeros(4, 3)},
        {"mean": torch.full((10, 2), torch.nan)},
        {"draw": torch.zeros(10)},
        {"prior": torch.zeros(0, 2)},
        {"samples": torch.zeros(6, 4)},
        {"mean": torch.zeros(10, 2).double()},
    ],
)
def test_tensors_that_do_not_fit_are_refused(some, tmp_path, change):
    found = read_snapshots(some)
    write_snapshots(tmp_path, found)
    assert isinstance(read_snapshots(tmp_path), Snapshots)
    if "rows" in change:
        found = found._replace(**change)
    else:
        found.by_epoch[1] = found.by_epoch[1]._replace(**change)
    write_snapshots(tmp_path, found)
    assert "expected structure" in read_snapshots(tmp_path)
