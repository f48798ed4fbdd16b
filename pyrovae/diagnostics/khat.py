"""Which data a guide approximates badly: k-hat, effective sample size and gap of each datum, the worst first."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, entry, isolated_rng
from pyrovae.evidence import KHAT_LIMIT, GuideProposal, Proposal, log_marginal, log_weight_blocks
from pyrovae.stats import LogMarginal, LowerBound, summarize_log_weights, summarize_lower_bound


class KhatMap(NamedTuple):
    """Quality of an approximate posterior at each of N data, values in nats, float64.

    Attributes:
        khat: Pareto shape of the weights of K draws from the guide, with shape (N,). Above `limit` the guide is too far
            from the posterior for importance sampling with K draws. -inf where all weights are equal.
        ess: Effective sample size of these weights, from 1 to K, with shape (N,).
        elbo: ELBO of the guide, with shape (N,).
        elbo_error: Its Monte Carlo standard error, with shape (N,).
        log_p: Log p(x), by the default proposal or as given, with shape (N,).
        log_p_error: Its standard error, with shape (N,).
        gap: log_p - elbo = KL(q(z|x), p(z|x)), with shape (N,).
        gap_error: Its standard error, with shape (N,).
        worst: Indices of the data from the largest k-hat to the smallest, with shape (N,); of equal ones the larger gap
            comes first.
        limit: Largest k-hat that is reliable with K draws, min(0.7, 1 - 1/log10 K).
        num_particles: Number of draws K per datum.
    """

    khat: Tensor
    ess: Tensor
    elbo: Tensor
    elbo_error: Tensor
    log_p: Tensor
    log_p_error: Tensor
    gap: Tensor
    gap_error: Tensor
    worst: Tensor
    limit: float
    num_particles: int

    @property
    def num_unreliable(self) -> int:
        """Number of data whose k-hat is above the limit."""
        return int((self.khat > self.limit).sum())

    def rows(self, count: int = 10) -> list[dict[str, float]]:
        """Return the worst data as rows: index, khat, ess, gap, gap_error, log_p.

        Args:
            count: Number of rows.
        """
        names = ("khat", "ess", "gap", "gap_error", "log_p")
        return [
            {"index": index, **{name: float(getattr(self, name)[index]) for name in names}}
            for index in self.worst[:count].tolist()
        ]


@entry()
def khat_map(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int = 2000,
    log_p: LogMarginal | None = None,
    proposal: Proposal | Program | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
    plate: str | None = None,
    **kwargs: Any,
) -> KhatMap:
    """Compute k-hat, effective sample size and gap of the guide at each datum.

    The Pareto shape of the importance weights p(x, z) / q(z|x) measures how much lighter the guide's tails are than the
    posterior's (Yao, Vehtari, Simpson and Gelman 2018, "Yes, but did it work?", https://arxiv.org/abs/1802.02538;
    estimator: `pareto_khat`). For a normal guide of sd s at a normal posterior of sd 1 > s it is k = 1 - s^2. With
    K = 20,000 draws the estimate is about right to k = 0.6 and low beyond: 0.70 for 0.75, 0.76 for 0.84. No number here
    sees a mode that no draw of the guide came near. With more than one draw decisive (k-hat near 1) the guide's own
    estimate of log p(x) is too low, so the gap takes log p(x) from another proposal.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        num_particles: Number of draws K per datum.
        log_p: Estimates of log p(x) of these data, such as those of an evaluation; None to estimate them by `proposal`.
        proposal: `Proposal` for log p(x), or a Pyro program; None for the default.
        seed: Random seed; the global random state is restored at the end.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None as in `log_marginal`.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: As `log_marginal`, or if log_p is not of these data.

    Example:
        >>> from pyrovae import MLP, VAE, NormalEncoder, NormalLikelihood, StandardNormalPrior
        >>> vae = VAE(StandardNormalPrior(1), NormalLikelihood(MLP(1, 3)), NormalEncoder(MLP(3, 2)))
        >>> found = khat_map(vae.model, vae.guide, torch.randn(5, 3), num_particles=200)
        >>> sorted(found.rows(1)[0])
        ['ess', 'gap', 'gap_error', 'index', 'khat', 'log_p']
    """
    options: dict[str, Any] = {"num_particles": num_particles, "chunk_size": chunk_size, "plate": plate, **kwargs}
    with isolated_rng(seed):
        weights = list(log_weight_blocks(model, guide, *args, proposal=GuideProposal(), nan_for_faults=True, **options))
        if log_p is None:
            log_p = log_marginal(model, guide, *args, proposal=proposal, **options)
    ours = LogMarginal(*_joined([one.summarize(summarize_log_weights) for one in weights]))
    bound = LowerBound(*_joined([one.summarize(summarize_lower_bound) for one in weights]))
    if log_p.value.shape != bound.value.shape:
        raise ValueError(
            f"log_p has shape {tuple(log_p.value.shape)}; expected one value for each of {len(bound.value)} data"
        )
    value, error = (one.double().cpu() for one in (log_p.value, log_p.std_error))
    gap = value - bound.value
    order = torch.from_numpy(_worst_first(ours.khat, gap))
    return KhatMap(
        ours.khat,
        ours.ess,
        *bound,
        value,
        error,
        gap,
        torch.hypot(error, bound.std_error),
        order,
        min(KHAT_LIMIT, 1 - 1 / math.log10(num_particles)) if num_particles > 10 else 0.0,
        num_particles,
    )


def _joined(parts: list[Any]) -> list[Tensor]:
    return [torch.cat(field).cpu() for field in zip(*parts, strict=True)]


def _worst_first(khat: Tensor, gap: Tensor) -> Any:
    import numpy as np

    return np.lexsort((-gap.nan_to_num(torch.inf).numpy(), -khat.nan_to_num(torch.inf, torch.inf, -torch.inf).numpy()))
