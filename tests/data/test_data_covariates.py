"""Covariates of a data set: labels, classes, real numbers; aligned with the data; and what is refused."""

import re

import numpy as np
import pytest
import torch
from data_helpers import SPLITS, indices, message, parts, save, write_fake_mnist

from pyrovae.data import load_data

N = 50


@pytest.fixture
def own(tmp_path):
    """An array whose rows hold their own number, as a file."""
    return save(tmp_path / "own.npy", np.repeat(np.arange(N, dtype=float)[:, None], 3, axis=1))


def covariates(data):
    return [data.covariates[split] for split in SPLITS]


def test_labels_of_digits_are_one_hot():
    data = load_data("digits", covariates="labels", split_seed=3)
    for split, c in zip(SPLITS, covariates(data), strict=True):
        assert c.dtype == torch.float32
        assert torch.equal(c, torch.eye(10)[data.labels[split]])
    plain = load_data("digits", split_seed=3)
    assert all(torch.equal(a, b) for a, b in zip(parts(data), parts(plain), strict=True))
    assert (data.num_covariates, plain.num_covariates, plain.covariates) == (10, 0, None)
    assert plain.conditions("test") == {}
    assert data.conditions("test").keys() == {"covariates"}
    assert torch.equal(data.conditions("test")["covariates"], data.covariates["test"])


def test_labels_of_mnist_come_from_the_file_of_their_images(tmp_path):
    write_fake_mnist(tmp_path, 120, 20)
    data = load_data("mnist", data_dir=tmp_path, covariates="labels")
    for c, rows in zip(covariates(data), indices(data), strict=True):
        assert torch.equal(c, torch.eye(10)[rows % 10])  # labels 0..9 in turn in either file


@pytest.mark.parametrize("seed", [0, 1])
def test_covariates_stay_with_their_data(own, tmp_path, seed):
    numbers = save(tmp_path / "numbers.npy", np.arange(N, dtype=float))
    data = load_data(own, covariates=numbers, split_seed=seed)
    assert sum(map(len, covariates(data))) == N
    for x, c, rows in zip(parts(data), covariates(data), indices(data), strict=True):
        assert torch.equal(c, x[:, :1])
        assert torch.equal(c[:, 0].long(), rows)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.arange(N) % 4, torch.eye(4)[torch.arange(N) % 4]),
        (np.arange(N) % 2 == 0, torch.eye(2)[(torch.arange(N) % 2 == 0).long()]),
        ((np.arange(N) % 4).astype(np.uint8), torch.eye(4)[torch.arange(N) % 4]),
        (np.arange(N) / 7, torch.arange(N)[:, None] / 7),
        ((np.arange(N) % 4)[:, None], (torch.arange(N) % 4)[:, None].float()),
        (np.arange(6.0 * N).reshape(N, 2, 3), torch.arange(6.0 * N).reshape(N, 6)),
    ],
    ids=["classes", "booleans", "bytes", "reals", "a column of integers", "several dimensions"],
)
def test_integer_covariates_become_one_hot_and_others_are_unchanged(own, tmp_path, array, expected):
    for given in (save(tmp_path / "c.npy", array), _npz(tmp_path, array)):
        data = load_data(own, covariates=given)
        found = torch.cat(covariates(data))[torch.cat(indices(data)).argsort()]
        torch.testing.assert_close(found, expected)


def _npz(folder, array):
    np.savez(folder / "c.npz", c=array, other=np.zeros(3))
    return f"{folder / 'c.npz'}:c"


def test_the_digest_of_the_data_includes_the_covariates(own, tmp_path):
    classes = np.arange(N) % 4
    digests = [load_data(own).sha256, load_data(own, covariates=save(tmp_path / "a.npy", classes)).sha256]
    classes[7] = 0
    digests.append(load_data(own, covariates=save(tmp_path / "b.npy", classes)).sha256)
    assert len(set(digests)) == 3
    assert load_data(own, covariates=str(tmp_path / "b.npy"), split_seed=5).sha256 == digests[2]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((N - 1, 2)), f"must have {N} rows for .*own.npy, got {N - 1}; give one row per datum"),
        (np.arange(N) - 1, "got -1 to 48; number the classes from 0, or give real numbers"),
        (np.arange(N) * 40, "classes 0 to 999, got 0 to 1960"),
        (np.full(N, np.nan), "NaN"),
        (np.array(["a"] * N), "must hold booleans, integers or real numbers"),
        (np.array(3.0), "shape"),
    ],
)
def test_load_data_rejects_invalid_covariates(own, tmp_path, array, expected):
    text = message(ValueError, own, covariates=save(tmp_path / "c.npy", array))
    assert re.search(expected, text), text


def test_load_data_rejects_unknown_names_of_covariates(own, tmp_path):
    assert "--covariates labels: " in message(ValueError, own, covariates="labels")
    assert "did you mean labels" in message(ValueError, "digits", covariates="label")
    missing = message(FileNotFoundError, "digits", covariates=str(tmp_path / "none.npy"))
    assert "check the path given to --covariates" in missing
    np.savez(tmp_path / "c.npz", c=np.zeros(N))
    assert "c" in message(ValueError, own, covariates=f"{tmp_path / 'c.npz'}:d")
