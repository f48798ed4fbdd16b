"""Execution of programs: eager, recorded, compiled, as CUDA graphs, in reduced precision, in several processes.

trace         record a function's tensor operations
hoist         move constant products out of a record
compile       compile a record with Inductor
replay        replay a record after verification
cuda_graphs   capture replays and training steps on a GPU
chunks        replay the chunks of an evaluation
choice        "auto" by the number of calls
state         generators and buffers that a replay changes
tensors       tensors among arguments
messages      warnings and reasons
precision     products in bfloat16
progress      a bar on a terminal, lines in a log
workers       processes that share the data
"""

from pyrovae.execution.choice import Execution, choose_execution
from pyrovae.execution.chunks import Chunks
from pyrovae.execution.cuda_graphs import CapturedStep, CapturedSteps, on_gpu, reason_of, set_gradients, settings
from pyrovae.execution.messages import NotRecordedError, NotRecordedWarning, refuse, warn
from pyrovae.execution.precision import Precision, products_in
from pyrovae.execution.progress import Progress
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
    "Progress",
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
