"""MNIST's files: damaged, missing, downloaded from a local mirror; no network."""

import functools
import gc
import gzip
import hashlib
import socket
import struct
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import torchvision
from data_helpers import message, mnist_bytes, parts, write_fake_mnist

from pyrovae.data import load_data
from pyrovae.data.sources import MNIST_FILES


@pytest.mark.parametrize("file", MNIST_FILES)
@pytest.mark.parametrize("damage", ["empty", "header", "truncated", "longer", "garbage"])
def test_damaged_mnist_file_is_named(file, damage, tmp_path):
    raw = write_fake_mnist(tmp_path, 24, 10)
    content = (raw / file).read_bytes()
    damaged = {
        "empty": b"",
        "header": content[:6],
        "truncated": content[:-3],
        "longer": content + b"\0\0",
        "garbage": b"\x1f\x8b" + content[2:],
    }[damage]
    (raw / file).write_bytes(damaged)
    text = message(ValueError, "mnist", data_dir=tmp_path)
    assert str(raw / file) in text
    assert "corrupted, truncated" in text
    assert "delete it" in text


def test_mnist_files_of_different_sizes_are_rejected(tmp_path):
    raw = write_fake_mnist(tmp_path, 24, 10)
    labels = "t10k-labels-idx1-ubyte"
    (raw / labels).write_bytes(mnist_bytes(24, 9)[labels])
    assert "10 and 9" in message(ValueError, "mnist", data_dir=tmp_path)
    write_fake_mnist(tmp_path, 24, 10)
    images = "t10k-images-idx3-ubyte"
    (raw / images).write_bytes(mnist_bytes(24, 10, size=14)[images])
    assert "(28, 28), test images (14, 14)" in message(ValueError, "mnist", data_dir=tmp_path)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Mirrors here are local: whatever proxy the machine has is not for them."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [])


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder of four packed files that torchvision's own downloader takes for its mirror."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    resources = []
    for file, content in mnist_bytes(24, 10).items():
        packed = gzip.compress(content, mtime=0)
        (folder / f"{file}.gz").write_bytes(packed)
        resources.append((f"{file}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    handler = functools.partial(QuietHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [url])
        yield folder
        server.shutdown()
        thread.join()


def test_a_download_brings_the_four_files_and_no_others(mirror, tmp_path):
    root = tmp_path / "new" / "data"
    data = load_data("mnist", data_dir=root)
    assert [len(x) for x in parts(data)] == [22, 2, 10]
    assert sorted(p.name for p in root.rglob("*") if p.is_file()) == sorted(MNIST_FILES)
    assert [p.name for p in root.iterdir()] == ["MNIST"]


def test_a_download_adds_what_is_missing_and_overwrites_nothing(mirror, tmp_path):
    raw = write_fake_mnist(tmp_path / "data", 24, 10)
    kept = raw / "train-labels-idx1-ubyte"
    kept.write_bytes(struct.pack(">2i", 2049, 24) + bytes(range(24)))
    (raw / "t10k-images-idx3-ubyte").unlink()
    data = load_data("mnist", data_dir=tmp_path / "data")
    assert torch.equal(data.labels["train"], data.train_index)
    assert len(data.test) == 10


def fail_download(text, tmp_path, reason):
    assert all(file in text for file in MNIST_FILES)
    assert [w for w in (str(tmp_path / "data"), "--data_dir", reason) if w not in text] == []
    assert not (tmp_path / "data").exists()


def test_download_from_an_unreachable_mirror_fails_with_one_line(tmp_path, monkeypatch, capfd):
    with socket.socket() as unused:  # bound and not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [url])
        text = message(FileNotFoundError, "mnist", data_dir=tmp_path / "data")
    fail_download(text, tmp_path, "refused")
    assert capfd.readouterr() == ("", "")


def test_download_times_out_if_the_mirror_never_answers(tmp_path, monkeypatch):
    monkeypatch.setattr("pyrovae.data.sources._TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [url])
        text = message(FileNotFoundError, "mnist", data_dir=tmp_path / "data")
    fail_download(text, tmp_path, "timed out")
    assert socket.getdefaulttimeout() is None


def test_a_download_that_breaks_off_leaves_no_file(mirror, tmp_path):
    file = mirror / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-10])
    text = message(FileNotFoundError, "mnist", data_dir=tmp_path / "data")
    fail_download(text, tmp_path, "corrupted")


# torchvision keeps urllib's HTTPError, whose socket is open, in a cycle: collected here, not later
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_download_fails_if_the_mirror_lacks_the_file(mirror, tmp_path):
    (mirror / "t10k-labels-idx1-ubyte.gz").unlink()
    text = message(FileNotFoundError, "mnist", data_dir=tmp_path / "data")
    gc.collect()
    fail_download(text, tmp_path, "404")


def test_a_download_on_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def download(self):
        (tmp_path / "data" / "MNIST").mkdir(exist_ok=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    text = message(FileNotFoundError, "mnist", data_dir=tmp_path / "data")
    fail_download(text, tmp_path, "No space left")


def test_an_interrupted_download_leaves_no_file(tmp_path, monkeypatch):
    def download(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    with pytest.raises(KeyboardInterrupt):
        load_data("mnist", data_dir=tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_download_fails_if_data_dir_is_a_file(tmp_path, mirror):
    (tmp_path / "file").write_text("")
    text = message(FileNotFoundError, "mnist", data_dir=tmp_path / "file")
    assert "--data_dir" in text
    assert (tmp_path / "file").is_file()
