"""Training from a resolved configuration: the model, the arguments of its programs, and SVI."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyro
import torch
from jsonargparse import Namespace
from torch import Tensor

from pyrovae.data import Binarize, Data
from pyrovae.programs import ProgramPair
from pyrovae.runs.build import Objective, build_objective, build_vae
from pyrovae.training import Argument, History, fit, refit


def make_vae(config: Namespace, data: Data, *, seeded: bool = True) -> ProgramPair:
    """Set threads and seed, and build the VAE, or the whole model of --program, on its device.

    Args:
        config: Resolved configuration.
        data: Data of the run.
        seeded: Whether to set the seed of the configuration.

    Raises:
        ValueError: As `build_vae`.
    """
    torch.set_num_threads(config.threads)
    if seeded:
        pyro.set_rng_seed(config.seed)
    columns = None if data.table is None else data.table.columns
    return build_vae(config, data.train.shape[1], data.num_covariates, data.examples, columns).to(config.device)


def arguments_of(data: Data, split: str, device: str | torch.device) -> Argument | dict[str, Argument]:
    """Return the programs' arguments: x, with covariates and mask if any."""
    x, conditions = getattr(data, split).to(device), data.conditions(split, device, labels=True)
    return {"x": x, **conditions} if conditions else x


def fit_vae(config: Namespace, data: Data, vae: ProgramPair, objective: Objective, **options: Any) -> History:
    """Run SVI with the settings of a configuration.

    Args:
        config: Resolved configuration.
        data: Data of the run, all in the support of the model.
        vae: Model.
        objective: Objective, optimizer and schedule.
        **options: Further arguments of `fit`.
    """
    train = arguments_of(data, "train", config.device)
    return fit(vae.model, vae.guide, train, **{**settings(config, data, objective), **options})


def settings(config: Namespace, data: Data, objective: Objective) -> dict[str, Any]:
    """Return the arguments of `fit` that follow from a configuration, but for the programs and their data."""
    return {
        "elbo": objective.elbo,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "optimizer": objective.optimizer,
        "validation": arguments_of(data, "validation", config.device),
        "weights": data.weights("train"),
        "validation_weights": data.weights("validation"),
        "patience": config.patience,
        "transform": Binarize() if data.binarize == "dynamic" else None,
        "kl_weight": objective.kl_weight,
        "lr_schedule": objective.lr_schedule,
        "lr_warmup": config.lr_warmup,
        "average": config.average,
        "clip": config.clip,
        "execution": config.execution,
        "precision": config.precision,
        "skip_support_check": True,
        "seed": config.seed,
    }


def refits(config: Namespace, data: Data, count: int, *, seed: int, progress: bool = False) -> Iterator[ProgramPair]:
    """Fit the model again on bootstrap samples of the training rows, whole groups if the table has any (see `refit`).

    A refit starts from other weights and ends by the same validation rows. The numbers of the columns stay those of the
    run.

    Args:
        config: Resolved configuration.
        data: Data of the run.
        count: Number of refits.
        seed: Random seed.
        progress: Whether to show the progress of each.

    Returns:
        Iterator over the fitted models.
    """
    group = None if data.table is None else data.table.part("train").group
    options = settings(config, data, build_objective(config))
    # The objective may have a state; `refit` seeds the weights of each model.
    make = partial(make_vae, config, data, seeded=False)
    train = arguments_of(data, "train", config.device)
    return refit(make, train, refits=count, group=group, **{**options, "seed": seed, "progress": progress})


def device_of(vae: ProgramPair) -> torch.device:
    """Return the device of a model's parameters; the CPU if it has none."""
    first: Tensor | None = next(iter(vae.parameters()), None)
    return torch.device("cpu") if first is None else first.device
