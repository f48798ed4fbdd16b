"""The training step: Pyro's own, or the same recorded once for each shape of a batch and replayed."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.optim import Optimizer

from pyrovae.arguments import take
from pyrovae.densities import Program, modules_of
from pyrovae.handlers import temper
from pyrovae.plain import plain
from pyrovae.precision import Precision, products_in
from pyrovae.recording import (
    Execution,
    NotRecordedError,
    Outputs,
    Recorded,
    State,
    choose_execution,
    refuse,
    signature,
    tensors_of,
    warn,
    with_tensors,
)
from pyrovae.workers import Share, Workers

# Steps of one shape from which recording (a second at most) and compiling (a minute at most) pay.
RECORDED_FROM = 1_000
COMPILED_FROM = 20_000


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
        self.parameters, self.optimizer, self.device = list(parameters), optimizer, device
        self.executions = {
            size: choose_execution(execution, count, recorded_from=RECORDED_FROM, compiled_from=COMPILED_FROM)
            for size, count in calls.items()
        }
        self.weight = torch.ones((), dtype=torch.float64, device=device) if weighted else None
        self.refused: str | None = None
        self._recorded: dict[Share, Recorded] = {}
        self._captured: dict[Hashable, CapturedStep | None] = {}
        if set(self.executions.values()) != {"eager"}:
            try:
                plain(elbo)
            except NotRecordedError as error:
                self._refuse(error)
            else:
                _prepare(optimizer, device)

    def state(self) -> dict[str, Any]:
        """How steps are taken, in plain values: a resumed run goes on as it began."""
        return {"executions": {str(size): how for size, how in self.executions.items()}, "refused": self.refused}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as the run of this state did."""
        self.executions = {int(size): how for size, how in state["executions"].items()}
        self.refused = state["refused"]

    def __call__(
        self,
        size: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        weight: float | Tensor = 1.0,
        checked: bool = False,
    ) -> Tensor:
        """Take a step.

        Args:
            size: The number of data.
            args: The programs' arguments.
            kwargs: Their keyword arguments.
            weight: The weight of the KL divergence; a tensor where it is learned.
            checked: With Pyro's checks of shapes and supports.

        Returns:
            The loss before the step, a scalar.
        """
        share = self.workers.share(size)
        if self.workers.size > 1:
            args, kwargs = take(args, kwargs, share.rows)
        how = "eager" if self.refused else self.executions.get(size, "eager")
        if how != "eager":
            try:
                return self._replayed(share, args, kwargs, weight, checked, compiled=how == "compiled")
            except NotRecordedError as error:
                self._refuse(error)
        loss = self._eager(share, args, kwargs, weight, checked)
        self._descend(share, loss)
        return loss

    def _eager(
        self, share: Share, args: tuple[Any, ...], kwargs: dict[str, Any], weight: float | Tensor, checked: bool
    ) -> Tensor:
        """The loss of Pyro's objective, its gradients in the parameters' grad."""
        with pyro.validation_enabled(checked), self._around(share, weight):
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
        checked: bool,
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
        if self.device.type == "cuda" and (captured := self._capture(share, inputs, recorded)):
            loss = captured(*inputs)
            if not captured.whole:
                self._descend(share, loss)
            return loss
        self._checked, self._weight = checked, weight
        found, *gradients = recorded(*inputs, compiled=compiled)
        assert found is not None
        _set_gradients(self.parameters, gradients)
        self._descend(share, found)
        return found

    def _capture(self, share: Share, inputs: Sequence[Tensor], recorded: Recorded) -> "CapturedStep | None":
        """The CUDA graph of a step of this shape, made at the first one that needs no comparison; None before."""
        replay, key = recorded.checked(*inputs), (share, signature(inputs))
        if replay is not None and key not in self._captured:
            before = State(recorded.buffers)
            alone = self.workers.size == 1
            try:
                self._captured[key] = CapturedStep(replay, inputs, self.parameters, self.optimizer if alone else None)
            except RuntimeError as error:
                self._captured[key] = None
                reason = str(error).partition("\n")[0]
                warn(f"steps are replayed kernel by kernel, since CUDA cannot capture them as one graph: {reason}")
            before.restore()
        return self._captured.get(key)

    def _record(self, share: Share, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recorded:
        objective = plain(self.elbo)

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
            loss = self._eager(share, *with_tensors(args, kwargs, given), self._weight, self._checked)
            return [loss, *(parameter.grad for parameter in self.parameters)]

        modules = [module for program in (self.model, self.guide) for module in modules_of(program)]
        buffers = {id(buffer): buffer for module in modules for buffer in module.buffers()}
        return Recorded(function, reference=reference, buffers=buffers.values())

    def _refuse(self, error: NotRecordedError) -> None:
        self.refused = str(error)
        refuse("training", error)


class CapturedStep:
    """A step of SVI as one CUDA graph: loss, gradients and, where it can be captured, the optimizer.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. Draws come from torch's CUDA generator, which
    advances with every replay as it does without a graph.

    Args:
        replay: From inputs to loss and gradients; it has run before.
        inputs: Tensors of the shapes to come.
        parameters: What is trained.
        optimizer: An optimizer that has taken a step before, so that it has its state; None to leave it out.

    Attributes:
        whole: The graph holds the optimizer's step too.

    Raises:
        RuntimeError: If an operation cannot be captured.
    """

    def __init__(
        self,
        replay: Callable[..., Outputs],
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        optimizer: Optimizer | None,
    ) -> None:
        self.inputs = [value.clone() for value in inputs]
        self.parameters = parameters
        capturable = optimizer and all(group.get("capturable", False) for group in optimizer.param_groups)
        self.whole = bool(capturable)
        with torch.cuda.device(parameters[0].device):  # capturing is of the current one
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # libraries make their workspaces outside of a capture
                replay(*self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            # What another thread does meanwhile, a batch being prepared, is not in the graph and may go on.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.loss, *self.gradients = replay(*self.inputs)
                if optimizer and self.whole:
                    _set_gradients(parameters, self.gradients)
                    optimizer.step()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Replay, and return the loss, which the next replay overwrites; the parameters' grad likewise."""
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        _set_gradients(self.parameters, self.gradients)  # those of another shape's graph may stand there
        assert self.loss is not None
        return self.loss


def _prepare(optimizer: Optimizer, device: torch.device) -> None:
    """Let torch's Adam run fused where the reader left it open, and optimizers run inside a CUDA graph."""
    for group in optimizer.param_groups:
        if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
            open_ = group["fused"] is None and group["foreach"] is None and not group["differentiable"]
            group["fused"] = True if open_ else group["fused"]
        if device.type == "cuda" and "capturable" in group:
            group["capturable"] = True


def _set_gradients(parameters: Iterable[Tensor], gradients: Iterable[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def _laid_out(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    """The gradient with the parameter's strides, which a fused optimizer takes for granted."""
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _weighing(weight: float | Tensor | None) -> AbstractContextManager[Any]:
    plain_elbo = weight is None or (not isinstance(weight, Tensor) and weight == 1)
    return nullcontext() if plain_elbo else temper(latent=weight)  # type: ignore[arg-type]
