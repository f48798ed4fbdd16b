"""The scripts as the tests run them: in a process of their own, or in this one."""

import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
TINY = ["--network.hidden", "[6]", "--latent_dim", "2", "--batch_size", "16", "--num_particles", "25"]


def run(script, *arguments, cwd, check=True, **options):
    """Run a script in a process of its own, warnings as errors."""
    command = [sys.executable, "-W", "error", str(SCRIPTS / f"{script}.py"), *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, **options)
    assert "Traceback" not in result.stderr, result.stderr
    if check:
        assert result.returncode == 0, result.stderr
    return result


def start(*arguments, cwd):
    command = [sys.executable, str(SCRIPTS / "train.py"), *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def call(capsys, monkeypatch, script, *arguments):
    """Run a script's main in this process; return its exit code and what it wrote to stderr."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    finally:
        signal.signal(signal.SIGTERM, before)
    return stop.value.code, capsys.readouterr().err


def help_of(capsys, monkeypatch, script):
    """What a script's --help prints."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    return capsys.readouterr().out
