"""The training step: Pyro's own, or the same recorded once for each shape of a batch and replayed."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.optim import Optimizer

from pyrovae.densities import Program, modules_of, take, temper
from pyrovae.execution import (
    CapturedStep,
    CapturedSteps,
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
    signature,
    tensors_of,
    warn,
    with_tensors,
)
from pyrovae.objectives import recordable

# Steps of one shape from which recording (a second at most) and compiling (a minute at most) pay.
RECORDED_FROM = 1_000
COMPILED_FROM = 20_000

AT_ONCE = 25  # steps in one CUDA graph


class Stepper:
    """Takes one step of SVI after another: gradients of the loss of a batch, and one step of the optimizer.

    Args:
        model: Pyro program.
        guide: Pyro program.
        elbo: The objective.
        parameters: What is trained.
        optimizer: Its optimizer. Where steps are recorded, torch's Adam is made to run fused.
        execution: How steps are taken; "auto" follows from calls.
        calls: For each size of a batch, the steps of the whole run.
        weighted: The KL divergence has a weight.
        device: Where the parameters are.
        workers: The processes that share each batch; None for this one alone.
        precision: Of the products of layers.

    Attributes:
        on_gpu: Steps can be CUDA graphs.
        whole: For each size of a batch whose step is one CUDA graph, the optimizer's included, its record.
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
    ) -> None:
        self.model, self.guide, self.workers, self.precision = model, guide, workers or Workers(), precision
        self.elbo: Any = elbo  # not every ELBO of Pyro's has a differentiable_loss
        self.parameters, self.optimizer = list(parameters), optimizer
        self.executions = {
            size: choose_execution(execution, count, recorded_from=RECORDED_FROM, compiled_from=COMPILED_FROM)
            for size, count in calls.items()
        }
        self.weight = torch.ones((), dtype=torch.float64, device=device) if weighted else None
        self.on_gpu = all(on_gpu([parameter]) for parameter in self.parameters)
        self.whole: dict[int, Recorded] = {}
        self._settings: list[Any] | None = None  # those of the optimizer that graphs hold fast
        self._changing = False
        self.refused: str | None = None
        self._recorded: dict[Share, Recorded] = {}
        self._captured: dict[Hashable, CapturedStep | None] = {}
        if set(self.executions.values()) != {"eager"}:
            try:
                recordable(elbo)
            except NotRecordedError as error:
                self._refuse(error)
            else:
                _prepare(optimizer, recorded=True)

    def state(self) -> dict[str, Any]:
        """How steps are taken, in plain values: a resumed run goes on as it began."""
        return {"executions": {str(size): how for size, how in self.executions.items()}, "refused": self.refused}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as the run of this state did."""
        self.executions = {int(size): how for size, how in state["executions"].items()}
        self.refused = state["refused"]
        # The optimizer's settings have been restored before, maybe those of another device.
        _prepare(self.optimizer, recorded=not self.refused and set(self.executions.values()) != {"eager"})

    def close(self) -> None:
        """Let go of records and graphs, and of the memory that they keep."""
        self._recorded.clear()
        self._captured.clear()
        self.whole.clear()

    def follows_settings(self) -> bool:
        """Whether graphs hold the optimizer as it is; once its settings have changed it stays beside them."""
        if self.whole and settings(self.optimizer) != self._settings:
            self._changing = True
            self._captured.clear()
            self.whole.clear()
        return not self._changing

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
            size: The number of data.
            args: The programs' arguments.
            kwargs: Their keyword arguments.
            weight: The weight of the KL divergence; a tensor where it is learned.
            validate: Whether Pyro checks shapes and supports.

        Returns:
            The loss before the step, a scalar.
        """
        share = self.workers.share(size)
        if self.workers.size > 1:
            args, kwargs = take(args, kwargs, share.rows)
        how = "eager" if self.refused else self.executions.get(size, "eager")
        if how != "eager":
            try:
                return self._replayed(share, args, kwargs, weight, validate, compiled=how == "compiled")
            except NotRecordedError as error:
                self._refuse(error)
        loss = self._eager(share, args, kwargs, weight, validate)
        self._descend(share, loss)
        return loss

    def _eager(
        self, share: Share, args: tuple[Any, ...], kwargs: dict[str, Any], weight: float | Tensor, validate: bool
    ) -> Tensor:
        """The loss of Pyro's objective, its gradients in the parameters' grad."""
        with pyro.validation_enabled(validate), self._around(share, weight):
            loss = self.elbo.differentiable_loss(self.model, self.guide, *args, **kwargs)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    @contextmanager
    def _around(self, share: Share, weight: float | Tensor | None) -> Iterator[None]:
        """What the programs run inside of, eagerly and while they are recorded."""
        with _weighing(weight), self.workers.drawing(share), products_in(self.precision):
            yield

    def _descend(self, share: Share, loss: Tensor) -> None:
        """Take the optimizer's step, with loss and gradients summed over the processes before."""
        if self.workers.size > 1:
            summed = [loss, *(parameter.grad for parameter in self.parameters)]
            if share.empty:
                for value in summed:
                    if value is not None:
                        value.zero_()
            self.workers.add(summed)
        self.optimizer.step()

    def _replayed(
        self,
        share: Share,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        weight: float | Tensor,
        validate: bool,
        *,
        compiled: bool,
    ) -> Tensor:
        inputs = tensors_of(args, kwargs)
        if self.weight is not None:  # a tensor, since a number would be held fast
            self.weight.fill_(weight)
            inputs = [self.weight, *inputs]
        if share not in self._recorded:
            self._recorded[share] = self._record(share, args, kwargs)
        recorded = self._recorded[share]
        if captured := self._capture(share, inputs, recorded):
            loss = captured(*inputs)
            if not captured.whole:
                self._descend(share, loss)
            return loss
        self._validate, self._weight = validate, weight
        replay = recorded.verified_replay(*inputs) or partial(recorded, compiled=compiled)
        found, *gradients = replay(*inputs)
        assert found is not None
        set_gradients(self.parameters, gradients)
        self._descend(share, found)
        return found

    def _capture(self, share: Share, inputs: Sequence[Tensor], recorded: Recorded) -> CapturedStep | None:
        """The CUDA graph of a step of this shape, made at the first one that needs no comparison; None before."""
        if not self.on_gpu:
            return None
        inside = self.follows_settings() and self.workers.size == 1
        replay, key = recorded.verified_replay(*inputs), (share, signature(inputs))
        if replay is not None and key not in self._captured:
            before = State(recorded.buffers)
            try:
                captured = CapturedStep(replay, inputs, self.parameters, self.optimizer if inside else None)
            except (RuntimeError, AssertionError) as error:
                if None not in self._captured.values():
                    reason = reason_of(error)
                    warn(f"steps are replayed kernel by kernel, since CUDA cannot capture them as one graph: {reason}")
                self._captured[key] = None
            else:
                self._captured[key] = captured
                if captured.whole:
                    self.whole[share.size], self._settings = recorded, settings(self.optimizer)
            before.restore()
        return self._captured.get(key)

    def _record(self, share: Share, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recorded:
        objective = recordable(self.elbo)

        def function(*tensors: Tensor) -> list[Tensor | None]:
            weight, given = (None, tensors) if self.weight is None else (tensors[0], tensors[1:])
            now_args, now_kwargs = with_tensors(args, kwargs, given)
            with torch.enable_grad(), pyro.validation_enabled(False), self._around(share, weight):
                loss = objective.differentiable_loss(self.model, self.guide, *now_args, **now_kwargs)
                gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            laid_out = [_laid_out(*pair) for pair in zip(gradients, self.parameters, strict=True)]
            return [loss.detach(), *laid_out]

        def reference(*tensors: Tensor) -> list[Tensor | None]:
            given = tensors if self.weight is None else tensors[1:]
            loss = self._eager(share, *with_tensors(args, kwargs, given), self._weight, self._validate)
            return [loss, *(parameter.grad for parameter in self.parameters)]

        modules = [module for program in (self.model, self.guide) for module in modules_of(program)]
        buffers = {id(buffer): buffer for module in modules for buffer in module.buffers()}
        return Recorded(function, reference=reference, buffers=buffers.values())

    def _refuse(self, error: NotRecordedError) -> None:
        self.refused = str(error)
        refuse("training", error)


class StepsAtOnce:
    """Takes many steps of an epoch between returns to Python, where one is a CUDA graph already: as a graph of many.

    Args:
        stepper: Takes them one by one.
        batch: From rows, with shape (B,), to the programs' arguments of a step.
        num_data: N.
        batch_size: B.
        losses: A place for the loss of each step of an epoch.

    Attributes:
        count: How many are taken.
    """

    def __init__(
        self,
        stepper: Stepper,
        batch: Callable[[Tensor], tuple[tuple[Any, ...], dict[str, Any]]],
        num_data: int,
        batch_size: int,
        losses: Tensor,
    ) -> None:
        self.stepper, self.batch_size, self.losses = stepper, batch_size, losses
        self.count = min(AT_ONCE, num_data // batch_size)
        self.refused = self.count < 2
        self.order = torch.zeros(num_data, dtype=torch.long, device=losses.device)
        self.weights = None if stepper.weight is None else torch.ones_like(losses)
        self._batch = Recorded(lambda rows: tensors_of(*batch(rows)))
        self._captured: CapturedSteps | None = None

    def __call__(self, step: int, weight: Callable[[int], float | Tensor]) -> list[float | Tensor]:
        """Take the steps from this one on, if that can be done at once.

        Args:
            step: The next step of the epoch, whose order of the data stands in `order`.
            weight: Of the KL divergence at a step of the epoch.

        Returns:
            The weights of the steps that were taken, count of them; none where none were.
        """
        if self.refused or (step + self.count) * self.batch_size > len(self.order):
            return []
        if not self.stepper.follows_settings():
            self.refused, self._captured = True, None
            return []
        if self._captured is None and not self._capture():
            return []
        assert self._captured is not None
        weights = [weight(step + later) for later in range(self.count)]
        if self.weights is not None:
            self.weights[step : step + self.count] = torch.tensor(weights, dtype=self.weights.dtype)
        self._captured(step)
        return weights

    def _capture(self) -> bool:
        recorded = self.stepper.whole.get(self.batch_size)
        if recorded is None:
            return False
        before = State(recorded.buffers)
        try:
            for rows in (self.order[: self.batch_size], self.order[-self.batch_size :]):  # compared twice
                inputs = [value for value in self._batch(rows) if value is not None]
            weight = [] if self.stepper.weight is None else [self.stepper.weight]
            batch, replay = self._batch.verified_replay(rows), recorded.verified_replay(*weight, *inputs)
            if batch is None or replay is None:
                raise NotRecordedError("batches that it takes are laid out in another way")
            self._captured = CapturedSteps(
                self.count,
                batch,
                replay,
                self.stepper.parameters,
                self.stepper.optimizer,
                order=self.order,
                batch_size=self.batch_size,
                weights=self.weights,
                losses=self.losses,
            )
        except (NotRecordedError, RuntimeError, AssertionError) as error:
            self.refused = True
            reason = error if isinstance(error, NotRecordedError) else reason_of(error)
            warn(f"steps are taken one by one, since a graph cannot take its batches by itself: {reason}")
        before.restore()
        return self._captured is not None


def _prepare(optimizer: Optimizer, *, recorded: bool) -> None:
    """Where steps are recorded, let torch's Adam run fused if the reader left it open, and all inside a CUDA graph."""
    for group in optimizer.param_groups:
        if recorded and type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
            open_ = group["fused"] is None and group["foreach"] is None and not group["differentiable"]
            group["fused"] = True if open_ else group["fused"]
        if "capturable" in group:
            group["capturable"] = (recorded or group["capturable"]) and on_gpu(group["params"])
            for parameter in group["params"] if group["capturable"] else ():
                state = optimizer.state.get(parameter, {})
                if "step" in state:
                    state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)


def _laid_out(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    """The gradient with the parameter's strides, which a fused optimizer takes for granted."""
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _weighing(weight: float | Tensor | None) -> AbstractContextManager[Any]:
    plain_elbo = weight is None or (not isinstance(weight, Tensor) and weight == 1)
    return nullcontext() if plain_elbo else temper(latent=weight)  # type: ignore[arg-type]
