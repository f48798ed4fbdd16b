"""Data on disk: the same as in memory, whatever asks for them, and read ahead."""

import threading
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from script_helpers import TINY, call
from small_programs import make_vae
from torch import nn

from pyrovae import (
    VAE,
    BernoulliLikelihood,
    NormalEncoder,
    StandardNormalPrior,
    Streamed,
    fit,
    log_marginal,
)
from pyrovae.data import Binarize, load_data
from pyrovae.densities import prepared
from pyrovae.training import StoppedError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "bits.npy"
    np.save(path, np.random.default_rng(0).integers(0, 2, (90, 2, 3)).astype(np.uint8))
    return path


def test_streamed_is_indexed_as_the_tensor_it_replaces(file):
    array = np.load(file, mmap_mode="r")
    order = torch.randperm(90)[:70]
    tensor = torch.as_tensor(np.array(array)).reshape(90, -1)[order].float()
    x = Streamed(array, order)
    assert x.shape == tensor.shape
    for which in (slice(0, 5), slice(60, 100), torch.tensor([3, 3, 69, 0]), torch.tensor([], dtype=torch.long)):
        assert torch.equal(x[which], tensor[which])
        assert x[which].dtype == torch.float32
    for ours, theirs in zip(x.split(32), tensor.split(32), strict=True):
        assert torch.equal(ours, theirs)
    assert x.to("cpu").device == torch.device("cpu")


@pytest.mark.parametrize("execution", ["eager", "recorded"])
@pytest.mark.parametrize("transform", [None, Binarize()])
@pytest.mark.thin(1)
def test_streamed_data_train_and_score_as_in_memory(file, execution, transform):
    array = np.load(file, mmap_mode="r")
    tensor = torch.as_tensor(np.array(array)).reshape(90, -1).float()
    ends = []
    for x in (tensor, Streamed(array)):
        pyro.clear_param_store()
        vae = make_vae()
        pyro.set_rng_seed(1)
        history = fit(
            vae.model,
            vae.guide,
            x,
            elbo=TraceMeanField_ELBO(),
            epochs=3,
            batch_size=20,
            validation=x,
            transform=transform,
            execution=execution,
        )
        pyro.set_rng_seed(2)
        log_p = log_marginal(vae.model, vae.guide, x, num_particles=30).value
        ends.append((history["validation_elbo"], vae.state_dict(), log_p))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(value, ends[1][1][name]) for name, value in ends[0][1].items())
    assert torch.equal(ends[0][2], ends[1][2])


def test_a_streamed_run_stopped_within_an_epoch_resumes_to_the_same_weights(file):
    x, states, ends = Streamed(np.load(file, mmap_mode="r")), [], []
    settings = {"elbo": TraceMeanField_ELBO(), "epochs": 2, "batch_size": 20}
    for stopped in (False, True):
        pyro.clear_param_store()
        vae = make_vae()
        pyro.set_rng_seed(1)
        if stopped:
            stops = {"commit": states.append, "should_stop": partial(next, iter((False, True)))}
            with pytest.raises(StoppedError, match="after step 2 of 5"):
                fit(vae.model, vae.guide, x, **settings, **stops)
        fit(vae.model, vae.guide, x, **settings, resume=states[-1] if states else None)
        ends.append(vae.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_prepared_makes_the_next_batch_while_one_is_in_use():
    made, main = {}, threading.get_ident()
    started = threading.Event()

    def make(index):
        assert threading.get_ident() != main
        made[index] = True
        if index == 3:
            started.set()
        return index

    seen = []
    for index in prepared(make, 1, 5):
        if index == 2:
            assert started.wait(60)  # the third is made although nobody has asked for it
            assert 4 not in made
        seen.append(index)
    assert seen == [1, 2, 3, 4]
    assert list(prepared(make, 2, 2)) == []


def test_fit_reads_the_next_batch_in_another_thread(tmp_path, monkeypatch):
    np.save(tmp_path / "bits.npy", np.random.default_rng(0).integers(0, 2, (40, 6)).astype(np.float32))
    threads, read = set(), Streamed.__getitem__

    def noted(self, index):
        threads.add(threading.current_thread().name.partition("_")[0])
        return read(self, index)

    x = Streamed(np.load(tmp_path / "bits.npy", mmap_mode="r"))
    vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(nn.Linear(2, 6)), NormalEncoder(nn.Linear(6, 4)))
    monkeypatch.setattr(Streamed, "__getitem__", noted)
    fit(vae.model, vae.guide, x, elbo=TraceMeanField_ELBO(), epochs=1, batch_size=10, skip_support_check=True)
    assert "next batch" in threads


