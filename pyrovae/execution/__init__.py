"""How programs run: eagerly, recorded, compiled, as CUDA graphs, in reduced precision, by several processes."""

from pyrovae.execution.chunks import Chunks
from pyrovae.execution.graphs import CapturedStep, CapturedSteps, on_gpu, reason_of, set_gradients, settings
from pyrovae.execution.precision import Precision, products_in
from pyrovae.execution.recording import (
    Execution,
    NotRecordedError,
    NotRecordedWarning,
    Recorded,
    State,
    choose_execution,
    refuse,
    signature,
    tensors_of,
    warn,
    with_tensors,
)
from pyrovae.execution.workers import Share, Workers, joined

__all__ = [
    "CapturedStep",
    "CapturedSteps",
    "Chunks",
    "Execution",
    "NotRecordedError",
    "NotRecordedWarning",
    "Precision",
    "Recorded",
    "Share",
    "State",
    "Workers",
    "choose_execution",
    "joined",
    "on_gpu",
    "products_in",
    "reason_of",
    "refuse",
    "set_gradients",
    "settings",
    "signature",
    "tensors_of",
    "warn",
    "with_tensors",
]
