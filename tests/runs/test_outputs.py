"""What scripts print, and where: progress, closed pipes, names, early checks, interruptions, limits of memory."""

import fcntl
import gc
import hashlib
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.image import AxesImage
from script_helpers import SCRIPTS, TINY, Script, assert_refused, call, lines, run

from pyrovae.data import sources
from pyrovae.runs import Run, report
from pyrovae.runs.readers import sealed

BITS = ["--data", "bits.npy", *TINY]
ALL = [path for path in sorted(SCRIPTS.rglob("*.py")) if "run_script(main)" in path.read_text()]


def test_a_log_has_one_line_per_epoch_and_no_bar(place):
    err = run("train", *BITS, "--epochs", 3, "--out", "logged", cwd=place).stderr
    epochs = [f"epoch {epoch} of 3: ELBO train -" for epoch in (1, 2, 3)]
    assert "\r" not in err
    *first, last = err.splitlines()
    assert len(first) == 3
    assert all(line.startswith(start) for line, start in zip(first, epochs, strict=True))
    assert last == "log p(x): 12 of 12 data"
    assert run("evaluate", "logged", "--num_particles", 5, cwd=place).stderr == "log p(x): 12 of 12 data\n"


def test_a_terminal_has_a_bar_and_no_lines(place, straight):
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = Script("train", [*BITS, "--epochs", 3, "--out", "shown"], cwd=place, err=Path(os.ttyname(terminal)))
    os.set_blocking(reader, False)
    shown = b""
    while process.poll() is None:
        try:
            shown += os.read(reader, 10_000)
        except BlockingIOError:
            time.sleep(0.01)
    os.close(reader)
    os.close(terminal)
    assert process.returncode == 0
    assert b"\r" in shown
    assert b"step/s" in shown
    assert b"epoch 1 of 3" not in shown


@pytest.mark.slow
def test_a_study_writes_a_line_per_run_to_a_log(place):
    arguments = ["betas", "--out", "betas", "--betas", "[1,2]", "--num_particles", 5]
    err = run(*arguments, "--", *BITS[:-2], "--data", place / "bits.npy", "--epochs", 1, cwd=place).stderr
    assert err.splitlines() == ["training: 1 of 2 runs", "training: 2 of 2 runs"]


def test_a_pipe_that_is_closed_at_the_start_ends_a_training_without_a_word_or_a_folder(place):
    for name in ("out", "err"):
        process = Script("train", [*BITS, "--epochs", 2, "--out", "deep/closed"], cwd=place, closed=[name])
        assert process.wait(60) == 141
        assert name == "err" or process.stderr == ""
        assert not (place / "deep").exists()


def test_a_pipe_that_is_closed_after_the_first_line_ends_a_finished_training_without_a_word(place):
    pipe = place / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    process = Script("train", [*BITS, "--epochs", 2, "--out", "piped"], cwd=place, out=pipe)
    first = b""
    while not first and process.poll() is None:
        try:
            first = os.read(reader, 1000)
        except BlockingIOError:
            time.sleep(0.001)
    os.close(reader)
    assert first.decode() == "piped: 96 training data, cpu\n"
    assert process.wait(60) == 141
    assert [line.partition(":")[0] for line in process.stderr.splitlines()] == [
        "epoch 1 of 2",
        "epoch 2 of 2",
        "log p(x)",
    ]
    assert '"finished"' in (place / "piped/manifest.json").read_text()


