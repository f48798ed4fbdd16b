"""Small files in MNIST's format, and the ways the tests of data look at them."""

import struct

import numpy as np
import pytest

from pyrovae.data import load_data

SPLITS = ("train", "validation", "test")


def mnist_bytes(n_train, n_test, size=28, seed=0):
    """Contents of the four idx files, by name: random bytes, and labels 0..9 in turn."""
    rng = np.random.default_rng(seed)
    contents = {}
    for part, n in (("train", n_train), ("t10k", n_test)):
        images = rng.integers(0, 256, (n, size, size), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        contents[f"{part}-images-idx3-ubyte"] = struct.pack(">4i", 2051, n, size, size) + images.tobytes()
        contents[f"{part}-labels-idx1-ubyte"] = struct.pack(">2i", 2049, n) + labels.tobytes()
    return contents


def write_fake_mnist(root, n_train, n_test, size=28):
    """Write small files in MNIST's format to root/MNIST/raw and return that folder."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for file, content in mnist_bytes(n_train, n_test, size).items():
        (raw / file).write_bytes(content)
    return raw


def message(error, name, **kwargs):
    """The message of the error that load_data must raise, checked to be one line."""
    with pytest.raises(error) as caught:
        load_data(name, **kwargs)
    assert caught.type is error
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def save(path, array, **kwargs):
    np.save(path, array, **kwargs)
    return str(path)


def parts(data):
    return [getattr(data, split) for split in SPLITS]


def indices(data):
    return [getattr(data, f"{split}_index") for split in SPLITS]
