"""Training steps: eager, recorded, or captured as a CUDA graph."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim import Optimizer

from pyrovae.densities import Program, Whole, modules_of, take, temper
from pyrovae.execution import (
    CapturedStep,
    Execution,
    NotRecordedError,
    Precision,
    Recorded,
    Share,
    State,
    Workers,
    choose_execution,
    on_gpu,
    products_in,
    reason_of,
    refuse,
    set_gradients,
    settings,
    tensors_of,
    warn,
    with_tensors,
)
from pyrovae.objectives import recordable
from pyrovae.training.batches import for_programs
from pyrovae.training.optimizers import prepare_optimizer, take_step
from pyrovae.training.plates import OutsideSites, weighed
from pyrovae.training.shares import Sharing

# Steps per batch size from which recording (at most a second) and compiling (at most a minute) pay off.
RECORDED_FROM = 1_000
COMPILED_FROM = 20_000


class NotCapturedError(Exception):
    """CUDA cannot capture a step as a graph. The message gives the reason in one line."""


class Batch(NamedTuple):
    """Program arguments of one step.

    Attributes:
        share: This process's share of the batch.
        args: Positional arguments of both programs, the rows of the share alone.
        kwargs: Keyword arguments of both programs.
    """

    share: Share
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class EagerStep:
    """SVI step that runs both programs, as Pyro does.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        elbo: Objective.
        parameters: Parameters to train.
        optimizer: Optimizer of the parameters.
        workers: Processes that share each batch.
        precision: Precision of the layers' products.
        outside: Sites outside the data plate, weighed by the share of the data in each batch; None if there are none.
        sharing: Way of the programs to run on a share of a batch; None for a single process.
        clip: Largest norm of the gradient divided by the batch size; None for no limit.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        elbo: ELBO,
        parameters: Sequence[Tensor],
        optimizer: Optimizer,
        workers: Workers,
        precision: Precision,
        outside: OutsideSites | None = None,
        sharing: Sharing | None = None,
        clip: float | None = None,
    ) -> None:
        self.model, self.guide, self.workers, self.precision, self.clip = model, guide, workers, precision, clip
        self.outside, self.sharing = outside, sharing
        self.elbo: Any = elbo  # Pyro's base class ELBO declares no differentiable_loss
        self.parameters, self.optimizer = list(parameters), optimizer

    def __call__(self, batch: Batch, weight: float | Tensor, validate: bool) -> Tensor:
        """Take a step.

        Args:
            batch: Batch of data.
            weight: Weight of the KL divergence; a tensor if it is learned.
            validate: Whether Pyro checks shapes and supports.

        Returns:
            Loss before the step, a scalar, in nats.
        """
        with pyro.validation_enabled(validate):
            loss = self.gradients(batch, weight)
        self.apply_gradients(batch.share, loss)
        return loss

    def gradients(self, batch: Batch, weight: float | Tensor) -> Tensor:
        """Store the gradients in the parameters' grad, and return the loss."""
        args, kwargs = for_programs(self.model, batch.args, batch.kwargs)
        with self.step_context(batch.share, weight):
            loss = self.elbo.differentiable_loss(self.model, self.guide, *args, **kwargs)
        if not loss.requires_grad:
            raise ValueError(
                "the objective depends on no parameter, so there is nothing to train; use the parameters in the "
                "distributions of the guide or the model, without detach() or no_grad"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    @contextmanager
    def step_context(self, share: Share, weight: float | Tensor | None) -> Iterator[None]:
        """Apply the weights of KL and sites outside the data plate, the draws of all processes, and the precision."""
        sharing = self.sharing
        plates, rows = (None, frozenset[str]()) if sharing is None else (sharing.plates, sharing.rows)
        with ExitStack() as stack:
            stack.enter_context(_kl_weight(weight))
            stack.enter_context(weighed(self.outside, share.size))
            if sharing is not None:
                stack.enter_context(sharing.weighed(share))
            stack.enter_context(self.workers.drawing(share, plates, rows))
            stack.enter_context(products_in(self.precision))
            yield

    def apply_gradients(self, share: Share, loss: Tensor) -> None:
        """Sum loss and gradients over the processes, in place, and take the optimizer's step."""
        if self.workers.size > 1:
            summed = [loss, *(parameter.grad for parameter in self.parameters)]
            if share.empty:
                for value in summed:
                    if value is not None:
                        value.zero_()
            self.workers.add(summed)
        self.descend(share.size)

    def descend(self, size: int) -> None:
        """Clip the norm of the gradient of a batch of this size, if asked, and take the optimizer's step."""
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip * size)
        take_step(self.optimizer)


