"""The state that running a function changes: random generators and buffers."""

import pickle
from collections.abc import Iterable

import pyro
import torch
from torch import Tensor


class State:
    """A copy of the states of the random generators (Python, NumPy, torch on the CPU and on all GPUs) and of buffers.

    Args:
        buffers: Tensors to copy.
    """

    def __init__(self, buffers: Iterable[Tensor] = ()) -> None:
        self.buffers = [(buffer, buffer.detach().clone()) for buffer in buffers]
        self.generators, self.cuda = pyro.util.get_rng_state(), _cuda_generators()

    def restore(self) -> None:
        """Set the generators and buffers to the copied state."""
        with torch.no_grad():
            for buffer, value in self.buffers:
                buffer.copy_(value)
                vars(buffer).pop("proxy", None)  # left there by make_fx
        pyro.util.set_rng_state(self.generators)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)

    def same_generators(self) -> bool:
        """Whether all generators are in the copied state now.

        Includes those of Python and NumPy, whose draws become constants of a record.
        """
        now = pyro.util.get_rng_state()
        copied, current = [*self.cuda, self.generators["torch"]], [*_cuda_generators(), now["torch"]]
        others = [pickle.dumps((states["random"], states.get("numpy"))) for states in (self.generators, now)]
        return others[0] == others[1] and all(map(torch.equal, copied, current))


def _cuda_generators() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
