"""CUDA graphs of a replay, of a training step and of several training steps.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. Draws come from torch's CUDA generator, which advances
with every replay as without a graph. Only verified replays are captured (see `Recorded`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyrovae.execution.tensors import Outputs

Result = TypeVar("Result")


class Replayed(Protocol):
    """A function of its inputs and of lifted tensors."""

    lifted: Sequence[Tensor]

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Run the function."""


def on_gpu(values: Iterable[Tensor]) -> bool:
    """Whether any tensor is on a GPU, where graphs can be captured."""
    return any(value.is_cuda for value in values)


def reason_of(error: Exception) -> str:
    """Explain in one line why a capture failed.

    Uses the first error of the chain, since the end of a failed capture raises errors as well.
    """
    first: BaseException = error
    while first.__context__ is not None:
        first = first.__context__
    return str(first).partition("\n")[0] or type(first).__name__


class CapturedReplay:
    """A function of tensors as one CUDA graph.

    Args:
        run: Function of the lifted tensors and the inputs, without gradients.
        lifted: Tensors whose memory the graph reads at every replay.
        inputs: Tensors with the shapes of all later inputs.
        device: The GPU.

    Raises:
        RuntimeError: If an operation cannot be captured.
    """

    def __init__(
        self, run: Callable[..., Outputs], lifted: Sequence[Tensor], inputs: Sequence[Tensor], device: torch.device
    ) -> None:
        self.lifted, self.inputs = lifted, _static_inputs(lifted, inputs, device)

        def replay() -> Outputs:
            return run(*self.lifted, *self.inputs)

        self.graph, self.outputs = _capture(replay, replay, device)

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Replay the graph."""
        _copy(self.inputs, inputs)
        self.graph.replay()
        return [None if value is None else value.clone() for value in self.outputs]


class CapturedStep:
    """A step of SVI as one CUDA graph of the loss, the gradients and, if possible, the optimizer's step.

    Args:
        replay: Function of the inputs that returns loss and gradients.
        inputs: Tensors with the shapes of all later inputs.
        parameters: Trained tensors.
        optimizer: Optimizer that has taken a step, so that its state exists; None to keep it out of the graph. An
            optimizer with hooks, which are Python, stays out as well.
        descend: Function that takes the optimizer's step, with what precedes it.

    Attributes:
        fully_captured: Whether the graph contains the optimizer's step.

    Raises:
        RuntimeError: If an operation cannot be captured.
    """

    def __init__(
        self,
        replay: Replayed,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        optimizer: Optimizer | None,
        descend: Callable[[], None],
    ) -> None:
        device = parameters[0].device
        self.replay, self.inputs, self.parameters = replay, _static_inputs(replay.lifted, inputs, device), parameters
        self.fully_captured = optimizer is not None and not _has_hooks(optimizer)
        if optimizer and self.fully_captured:
            self.fully_captured = all(group.get("capturable", False) for group in optimizer.param_groups)

        def run() -> Outputs:
            loss, *gradients = replay(*self.inputs)
            if optimizer and self.fully_captured:
                set_gradients(parameters, gradients)
                descend()
            return loss, *gradients

        self.graph, (self.loss, *self.gradients) = _capture(lambda: replay(*self.inputs), run, device)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Replay the graph, and return the loss. The next replay overwrites the loss and the parameters' gradients."""
        _copy(self.inputs, inputs)
        self.graph.replay()
        set_gradients(self.parameters, self.gradients)  # the last step may have been another graph's
        assert self.loss is not None
        return self.loss


