"""Compile recorded graphs with Inductor."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx

from pyrovae.densities import isolated_rng
from pyrovae.execution.fast_functions import with_fast_functions
from pyrovae.execution.tensors import Outputs


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Outputs]:
    """Compile a recorded graph with Inductor. Its random draws still come from torch's generator."""
    import torch._inductor

    with torch.no_grad(), isolated_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        faster = with_fast_functions(graph)
        compiled: Any = torch._inductor.compile(faster, list(inputs), options={"fallback_random": True})
    return compiled
