"""The steps of a run: for each batch size the fastest kind that works."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.optim import Optimizer

from pyrovae.densities import Program, modules_and_settings_of, take
from pyrovae.execution import (
    Execution,
    NotRecordedError,
    Precision,
    Recorded,
    Workers,
    choose_execution,
    on_gpu,
    refuse,
    warn,
)
from pyrovae.objectives import recordable
from pyrovae.training.graphed_steps import CapturedOptimizer, GraphedStep, NotCapturedError
from pyrovae.training.optimizers import prepare_optimizer
from pyrovae.training.plates import OutsideSites
from pyrovae.training.shares import Sharing
from pyrovae.training.steps import Batch, EagerStep, RecordedStep

# Steps per batch size from which recording (at most a second) and compiling (at most a minute) pay off.
RECORDED_FROM = 1_000
COMPILED_FROM = 20_000


class Stepper:
    """Training steps of a run. For each batch size it picks the fastest kind of step that works.

    `GraphedStep` falls back to `RecordedStep`, and that to `EagerStep`, with one warning each.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        elbo: Objective.
        parameters: Parameters to train.
        optimizer: Optimizer of the parameters. If steps are recorded, torch's Adam is switched to its fused form.
        execution: How to run the programs: "eager", "recorded", "compiled", or "auto", which chooses by the number of
            calls.
        calls: Number of steps of the whole run, by batch size.
        weighted: Whether the KL divergence has a weight.
        device: Device of the parameters.
        workers: Processes that share each batch; None for this process alone.
        precision: Precision of the layers' products.
        outside: Sites outside the data plate, weighed by the share of the data in each batch; None if there are none.
        sharing: Way of the programs to run on a share of a batch; None for a single process.
        clip: Largest norm of the gradient divided by the batch size; None for no limit.

    Attributes:
        executions: Resolved execution by batch size.
        refused: Reason why the programs cannot be recorded; None if they can.
        on_gpu: Whether steps can be CUDA graphs.
        weight: Scalar tensor that passes the KL weight to records; None if the weight is always 1.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        elbo: ELBO,
        parameters: Sequence[Tensor],
        optimizer: Optimizer,
        *,
        execution: Execution,
        calls: Mapping[int, int],
        weighted: bool,
        device: torch.device,
        workers: Workers | None = None,
        precision: Precision = "full",
        outside: OutsideSites | None = None,
        sharing: Sharing | None = None,
        clip: float | None = None,
    ) -> None:
        self.workers, self.optimizer, self.parameters = workers or Workers(), optimizer, list(parameters)
        self.executions = {
            size: choose_execution(execution, count, recorded_from=RECORDED_FROM, compiled_from=COMPILED_FROM)
            for size, count in calls.items()
        }
        self.refused: str | None = None
        self.on_gpu = all(on_gpu([parameter]) for parameter in self.parameters)
        self.weight = torch.ones((), dtype=torch.float64, device=device) if weighted else None
        self.captured_optimizer = CapturedOptimizer(optimizer)
        self._eager = EagerStep(
            model, guide, elbo, self.parameters, optimizer, self.workers, precision, outside, sharing, clip
        )
        self._steps: dict[int, EagerStep | RecordedStep | GraphedStep] = {}
        self._settings: list[str] | None = None
        self._capture_failed = False
        if set(self.executions.values()) != {"eager"}:
            try:
                recordable(elbo)
            except NotRecordedError as error:
                self._refuse(error)
            else:
                prepare_optimizer(optimizer, recorded=True)

    @property
    def fully_captured(self) -> dict[int, Recorded]:
        """Records, by batch size, whose CUDA graph contains the optimizer's step."""
        found = {size: step.fully_captured for size, step in self._steps.items() if isinstance(step, GraphedStep)}
        return {size: record for size, record in found.items() if record is not None}

    def descend(self, size: int) -> None:
        """Take the optimizer's step with the gradients of a batch of this size."""
        self._eager.descend(size)

    def state(self) -> dict[str, Any]:
        """Return how steps are taken, in plain values, so that a resumed run takes them in the same way."""
        return {"executions": {str(size): how for size, how in self.executions.items()}, "refused": self.refused}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take steps as the run of this state did. Restore the optimizer first."""
        self.executions = {int(size): how for size, how in state["executions"].items()}
        self.refused = state["refused"]
        self._steps.clear()
        # The restored settings of the optimizer may be those of another device.
        prepare_optimizer(self.optimizer, recorded=not self.refused and set(self.executions.values()) != {"eager"})

    def check_settings(self) -> None:
        """Take eager steps from now on, with a warning, if a number that the programs read is not as it was recorded.

        Records keep the numbers, texts and truth values that Python had, such as a temperature that `on_epoch` changes.
        The first call after a step remembers them.
        """
        if self.refused is not None or not any(step is not self._eager for step in self._steps.values()):
            return
        found = [
            vars(self._eager.elbo).values(),
            *(modules_and_settings_of(program)[1] for program in (self._eager.model, self._eager.guide)),
        ]
        settings = [repr(value) for each in found for value in each if isinstance(value, bool | int | float | str)]
        if self._settings is None:
            self._settings = settings
        elif settings != self._settings:
            changed = [new for old, new in zip(self._settings, settings, strict=False) if old != new]
            value = f", one of which is {changed[0]:.40} now" if changed else ""
            self._refuse(
                NotRecordedError(
                    f"the numbers that the programs read change in training{value}; put it into a buffer, and change "
                    "that in place"
                )
            )

    def close(self) -> None:
        """Release records and graphs, and their memory."""
        self._steps.clear()

    def __call__(
        self,
        size: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        weight: float | Tensor = 1.0,
        validate: bool = False,
    ) -> Tensor:
        """Take a step.

        Args:
            size: Number of data in the batch.
            args: Positional arguments of both programs.
            kwargs: Keyword arguments of both programs.
            weight: Weight of the KL divergence; a tensor if it is learned.
            validate: Whether Pyro checks shapes and supports.

        Returns:
            Loss before the step, a scalar, in nats. The next step may overwrite it.
        """
        share = self.workers.share(size)
        if self.workers.size > 1:
            args, kwargs = take(args, kwargs, share.rows)
        batch = Batch(share, args, kwargs)
        while True:
            try:
                step = self._steps.get(size) or self._choose(size)
                return step(batch, weight, validate)
            except (NotCapturedError, NotRecordedError) as error:
                self._fall_back(size, error)

    def _choose(self, size: int) -> EagerStep | RecordedStep | GraphedStep:
        """Pick the kind of step for a batch size."""
        execution = "eager" if self.refused else self.executions.get(size, "eager")
        step: EagerStep | RecordedStep | GraphedStep = self._eager
        if execution != "eager":
            step = RecordedStep(self._eager, self.weight, compiled=execution == "compiled")
            step = GraphedStep(step, self.captured_optimizer) if self.on_gpu else step
        self._steps[size] = step
        return step

    def _fall_back(self, size: int, error: NotCapturedError | NotRecordedError) -> None:
        """Replace a step that failed by the next slower kind, and warn once."""
        step = self._steps.get(size)
        if isinstance(error, NotCapturedError):
            assert isinstance(step, GraphedStep)
            self._steps[size] = step.recorded
            if not self._capture_failed:
                warn(f"steps are replayed kernel by kernel, since CUDA cannot capture them as one graph: {error}")
            self._capture_failed = True
        elif step is self._eager:
            raise error
        else:
            self._refuse(error)

    def _refuse(self, error: NotRecordedError) -> None:
        self.refused = str(error)
        self._steps.clear()
        refuse("training", error)
