"""Training steps: eager, or recorded."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim import Optimizer

from pyrovae.densities import Program, Whole, modules_of, temper
from pyrovae.execution import (
    NotRecordedError,
    Precision,
    Recorded,
    Share,
    Workers,
    products_in,
    set_gradients,
    tensors_of,
    with_tensors,
)
from pyrovae.objectives import recordable
from pyrovae.training.batches import for_programs
from pyrovae.training.optimizers import take_step
from pyrovae.training.plates import OutsideSites, weighed
from pyrovae.training.shares import Sharing


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
