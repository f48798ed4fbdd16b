"""Steps of an epoch: one at a time, or several as one CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyrovae.densities import num_data
from pyrovae.execution import (
    CapturedSteps,
    NotRecordedError,
    Recorded,
    State,
    reason_of,
    tensors_of,
    warn,
)
from pyrovae.training.batches import Batches
from pyrovae.training.loaders import LoaderBatches
from pyrovae.training.stepper import Stepper

STEPS_PER_GRAPH = 25

Weights = list[float | Tensor]


class SingleSteps:
    """Steps of an epoch, one at a time.

    Args:
        stepper: Stepper that takes each step.
        batches: Batches of the epoch.
        losses: Tensor that receives the loss of each step of the epoch, with shape (steps,).
    """

    def __init__(self, stepper: Stepper, batches: Batches | LoaderBatches, losses: Tensor) -> None:
        self.stepper, self.batches, self.losses = stepper, batches, losses

    def __call__(self, step: int, weight_at: Callable[[int], float | Tensor], *, validate: bool = False) -> Weights:
        """Take the next step, or several.

        Args:
            step: Next step of the epoch.
            weight_at: Function from a step of the epoch to its KL weight.
            validate: Whether Pyro checks shapes and supports.

        Returns:
            The KL weights of the steps taken.
        """
        if step <= 2:  # the first two calls of a record run the programs
            self.stepper.check_settings()
        weight = weight_at(step)
        args, kwargs = self.batches.batch(step)
        size = num_data(args, kwargs)
        self.losses[step] = self.stepper(size, args, kwargs, weight=weight, validate=validate)
        return [weight]


class GraphedEpoch:
    """Steps of an epoch, several at a time as one CUDA graph, which indexes the data by itself.

    A graph of several steps needs a single step of full batch size that is fully captured. Until then, and for steps
    that do not fit into a graph, it takes single steps.

    Args:
        single: Steps one at a time, on batches that are not streamed and lie on the GPU.

    Attributes:
        count: Number of steps per graph.
    """

    def __init__(self, single: SingleSteps) -> None:
        assert isinstance(single.batches, Batches)
        self.single, self.stepper, self.batches, self.losses = single, single.stepper, single.batches, single.losses
        self.count = min(STEPS_PER_GRAPH, self.batches.full_steps)
        self._possible = self.count > 1
        self._weights = None if self.stepper.weight is None else torch.ones_like(self.losses)
        self._graph: CapturedSteps | None = None

    def __call__(self, step: int, weight_at: Callable[[int], float | Tensor], *, validate: bool = False) -> Weights:
        """Take the next step, or several, as `SingleSteps` does."""
        if step <= 2:
            self.stepper.check_settings()
        graph = self._ready(step)
        if graph is None:
            return self.single(step, weight_at, validate=validate)
        weights = [weight_at(step + later) for later in range(self.count)]
        if self._weights is not None:
            self._weights[step : step + self.count] = torch.tensor(weights, dtype=self._weights.dtype)
        graph(step)
        return weights

    def _ready(self, step: int) -> CapturedSteps | None:
        """Return the graph for the steps from this one on, captured if possible."""
        if not self._possible or step + self.count > self.batches.full_steps:
            return None
        if self.stepper.refused is not None or self.stepper.captured_optimizer.changed():
            self._possible, self._graph = False, None
        elif self._graph is None:
            record = self.stepper.fully_captured.get(self.batches.batch_size)
            self._graph = None if record is None else self._capture(record)
        return self._graph

    def _capture(self, record: Recorded) -> CapturedSteps | None:
        """Capture several steps as one graph. If that fails, warn and take single steps from now on."""
        before, batches = State(record.buffers), self.batches
        batch_record = Recorded(lambda rows: tensors_of(*batches.at(rows)))
        try:
            for rows in (batches.rows(0), batches.order[-batches.batch_size :]):  # two calls verify the record
                inputs = [value for value in batch_record(rows) if value is not None]
            weight = [] if self.stepper.weight is None else [self.stepper.weight]
            batch, replay = batch_record.verified_replay(rows), record.verified_replay(*weight, *inputs)
            if batch is None or replay is None:
                raise NotRecordedError("they differ in shape or layout from those of single steps")
            return CapturedSteps(
                self.count,
                batch,
                replay,
                self.stepper.parameters,
                lambda: self.stepper.descend(batches.batch_size),
                order=batches.order,
                batch_size=batches.batch_size,
                weights=self._weights,
                losses=self.losses,
            )
        except (NotRecordedError, RuntimeError, AssertionError) as error:
            self._possible = False
            reason = error if isinstance(error, NotRecordedError) else reason_of(error)
            warn(f"steps are taken one by one, since a graph cannot contain their batches: {reason}")
            return None
        finally:
            before.restore()
