"""What a run of `fit` has come to: its history, and all that it needs to go on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.optim import Optimizer

from pyrovae.densities import module_of, modules_of
from pyrovae.objectives import KLControl
from pyrovae.training.steps import Stepper
from pyrovae.training.validation import Validation

# The true ELBO with its parts, and the objective if it is to choose the best epoch.
Validated = tuple[Validation, float | None]


@dataclass
class History:
    """What a run of `fit` measured, one row per epoch.

    Attributes:
        rows: Per epoch, in nats per datum, None where there is none: epoch (from 1); train_objective, the running value
            of what is optimised while the parameters move; train_elbo, the same where that is the ELBO (no bound of
            several draws, the KL divergence with weight 1 in all of the epoch); validation_elbo, the true ELBO after
            the epoch, from the same draws every time; validation_reconstruction and validation_kl, E_q[log p(x|z)] and
            KL(q(z|x), p(z)), its parts; validation_objective, by which the best epoch is chosen; kl_weight and
            kl_target, in force at the end of the epoch; and seconds.
        best_epoch: The epoch whose parameters the programs hold after `fit`: the best on validation data, or the last.
        stop_reason: "epochs" or "plateau"; None while it runs.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    stop_reason: str | None = None

    def __getitem__(self, key: str) -> list[Any]:
        """One column of the rows."""
        return [row[key] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)


class TrainingState:
    """All that a run needs to go on: what trains, its optimizer, generators, counters, and what was best."""

    def __init__(
        self,
        programs: Mapping[str, Any],
        optimizer: Optimizer,
        stepper: Stepper,
        control: KLControl,
        steps: int,
        device: torch.device,
    ) -> None:
        self.programs = programs  # the objective too, which may be a module
        self.optimizer, self.stepper, self.control = optimizer, stepper, control
        self.epoch = 0  # epochs finished
        self.step = 0  # steps of the current epoch finished
        self.seconds = 0.0  # of the current epoch, before a stop
        self.weighted = False  # in the current epoch the KL divergence had another weight than 1
        self.losses = torch.full((steps,), torch.nan, device=device, dtype=torch.float64)
        self.history = History()
        self.best: dict[str, Tensor] = {}

    def values(self) -> dict[str, Tensor]:
        """The programs' parameters and buffers, by name, as they are now."""
        found: dict[str, Tensor] = {}
        inside: set[int] = set()
        for part, program in self.programs.items():
            for module in module_of(program):
                inside.update(map(id, module.parameters()))
                found.update({f"{part}.{name}": value for name, value in module.state_dict().items()})
            others = [module for module in modules_of(program) if module not in module_of(program)]
            for index, module in enumerate(others):  # pyro.module registers their parameters, not their buffers
                found.update({f"{part}.buffer.{index}.{name}": value for name, value in module.named_buffers()})
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for name, value in pyro.get_param_store().named_parameters():
            if id(value) in trained - inside:
                found[f"param.{name}"] = value.detach()
        return found

    def end_epoch(
        self, *, train_objective: float, train_elbo: float | None, validation: Validated | None, seconds: float
    ) -> None:
        """Close an epoch: write its row, and keep its values if it is the best."""
        history, steps = self.history, len(self.losses)
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
            "seconds": round(seconds, 3),
        }
        best = history.rows[history.best_epoch - 1]["validation_objective"] if history.best_epoch else -math.inf
        history.rows.append(row)
        if objective is None or objective > best:
            history.best_epoch = self.epoch
            self.best = {} if objective is None else _clones(self.values())

    def take_best(self) -> None:
        """Give the programs the best epoch's values."""
        if self.best:
            self._set_values(self.best)

    def snapshot(self) -> dict[str, Any]:
        """All that a run needs to go on, tensors and plain values."""
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
            "optimizer": self.optimizer.state_dict(),
            "stepper": self.stepper.state(),
            "control": self.control.state(),
            "generators": _generator_states(self.losses.device),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a snapshot.

        Raises:
            ValueError: If it is of another model, or of other data or batch_size.
        """
        if len(snapshot["losses"]) != len(self.losses):
            raise ValueError(
                f"the state to resume has {len(snapshot['losses'])} steps an epoch, these data and batch_size make "
                f"{len(self.losses)}; resume with the same data and batch_size"
            )
        counters = ("epoch", "step", "seconds", "weighted")
        self.epoch, self.step, self.seconds, self.weighted = (snapshot[key] for key in counters)
        self.losses.copy_(snapshot["losses"])
        self.history = History([dict(row) for row in snapshot["rows"]], snapshot["best_epoch"], snapshot["stop_reason"])
        self.best = {name: value.to(self.losses.device) for name, value in snapshot["best"].items()}
        self._set_values(snapshot["values"])
        self.optimizer.load_state_dict(snapshot["optimizer"])
        self.stepper.restore(snapshot["stepper"])
        self.control.restore(snapshot["control"])
        _set_generator_states(snapshot["generators"], self.losses.device)

    def _set_values(self, values: Mapping[str, Tensor]) -> None:
        here = self.values()
        if set(here) != set(values):
            raise ValueError(
                "the state to resume is of another model: parameters differ in "
                f"{sorted(set(here) ^ set(values))[0]!r}; build the programs as they were"
            )
        with torch.no_grad():
            for name, value in here.items():
                if value.shape != values[name].shape:
                    raise ValueError(
                        f"the state to resume is of another model: {name!r} has shape {tuple(values[name].shape)}, "
                        f"{tuple(value.shape)} here; build the programs as they were"
                    )
                value.copy_(values[name])


def _clones(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in values.items()}


def _generator_states(device: torch.device) -> dict[str, Any]:
    states: dict[str, Any] = dict(pyro.util.get_rng_state())
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_generator_states(states: Mapping[str, Any], device: torch.device) -> None:
    states = dict(states)
    cuda = states.pop("cuda", None)
    pyro.util.set_rng_state(states)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)