@pytest.mark.parametrize(
    "arguments", [("compare", "straight", "other"), ("train", "--help"), ("sample", "straight"), ("evaluate", "nosuch")]
)
def test_a_closed_pipe_ends_every_script_without_a_traceback(place, straight, arguments):
    if not (place / "other").exists():
        (place / "other").symlink_to(straight)
        (place / "other").rename(place / "other")
    process = Script(arguments[0], arguments[1:], cwd=place, closed=["out"])
    code = process.wait(60)
    if arguments[0] in ("compare", "evaluate"):  # an error that it says: the same run twice, or no run
        assert code == 1
        assert len(process.stderr.splitlines()) == 1
    else:
        assert code == (0 if "--help" in arguments else 141)
        assert process.stderr == ""


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("train", ["--out", "bad\udcff"]),
        ("train", ["--data", "bad\udcff.npy"]),
        ("evaluate", ["bad\udcff"]),
        ("compare", ["straight", "other", "--figure=bad\udcff.png"]),
        ("betas", ["--out", "bad\udcff"]),
    ],
)
def test_a_name_that_is_no_utf_8_is_refused_at_the_start(place, capsys, monkeypatch, script, arguments):
    monkeypatch.chdir(place)
    code, err = call(capsys, monkeypatch, script, *arguments)
    assert_refused(script, code, err, "is no valid UTF-8; give a name in UTF-8")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train --out taken --data nosuch.npy", "--out taken already exists and is not an empty folder"),
        ("train --out bits.npy/x --data nosuch.npy", "--out bits.npy/x cannot be written (a file has the name of a"),
        ("train --out shut/run --data nosuch.npy", "--out shut/run cannot be written (shut is not writable)"),
        ("betas --out bits.npy", "--out bits.npy cannot be written (a file has the name of a folder)"),
        ("bounds --out bits.npy", "--out bits.npy cannot be written (a file has the name of a folder)"),
        ("swap --out bits.npy", "--out bits.npy cannot be written (a file has the name of a folder)"),
        ("gradients --out nosuch/new.png", "--out nosuch/new.png: no such folder nosuch"),
        ("estimators nosuch --out taken", "--out taken is a folder"),
        ("compare nosuch other --figure taken", "--figure taken is a folder"),
    ],
)
def test_an_output_is_looked_at_before_any_work(place, capsys, monkeypatch, command, words):
    monkeypatch.chdir(place)
    (place / "taken").mkdir(exist_ok=True)
    (place / "taken/file").touch()
    (place / "shut").mkdir(exist_ok=True)
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, *how: Path(path).name != "shut" and writable(path, *how))
    code, err = call(capsys, monkeypatch, *command.split())
    assert_refused(command.split()[0], code, err, words)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("script", ALL, ids=lambda path: path.stem)
def test_ctrl_c_during_the_imports_ends_a_script_without_a_traceback(script, tmp_path):
    """The first import of a library interrupts the process, as Ctrl-C does."""
    for name in ("jsonargparse", "matplotlib", "numpy", "pyro", "pyrovae", "scipy", "torch", "tqdm"):
        (tmp_path / f"{name}.py").write_text(
            "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)"
        )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (130, "")


def test_a_library_that_cannot_be_imported_gives_one_line(tmp_path):
    for name in ("jsonargparse", "pyro", "torch"):
        (tmp_path / f"{name}.py").write_text('raise ImportError("lib.so: failed to map segment")')
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, SCRIPTS / "train.py"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert_refused("train", result.returncode, result.stderr, "a library cannot be imported: lib.so: failed to map")
    assert len(result.stderr.splitlines()) == 1


def test_many_samples_go_to_several_figures_in_pieces(place, straight):
    def pages(kind):
        return sorted(path.name for path in straight.glob(f"{kind}*.png"))

    result = run("sample", straight, "--num_samples", 1010, cwd=place)
    assert pages("samples") == ["samples-2.png", "samples.png"]
    assert pages("reconstructions") == ["reconstructions.png"]
    assert result.stdout.splitlines()[-1] == f"more figures for the rest, 1: {straight}/samples-2.png and so on"
    assert result.stderr.splitlines()[-1] == "3 of 3 figures"
    assert (straight / "samples.png").read_bytes() != (straight / "samples-2.png").read_bytes()
    run("sample", straight, "--num_samples", 10, cwd=place)
    assert pages("samples") == ["samples.png"]


def test_a_figure_of_samples_is_released_before_the_next_one(straight, monkeypatch):
    """Figures have reference cycles, and the garbage collector may come to them only after many."""
    run = Run(straight)
    config = run.config()
    vae, data = run.vae(config), run.data(config)
    monkeypatch.setattr(report, "num_per_figure", lambda shape: 8)
    gc.collect()
    gc.disable()
    try:
        assert len(report.write_sample_figures(run, vae, data, size=24, seed=0)) > 3
        large = [kept for kept in gc.get_objects() if type(kept) in (RendererAgg, AxesImage)]
    finally:
        gc.enable()
    assert not large


@pytest.mark.slow
def test_ten_times_the_samples_need_no_more_memory(place, straight):
    process = Script("sample", [straight, "--num_samples", 10_000], cwd=place)
    resident = {}
    while process.poll(0.1) is None:
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        resident.setdefault(len(list(straight.glob("samples*.png"))), []).append(pages * 4096 / 2**20)
    assert process.returncode == 0
    assert len(list(straight.glob("samples*.png"))) == 10
    assert max(resident[10]) < max(resident[2]) + 60


