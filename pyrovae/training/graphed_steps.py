"""Training steps as CUDA graphs."""

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from pyrovae.execution import CapturedStep, Recorded, State, reason_of, settings
from pyrovae.training.steps import Batch, RecordedStep


class NotCapturedError(Exception):
    """CUDA cannot capture a step as a graph. The message gives the reason in one line."""


class CapturedOptimizer:
    """Optimizer whose steps CUDA graphs may contain.

    A graph reads the settings of the optimizer when it is captured. If they change later, graphs must not contain the
    optimizer's step.

    Args:
        optimizer: Optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._captured_settings: list[Any] | None = None
        self._optimizer_changed = False

    def changed(self) -> bool:
        """Return whether the settings have changed since a graph captured the optimizer's step."""
        if self._captured_settings is not None and not self._optimizer_changed:
            self._optimizer_changed = settings(self.optimizer) != self._captured_settings
        return self._optimizer_changed

    def captured(self) -> None:
        """Remember the settings, which a graph has captured now."""
        self._captured_settings = settings(self.optimizer)


class GraphedStep:
    """SVI step of one batch size as one CUDA graph.

    The graph contains the optimizer's step if CUDA can capture it, a single process trains, and the optimizer's
    settings stay constant.

    Args:
        recorded: Step to capture. It takes the steps until its record has been compared with the eager step.
        optimizer: Optimizer that the graphs of all batch sizes share.

    Attributes:
        fully_captured: Record whose graph contains the optimizer's step; None if no graph does.

    Raises:
        NotCapturedError: By calls, if CUDA cannot capture the step.
        NotRecordedError: By calls, as `RecordedStep`.
    """

    def __init__(self, recorded: RecordedStep, optimizer: CapturedOptimizer) -> None:
        self.recorded, self.optimizer = recorded, optimizer
        self.fully_captured: Recorded | None = None
        self._graphs: dict[Hashable, CapturedStep] = {}  # by replay

    def __call__(self, batch: Batch, weight: float | Tensor, validate: bool) -> Tensor:
        """Take a step, as `EagerStep` does. The next step overwrites the loss and the parameters' grad."""
        record, inputs = self.recorded.record(batch), self.recorded.inputs(batch, weight)
        replay = record.verified_replay(*inputs)
        if replay is None:
            return self.recorded(batch, weight, validate)
        if self.fully_captured and self.optimizer.changed():
            self._graphs.clear()
            self.fully_captured = None
        if replay not in self._graphs:
            self._graphs[replay] = self._capture(record, inputs, batch.share.size)
        graph = self._graphs[replay]
        loss = graph(*inputs)
        if not graph.fully_captured:
            self.recorded.eager.apply_gradients(batch.share, loss)
        return loss

    def _capture(self, record: Recorded, inputs: Sequence[Tensor], size: int) -> CapturedStep:
        eager, replay = self.recorded.eager, record.verified_replay(*inputs)
        assert replay is not None
        optimizer = None if self.optimizer.changed() or eager.workers.size > 1 else eager.optimizer
        before = State(record.buffers)
        try:
            graph = CapturedStep(replay, inputs, eager.parameters, optimizer, lambda: eager.descend(size))
        except (RuntimeError, AssertionError) as error:
            raise NotCapturedError(reason_of(error)) from error
        finally:
            before.restore()
        if graph.fully_captured:
            self.fully_captured = record
            self.optimizer.captured()
        return graph
