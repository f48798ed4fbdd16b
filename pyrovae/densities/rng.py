"""Per-datum log densities of Pyro programs, ours or the reader's own.

A program signs a contract: every sample site lies inside one plate over the data at dim -1. Particles take dim -2.
Everything here follows from the traces alone; nothing asks what a prior or a likelihood is.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Restore torch's random states at the end; start from a seed where one is given."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if seed is not None:
            torch.manual_seed(seed)
        yield
