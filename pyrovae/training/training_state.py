"""Training history and resumable state of `fit`."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.optim import Optimizer

from pyrovae.densities import generator_states, module_of, modules_of, set_generator_states
from pyrovae.objectives import KLControl
from pyrovae.training.averaging import WeightAverage
from pyrovae.training.learning_rate import LearningRate
from pyrovae.training.optimizers import load_optimizer_state
from pyrovae.training.stepper import Stepper
from pyrovae.training.validation import Validation

# ELBO and its parts on held-out data; objective that chooses the best epoch, None if the last epoch is kept.
Validated = tuple[Validation, float | None]


@dataclass(repr=False)
class History:
    """History of a run of `fit`, one row per epoch.

    Attributes:
        rows: Rows with these columns, in nats per datum; None if a column does not apply.

            - epoch: Number of the epoch, from 1.
            - train_objective: Mean objective over the steps of the epoch, while the parameters change.
            - train_elbo: The same if the objective is the ELBO, that is, no bound of several draws, and the KL
              divergence has weight 1 in the whole epoch. The scale of a subsampling plate over the data is undone, and
              latents outside the data plate count once. None under any other scale.
            - validation_elbo: ELBO of the held-out data after the epoch, from the same draws in each epoch.
            - validation_reconstruction, validation_kl: Its parts, E_q[log p(x|z)] and KL(q(z|x), p(z)).
            - validation_objective: Objective of the held-out data, which chooses the best epoch.
            - kl_weight, kl_target: Values at the end of the epoch.
            - learning_rate: Learning rate of the last step of the epoch, for the first group of parameters; None if the
              optimizer has none.
            - seconds: Duration of the epoch.
        best_epoch: Epoch whose parameters the programs have after `fit`: the best on held-out data, or the last. With
            an average of the weights, held-out data are measured at it, and the programs have the epoch's average.
        stop_reason: "epochs" or "plateau"; None during training.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    stop_reason: str | None = None

    def __getitem__(self, key: str) -> list[Any]:
        """Return one column of the rows."""
        return [row[key] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        best = self.rows[self.best_epoch - 1] if self.best_epoch else {}
        values = [
            f"{key}={best[key]:.2f}" for key in ("validation_elbo", "train_objective") if best.get(key) is not None
        ]
        parts = [
            f"{len(self)} epochs",
            f"best_epoch={self.best_epoch}",
            *values[:1],
            f"stop_reason={self.stop_reason!r}",
        ]
        return f"History({', '.join(parts)})"


class TrainingState:
    """Resumable state of a run: trained values, optimizer, random generators, counters, and the best epoch's values.

    Args:
        programs: Model, guide and objective by name. The objective may be a module with parameters of its own.
        optimizer: Optimizer of the parameters.
        stepper: Stepper of the run.
        control: KL weight of the run.
        steps: Number of steps per epoch.
        device: Device of the parameters.
        rate: Learning rate of the run.
        average: Share of a weight's average that a step keeps; None for no average.

    Attributes:
        average: Average of the weights; None without one.
        epoch: Number of finished epochs.
        step: Number of finished steps of the current epoch.
        seconds: Duration of the current epoch up to the last `stop_clock`.
        weighted: Whether the KL divergence had a weight other than 1 in the current epoch.
        losses: Loss of each step of the current epoch, with shape (steps,); NaN for steps to come.
        history: History up to the last finished epoch.
        best: Parameters and buffers of the best epoch by name; empty if the last epoch is kept.
    """

    def __init__(
        self,
        programs: Mapping[str, Any],
        optimizer: Optimizer,
        stepper: Stepper,
        control: KLControl,
        steps: int,
        device: torch.device,
        *,
        rate: LearningRate,
        average: float | None = None,
    ) -> None:
        self.programs = programs
        self.optimizer, self.stepper, self.control, self.rate = optimizer, stepper, control, rate
        self.epoch, self.step, self.seconds, self.weighted = 0, 0, 0.0, False
        self.losses = torch.full((steps,), torch.nan, device=device, dtype=torch.float64)
        self.history = History()
        self.best: dict[str, Tensor] = {}
        self.average = None if average is None else WeightAverage(average, self.values())

    def values(self) -> dict[str, Tensor]:
        """Return the programs' parameters and buffers by name."""
        found: dict[str, Tensor] = {}
        inside: set[int] = set()
        for part, program in self.programs.items():
            for module in module_of(program):
                inside.update(map(id, module.parameters()))
                found.update({f"{part}.{name}": value for name, value in module.state_dict().items()})
            others = [module for module in modules_of(program) if module not in module_of(program)]
            for index, module in enumerate(others):  # pyro.module registers their parameters but not their buffers
                found.update({f"{part}.buffer.{index}.{name}": value for name, value in module.named_buffers()})
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for name, value in pyro.get_param_store().named_parameters():
            if id(value) in trained - inside:
                found[f"param.{name}"] = value.detach()
        return found

    def start_clock(self) -> None:
        """Start or continue to time the current epoch."""
        self._started = time.perf_counter() - self.seconds

    def stop_clock(self) -> None:
        """Update the duration of the current epoch."""
        self.seconds = time.perf_counter() - self._started

    def count_steps(self, weights: Sequence[float | Tensor]) -> None:
        """Count steps taken, one for each KL weight."""
        self.step += len(weights)
        self.weighted |= any(isinstance(weight, Tensor) or weight != 1 for weight in weights)

    def end_epoch(self, *, train_objective: float, train_elbo: float | None, validation: Validated | None) -> None:
        """Write the row of the epoch, and keep the values of the best epoch."""
        self.stop_clock()
        history, steps, seconds = self.history, len(self.losses), self.seconds
        in_force = self.control.row(self.epoch + (steps - 1) / steps)
        self.epoch, self.step, self.seconds, self.weighted = self.epoch + 1, 0, 0.0, False
        self.losses.fill_(torch.nan)
        found, objective = validation or (None, None)
        held_out = dict.fromkeys(Validation._fields) if found is None else found._asdict()
        row = {
            "epoch": self.epoch,
            "train_objective": train_objective,
            "train_elbo": train_elbo,
            **{f"validation_{name}": value for name, value in held_out.items()},
            "validation_objective": objective,
            **in_force,
            "learning_rate": self.rate.rate,
            "seconds": round(seconds, 3),
        }
        best = history.rows[history.best_epoch - 1]["validation_objective"] if history.best_epoch else -math.inf
        history.rows.append(row)
        if objective is None or best is None or objective > best:  # the best epoch so far had no validation data
            history.best_epoch = self.epoch
            self.best = {} if objective is None else _clones(self.values())
        self.rate.end_epoch(-(train_objective if objective is None else objective))

    def averaged(self) -> AbstractContextManager[None]:
        """Give the programs the average of their weights inside the context, if there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def take_best(self) -> None:
        """Set the programs to the best epoch's values, if any, else to the average, if any."""
        if self.best:
            self._set_values(self.best)
        elif self.average is not None:
            self._set_values(self.average.averaged)

    def snapshot(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "weighted": self.weighted,
            "losses": self.losses,
            "rows": self.history.rows,
            "best_epoch": self.history.best_epoch,
            "stop_reason": self.history.stop_reason,
            "values": self.values(),
            "best": self.best,
            "average": {} if self.average is None else self.average.averaged,
            "learning_rate": self.rate.state(),
            "optimizer": self.optimizer.state_dict(),
            "stepper": self.stepper.state(),
            "control": self.control.state(),
            "generators": generator_states(self.losses.device),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Resume from a snapshot.

        Raises:
            ValueError: If the snapshot belongs to another model, optimizer, schedule or KL weight, to other data or
                batch_size, or has an average of the weights where the run has none.
        """
        if snapshot["losses"].shape != self.losses.shape:
            raise ValueError(
                f"the state to resume has {snapshot['losses'].numel()} steps an epoch, but the data and batch_size "
                f"give {len(self.losses)}; resume with the same data and batch_size"
            )
        if snapshot["step"] > len(self.losses):
            raise ValueError(
                f"the state to resume has taken {snapshot['step']:,} of {len(self.losses):,} steps of an epoch; resume "
                "from another state"
            )
        counters = ("epoch", "step", "seconds", "weighted")
        self.epoch, self.step, self.seconds, self.weighted = (snapshot[key] for key in counters)
        self.losses.copy_(snapshot["losses"])
        self.history = History([dict(row) for row in snapshot["rows"]], snapshot["best_epoch"], snapshot["stop_reason"])
        for saved in (snapshot["best"], snapshot["average"]):
            if saved:
                self._check_values(saved)
        self.best = {name: value.to(self.losses.device) for name, value in snapshot["best"].items()}
        self._set_values(snapshot["values"])
        started = (self.epoch, self.step) != (0, 0)
        if started and bool(snapshot["average"]) != (self.average is not None):
            raise ValueError(
                f"the state to resume has {'an' if snapshot['average'] else 'no'} average of the weights; resume with "
                "the average of its run"
            )
        if self.average is not None:
            self.average.restore(snapshot["average"])
        try:
            load_optimizer_state(self.optimizer, snapshot["optimizer"])
            self.stepper.restore(snapshot["stepper"])
            self.rate.restore(snapshot["learning_rate"])
            self.control.restore(snapshot["control"])
            set_generator_states(snapshot["generators"], self.losses.device)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else "no message"
            raise ValueError(
                "the state to resume belongs to another optimizer, schedule, KL weight or device "
                f"({type(error).__name__}: {reason}); resume with the settings of its run"
            ) from error

    def _set_values(self, values: Mapping[str, Tensor]) -> None:
        self._check_values(values)
        with torch.no_grad():
            for name, value in self.values().items():
                value.copy_(values[name])

    def _check_values(self, values: Mapping[str, Tensor]) -> None:
        """Check that saved values have the names, shapes and dtypes of the programs' own."""
        here = self.values()
        if set(here) != set(values):
            raise ValueError(
                "the state to resume belongs to another model: parameters differ in "
                f"{sorted(set(here) ^ set(values))[0]!r}; build the same programs"
            )
        for name, value in here.items():
            saved = values[name]
            if value.shape != saved.shape or value.dtype != saved.dtype:
                raise ValueError(
                    f"the state to resume belongs to another model: {name!r} must have shape {tuple(value.shape)} and "
                    f"{value.dtype}, got {tuple(saved.shape)} and {saved.dtype}; build the same programs"
                )


def _clones(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in values.items()}