class CapturedSteps:
    """Consecutive steps of SVI as one CUDA graph, which selects its batches and stores its losses.

    Args:
        count: Number of steps.
        batch: Function of row indices, with shape (B,), that returns the inputs of a step.
        replay: Function of the inputs, preceded by the KL weight if any, that returns loss and gradients.
        parameters: Trained tensors.
        descend: Function that takes a step of an optimizer that can be captured and has taken one.
        order: Order of the data, with shape (N,). The graph reads its row indices from it.
        batch_size: Number of data B per step.
        weights: KL weight of each step of an epoch, read by the graph; None without a KL weight.
        losses: Loss of each step of an epoch, written by the graph.

    Raises:
        RuntimeError: If an operation cannot be captured.
    """

    def __init__(
        self,
        count: int,
        batch: Replayed,
        replay: Replayed,
        parameters: Sequence[Tensor],
        descend: Callable[[], None],
        *,
        order: Tensor,
        batch_size: int,
        weights: Tensor | None,
        losses: Tensor,
    ) -> None:
        self.count = count
        self.step = torch.zeros(1, dtype=torch.long, device=order.device)
        self.places = torch.arange(batch_size, device=order.device)
        _static_inputs([*batch.lifted, *replay.lifted], [], order.device)
        # A graph stores addresses only, so the tensors that it reads and writes must live as long as it.
        self._kept = batch, replay, parameters, descend, order, weights, losses

        def gradients_of_step() -> Outputs:
            taken = batch(order.index_select(0, self.step * batch_size + self.places))
            inputs = [value for value in taken if value is not None]
            weight = [] if weights is None else [weights.index_select(0, self.step).reshape(())]
            return replay(*weight, *inputs)

        def run() -> Outputs:
            for _ in range(count):
                loss, *gradients = gradients_of_step()
                assert loss is not None
                set_gradients(parameters, gradients)
                descend()
                losses.index_copy_(0, self.step, loss.reshape(1).to(losses.dtype))
                self.step += 1
            return gradients

        self.graph, self.gradients = _capture(gradients_of_step, run, order.device)

    def __call__(self, step: int) -> None:
        """Run the steps of an epoch that begin with this one."""
        self.step.fill_(step)
        self.graph.replay()


def set_gradients(parameters: Iterable[Tensor], gradients: Iterable[Tensor | None]) -> None:
    """Set the gradients of parameters, which an optimizer reads."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def settings(optimizer: Optimizer) -> list[Any]:
    """Return the settings of an optimizer that are constants of a graph.

    A tensor on a GPU is represented by its identity, since the graph reads its value at every replay.
    """
    found: list[Any] = []
    for group in optimizer.param_groups:
        for name, value in group.items():
            if name != "params":
                tensor = isinstance(value, Tensor)
                found.append((id(value) if value.is_cuda else value.tolist()) if tensor else value)
    return found


def _has_hooks(optimizer: Optimizer) -> bool:
    from torch.optim import optimizer as module

    own = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return any((*own, module._global_optimizer_pre_hooks, module._global_optimizer_post_hooks))


def _static_inputs(lifted: Iterable[Tensor], inputs: Iterable[Tensor], device: torch.device) -> list[Tensor]:
    """Copy the inputs to memory that a graph reads at every replay.

    Tensors on another device would be read only once, during the capture.
    """
    values = [value.clone() for value in inputs]
    for value in (*lifted, *values):
        if value.device != device:
            raise RuntimeError(f"a graph needs all tensors on {device}, got one on {value.device}; move it there")
    return values


def _copy(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _capture(first: Callable[[], Any], run: Callable[[], Result], device: torch.device) -> tuple[Any, Result]:
    """Run `first` without capture, so that libraries allocate their workspaces; then capture `run`."""
    with torch.no_grad(), torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream()):
        side, drawn = torch.cuda.Stream(), torch.get_rng_state()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            first()
        torch.cuda.current_stream().wait_stream(side)
        if device.type == "cuda" and not torch.equal(drawn, torch.get_rng_state()):
            raise RuntimeError("the function draws on the CPU, and these draws would be constants of the graph")
        graph = torch.cuda.CUDAGraph()
        # The stream is of this device; torch's default stream for captures is of the first. Other threads, which
        # prepare batches, may use CUDA during the capture.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            found = run()
    return graph, found
