"""A trained model with everything that the page says about it. What takes time is computed once, when it is needed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor

from pyrovae.baselines import Comparison
from pyrovae.columns import LEVELLED
from pyrovae.data import Data
from pyrovae.densities import isolated_rng, take
from pyrovae.diagnostics import Codes, decode_means, encode_codes
from pyrovae.evidence import Refinement, refine
from pyrovae.plots import prior_samples
from pyrovae.runs import Run
from pyrovae.stats import LogMarginal
from pyrovae.training import History

CODES = 1000  # data whose codes are shown, at most
_REFINED = 40  # data whose gaps are computed, at most
_REFINE_STEPS = 300  # of each round of their optimisation


@dataclass(frozen=True, eq=False)
class Fit:
    """Trained model, its data, and what is known of both.

    Attributes:
        name: Name of the run.
        vae: Trained model, an object with the programs `model` and `guide`.
        data: Data of the run.
        history: History of the training.
        summary: Content of evaluation.json.
        values: Estimates log p(x) in nats, with shape (N,), float64, of the data of the evaluation's split.
        errors: Their Monte Carlo standard errors, with shape (N,).
        baselines: Baselines, and the differences of the model from them.
        about: What was run, as pairs of a name and a value.
        command: Command that repeats the run; "" if there is none.
        planned: Number of epochs that the training could have taken.
        seed: Random seed of draws.
    """

    name: str
    vae: Any
    data: Data
    history: History
    summary: Mapping[str, Any]
    values: Tensor
    errors: Tensor
    baselines: Comparison
    about: Sequence[tuple[str, str]] = ()
    command: str = ""
    planned: int = 0
    seed: int = 0

    @classmethod
    def of_run(
        cls,
        run: Run,
        config: Namespace,
        vae: Any,
        data: Data,
        baselines: Comparison,
        *,
        history: History | None = None,
        seed: int = 0,
    ) -> Fit:
        """Collect what is known of a finished run.

        Args:
            run: Run folder.
            config: Configuration of the run.
            vae: Trained model.
            data: Data of the run.
            baselines: Baselines, compared over the data of the run's last evaluation.
            history: History of the training; None to read it from the run.
            seed: Random seed of draws.

        Raises:
            ValueError: If the run has no evaluation, or a file is damaged.
        """
        summary, values = run.evaluation()
        return cls(
            name=run.path.name,
            vae=vae,
            data=data,
            history=read_history(run) if history is None else history,
            summary=summary,
            values=values["log_marginal"],
            errors=values["std_error"],
            baselines=baselines,
            about=_about(run, config, data),
            command=f"python scripts/train.py --config {run.path}/config.yaml",
            planned=config.epochs,
            seed=seed,
        )

    @property
    def split(self) -> str:
        """Split of the evaluation: "train", "validation" or "test"."""
        split: str = self.summary["split"]
        return split

    @property
    def num_data(self) -> int:
        """Number of data of the evaluation."""
        return len(self.values)

    def arguments(self, rows: slice | Tensor) -> tuple[tuple[Tensor], dict[str, Any]]:
        """Return the programs' arguments for some data of the evaluation's split."""
        first = next(iter(self.vae.parameters()), None)
        device = "cpu" if first is None else first.device
        args, kwargs = take((getattr(self.data, self.split),), self.data.conditions(self.split), rows)
        return (args[0].to(device),), {name: value.to(device) for name, value in kwargs.items()}

    @cached_property
    def x(self) -> Tensor:
        """Data whose codes are shown, with shape (N, D), at most 1,000."""
        x: Tensor = getattr(self.data, self.split)[:CODES]
        return x

    @cached_property
    def labels(self) -> Tensor | None:
        """Classes of these data, with shape (N,), -1 where unknown; None if there are none."""
        return None if self.data.labels is None else self.data.labels[self.split][: len(self.x)]

    @cached_property
    def label_names(self) -> list[str]:
        """Names of the classes."""
        if self.data.labels is None:
            return []
        columns = () if self.data.table is None else self.data.table.columns.of_role("label")
        if columns and columns[0].levels:
            return list(columns[0].levels)
        return [str(label) for label in range(max(int(part.max()) for part in self.data.labels.values()) + 1)]

    @cached_property
    def column_names(self) -> list[str] | None:
        """Names of the columns of a table; None for arrays and images."""
        return None if self.data.table is None else [column.name for column in self.data.table.columns.data]

    @cached_property
    def levels(self) -> dict[int, tuple[str, ...]]:
        """Names of the levels of each column that has levels, by column."""
        columns = () if self.data.table is None else self.data.table.columns.data
        return {d: column.levels for d, column in enumerate(columns) if column.kind in LEVELLED}

    @cached_property
    def decoded_names(self) -> list[str]:
        """Names of the columns of decoded means, where each level has its own."""
        names = self.column_names or [f"column {d}" for d in range(self.x.shape[1])]
        parts = (
            [f"{name}: {level}" for level in self.levels[d]] if d in self.levels else [name]
            for d, name in enumerate(names)
        )
        return [name for part in parts for name in part]

    def as_decoded(self, x: Tensor) -> Tensor:
        """Write data, with shape (N, D), in the columns of decoded means: 1 for the level of a datum, 0 for others."""
        parts = []
        for d, column in enumerate(x.double().unbind(1)):
            codes = range(len(self.levels.get(d, ())))
            parts += [torch.where(column.isnan(), column, (column == code).double()) for code in codes] or [column]
        return torch.stack(parts, 1)

    def decode(self, z: Tensor) -> Tensor:
        """Decode places of latent space, with shape (M, J), given the arguments of the first datum."""
        args, kwargs = self.arguments(slice(0, 1))
        counts = {d: len(names) for d, names in self.levels.items()}
        options: dict[str, Any] = {"sites": self.codes.sites, "levels": counts, "seed": self.seed}
        return decode_means(self.vae.model, *args, z=z, **options, **kwargs)

    @cached_property
    def codes(self) -> Codes:
        """Codes of the data."""
        args, kwargs = self.arguments(slice(0, len(self.x)))
        return encode_codes(self.vae.model, self.vae.guide, *args, seed=self.seed, **kwargs)

    @cached_property
    def samples(self) -> Tensor:
        """Draws from the model, as many as there are data, with shape (N, D)."""
        (x,), kwargs = self.arguments(slice(0, len(self.x)))
        return prior_samples(self.vae.model, x, seed=self.seed, **kwargs)[0].cpu()

    @cached_property
    def refined(self) -> Refinement:
        """Gaps of the guide for at most 40 data, evenly spread over the split."""
        rows = torch.linspace(0, self.num_data - 1, min(_REFINED, self.num_data)).round().long()
        args, kwargs = self.arguments(rows)
        unknown = torch.full_like(self.values[rows], math.nan)
        log_p = LogMarginal(self.values[rows], self.errors[rows], unknown, unknown)
        with (
            isolated_rng(self.seed),
            warnings.catch_warnings(),
        ):  # data whose optimisation has not converged have NaN gaps, and are left out
            warnings.simplefilter("ignore", UserWarning)
            return refine(
                self.vae.model, self.vae.guide, *args, log_p=log_p, num_particles=400, steps=_REFINE_STEPS, **kwargs
            )


def read_history(run: Run) -> History:
    """Read the history of a finished run from its metrics. The best epoch is that of the best validation objective."""
    rows = run.metrics()
    best = len(rows)
    known = [(row["validation_objective"], -row["epoch"]) for row in rows if row["validation_objective"] is not None]
    if known:
        best = -max(known)[1]
    return History(rows, best)


def _about(run: Run, config: Namespace, data: Data) -> list[tuple[str, str]]:
    """Describe a run in pairs of a name and a value."""
    about = run.manifest["data"]
    parts = [
        (kind, str(config[kind].class_path).rpartition(".")[2])
        for kind in ("program", "prior", "likelihood", "encoder", "network", "elbo", "kl_weight", "optimizer")
        if config.get(kind) is not None and hasattr(config[kind], "class_path")
    ]
    sizes = ", ".join(f"{about[f'num_{split}']:,} {split}" for split in ("train", "validation", "test"))
    shape = " x ".join(map(str, about["shape"]))
    return [
        ("data", f"{about['name']}: {sizes}; {shape} numbers each, {about.get('num_covariates', 0)} covariates"),
        ("binarisation", about["binarize"]),
        ("latents", f"{config.latent_dim}"),
        *parts,
        ("epochs", f"{config.epochs} at most, batches of {config.batch_size}"),
        ("seed", f"{config.seed}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(run.manifest["versions"].items()))),
    ]
