"""Learning rate of `fit`: a scheduler of torch, a warm-up, and Burda et al.'s ladder."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

ScheduleFactory = Callable[[Optimizer], LRScheduler]

_EVERY_STEP = (CyclicLR, OneCycleLR)  # torch's schedulers that are meant to step after every batch
_EXAMPLE = "lr_schedule=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=100)"


class BurdaLR(LRScheduler):
    """Ladder of learning rates by Burda et al. 2016: rung i = 0, 1, ... lasts 3^i epochs at the rate lr 10^(-i/7).

    The paper has 8 rungs, 3,280 epochs in all, and lr = 1e-3. Epochs beyond the last rung keep its rate.

    Args:
        optimizer: Optimizer whose learning rates are multiplied.
        rungs: Number of rungs.

    Raises:
        ValueError: If there is no rung.
    """

    def __init__(self, optimizer: Optimizer, rungs: int = 8) -> None:
        if rungs < 1:
            raise ValueError(f"rungs must be at least 1, got {rungs}")
        self.rungs = rungs
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the rate of each group of parameters in the current epoch."""
        rung = 0
        while rung < self.rungs - 1 and self.last_epoch >= (3 ** (rung + 1) - 1) // 2:
            rung += 1
        return [float(base) * 10 ** (-rung / 7) for base in self.base_lrs]


