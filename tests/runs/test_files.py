"""Atomic writes, JSON, safetensors, and states in one file."""

import json
import random

import numpy as np
import pytest
import torch
from script_helpers import largest_file

from pyrovae.runs import read_json, read_state, write_json, write_state, write_whole
from pyrovae.runs.files import read_tensors, tensors_to_bytes

STATE = {
    "tensors": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3, dtype=torch.int64), "empty": torch.zeros(0)},
    "optimizer": {"state": {0: {"step": torch.tensor(2.0), "exp_avg": torch.randn(3)}}, "betas": (0.9, 0.999)},
    "plain": [1, 2.5, None, True, "text"],
    "random": random.Random(3).getstate(),
    "numpy": np.random.RandomState(3).get_state(),
    "third": 1 / 3,
}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other and type(one) is type(other)


def test_a_state_is_read_back_bit_identical(tmp_path):
    write_state(tmp_path / "s.safetensors", STATE)
    assert same(read_state(tmp_path / "s.safetensors"), STATE)
    random.Random().setstate(read_state(tmp_path / "s.safetensors")["random"])


def test_write_state_refuses_a_function_and_writes_nothing(tmp_path):
    with pytest.raises(TypeError, match="got function"):
        write_state(tmp_path / "s.safetensors", {"f": same})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", range(1, 100, 3))
def test_read_state_refuses_a_flipped_bit(tmp_path, where):
    path = tmp_path / "s.safetensors"
    write_state(path, STATE)
    content = bytearray(path.read_bytes())
    content[len(content) * where // 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"s\.safetensors"):
        read_state(path)


def test_read_state_refuses_a_truncated_file(tmp_path):
    path = tmp_path / "s.safetensors"
    write_state(path, STATE)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="no complete safetensors file"):
        read_state(path)
    path.write_bytes(tensors_to_bytes({"a": torch.zeros(2)}))
    with pytest.raises(ValueError, match="contains no state to resume"):
        read_state(path)


def test_write_state_writes_equal_tensors_as_equal_bytes_with_one_note():
    tensors = {"b": torch.ones(2), "a": torch.zeros(3)}
    assert tensors_to_bytes(tensors) == tensors_to_bytes(dict(reversed(tensors.items())))


def test_write_state_writes_tied_tensors(tmp_path):
    tied = torch.randn(3)
    write_whole(tmp_path / "w.safetensors", tensors_to_bytes({"a": tied, "b": tied}))
    tensors, note = read_tensors(tmp_path / "w.safetensors")
    assert torch.equal(tensors["a"], tied)
    assert torch.equal(tensors["b"], tied)
    assert note is None


def test_write_json_replaces_numbers_that_are_not_finite_by_null(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("inf"), "b": [float("nan"), 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [None, 1.5]}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_json(tmp_path / "a.json")


def test_write_whole_leaves_the_old_file_on_a_full_disk(tmp_path):
    write_whole(tmp_path / "f", b"old")
    with largest_file(1000), pytest.raises(OSError, match=r"cannot write.*File too large"):
        write_whole(tmp_path / "f", bytes(100_000))
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
