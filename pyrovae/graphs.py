"""CUDA graphs: the kernels of a replay, of a training step or of many, launched as one.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. Draws come from torch's CUDA generator, which advances
with every replay as it does without a graph. What can be captured has run before, and has been found to give the same
as the programs (see `Recorded`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

Outputs = Sequence[Tensor | None]
Result = TypeVar("Result")


def on_card(values: Iterable[Tensor]) -> bool:
    """Whether there are tensors on a card, where graphs can be captured."""
    return any(value.is_cuda for value in values)


def reason_of(error: Exception) -> str:
    """Why a capture failed, in one line."""
    return str(error).partition("\n")[0] or type(error).__name__


class CapturedReplay:
    """A function of tensors as one CUDA graph.

    Args:
        replay: The function, without gradients.
        inputs: Tensors of the shapes to come.
        device: The card.

    Raises:
        RuntimeError: If an operation cannot be captured.
    """

    def __init__(self, replay: Callable[..., Outputs], inputs: Sequence[Tensor], device: torch.device) -> None:
        self.inputs = _static(inputs, device)

        def run() -> Outputs:
            return replay(*self.inputs)

        self.graph, self.outputs = _capture(run, run, device)

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Replay."""
        _copy(self.inputs, inputs)
        self.graph.replay()
        return [None if value is None else value.clone() for value in self.outputs]


class CapturedStep:
    """A step of SVI as one CUDA graph: loss, gradients and, where it can be captured, the optimizer.

    Args:
        replay: From inputs to loss and gradients.
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
        device = parameters[0].device
        self.inputs = _static(inputs, device)
        self.parameters = parameters
        capturable = optimizer and all(group.get("capturable", False) for group in optimizer.param_groups)
        self.whole = bool(capturable)

        def run() -> Outputs:
            loss, *gradients = replay(*self.inputs)
            if optimizer and self.whole:
                set_gradients(parameters, gradients)
                optimizer.step()
            return loss, *gradients

        self.graph, (self.loss, *self.gradients) = _capture(lambda: replay(*self.inputs), run, device)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Replay, and return the loss, which the next replay overwrites; the parameters' grad likewise."""
        _copy(self.inputs, inputs)
        self.graph.replay()
        set_gradients(self.parameters, self.gradients)  # those of another shape's graph may stand there
        assert self.loss is not None
        return self.loss


class CapturedSteps:
    """Steps of SVI one after another as one CUDA graph, which takes its batches, and leaves its losses, by itself.

    Args:
        count: How many steps.
        batch: From rows, with shape (B,), to the inputs of a step.
        replay: From inputs, the weight of the KL divergence first if there is one, to loss and gradients.
        parameters: What is trained.
        optimizer: An optimizer that can be captured and has taken a step before.
        order: The order of the data, with shape (N,), in which the graph looks for its rows.
        batch_size: B.
        weights: The weight for each step of an epoch, in which the graph looks for its own; None for none.
        losses: Where the loss of each step of an epoch is left.

    Raises:
        RuntimeError: If an operation cannot be captured.
    """

    def __init__(
        self,
        count: int,
        batch: Callable[..., Outputs],
        replay: Callable[..., Outputs],
        parameters: Sequence[Tensor],
        optimizer: Optimizer,
        *,
        order: Tensor,
        batch_size: int,
        weights: Tensor | None,
        losses: Tensor,
    ) -> None:
        self.count = count
        self.step = torch.zeros(1, dtype=torch.long, device=order.device)
        places = torch.arange(batch_size, device=order.device)

        def descend() -> Outputs:
            inputs = batch(order.index_select(0, self.step * batch_size + places))
            weight = [] if weights is None else [weights.index_select(0, self.step).reshape(())]
            return replay(*weight, *inputs)

        def run() -> Outputs:
            for _ in range(count):
                loss, *gradients = descend()
                assert loss is not None
                set_gradients(parameters, gradients)
                optimizer.step()
                losses.index_copy_(0, self.step, loss.reshape(1).to(losses.dtype))
                self.step += 1
            return gradients

        self.graph, self.gradients = _capture(descend, run, order.device)

    def __call__(self, step: int) -> None:
        """Take the steps of an epoch from this one on."""
        self.step.fill_(step)
        self.graph.replay()


def set_gradients(parameters: Iterable[Tensor], gradients: Iterable[Tensor | None]) -> None:
    """Put gradients where an optimizer looks for them."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def _static(inputs: Iterable[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors that a graph reads at every replay; what lies elsewhere it would read once, when it is captured."""
    values = [value.clone() for value in inputs]
    for value in values:
        if value.device != device:
            raise RuntimeError(f"an input lies on {value.device}, and the rest on {device}; move it there")
    return values


def _copy(mine: Iterable[Tensor], given: Iterable[Tensor]) -> None:
    for value, other in zip(mine, given, strict=True):
        value.copy_(other)


def _capture(first: Callable[[], Any], run: Callable[[], Result], device: torch.device) -> tuple[Any, Result]:
    """Run once outside of a capture, where libraries make their workspaces; then capture."""
    with torch.no_grad(), torch.cuda.device(device):  # capturing is of the current one
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            first()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # What another thread does meanwhile, a batch being prepared, is not in the graph and may go on.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            found = run()
    return graph, found
