"""Training from a resolved configuration: the model, the arguments of its programs, and SVI."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import torch
from jsonargparse import Namespace
from torch import Tensor

from pyrovae.data import Binarize, Data
from pyrovae.programs import ProgramPair
from pyrovae.runs.build import Objective, build_objective, build_vae
from pyrovae.training import Argument, History, fit


def make_vae(config: Namespace, data: Data, *, seed: int | None = None) -> ProgramPair:
    """Set threads and seed, and build the VAE, or the whole model of --program, on its device.

    Args:
        config: Resolved configuration.
        data: Data of the run.
        seed: Random seed of the weights; None for that of the configuration.

    Raises:
        ValueError: As `build_vae`.
    """
    torch.set_num_threads(config.threads)
    pyro.set_rng_seed(config.seed if seed is None else seed)
    columns = None if data.table is None else data.table.columns
    return build_vae(config, data.train.shape[1], data.num_covariates, data.examples, columns).to(config.device)


def arguments_of(data: Data, split: str, device: str | torch.device) -> Argument | dict[str, Argument]:
    """Return the programs' arguments: x, with covariates and mask if any."""
    x, conditions = getattr(data, split).to(device), data.conditions(split, device)
    return {"x": x, **conditions} if conditions else x


def fit_vae(
    config: Namespace,
    data: Data,
    vae: ProgramPair,
    objective: Objective,
    *,
    train: Argument | dict[str, Argument] | None = None,
    **options: Any,
) -> History:
    """Run SVI with the settings of a configuration.

    Args:
        config: Resolved configuration.
        data: Data of the run, all in the support of the model.
        vae: Model.
        objective: Objective, optimizer and schedule.
        train: Arguments of the programs for the training rows; None for those of the data.
        **options: Further arguments of `fit`, which replace those of the configuration.
    """
    settings: dict[str, Any] = {
        "elbo": objective.elbo,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "optimizer": objective.optimizer,
        "validation": arguments_of(data, "validation", config.device),
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
    train = arguments_of(data, "train", config.device) if train is None else train
    return fit(vae.model, vae.guide, train, **{**settings, **options})


def refits(config: Namespace, data: Data, count: int, *, seed: int, progress: bool = False) -> Iterator[ProgramPair]:
    """Fit the model again on bootstrap samples of the training rows, whole groups if the table has any.

    A refit starts from other weights and ends by the same validation rows. The numbers of the columns stay those of the
    run.

    Args:
        config: Resolved configuration.
        data: Data of the run, in memory.
        count: Number of refits.
        seed: Random seed.
        progress: Whether to show the progress of each.

    Yields:
        The fitted models, in evaluation mode.
    """
    for number in range(count):
        refit_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        rows = bootstrap_rows(len(data.train), refit_seed, _groups(data))
        arguments = arguments_of(data, "train", config.device)
        named = arguments if isinstance(arguments, dict) else {"x": arguments}
        sample: dict[str, Any] = {name: value[rows.to(value.device)] for name, value in named.items()}
        vae = make_vae(config, data, seed=refit_seed)
        fit_vae(config, data, vae, build_objective(config), train=sample, seed=refit_seed, progress=progress)
        yield vae.eval()


def bootstrap_rows(num_rows: int, seed: int, group: Tensor | None = None) -> Tensor:
    """Draw rows with replacement, or groups of rows if they are given.

    Args:
        num_rows: Number of rows N.
        seed: Random seed.
        group: Group of each row, with shape (N,), int64; None for independent rows.

    Returns:
        The rows drawn, with shape (N,), int64; with groups, of as many groups as there are, (N',).
    """
    rng = np.random.default_rng(seed)
    if group is None:
        return torch.from_numpy(rng.integers(num_rows, size=num_rows))
    members = [(group == one).nonzero().squeeze(1) for one in group.unique()]
    return torch.cat([members[one] for one in rng.integers(len(members), size=len(members))])


def _groups(data: Data) -> Tensor | None:
    return None if data.table is None else data.table.part("train").group


def device_of(vae: ProgramPair) -> torch.device:
    """Return the device of a model's parameters; the CPU if it has none."""
    first: Tensor | None = next(iter(vae.parameters()), None)
    return torch.device("cpu") if first is None else first.device
