"""Conditional densities log p(x_a | x_b) of some entries given other ones, and draws given x_b."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, entry, vectorize_pair
from pyrovae.evidence.blocks import (
    check_counts,
    chunk_size_or_default,
    concatenate,
    data_blocks,
    decoded_data_at_once,
    evaluation_mode,
)
from pyrovae.evidence.imputation import check_mask, draws_given, served_by
from pyrovae.evidence.posterior import weighted_points
from pyrovae.evidence.proposals import Proposal
from pyrovae.evidence.weight_blocks import WeightBlock, tell_faults
from pyrovae.stats import LogMarginal


class Conditional(NamedTuple):
    """Log p(x_a | x_b) of N data in nats, float64, and draws given x_b.

    Attributes:
        value: Log p(x_a | x_b), with shape (N,); 0 if x_a has no entry.
        std_error: Monte Carlo standard errors of value, with shape (N,).
        khat: The larger k-hat of both estimates, with shape (N,); above 0.7 the error is unreliable.
        draws: Draws of p(x | x_b) with the given entries as they are, with shape (M, N, D).
        joint: Estimates of log p(x_a, x_b), each with shape (N,).
        given: Estimates of log p(x_b), each with shape (N,).
        served: Index of the proposal's component with the largest share of each datum's weight given x_b, with shape
            (N,).
        components: Names of the components.
    """

    value: Tensor
    std_error: Tensor
    khat: Tensor
    draws: Tensor
    joint: LogMarginal
    given: LogMarginal
    served: Tensor
    components: tuple[str, ...]


@entry("given", "num_particles", "num_draws", "proposal", "chunk_size", "site", "plate")
def conditional(
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    given: Tensor,
    num_particles: int = 1000,
    num_draws: int = 20,
    proposal: Proposal | None = None,
    chunk_size: int | None = None,
    site: str = "x",
    plate: str | None = None,
    **kwargs: Any,
) -> Conditional:
    """Estimate log p(x_a | x_b), with x_b the given entries and x_a the other observed ones, and draw given x_b.

        log p(x_a | x_b) = log p(x_a, x_b) - log p(x_b)

    Each term is estimated by importance sampling from a set of draws of its own, adapted to its posterior: draws given
    x_b alone seldom lie where x_a is likely. The two errors are independent, so that their squares add. All entries
    outside x_b are drawn as by `impute`. With no entry given, the value is log p(x_a), and the draws are those of the
    prior predictive.

    Args:
        model: Pyro program p(z) p(x|z), with an argument `mask`.
        guide: Pyro program q(z|x), with the model's arguments.
        x: Data, with shape (N, D); missing entries may be NaN.
        given: Whether each entry belongs to x_b, with shape (N, D).
        num_particles: Number of draws K of the latents per datum, for each term.
        num_draws: Number of draws M of the other entries per datum; 0 for none.
        proposal: `Proposal` to draw the latents from; None for the default, which needs no guide trained on such masks.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None as in `log_marginal`.
        site: Name of the model's site of x.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs: mask, whether each entry of x is observed, with shape (N, D), if
            not all are, and further ones, such as covariates.

    Raises:
        ValueError: If given or mask does not have the shape of x, a given entry is missing, the model has no such site
            or does not apply the mask to it, p(x|z) is no product over entries, or as `log_marginal`.
    """
    check_counts(num_particles=num_particles)
    mask = kwargs.get("mask")
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    check_mask("mask", mask, x)
    check_mask("given", given, x)
    if bool((given & ~mask).any()):
        row, column = (given & ~mask).flatten(1).nonzero()[0].tolist()
        raise ValueError(
            f"given must hold observed entries alone, but the mask says that entry {column} of datum {row} is missing; "
            "give given & mask"
        )
    options = num_particles, proposal, chunk_size, site, plate
    joint, _, _ = _log_p_and_draws(model, guide, x, {**kwargs, "mask": mask}, 0, *options)
    known, draws, weights = _log_p_and_draws(model, guide, x, {**kwargs, "mask": given}, num_draws, *options)
    value, error = joint.value - known.value, torch.hypot(joint.std_error, known.std_error)
    nothing = (mask == given).flatten(1).all(1).to(value.device)
    return Conditional(
        torch.where(nothing, 0.0, value),
        torch.where(nothing, 0.0, error),
        torch.where(nothing, -torch.inf, joint.khat.maximum(known.khat)),
        draws,
        joint,
        known,
        *served_by(weights),
    )


def _log_p_and_draws(
    model: Program,
    guide: Program,
    x: Tensor,
    kwargs: dict[str, Any],
    num_draws: int,
    num_particles: int,
    proposal: Proposal | None,
    chunk_size: int | None,
    site: str,
    plate: str | None,
) -> tuple[LogMarginal, Tensor, list[WeightBlock]]:
    """Estimate log p of the entries where the mask is true; return it with draws of the others and the weights."""
    pair = vectorize_pair(model, guide, (x,), kwargs, plate=plate)
    at_once = decoded_data_at_once(num_particles, chunk_size, (x,), kwargs)
    chunk_size = chunk_size_or_default(chunk_size, (x,), kwargs)
    weights, draws = [], []
    for block in data_blocks(*pair, (x,), kwargs, at_once):
        with evaluation_mode(*pair):
            drawn = weighted_points(block, num_particles, proposal, chunk_size)
            draws.append(draws_given(block, kwargs["mask"][block.rows], drawn, num_draws, chunk_size, site))
        weights.append(drawn.weights)
    log_p = LogMarginal(*concatenate([one.summary() for one in weights]))
    tell_faults([one.fault for one in weights], log_p.value)
    return log_p, torch.cat(draws, 1), weights
