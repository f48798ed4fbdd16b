"""Random generators: saved, restored and isolated."""

import random

import numpy as np
import pytest
import torch

from pyrovae.densities import (
    generator_states,
    isolated_rng,
    set_generator_states,
    set_torch_generator_states,
    torch_generator_states,
)

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request):
    return torch.device(request.param)


def draws(device):
    """One draw of each generator: torch on the device, torch on the CPU, Python, NumPy."""
    return torch.rand((), device=device).item(), torch.rand(()).item(), random.random(), np.random.random()


def test_all_generators_repeat_their_draws_after_their_states_are_set(device):
    torch.rand((), device=device)
    states = generator_states(device)
    first = draws(device)
    assert draws(device) != first
    set_generator_states(states, device)
    assert draws(device) == first
    assert set(states) == {"random", "numpy", "torch"} | ({"cuda"} if device.type == "cuda" else set())


def test_only_the_generators_of_torch_repeat_their_draws_after_their_states_are_set(device):
    torch.rand((), device=device)
    states = torch_generator_states()
    first = draws(device)
    set_torch_generator_states(states)
    second = draws(device)
    assert second[:2] == first[:2]
    assert second[2] != first[2]
    assert second[3] != first[3]
    if device.type == "cuda":
        assert "cuda" in states


def test_isolated_rng_restores_the_generator_and_seeds_the_block(device):
    states = generator_states(device)
    expected = draws(device)[:2]
    set_generator_states(states, device)
    blocks = []
    for _ in range(2):
        with isolated_rng(7):
            blocks.append(draws(device)[:2])
    assert blocks[0] == blocks[1]
    assert draws(device)[:2] == expected