def test_an_error_of_the_reading_thread_stops_the_loop():
    def make(index):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(prepared(make, 0, 3))


@pytest.mark.parametrize("binarize", ["none", "dynamic"])
def test_streamed_splits_equal_those_in_memory(tmp_path, monkeypatch, binarize):
    path = tmp_path / "grey.npy"
    np.save(path, np.random.default_rng(0).random((100, 2, 3)).round(3 if binarize == "dynamic" else 0))
    monkeypatch.setattr("pyrovae.data.load._CHUNK", 7)
    monkeypatch.setattr("pyrovae.data.binarize._CHUNK", 7)
    monkeypatch.setattr("pyrovae.data.sources._CHUNK", 7)
    memory, disk = (load_data(path, binarize=binarize, stream=stream) for stream in (False, True))
    assert isinstance(disk.train, Streamed)
    assert isinstance(disk.train.array, np.memmap)
    assert torch.equal(memory.train, disk.train[:])
    assert torch.equal(memory.examples, disk.examples)
    for name in ("validation", "test", "train_index", "test_index"):
        assert torch.equal(getattr(memory, name), getattr(disk, name))
    assert memory.sha256 == disk.sha256
    assert memory.maximum == disk.maximum


def test_load_data_checks_every_chunk_of_a_streamed_file(tmp_path, monkeypatch):
    grey = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", grey)
    whole = load_data(tmp_path / "x.npy").sha256
    monkeypatch.setattr("pyrovae.data.load._CHUNK", 7)
    monkeypatch.setattr("pyrovae.data.binarize._CHUNK", 7)
    monkeypatch.setattr("pyrovae.data.sources._CHUNK", 7)
    assert load_data(tmp_path / "x.npy", stream=True).sha256 == whole
    for row in (0, 20, 39):
        other = grey.copy()
        other[row, 1] = 0.5
        np.save(tmp_path / "x.npy", other)
        assert load_data(tmp_path / "x.npy", stream=True).sha256 != whole
        other[row:, 1] = np.nan
        np.save(tmp_path / "x.npy", other)
        with pytest.raises(ValueError, match=rf"has {40 - row} values that are NaN.* first in row {row}, column 1"):
            load_data(tmp_path / "x.npy", stream=True)


def test_run_on_streamed_data_equals_the_run_in_memory(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, stream in (("memory", "false"), ("disk", "true")):
        flags = ["--data", "bits.npy", *TINY, "--epochs", "2", "--stream", stream, "--out", name]
        code, err = call(capsys, monkeypatch, "train", *flags)
        assert code == 0, err
    memory, disk = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("memory", "disk"))
    assert memory == disk
    assert (tmp_path / "memory/evaluation.csv").read_bytes() == (tmp_path / "disk/evaluation.csv").read_bytes()
    code, err = call(capsys, monkeypatch, "evaluate", "disk", "--split", "train", "--num_particles", "20")
    assert code == 0, err


def test_streaming_rejects_invalid_data(tmp_path, file):
    np.savez(tmp_path / "x.npz", np.zeros((20, 2)))
    with pytest.raises(ValueError, match=r"--stream needs a PATH.npy, got .*x.npz; save the array with numpy.save"):
        load_data(tmp_path / "x.npz", stream=True)
    with pytest.raises(ValueError, match="--stream needs --binarize dynamic or none"):
        load_data(file, binarize="static", stream=True)
    with pytest.raises(
        ValueError, match=r"data must have shape \(N, ...\) .* got an array of shape \(5,\); reshape it"
    ):
        Streamed(np.zeros(5))
    with pytest.raises(ValueError, match=r"rows must lie in 0..4"):
        Streamed(np.zeros((5, 2)), torch.tensor([5]))
    vae = make_vae()
    with pytest.raises(ValueError, match=r"got a memory-mapped array; give Streamed\(x\)"):
        fit(vae.model, vae.guide, np.load(file, mmap_mode="r"), elbo=TraceMeanField_ELBO(), epochs=1)
