"""Resolution of a configuration: the values that depend on the data and the machine."""

import inspect
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from pyrovae.data import Data
from pyrovae.likelihoods import without_holes
from pyrovae.runs.options import FROM_DATA, KINDS_OF_KNOWN_OPTIONS, KNOWN_OPTIONS
from pyrovae.runs.registry import known_parts, part_class
from pyrovae.runs.specs import read_part
from pyrovae.runs.table_data import COLUMNS, OF_COLUMNS

# Numbers in a batch of data below which a second thread does not pay.
SMALL_BATCH = 20_000
MOST_THREADS = 1024  # beyond the cores of any machine, starting them ends the process


def resolve(config: Namespace, data: Data) -> Namespace:
    """Fill in what depends on the data and the machine: binarisation, device, threads, likelihood, image shape, paths.

    Raises:
        ValueError: If the likelihood must be named, the device is not available, or the threads are too many.
    """
    config = config.clone()
    config.binarize = data.binarize
    config.device = str(find_device(config.device))
    if config.threads is not None and config.threads > MOST_THREADS:
        raise ValueError(f"--threads {config.threads}: at most {MOST_THREADS} can be used; lower it")
    if config.threads is None:  # a small step waits for its threads longer than it computes
        small = config.batch_size * data.train.shape[1] < SMALL_BATCH
        config.threads = 1 if small else torch.get_num_threads()
    # A config.yaml means the same from any folder.
    if data.name == "mnist":
        config.data_dir = _absolute(config.data_dir or "data")
    elif data.name != "digits":
        config.data = _absolute(config.data)
    if data.table is None and config.covariates not in (None, "labels"):
        config.covariates = _absolute(config.covariates)
    if data.table is not None:
        config.columns = COLUMNS  # beside config.yaml
    elif config.likelihood is None:
        config.likelihood = _default_likelihood(data)
    _fill_known_options(config, data)
    if data.labelled:
        _fill_classes(config, data)
    if config.output_bias is None and data.table is not None:
        config.output_bias = "data"
    elif config.output_bias is None:
        starts = getattr(part_class("likelihood", config.likelihood.class_path), "starts_at_means", False)
        config.output_bias = "data" if starts else "random"
    arguments = config.network.get("init_args") or Namespace()
    if "shape" in arguments and arguments.shape is None and len(data.shape) in (2, 3):
        arguments.shape = list(data.shape)
    return config


def find_device(name: str) -> torch.device:
    """Find the device of a name; "auto" is CUDA if available, else the CPU.

    Raises:
        ValueError: If there is no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:  # torch's message lists twenty backends
        raise ValueError(f"--device {name}: no such device; use --device auto, cpu, cuda or cuda:0") from error
    try:
        torch.zeros(1, device=device).item()  # the device "meta" has no values
    except NotImplementedError as error:  # torch's message lists its backends
        raise ValueError(
            f"--device {name} is not available (this PyTorch is built without it); use --device auto or cpu"
        ) from error
    except (RuntimeError, AssertionError, ImportError) as error:  # a backend of its own has a module
        reason = re.split(r"\.(?:\s|$)|\n", str(error))[0]
        if "INTERNAL ASSERT" in reason:
            reason = "PyTorch has no such backend"
        raise ValueError(f"--device {name} is not available ({reason}); use --device auto or cpu") from error
    return device


def fitting_likelihoods(x: Tensor) -> list[str]:
    """List the flags of the likelihoods whose support contains the data x, with shape (N, D)."""
    found = []
    likelihoods: Mapping[str, Any] = known_parts("likelihood")
    for name, part in likelihoods.items():
        arguments = part.arguments_for(x)
        size = part.num_outputs(x.shape[-1], **arguments)
        p_x = part(nn.Linear(1, size), **arguments)(torch.zeros(1, 1))
        if bool(p_x.support.check(x).all()):
            found.append(" ".join([name, *(f"--likelihood.{key} {value}" for key, value in arguments.items())]))
    return found


def _fill_known_options(config: Namespace, data: Data) -> None:
    """Replace FROM_DATA by what the data and the other flags say (`check_part_options`)."""
    values: dict[str, Any] = {"num_data": len(data.train), "latent_dim": config.latent_dim}
    values |= {"T_max": config.epochs, "max_lr": config.lr}
    if data.labelled:
        values["num_labelled"] = _num_labelled(data)
    for kind in KINDS_OF_KNOWN_OPTIONS:
        arguments = (config[kind] or Namespace()).get("init_args") or Namespace()
        if "total_steps" in arguments and arguments.get("epochs") is None:
            steps = config.epochs * math.ceil(len(data.train) / config.batch_size)
            if arguments.total_steps is not None and arguments.total_steps < steps:
                raise ValueError(
                    f"--{kind}.total_steps {arguments.total_steps}: the training has up to {steps:,}; give as many"
                )
            arguments.total_steps = arguments.total_steps or steps
        unknown = [name for name, value in dict(arguments).items() if name in KNOWN_OPTIONS and value == FROM_DATA]
        if kind == "likelihood" and data.table is not None:
            unknown = [name for name in unknown if name not in OF_COLUMNS]
        if kind == "likelihood" and unknown:
            part: Any = part_class(kind, config[kind].class_path)
            values |= part.arguments_for(_all_values(data))
        for name in unknown:
            if name not in values:
                raise ValueError(f"--{kind}.{name} does not follow from the data; give it")
            arguments[name] = values[name]


def _num_labelled(data: Data) -> float:
    """Return the number of training data with a label; with case weights, N times the share of their sum."""
    assert data.labels is not None
    known, weights = data.labels["train"] >= 0, data.weights("train")
    if weights is None:
        return float(known.sum())
    return len(known) * float(weights[known].double().sum() / weights.double().sum())


def _default_likelihood(data: Data) -> Namespace | None:
    name, arguments = "BernoulliLikelihood", {}
    if data.name == "digits" and data.binarize == "none":
        name, arguments = "BinomialLikelihood", {"total_count": 16}
    elif data.name != "mnist" and data.binarize != "dynamic" and not data.binary:
        x = _all_values(data)
        fitting = ", or ".join(f"--likelihood {flags}" for flags in fitting_likelihoods(x))
        raise ValueError(f"{data.name}: the values are not all 0 or 1, so the likelihood must be named: {fitting}")
    return read_part("likelihood", {"class_path": name, "init_args": arguments})


def _fill_classes(config: Namespace, data: Data) -> None:
    """Give a program that reads labels as many classes as there are, unless it has more.

    Raises:
        ValueError: If it has fewer.
    """
    assert data.table is not None
    arguments = config.program.get("init_args") or Namespace()
    if "num_classes" not in arguments:
        return
    count = len(data.table.columns.of_role("label")[0].levels)
    default = inspect.signature(part_class("program", config.program.class_path)).parameters["num_classes"].default
    if arguments.num_classes == default:
        arguments.num_classes = count
    if arguments.num_classes < count:
        raise ValueError(f"--program.num_classes {arguments.num_classes}: the label has {count} levels; give as many")


def _all_values(data: Data) -> Tensor:
    """Return the data of all splits, with shape (N, D), whose holes have other rows' values."""
    return without_holes(torch.cat([data.examples, data.validation, data.test]))


def _absolute(path: str) -> str:
    """Make a path, or the path in PATH.npz:key, absolute."""
    file, colon, key = path.partition(".npz:")
    whole = Path(os.path.expanduser(f"{file}.npz" if colon else path)).resolve()
    return f"{whole}:{key}" if colon else str(whole)
