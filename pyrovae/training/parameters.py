"""Parameters that `fit` trains: those of the modules, of Pyro's parameter store, and of the objective."""

import math
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, TraceEnum_ELBO
from torch import Tensor

from pyrovae.densities import Program, evaluating, isolated_rng, module_of, plain
from pyrovae.training.batches import Batches
from pyrovae.training.loaders import LoaderBatches


def find_parameters(model: Program, guide: Program, elbo: ELBO, batches: Batches | LoaderBatches) -> list[Tensor]:
    """List the tensors to train, those of the objective included. Runs the programs on the first batch."""
    with isolated_rng():
        args, kwargs = batches.first()
        parameters = trainable_parameters(model, guide, *args, **kwargs)
        if isinstance(elbo, torch.nn.Module):
            parameters += elbo.to(batches.device).parameters()
        # Some objectives count the plates by a run of the programs. Here it draws from the isolated generators.
        counts_plates = elbo.vectorize_particles or isinstance(elbo, TraceEnum_ELBO)
        if counts_plates and elbo.max_plate_nesting == math.inf:
            with evaluating(model, guide):
                plain_args, plain_kwargs = plain(args, kwargs)
                elbo.loss(model, guide, *plain_args, **plain_kwargs)  # type: ignore[attr-defined]
    return parameters


def trainable_parameters(model: Program, guide: Program, *args: Any, **kwargs: Any) -> list[Tensor]:
    """List the leaf tensors to train: parameters of the programs' modules and of Pyro's parameter store.

    Runs both programs once.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If the programs have no parameters.
    """
    found = {
        id(p): p for program in (model, guide) for m in module_of(program) for p in m.parameters() if p.requires_grad
    }
    for site in _param_sites(model, guide, *args, **kwargs).values():
        value = site["value"].unconstrained()
        found.setdefault(id(value), value)
    if not found:
        raise ValueError(
            "the model and the guide have no parameters to train; pass modules, or declare them with pyro.module or "
            "pyro.param"
        )
    return list(found.values())


def _param_sites(model: Program, guide: Program, *args: Any, **kwargs: Any) -> dict[str, Any]:
    args, kwargs = plain(args, kwargs)
    with poutine.trace(param_only=True) as capture, evaluating(model, guide), pyro.validation_enabled(False):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        poutine.replay(model, trace=guide_trace)(*args, **kwargs)
    return dict(capture.trace.nodes)
