"""Snapshots of a model while it trains: codes of the same data, and the same draws decoded."""

from dataclasses import replace
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae.densities import ParticleTrace, Program, entry, evaluating, isolated_rng
from pyrovae.diagnostics.draws import Pair, RealLatents, flat, make_pair
from pyrovae.evidence import known_moments

MOST_DATA = 500  # whose codes are kept
MOST_DECODED = 6  # data, and draws of the prior, that are decoded
_MOST_PRIOR = 1000
_MOST_NUMBERS = 2**15  # of each tensor of a snapshot
_MOST_AT_ONCE = 2**22  # numbers of decoded data in memory
_PARTICLES = 16  # for means without closed form


class Snapshot(NamedTuple):
    """Codes and decoded draws at one moment of a training. Each tensor is float32, with at most 32,768 numbers.

    Attributes:
        names: Names of the J dimensions of the real latents, such as "z[0]".
        mean: Means of q(z|x) of N data, with shape (N, J).
        draw: One draw of q(z|x) per datum, with shape (N, J).
        prior: Draws of the prior, with shape (M, J).
        samples: Means E[x|z] at the first of these draws, with shape (S, D); S is 0 if a datum has too many numbers.
        reconstructions: Means E[x|z] at the draws of the first data, with shape (R, D), R as S.
    """

    names: tuple[str, ...]
    mean: Tensor
    draw: Tensor
    prior: Tensor
    samples: Tensor
    reconstructions: Tensor


@entry()
def take_snapshot(model: Program, guide: Program, *args: Any, seed: int = 0, **kwargs: Any) -> Snapshot:
    """Compute codes of data, draws of the prior, and decoded means of a few of both, with the same noise in every call.

    There are at most 500 data, 1,000 draws of the prior, and 6 decoded ones of each, or fewer if that bounds each
    tensor to 32,768 numbers. A prior with covariates is given those of the data. Means of q(z|x) have their closed
    form, or are averages of 16 draws.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If there is no real latent, a code is not finite, the programs run on all data only, or a code or a
            datum has too many numbers.
    """
    pair = make_pair(model, guide, args, kwargs)
    if not pair.divisible:
        raise ValueError("the programs run on all data at once only, so no codes of some data are kept")
    with isolated_rng(seed), evaluating(pair.model, pair.guide), pyro.validation_enabled(False):
        one = pair.at(slice(0, 1))
        latents = RealLatents.find(one.joint(1), one.posterior(1))
        size = len(latents.labels)
        pair = pair.at(slice(0, min(pair.size, MOST_DATA, _MOST_NUMBERS // size)))
        if pair.size < 2:
            raise ValueError(
                f"no snapshot of {pair.size} data; it needs two, and codes of at most {_MOST_NUMBERS // 2:,} numbers"
            )
        posterior = pair.posterior(2)
        moments = [known_moments(posterior.sites[name]) for name in latents.names]
        if any(known is None for known in moments):
            mean = latents.of(pair.posterior(_PARTICLES)).mean(0)
        else:
            mean = torch.cat([flat(known[0][None])[0] for known in moments if known is not None], -1)
        prior, samples = _draw(pair, latents)
        few = pair.at(slice(0, min(MOST_DECODED, pair.size)))
        drawn = {name: site.value[:1, : few.size] for name, site in posterior.latents.items()}
        again = _decoded(few.joint(1, drawn), latents)
    parts = (mean, latents.of(posterior)[0], prior)
    if not all(bool(part.isfinite().all()) for part in parts):
        raise ValueError("a code or a draw of the prior is not finite")
    return Snapshot(latents.labels, *(part.float() for part in (*parts, samples, again)))


def _draw(pair: Pair, latents: RealLatents) -> tuple[Tensor, Tensor]:
    """Draw codes from the prior, with shape (M, J), and decode the first, with shape (S, D)."""
    model = replace(pair.model, summed=frozenset())  # discrete latents are drawn, too
    size = max(1, sum(value[0].numel() for value in (*pair.args, *pair.kwargs.values()) if isinstance(value, Tensor)))
    count = min(_MOST_PRIOR, _MOST_NUMBERS // len(latents.labels), max(1, _MOST_AT_ONCE // size))
    some = pair.at(slice(0, min(count, pair.size)))
    trace = model.trace(-(-count // some.size), some.args, some.kwargs)
    values = [trace.sites[name] for name in latents.names]
    prior = torch.cat([flat(site.value.expand(*trace.shape, *site.event_shape)) for site in values], -1)
    return prior.flatten(0, 1)[:count], _decoded(trace, latents)


def _decoded(trace: ParticleTrace, latents: RealLatents) -> Tensor:
    """Return the means E[x|z] of the first draws of a trace, with shape (S, D); S is 0 if they are not known."""
    observed = [site for name, site in trace.sites.items() if site.is_observed and name not in latents.names]
    if not observed or observed[0].depends_on_sums:
        return torch.empty(0, 0)
    site = observed[0]
    try:
        mean = site.fn.mean
    except NotImplementedError:
        mean = site.fn.sample((100,)).mean(0)
    mean = site.layout.per_datum(mean, site.plate_sizes, len(site.fn.event_shape))
    mean = mean.expand(*trace.shape, *mean.shape[2:]).reshape(trace.shape[0] * trace.shape[1], -1)
    return mean[: min(MOST_DECODED, _MOST_NUMBERS // mean.shape[1])].cpu()
