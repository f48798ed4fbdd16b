"""ELBO, its parts, and the objective on held-out data."""

from collections.abc import Collection
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyrovae.densities import (
    Program,
    check_weights,
    device_of,
    entry,
    evaluating,
    isolated_rng,
    num_data,
    plain,
    take,
    temper,
    vectorize_pair,
    weighted_draws,
)
from pyrovae.execution import Workers
from pyrovae.objectives import CASE_WEIGHTS, CaseWeighted, TensorELBO, sum_over_data

VALIDATION_PARTICLES = 4

_SEED = 20_160_419
_CHUNK_SIZE = 2048


class Validation(NamedTuple):
    """ELBO of held-out data and its parts, in nats per datum.

    Attributes:
        elbo: E_q[log p(x, z) - log q(z|x)].
        reconstruction: E_q[log p(x|z)].
        kl: KL(q(z|x), p(z)), the difference of reconstruction and ELBO.
    """

    elbo: float
    reconstruction: float
    kl: float


@entry()
def validate(
    model: Program,
    guide: Program,
    *args: Any,
    workers: Workers | None = None,
    plate: str | None = None,
    plates: Collection[str] | None = None,
    case_weights: Tensor | None = None,
    **kwargs: Any,
) -> Validation:
    """Estimate the ELBO and its parts. Every call uses the same draws, for any number of processes.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        workers: Processes that share the data; None for this process alone.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        plates: Names of the plates over the data; None for all plates of their number, or without a size.
        case_weights: Case weights with mean 1, with shape (N,), of the mean over data; None for 1.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If a weight is NaN or unbounded, or a program breaks the contract of `log_weights`.
    """
    model, guide = vectorize_pair(model, guide, args, kwargs, plate=plate, in_training=True)
    size, workers = num_data(args, kwargs), workers or Workers()
    device = device_of(args, kwargs)
    sums, reason = torch.zeros(2, dtype=torch.float64, device=device), "log weights are NaN in another process"
    chunk_size = _CHUNK_SIZE if model.divisible else size
    with isolated_rng(_SEED), evaluating(model, guide), pyro.validation_enabled(False):
        for start in range(0, size, chunk_size):
            rows = slice(start, min(start + chunk_size, size))
            share = workers.share(rows.stop - rows.start)
            some_args, some_kwargs = take(*take(args, kwargs, rows), share.rows)
            with workers.drawing(share, plates):
                log_w, _, log_lik = weighted_draws(
                    model, guide, *some_args, num_particles=VALIDATION_PARTICLES, **some_kwargs
                )
            try:
                first = rows.start + share.rows.start
                check_weights(log_w, model, guide, *some_args, first=first, **some_kwargs)
            except ValueError as error:  # the sum tells the other processes
                sums, reason = sums + torch.nan, str(error)
                continue
            if not share.empty:
                weights = None if case_weights is None else case_weights[rows][share.rows]
                means = (value.double().mean(0) for value in (log_w, log_lik))
                sums += torch.stack([sum_over_data(value, weights) for value in means])
    workers.add([sums])
    if bool(sums.isnan().any()):
        raise ValueError(reason)
    elbo, reconstruction = (sums / size).tolist()
    return Validation(elbo, reconstruction, reconstruction - elbo)


def validate_objective(
    elbo: ELBO,
    model: Program,
    guide: Program,
    *args: Any,
    weight: float,
    workers: Workers | None = None,
    plates: Collection[str] | None = None,
    case_weights: Tensor | None = None,
    **kwargs: Any,
) -> float:
    """Estimate the objective, the negative loss, in nats per datum. Every call uses the same draws.

    Args:
        elbo: Objective.
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        weight: Weight of the KL divergence.
        workers: Processes that share the data; None for this process alone.
        plates: Names of the plates over the data; None for all plates of their number, or without a size.
        case_weights: Case weights with mean 1, with shape (N,), of the mean over data; None for 1.
        **kwargs: Keyword arguments of both programs.
    """
    size, total, workers = num_data(args, kwargs), 0.0, workers or Workers()
    divisible = vectorize_pair(model, guide, args, kwargs, in_training=True)[0].divisible
    chunk_size = max(1, _CHUNK_SIZE * VALIDATION_PARTICLES // elbo.num_particles) if divisible else size
    objective: Any = elbo
    if case_weights is not None:
        objective, kwargs = CaseWeighted(elbo, (), torch.float64), {**kwargs, CASE_WEIGHTS: case_weights}
    with isolated_rng(_SEED), evaluating(model, guide), pyro.validation_enabled(False), temper(latent=weight):
        starts = list(range(0, size, chunk_size))
        if len(starts) > 1 and size - starts[-1] < getattr(elbo, "least_data", 1):
            starts.pop()
        for start, stop in zip(starts, [*starts[1:], size], strict=True):
            rows = slice(start, stop)
            share = workers.share(rows.stop - rows.start)
            some_args, some_kwargs = take(*take(args, kwargs, rows), share.rows)
            if not isinstance(elbo, TensorELBO):  # Pyro's objectives run the programs themselves
                some_args, some_kwargs = plain(some_args, some_kwargs)
            with workers.drawing(share, plates):
                loss = objective.loss(model, guide, *some_args, **some_kwargs)
            total += 0.0 if share.empty else loss
    return -sum(workers.gathered(total)) / size
