"""Typicality: rank of log p(x) of each datum among the model's own draws."""

from typing import Any, NamedTuple

import pyro
import torch
from scipy import stats
from torch import Tensor

from pyrovae.densities import Program, entry, evaluating, isolated_rng, take, vectorize
from pyrovae.diagnostics.simulation import conditioned, simulations
from pyrovae.evidence import Proposal, check_counts, chunk_size_or_default, log_marginal
from pyrovae.stats import LogMarginal

_REFERENCES = 19  # draws per datum, if data differ in covariates or holes


class Typicality(NamedTuple):
    """Ranks of log p(x) of N data among the model's own draws.

    Attributes:
        value: U = (r + V) / (M + 1), with shape (N,), float64: r of M draws of the model have a lower log p-hat, ties
            ordered at random, and V is uniform on (0, 1). Uniform if the model is right. Near 0 the datum is less
            probable than the model's draws; near 1 it is more probable, which is atypical too.
        p_value: Of the test that data and draws have one distribution of log p-hat: two-sample Kolmogorov-Smirnov if
            all data share the draws (then the values depend on each other), else one-sample on the values.
        shared: Whether all data share the M draws, since none has covariates or holes of its own.
        log_marginal: Estimates of log p(x) of the data, in nats, each with shape (N,).
        reference: Estimates of log p(x) of the draws, with shape (R, N); row r is a whole data set.
    """

    value: Tensor
    p_value: float
    shared: bool
    log_marginal: LogMarginal
    reference: Tensor


@entry()
def typicality(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int = 500,
    num_replicates: int | None = None,
    proposal: Proposal | Program | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
    plate: str | None = None,
    **kwargs: Any,
) -> Typicality:
    """Rank log p(x) of each datum among those of draws from the model, with one estimator and one K for both.

        u_n = P(log p-hat(X) < log p-hat(x_n)),  X ~ p(x)

    One number per datum, for any kind of data. The errors of the estimates fall on data and draws alike, so the ranks
    are uniform under the model for every K and every guide; a poor guide costs power. Nalisnick, Matsukawa, Teh and
    Lakshminarayanan 2019, "Detecting out-of-distribution inputs to deep generative models using typicality"
    (https://arxiv.org/abs/1906.02994), test the typical set in this spirit, by the mean of a batch.

    If data have covariates or holes of their own, each is compared with R draws that have the same.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...). Use held-out data.
        num_particles: Number of draws K per datum.
        num_replicates: Number R of replicates of the whole data set to compare with; None for 1, or 19 if data have
            covariates or holes of their own.
        proposal: `Proposal` to draw the latents from, or a Pyro program; None for the default.
        seed: Random seed; the global random state is restored at the end.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None as in `log_marginal`.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs, such as mask and covariates.

    Raises:
        ValueError: As `sbc` about the programs, and as `log_marginal`.

    Example:
        >>> from pyrovae import MLP, VAE, NormalEncoder, NormalLikelihood, StandardNormalPrior
        >>> vae = VAE(StandardNormalPrior(1), NormalLikelihood(MLP(1, 3)), NormalEncoder(MLP(3, 2)))
        >>> found = typicality(vae.model, vae.guide, torch.randn(8, 3) * 5, num_particles=20)
        >>> found.shared, found.reference.shape
        (True, torch.Size([1, 8]))
    """
    program = vectorize(model, None, args, kwargs, plate=plate)[0]
    size, at_once = program.num_data(args, kwargs), chunk_size_or_default(chunk_size, args, kwargs)
    with isolated_rng(0), evaluating(program), pyro.validation_enabled(False):
        shared = not conditioned(program, *take(args, kwargs, slice(0, size)))
    count = num_replicates if num_replicates is not None else 1 if shared else _REFERENCES
    check_counts(num_replicates=count, chunk_size=at_once)
    options: dict[str, Any] = {
        "num_particles": num_particles,
        "proposal": proposal,
        "chunk_size": chunk_size,
        "plate": plate,
    }
    with isolated_rng(seed):
        found = log_marginal(model, guide, *args, **options, **kwargs)
        found = LogMarginal(*(one.cpu() for one in found))
        parts: list[Tensor] = []
        for _ in range(count):
            with evaluating(program), pyro.validation_enabled(False):
                blocks = list(simulations(program, args, kwargs, size, at_once))
            parts += [
                log_marginal(model, guide, *block.args, **options, **block.kwargs).value.cpu() for block in blocks
            ]
        reference = torch.cat(parts).reshape(count, size)
        value = _ranks(found.value, reference, shared=shared)
    return Typicality(value, _p_value(found.value, value, reference, shared=shared), shared, found, reference)


def _ranks(log_p: Tensor, reference: Tensor, *, shared: bool) -> Tensor:
    """Draw U of each datum, with shape (N,); NaN for data without log p, and draws without are left out."""
    if shared:
        known = reference.flatten()
        known = known[~known.isnan()].sort().values
        below = torch.searchsorted(known, log_p.nan_to_num(0.0)).double()
        upto = torch.searchsorted(known, log_p.nan_to_num(0.0), right=True).double()
        ties, size = upto - below, torch.full_like(below, len(known))
    else:
        below = (reference < log_p).double().sum(0)
        ties = (reference == log_p).double().sum(0)
        size = (~reference.isnan()).double().sum(0)
    value = (below + torch.rand_like(below) * (1 + ties)) / (size + 1)
    return torch.where(log_p.isnan(), torch.nan, value)


def _p_value(log_p: Tensor, value: Tensor, reference: Tensor, *, shared: bool) -> float:
    seen = ~log_p.isnan()
    if shared:
        drawn = reference.flatten()
        return float(stats.ks_2samp(log_p[seen].numpy(), drawn[~drawn.isnan()].numpy()).pvalue)
    return float(stats.kstest(value[seen].numpy(), "uniform").pvalue)