@pytest.mark.parametrize("memory", [0, 20])
@pytest.mark.parametrize(
    "arguments",
    [
        ("train", *BITS, "--epochs", 1, "--out", "none", "--network.hidden", "[4000,4000]"),
        ("evaluate", "straight", "--num_particles", 500_000, "--chunk_size", 10_000_000),
        ("sample", "straight", "--num_samples", 1000),
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.thin(3)
def test_a_limit_of_memory_gives_one_line(place, straight, arguments, memory):
    process = Script(arguments[0], arguments[1:], cwd=place, memory=memory)
    assert_refused(arguments[0], process.wait(60), process.stderr, "this machine is out of memory; lower")
    assert len(process.stderr.splitlines()) == 1
    assert not (place / "none").exists()


REFUSED = {
    "train --data ~name.npy": "no such file",
    "train --elbo Trace_ELBO --elbo.num_particles 1000000000000000": "num_particles must be at most 1,000,000, got 1,",
    "train --elbo.num_particles 0": "--elbo.num_particles 0: expected a whole number, at least 1",
    f"train --patience null --epochs 1{'0' * 30}": "epochs must be at most 1,000,000,000",
    "train --threads 1000000000": "--threads 1000000000: at most 1024 can be used",
    "train --latent_dim 1000000000000": "this machine is out of memory",
    "train --network.hidden [1000000000]": "hidden must be at most 100,000,000, got [1000000000]",
    "train --device meta": "--device meta is not available",
    "evaluate straight --device meta": "--device meta is not available",
    "evaluate straight --num_particles 1000000000000000": "the log weights of one datum need 8,000,000 GB",
    f"evaluate straight --num_particles 1{'0' * 30}": "lower num_particles",
    f"sample straight --num_samples 1{'0' * 30}": "at most 1,000,000 can be drawn",
}


@pytest.mark.parametrize("command", REFUSED)
def test_a_size_beyond_all_use_is_refused_in_one_line(place, straight, capsys, monkeypatch, command):
    monkeypatch.chdir(place)
    script, *arguments = command.split()
    if script == "train":
        arguments = [*BITS, "--epochs", "1", "--out", "none", *arguments]
    code, err = call(capsys, monkeypatch, script, *arguments)
    assert_refused(script, code, err, REFUSED[command])
    assert len(err.splitlines()) == 1
    assert not (place / "none").exists()


def test_a_file_whose_name_begins_with_a_tilde_is_read(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    (place / "~name.npy").write_bytes((place / "bits.npy").read_bytes())
    code, err = call(capsys, monkeypatch, "train", "--data", "~name.npy", *TINY, "--epochs", 1, "--out", "tilde")
    assert code == 0, err
    assert f"data: {place.resolve()}/~name.npy" in lines(place / "tilde/config.yaml")


def test_a_tiny_target_standard_error_takes_all_draws(place, straight, capsys, monkeypatch):
    monkeypatch.chdir(place)
    code, err = call(capsys, monkeypatch, "evaluate", straight, "--target_std_error", "1e-300", "--num_particles", 500)
    assert code == 0, err
    assert json.loads((straight / "evaluation.json").read_text())["log_marginal"]["num_particles"] == 500


@pytest.mark.parametrize(
    "command", ["train --config given.yaml --out none", "train --resume given", "evaluate given", "sample given"]
)
def test_a_configuration_from_elsewhere_starts_no_download(place, straight, capsys, monkeypatch, command):
    monkeypatch.chdir(place)
    text = re.sub(r"(?m)^data: .*", "data: mnist", (straight / "config.yaml").read_text())
    (place / "given.yaml").write_text(text)
    shutil.copytree(straight, place / "given", dirs_exist_ok=True)
    (place / "given/config.yaml").write_text(text)
    manifest = json.loads((straight / "manifest.json").read_text())
    manifest["files"]["config.yaml"] = hashlib.sha256(text.encode()).hexdigest()
    manifest["status"] = "training" if "--resume" in command else "finished"
    (place / "given/manifest.json").write_text(json.dumps(sealed(manifest)))
    monkeypatch.setattr(sources, "_download_mnist", lambda *_: pytest.fail("a download was started"))
    script, *arguments = command.split()
    code, err = call(capsys, monkeypatch, script, *arguments)
    assert_refused(script, code, err, "MNIST is not in data/MNIST/raw, and a configuration starts no download; give")
    assert not (place / "none").exists()
