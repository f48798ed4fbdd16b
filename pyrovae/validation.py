"""The true ELBO of held-out data, with its parts, whatever is optimised."""

from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO

from pyrovae.densities import Program, evaluating, isolated_rng, log_weights_and_latents, num_data, take
from pyrovae.handlers import temper
from pyrovae.importance import summarize_lower_bound

VALIDATION_PARTICLES = 4

_SEED = 20_160_419
_DATA_AT_ONCE = 2048


class Validation(NamedTuple):
    """Means over held-out data, in nats per datum.

    Attributes:
        elbo: E_q[log p(x, z) - log q(z|x)].
        reconstruction: E_q[log p(x|z)].
        kl: KL(q(z|x), p(z)), from the same draws: reconstruction - elbo.
    """

    elbo: float
    reconstruction: float
    kl: float


def validate(model: Program, guide: Program, *args: Any, **kwargs: Any) -> Validation:
    """Estimate the ELBO and its parts, from the same draws whenever it is asked.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Arguments of both, the data first, with shape (N, ...).
        **kwargs: Keyword arguments of both.

    Raises:
        ValueError: If a weight is NaN or unbounded, or a program breaks the contract of `log_weights`.
    """
    size, bounds, log_liks = num_data(args, kwargs), [], []
    with isolated_rng(_SEED), evaluating(model, guide), pyro.validation_enabled(False):
        for start in range(0, size, _DATA_AT_ONCE):
            some_args, some_kwargs = take(args, kwargs, slice(start, min(start + _DATA_AT_ONCE, size)))
            log_w, _, log_lik = log_weights_and_latents(
                model, guide, *some_args, num_particles=VALIDATION_PARTICLES, **some_kwargs
            )
            bounds.append(summarize_lower_bound(log_w).value)
            log_liks.append(log_lik.double().mean(0))
    elbo, reconstruction = torch.cat(bounds).mean().item(), torch.cat(log_liks).mean().item()
    return Validation(elbo, reconstruction, reconstruction - elbo)


def validate_objective(elbo: ELBO, model: Program, guide: Program, *args: Any, weight: float, **kwargs: Any) -> float:
    """Minus the loss of held-out data, per datum, from the same draws whenever it is asked, in nats.

    Args:
        elbo: The objective.
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Arguments of both, the data first, with shape (N, ...).
        weight: The weight of the KL divergence.
        **kwargs: Keyword arguments of both.
    """
    size, total = num_data(args, kwargs), 0.0
    at_once = max(1, _DATA_AT_ONCE * VALIDATION_PARTICLES // elbo.num_particles)
    with isolated_rng(_SEED), evaluating(model, guide), pyro.validation_enabled(False), temper(latent=weight):
        for start in range(0, size, at_once):
            some_args, some_kwargs = take(args, kwargs, slice(start, min(start + at_once, size)))
            total += elbo.loss(model, guide, *some_args, **some_kwargs)  # type: ignore[attr-defined]
    return -total / size