class LearningRate:
    """Learning rate of each group of parameters, by epoch or by step.

    The scheduler sees plain numbers. A rate on a GPU is kept in a tensor, which CUDA graphs read at every replay.

    Args:
        optimizer: Optimizer of the run.
        schedule: Function from the optimizer to a scheduler of torch; None for a constant rate. The scheduler steps
            after every epoch. `OneCycleLR`, `CyclicLR`, and classes with a true attribute `every_step` step after
            every step.
        warmup: Number of epochs, also a fraction, in which the rate rises linearly from 0, step by step. It multiplies
            the rate of the schedule.
        epochs: Maximum number of epochs.
        steps: Number of steps per epoch.

    Attributes:
        varies_within_epoch: Whether the rate may differ between the steps of an epoch.

    Raises:
        ValueError: If this is no such function, the warm-up is negative, the schedule ends before the training, or the
            optimizer has no rate or changes it by itself, where a schedule or a warm-up would set it.
    """

    def __init__(
        self, optimizer: Optimizer, schedule: ScheduleFactory | None, *, warmup: float = 0.0, epochs: int, steps: int
    ) -> None:
        if not 0 <= warmup < math.inf:
            raise ValueError(f"lr_warmup must be a finite number of epochs, at least 0, got {warmup}")
        self.optimizer, self.warmup_steps = optimizer, warmup * steps
        if schedule is not None or warmup > 0:
            _check_rate(optimizer)
        self.scheduler = None if schedule is None else _made(schedule, optimizer)
        every_step = isinstance(self.scheduler, _EVERY_STEP) or getattr(self.scheduler, "every_step", False)
        if isinstance(self.scheduler, OneCycleLR) and self.scheduler.total_steps < epochs * steps:
            raise ValueError(
                f"OneCycleLR ends after {self.scheduler.total_steps:,} steps, but the training has up to "
                f"{epochs * steps:,}; give total_steps={epochs * steps}"
            )
        self._each_step = bool(self.scheduler is not None and every_step)
        self.varies_within_epoch = self._each_step or warmup > 0
        self._rates = [float(group.get("lr", math.nan)) for group in optimizer.param_groups]  # before the warm-up
        self._last = self._rates[0]
        self._tensors: list[Tensor | None] = [None] * len(self._rates)
        if self.varies:
            self._place()

    @property
    def varies(self) -> bool:
        """Whether the rate may change at all."""
        return self.scheduler is not None or self.warmup_steps > 0

    @property
    def rate(self) -> float | None:
        """Rate of the last step, for the first group of parameters; None if the optimizer has no rate."""
        if self.varies:
            return self._last
        rate = self.optimizer.param_groups[0].get("lr")  # pyro.optim.ClippedAdam lowers it in its steps
        return None if rate is None else float(rate)

    def before_step(self, step: int) -> None:
        """Set the rate of a step, counted from 0 over all epochs."""
        if not self.varies:
            return
        factor = 1.0
        if self.warmup_steps and step <= self.warmup_steps:
            factor = min(1.0, (step + 1) / self.warmup_steps)
            self._set(factor)
        self._last = self._rates[0] * factor

    def after_step(self) -> None:
        """Advance a scheduler that steps after every step."""
        if self._each_step:
            self._advance()

    def end_epoch(self, loss: float) -> None:
        """Advance a scheduler that steps after every epoch.

        Args:
            loss: Validation loss, or the training loss without validation, which `ReduceLROnPlateau` watches.
        """
        if self.scheduler is None or self._each_step:
            return
        self._advance(loss)

    def state(self) -> dict[str, Any]:
        """Return the state as plain values: the rates, and the state of the scheduler."""
        return {"rates": list(self._rates), "scheduler": None if self.scheduler is None else _state(self.scheduler)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from a state. Restore the optimizer first.

        Raises:
            ValueError: If the state belongs to another schedule.
        """
        saved, scheduler = state["scheduler"], self.scheduler
        here = None if scheduler is None else _state(scheduler)
        if (here is None) != (saved is None) or len(state["rates"]) != len(self._rates):
            raise ValueError("the state has another learning rate schedule")
        if scheduler is not None and here is not None:
            _check_alike(here, saved)
            counters = {name: Counter(value) for name, value in saved.items() if isinstance(here[name], Counter)}
            scheduler.load_state_dict({**saved, **counters})
        self._rates = [float(rate) for rate in state["rates"]]
        if self.varies:
            self._place()

    def _advance(self, loss: float = math.nan) -> None:
        assert self.scheduler is not None
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss)
        else:
            self.scheduler.step()
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._set()

    def _place(self) -> None:
        """Keep the rates of groups whose steps a CUDA graph may contain in tensors."""
        groups = self.optimizer.param_groups
        for index, group in enumerate(groups):
            if self._tensors[index] is None and (group.get("capturable") or isinstance(group["lr"], Tensor)):
                self._tensors[index] = torch.zeros((), device=group["params"][0].device)
        self._set()

    def _set(self, factor: float = 1.0) -> None:
        for group, rate, tensor in zip(self.optimizer.param_groups, self._rates, self._tensors, strict=True):
            group["lr"] = rate * factor if tensor is None else tensor.fill_(rate * factor)


def _check_rate(optimizer: Optimizer) -> None:
    """Refuse a schedule or a warm-up of an optimizer that has no learning rate, or lowers it in each step."""
    name = type(optimizer).__name__
    for group in optimizer.param_groups:
        if "lr" not in group:
            raise ValueError(
                f"lr_schedule and lr_warmup need an optimizer with a learning rate lr, but {name} has none; leave them "
                "out, or use another optimizer"
            )
        if group.get("lrd", 1) != 1:
            raise ValueError(
                f"{name} with lrd={group['lrd']} lowers its learning rate in each step, which lr_schedule or lr_warmup "
                "would undo; leave out lrd, or leave out lr_schedule and lr_warmup"
            )


def _made(schedule: ScheduleFactory, optimizer: Optimizer) -> LRScheduler:
    if isinstance(schedule, LRScheduler) or not callable(schedule):
        raise ValueError(
            f"lr_schedule must be a function from the optimizer to a scheduler of torch, got "
            f"{type(schedule).__name__}; write {_EXAMPLE}"
        )
    made = schedule(optimizer)
    if not isinstance(made, LRScheduler):
        raise ValueError(f"lr_schedule must return a scheduler of torch, got {type(made).__name__}; write {_EXAMPLE}")
    if made.optimizer is not optimizer:
        raise ValueError(f"lr_schedule must schedule the optimizer that it receives, not another; write {_EXAMPLE}")
    return made


def _state(scheduler: LRScheduler) -> dict[str, Any]:
    """Return the state of a scheduler without functions, which its constructor makes."""
    return {name: value for name, value in scheduler.state_dict().items() if _is_data(value)}


def _is_data(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_data(each) for each in value.values())
    if isinstance(value, list | tuple):
        return all(map(_is_data, value))
    return value is None or isinstance(value, bool | int | float | str | Tensor)


def _check_alike(here: Mapping[str, Any], saved: Any) -> None:
    """Check that a saved state of a scheduler has the entries, and the kinds of values, of the scheduler's own."""
    if not isinstance(saved, Mapping) or set(saved) != set(here):
        raise ValueError("the state has another learning rate schedule")
    for name, value in here.items():
        if value is not None and _kind(value) != _kind(saved[name]):
            raise ValueError(f"entry {name} of the learning rate schedule is of type {type(saved[name]).__name__}")


def _kind(value: Any) -> Any:
    if isinstance(value, int | float | Tensor):
        return float
    if isinstance(value, list | tuple):
        return [_kind(each) for each in value]
    return {name: _kind(each) for name, each in value.items()} if isinstance(value, Mapping) else type(value)
