"""CUDA graphs: the kernels of a replay, of a training step or of many, launched as one.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. Draws come from torch's CUDA generator, which advances
with every replay as it does without a graph. What can be captured has run before, and has been found to give the same
as the programs (see `Recorded`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

Outputs = Sequence[Tensor | None]
Result = TypeVar("Result")


class Replayed(Protocol):
    """A function of tensors that are its inputs, and of those that it holds."""

    held: Sequence[Tensor]

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Replay."""


def on_gpu(values: Iterable[Tensor]) -> bool:
    """Whether there are tensors on a card, where graphs can be captured."""
    return any(value.is_cuda for value in values)


def reason_of(error: Exception) -> str:
    """Why a capture failed, in one line: what came first, since the end of a broken capture has errors of its own."""
    first: BaseException = error
    while first.__context__ is not None:
        first = first.__context__
    return str(first).partition("\n")[0] or type(first).__name__


class CapturedReplay:
    """A function of tensors as one CUDA graph.

    Args:
        run: The function of held tensors and inputs, without gradients.
        held: Tensors that stay where they are.
        inputs: Tensors of the shapes to come.
        device: The card.

    Raises:
        RuntimeError: If an operation cannot be captured.
    """

    def __init__(
        self, run: Callable[..., Outputs], held: Sequence[Tensor], inputs: Sequence[Tensor], device: torch.device
    ) -> None:
        self.held, self.inputs = held, _static(held, inputs, device)

        def replay() -> Outputs:
            return run(*self.held, *self.inputs)

        self.graph, self.outputs = _capture(replay, replay, device)

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
        optimizer: An optimizer that has taken a step before, so that it has its state; None to leave it out. One with
            hooks, which are Python, is left out too.

    Attributes:
        whole: The graph holds the optimizer's step too.

    Raises:
        RuntimeError: If an operation cannot be captured.
    """

    def __init__(
        self,
        replay: Replayed,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        optimizer: Optimizer | None,
    ) -> None:
        device = parameters[0].device
        self.replay, self.inputs, self.parameters = replay, _static(replay.held, inputs, device), parameters
        self.whole = optimizer is not None and not _has_hooks(optimizer)
        if optimizer and self.whole:
            self.whole = all(group.get("capturable", False) for group in optimizer.param_groups)

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
        batch: Replayed,
        replay: Replayed,
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
        self.places = torch.arange(batch_size, device=order.device)
        _static([*batch.held, *replay.held], [], order.device)
        # A graph knows addresses alone: what it reads and writes has to live as long.
        self._kept = batch, replay, parameters, optimizer, order, weights, losses

        def descend() -> Outputs:
            taken = batch(order.index_select(0, self.step * batch_size + self.places))
            inputs = [value for value in taken if value is not None]
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


def settings(optimizer: Optimizer) -> list[Any]:
    """The numbers of an optimizer that a graph holds fast; tensors on a card it reads anew."""
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


def _static(held: Iterable[Tensor], inputs: Iterable[Tensor], device: torch.device) -> list[Tensor]:
    """Inputs that a graph reads at every replay; what lies elsewhere it would read once, when it is captured."""
    values = [value.clone() for value in inputs]
    for value in (*held, *values):
        if value.device != device:
            raise RuntimeError(f"a tensor lies on {value.device}, and others on {device}; move it there")
    return values


def _copy(mine: Iterable[Tensor], given: Iterable[Tensor]) -> None:
    for value, other in zip(mine, given, strict=True):
        value.copy_(other)


def _capture(first: Callable[[], Any], run: Callable[[], Result], device: torch.device) -> tuple[Any, Result]:
    """Run once outside of a capture, where libraries make their workspaces; then capture."""
    with torch.no_grad(), torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream()):
        side, drawn = torch.cuda.Stream(), torch.get_rng_state()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            first()
        torch.cuda.current_stream().wait_stream(side)
        if device.type == "cuda" and not torch.equal(drawn, torch.get_rng_state()):
            raise RuntimeError("it draws on the CPU, where a graph would draw once for all replays")
        graph = torch.cuda.CUDAGraph()
        # Of this device: torch's own stream for captures is of the first. What another thread does meanwhile, a batch
        # being prepared, is not in the graph and may go on.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            found = run()
    return graph, found
