"""Recorded functions, which replay their tensor operations without Python.

A function is recorded at its first call with inputs of a shape (see `record`). The replay is compared with the
function at the first two calls, the second time usually with other data and moved parameters. It is refused if the
results differ.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from pyrovae.execution.compile import compile_graph
from pyrovae.execution.cuda_graphs import CapturedReplay, on_gpu, reason_of
from pyrovae.execution.hoist import hoist, no_constants
from pyrovae.execution.messages import NotRecordedError, first_line, reason_not_recorded, warn
from pyrovae.execution.state import State
from pyrovae.execution.tensors import Outputs, signature
from pyrovae.execution.trace import record

VERIFIED_CALLS = 2


class Recorded:
    """A function of tensors that is recorded once for each shape of its inputs and then replayed.

    On a GPU, a replay is a CUDA graph from the third call on.

    Args:
        function: Function of tensors that returns tensors, or None in the place of a tensor. It may capture parameters
            and buffers, and change buffers in place.
        reference: Function with the same results, to verify replays; None for the function itself.
        buffers: Tensors that the function may change. They are restored after verification.
        num_varying: Number of leading inputs that change between calls. Matrix products that depend only on the other
            inputs and on captured tensors are cached until `forget`. None if all inputs change.
    """

    def __init__(
        self,
        function: Callable[..., Outputs],
        *,
        reference: Callable[..., Outputs] | None = None,
        buffers: Iterable[Tensor] = (),
        num_varying: int | None = None,
    ) -> None:
        self.function, self.reference, self.buffers = function, reference or function, list(buffers)
        self.num_varying = num_varying
        self._replays: dict[Hashable, Replay] = {}
        self._verified: Counter[Hashable] = Counter()  # calls for each signature

    def __call__(self, *inputs: Tensor, compiled: bool = False) -> Outputs:
        """Replay the function.

        Args:
            *inputs: Inputs of the function.
            compiled: Whether to compile the record, if this is the first call with inputs of this shape.

        Raises:
            NotRecordedError: If the function cannot be recorded or its replay differs from the reference. Generators
                and buffers are restored.
        """
        if replay := self.verified_replay(*inputs):
            return replay.launch(*inputs)
        return self._verify(inputs, compiled)

    def verified_replay(self, *inputs: Tensor) -> "Replay | None":
        """Return the replay for inputs of this shape; None before it is verified."""
        key = signature(inputs)
        return self._replays[key] if self._verified[key] >= VERIFIED_CALLS else None

    def forget(self) -> None:
        """Discard the cached results that depend on no varying input."""
        for replay in self._replays.values():
            replay.constants = None

    def _verify(self, inputs: Sequence[Tensor], compiled: bool) -> Outputs:
        """Run the reference and the replay, and compare their outputs and random states. Record the function first."""
        key = signature(inputs)
        before = State(self.buffers)
        expected = [None if value is None else value.detach().clone() for value in self.reference(*inputs)]
        after = State()
        before.restore()
        try:
            if key not in self._replays:
                self._replays[key] = self._record(inputs, compiled)
                before.restore()
            outputs = self._replays[key](*inputs)
            _compare(expected, outputs)
            if not after.same_generators():
                raise NotRecordedError("the replay draws different random numbers")
        except Exception as error:
            before.restore()
            if isinstance(error, NotRecordedError):
                raise
            raise NotRecordedError(reason_not_recorded(error)) from error
        self._verified[key] += 1
        return outputs

    def _record(self, inputs: Sequence[Tensor], compiled: bool) -> "Replay":
        graph, lifted = record(self.function, inputs)
        hoisted: Callable[..., list[Tensor]] = no_constants
        if self.num_varying is not None:
            hoisted, graph = hoist(graph, range(len(lifted), len(lifted) + self.num_varying))
        run: Callable[..., Outputs] = graph
        if compiled:
            try:
                with torch.no_grad():
                    run = compile_graph(graph, [*lifted, *inputs, *hoisted(*lifted, *inputs)])
            except Exception as error:
                warn(f"replayed without compilation, since Inductor cannot compile the record: {first_line(error)}")
        return Replay(run, hoisted, lifted)


class Replay:
    """A recorded graph with the tensors that it needs besides its inputs.

    Args:
        run: Function of the lifted tensors, the inputs and the constants.
        hoisted: Function of the lifted tensors and the inputs that returns the constants.
        lifted: Tensors that the recorded function captures.

    Attributes:
        constants: Cached output of `hoisted`; None to compute it at the next call.
    """

    def __init__(
        self, run: Callable[..., Outputs], hoisted: Callable[..., list[Tensor]], lifted: Sequence[Tensor]
    ) -> None:
        self.run, self.hoisted, self.lifted = run, hoisted, lifted
        self.constants: list[Tensor] | None = None
        self._captured: CapturedReplay | None = None
        self._refused = False  # CUDA cannot capture the graph

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Run the operations one by one."""
        with torch.no_grad():
            return self.run(*self.lifted, *inputs, *self._cached_constants(inputs))

    def launch(self, *inputs: Tensor) -> Outputs:
        """Run the operations, on a GPU as one CUDA graph."""
        if self._refused or not on_gpu((*self.lifted, *inputs)):
            return self(*inputs)
        with torch.no_grad():
            given = [*inputs, *self._cached_constants(inputs)]
            if self._captured is None:
                self._capture(given)
            return self(*inputs) if self._captured is None else self._captured(*given)

    def _capture(self, given: Sequence[Tensor]) -> None:
        before = State()
        try:
            device = max((*self.lifted, *given), key=lambda value: value.is_cuda).device
            self._captured = CapturedReplay(self.run, self.lifted, given, device)
        except (RuntimeError, AssertionError) as error:
            self._refused = True
            warn(f"replayed kernel by kernel, since CUDA cannot capture the graph: {reason_of(error)}")
        before.restore()

    def _cached_constants(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if self.constants is None:
            self.constants = self.hoisted(*self.lifted, *inputs)
        return self.constants


def _compare(expected: Outputs, found: Outputs) -> None:
    """Raise an error if outputs differ by more than rounding: by more than sqrt(eps) of the norm of each."""
    total = sum(float(value.double().nan_to_num().norm()) for value in expected if value is not None)
    for index, (one, other) in enumerate(zip_longest(expected, found)):
        some = other if one is None else one
        if some is None:
            continue
        one, other = (torch.zeros_like(some) if value is None else value.detach() for value in (one, other))
        one, other = one.double(), other.double()
        if one.shape != other.shape:
            shapes = f"{tuple(one.shape)}, got {tuple(other.shape)}"
            raise NotRecordedError(f"the replay gives a different shape (output {index}: expected {shapes})")
        if bool((one == other).all()):
            continue
        tolerance = torch.finfo(some.dtype).eps ** 0.5 if some.is_floating_point() else 0.0
        nonfinite = ~(one.isfinite() & other.isfinite())
        same = bool(torch.equal(one[nonfinite].nan_to_num(), other[nonfinite].nan_to_num()))
        distance = float((one - other)[~nonfinite].norm())
        if not same or distance > tolerance * float(one[~nonfinite].norm()) + tolerance**2 * total:
            raise NotRecordedError(f"the replay gives different numbers (output {index} differs by {distance:.2g})")