class RecordedStep:
    """SVI step of one batch size that replays recorded tensor operations.

    Its first calls compare the record with the eager step.

    Args:
        eager: Step to record and to compare with.
        weight: Scalar tensor that passes the KL weight to the record; None if the weight is always 1.
        compiled: Whether Inductor compiles the record.

    Raises:
        NotRecordedError: If the objective cannot be recorded. Calls raise it if the programs cannot be recorded, or if
            the record and the eager step differ.
    """

    def __init__(self, eager: EagerStep, weight: Tensor | None, *, compiled: bool) -> None:
        self.eager, self.weight, self.compiled = eager, weight, compiled
        self._objective = recordable(eager.elbo)
        self._record: Recorded | None = None
        self._constants: list[Any] = []

    def __call__(self, batch: Batch, weight: float | Tensor, validate: bool) -> Tensor:
        """Take a step, as `EagerStep` does."""
        record, inputs = self.record(batch), self.inputs(batch, weight)
        replay = record.verified_replay(*inputs)
        if replay is not None:
            loss, *gradients = replay(*inputs)
        else:
            assert self.weight is not None or weight == 1
            with pyro.validation_enabled(validate):  # for the eager step of the comparison
                loss, *gradients = record(*inputs, compiled=self.compiled)
        assert loss is not None
        set_gradients(self.eager.parameters, gradients)
        self.eager.apply_gradients(batch.share, loss)
        return loss

    def inputs(self, batch: Batch, weight: float | Tensor) -> list[Tensor]:
        """Return the inputs of the record: the KL weight, unless it is always 1, and the tensors of the batch."""
        tensors = tensors_of(batch.args, batch.kwargs)
        return tensors if self.weight is None else [self.weight.fill_(weight), *tensors]

    def record(self, batch: Batch) -> Recorded:
        """Return the record of loss and gradients. The first batch gives it the arguments that are not tensors."""
        constants = [v for v in (*batch.args, *batch.kwargs.values()) if not isinstance(v, Tensor | Whole)]
        if self._record is None:
            self._record, self._constants = self._make_record(batch), constants
        if len(constants) != len(self._constants) or not all(map(_same, constants, self._constants)):
            raise NotRecordedError("arguments that are no tensors change from batch to batch; give them as tensors")
        return self._record

    def _make_record(self, batch: Batch) -> Recorded:
        eager, weighted = self.eager, self.weight is not None

        def split(tensors: Sequence[Tensor]) -> tuple[Tensor | None, Batch]:
            weight, given = (tensors[0], tensors[1:]) if weighted else (None, tensors)
            return weight, Batch(batch.share, *with_tensors(batch.args, batch.kwargs, given))

        def function(*tensors: Tensor) -> list[Tensor | None]:
            weight, (share, args, kwargs) = split(tensors)
            args, kwargs = for_programs(eager.model, args, kwargs)
            with torch.enable_grad(), pyro.validation_enabled(False), eager.step_context(share, weight):
                loss = self._objective.differentiable_loss(eager.model, eager.guide, *args, **kwargs)
                gradients = torch.autograd.grad(loss, eager.parameters, allow_unused=True)
            return [loss.detach(), *map(_with_strides, gradients, eager.parameters)]

        def reference(*tensors: Tensor) -> list[Tensor | None]:
            weight, given = split(tensors)
            loss = eager.gradients(given, 1.0 if weight is None else weight.item())
            return [loss, *(parameter.grad for parameter in eager.parameters)]

        modules = [module for program in (eager.model, eager.guide) for module in modules_of(program)]
        buffers = {id(buffer): buffer for module in modules for buffer in module.buffers()}
        return Recorded(function, reference=reference, buffers=buffers.values())


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


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and bool(one == other))


def _with_strides(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    """Return the gradient with the parameter's strides, which fused optimizers assume."""
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _kl_weight(weight: float | Tensor | None) -> AbstractContextManager[Any]:
    """Weigh the KL divergence, unless the weight is the number 1."""
    plain_elbo = weight is None or (not isinstance(weight, Tensor) and weight == 1)
    return nullcontext() if plain_elbo else temper(latent=weight)  # type: ignore[arg-type]
