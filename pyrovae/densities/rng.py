"""States of the random generators: isolate, read and set them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Restore torch's random states at the end. Start from a seed, if any."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed formats the stack for each absent device
            if torch.cuda.is_available():
                torch.cuda.manual_seed_all(seed)
        yield


def generator_states(device: torch.device) -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy and torch.

    Args:
        device: Device of the computation.

    Returns:
        States named "random", "numpy", "torch" and, if the device is a GPU, "cuda".
    """
    states: dict[str, Any] = dict(pyro.util.get_rng_state())
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Set the states of the generators of Python, NumPy and torch.

    Args:
        states: Result of `generator_states`.
        device: Device of the computation.
    """
    states = dict(states)
    cuda = states.pop("cuda", None)
    pyro.util.set_rng_state(states)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)


def torch_generator_states() -> dict[str, Tensor]:
    """Return the states of torch's generators alone.

    Returns:
        States named "cpu" and, if CUDA is in use, "cuda" for the current GPU.
    """
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_torch_generator_states(states: Mapping[str, Tensor]) -> None:
    """Set the states of torch's generators.

    Args:
        states: Result of `torch_generator_states`.
    """
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
