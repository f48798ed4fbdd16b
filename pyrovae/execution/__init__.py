"""Execution of programs: eager, recorded, compiled, as CUDA graphs, in reduced precision, in several processes."""

from pyrovae.execution.choice import Execution, choose_execution
from pyrovae.execution.chunks import Chunks
from pyrovae.execution.cuda_graphs import CapturedStep, CapturedSteps, on_gpu, reason_of, set_gradients, settings
from pyrovae.execution.messages import NotRecordedError, NotRecordedWarning, refuse, warn
from pyrovae.execution.precision import Precision, products_in
from pyrovae.execution.replay import Recorded
from pyrovae.execution.state import State
from pyrovae.execution.tensors import signature, tensors_of, with_tensors
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
