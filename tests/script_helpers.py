"""Helpers that run the scripts in a separate process or in this one."""

import atexit
import json
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
TINY = ["--network.hidden", "[6]", "--latent_dim", "2", "--batch_size", "16", "--num_particles", "25"]


def path_of(script):
    """Return the file of a script, given its name or path without suffix."""
    return Path(f"{script}.py") if Path(script).is_absolute() else next(SCRIPTS.rglob(f"{script}.py"))


class Script:
    """Script in a separate process, with the methods of `subprocess.Popen` that the tests use."""

    _server = None
    _numbers = count()

    def __init__(self, script, arguments, *, cwd, strict=True, env=None, memory=None, largest=None, closed=(), **files):
        self.files = {name: Path(self._folder(), f"{next(self._numbers)}.{name}") for name in ("out", "err")} | files
        argv = [str(path_of(script)), *map(str, arguments)]
        files = {name: str(path) for name, path in self.files.items()}
        limits = {"env": env or {}, "memory": memory, "largest": largest, "closed": list(closed)}
        self.pid = self._ask({"argv": argv, "cwd": str(cwd), "strict": strict, **limits, **files})
        self.returncode = None

    @staticmethod
    @cache
    def _folder():
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder

    @classmethod
    def _ask(cls, request):
        if cls._server is None:
            command = [sys.executable, str(Path(__file__).with_name("script_server.py"))]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            cls._server = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            atexit.register(cls._stop)
        print(json.dumps(request), file=cls._server.stdin, flush=True)
        return json.loads(cls._server.stdout.readline())

    @classmethod
    def _stop(cls):
        with cls._server:  # closes its pipes, and waits
            cls._server.kill()

    def poll(self, seconds=0):
        if self.returncode is None:
            self.returncode = self._ask({"wait": self.pid, "seconds": seconds})
        return self.returncode

    def wait(self, seconds=300):
        if self.poll(seconds) is None:
            self.kill()
            raise TimeoutError(f"still running after {seconds} s:\n{self.stderr}")
        return self.returncode

    def used(self):
        """Processor time in seconds and peak of memory in bytes, after the end."""
        return self._ask({"used": self.pid})

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    @property
    def stdout(self):
        return self.files["out"].read_text()

    @property
    def stderr(self):
        return self.files["err"].read_text()


def run(script, *arguments, cwd, check=True):
    """Run a script in a separate process, with warnings as errors."""
    result = Script(script, arguments, cwd=cwd)
    result.wait()
    assert "Traceback" not in result.stderr, result.stderr
    assert not check or result.returncode == 0, result.stderr
    return result


def start(*arguments, cwd):
    return Script("train", arguments, cwd=cwd, strict=False)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def call(capsys, monkeypatch, script, *arguments):
    """Run a script in this process; return its exit code and its stderr."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", [str(path_of(script).parent), *sys.path])
    try:
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(path_of(script)), run_name="__main__")
    finally:
        signal.signal(signal.SIGTERM, before)
    return stop.value.code, capsys.readouterr().err


def assert_refused(script, code, err, words):
    """Check that a script failed with one error, whose line has these words."""
    assert code == 1, err
    message = re.split(r"[\r\n]", err.strip())[-1]
    assert message.startswith(f"{script}.py: error: ")
    assert words in message
    assert len(re.findall("error:", err)) == 1


def help_of(capsys, monkeypatch, script):
    """Return the output of --help of a script."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    monkeypatch.setattr(sys, "path", [str(path_of(script).parent), *sys.path])
    with pytest.raises(SystemExit):
        runpy.run_path(str(path_of(script)), run_name="__main__")
    return capsys.readouterr().out


@contextmanager
def largest_file(size):
    """Let this process write no file of more bytes, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # Python ignores the signal
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def damage(path, how):
    """Flip a bit of a file, or cut its end off."""
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[-3] ^= 4
    elif how == "cut":
        content = content[:-20]
    path.write_bytes(content)
