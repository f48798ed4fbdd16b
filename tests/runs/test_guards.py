"""Guards that no damaged file of the other tests reaches: each test fails if its guard is taken away."""

import os
import signal

import pytest

from pyrovae.data import untrusted
from pyrovae.runs import locks
from pyrovae.runs.files import write_state
from pyrovae.runs.partial import StoppedEvaluation
from pyrovae.runs.specs import read_part


def test_an_untyped_argument_is_a_plain_value():
    deep = []
    for _ in range(25):
        deep = [deep]
    for value in ({1: 2}, object(), [object], deep):
        with pytest.raises(ValueError, match="expected a number, a text, true, false, null, or lists and maps"):
            read_part("elbo", {"class_path": "Trace_ELBO", "init_args": {"jit_options": value}}, source="file")


def test_a_part_has_no_other_keys_than_its_class_and_arguments():
    with pytest.raises(ValueError, match="has the key 'init_arg'; expected class_path and init_args alone"):
        read_part("prior", {"class_path": "StandardNormalPrior", "init_arg": {}}, source="file")


@pytest.mark.parametrize("path", ["torch.nn.Linear", "pyrovae.runs.sweep.subprocess.Popen", "pyro.nn.PyroModule"])
def test_trust_in_a_library_admits_no_more_than_its_known_parts(path):
    with pytest.raises(ValueError, match="no such program"):
        read_part("program", path, source="file", trusted=["torch", "pyro", "pyrovae"])


def test_a_file_that_becomes_a_pipe_is_refused_without_waiting(tmp_path, monkeypatch):
    path, check = tmp_path / "file", untrusted._check_regular
    path.touch()

    def swapped(*given):
        check(*given)
        if path.is_file():
            path.unlink()
            os.mkfifo(path)

    def waits(*_):
        raise TimeoutError

    monkeypatch.setattr(untrusted, "_check_regular", swapped)
    before = signal.signal(signal.SIGALRM, waits)
    signal.alarm(5)
    try:
        with pytest.raises(ValueError, match="is a named pipe"):
            untrusted.open_regular(path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return StoppedEvaluation({"seed": 1})


def test_a_stopped_evaluation_under_the_name_of_another_is_left_out(stopped, capsys):
    state = {"about": {}, "blocks": []}
    stopped.write(state)
    assert stopped.read() == state
    write_state(stopped.path, {"about": {"seed": 2}, "state": state})
    assert stopped.read() is None
    assert "is of another evaluation" in capsys.readouterr().err
    assert not stopped.path.exists()


def test_a_cache_of_another_user_is_not_used(stopped, monkeypatch, capsys):
    stopped.write({"about": {}, "blocks": []})
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert StoppedEvaluation({"seed": 1}).path is None
    assert "belongs to another user" in capsys.readouterr().err


def test_a_temporary_folder_that_is_replaced_while_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, made = locks._lock, []

    def replaced(path):
        handle = lock(path)
        if len(made) == 1:
            path.rename(tmp_path / "swept")
            path.mkdir()
        return handle

    def make():
        made.append(tmp_path / f"new-{len(made)}")
        made[-1].mkdir()
        return made[-1]

    monkeypatch.setattr(locks, "_lock", replaced)
    with locks.unfinished(make) as folder:
        assert folder == made[1]
