"""Per-datum log densities of Pyro programs, ours or the reader's own.

A program signs a contract: every sample site lies inside one plate over the data at dim -1. Particles take dim -2.
Everything here follows from the traces alone; nothing asks what a prior or a likelihood is.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.densities.contract import matched_latents
from pyrovae.densities.modules import evaluating
from pyrovae.densities.rng import isolated_rng
from pyrovae.densities.traces import Program, sample_sites, trace_log_density, trace_with_particles

_STRANGE_DRAWS = 100  # to look for sites without a density


def log_joint(model: Program, latents: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
    r"""Evaluate log p(x_n, z_kn) at given latents.

    Args:
        model: Pyro program p(z) p(x|z).
        latents: A value for each latent site, with shape (K, N, ...).
        *args: Arguments of the model, the data first, with shape (N, ...).
        **kwargs: Its keyword arguments.

    Returns:
        Log densities in nats, with shape (K, N).

    Raises:
        ValueError: If a latent site has no value or a value no site, or the program breaks the contract.
    """
    if not latents:
        raise ValueError("latents is empty; give a value of shape (K, N, ...) for each latent site")
    num_particles = next(iter(latents.values())).shape[0]
    for name, value in latents.items():
        if value.dim() < 2 or value.shape[0] != num_particles:
            raise ValueError(
                f"latent {name!r} has shape {tuple(value.shape)}; expected ({num_particles}, N, ...), one K for all"
            )
    conditioned = poutine.condition(model, data=dict(latents))
    trace = trace_with_particles(conditioned, num_particles, *args, **kwargs)
    sites = sample_sites(trace)
    for name in latents:
        if name not in sites:
            raise ValueError(f"the model has no site {name!r}; its sites are {list(sites)}")
    for name, site in sites.items():
        if not site["is_observed"]:
            raise ValueError(f"latents gives no value for site {name!r}; give one of shape (K, N, ...)")
    return trace_log_density(trace, num_particles, "model")[0]


def log_weights(model: Program, guide: Program, *args: Any, num_particles: int = 1, **kwargs: Any) -> Tensor:
    r"""Draw latents from the guide and return their log importance weights, per datum.

    log w_kn = log p(x_n, z_kn) - log q(z_kn | x_n),   z_kn ~ q(z | x_n).

    The mean over k estimates the ELBO of datum n, the log-mean-exp over k bounds log p(x_n) from below (Burda, Grosse,
    Salakhutdinov 2016, https://arxiv.org/abs/1509.00519). Differentiable by the pathwise gradient.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Arguments of both, the data first, with shape (N, ...).
        num_particles: K, the draws per datum.
        **kwargs: Keyword arguments of both.

    Returns:
        Log weights in nats, with shape (K, N).

    Raises:
        ValueError: If num_particles is below 1, the sites do not lie inside one plate over the data, one carries a
            scale other than one, or the guide's sites are not the model's latents, each under the same mask.
    """
    return log_weights_and_latents(model, guide, *args, num_particles=num_particles, **kwargs)[0]


def log_weights_and_latents(
    model: Program, guide: Program, *args: Any, num_particles: int = 1, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Do as `log_weights`, and return the draws and the likelihood too.

    Returns:
        Log weights, with shape (K, N); the latents by site, with shape (K, N, ...); and log p(x|z), the log density of
        the observed sites, with shape (K, N). All in nats.

    Raises:
        ValueError: As `log_weights`.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles must be at least 1, got {num_particles}")
    guide_trace = trace_with_particles(guide, num_particles, *args, **kwargs)
    replayed = poutine.replay(model, trace=guide_trace)
    model_trace = trace_with_particles(replayed, num_particles, *args, **kwargs)
    drawn = matched_latents(model_trace, guide_trace)
    log_p, log_lik = trace_log_density(model_trace, num_particles, "model")
    log_q, _ = trace_log_density(guide_trace, num_particles, "guide")
    if log_p.shape != log_q.shape:
        raise ValueError(f"the model has {log_p.shape[1]} data, the guide {log_q.shape[1]}; give both the same data")
    latents = {name: site["value"] for name, site in drawn.items()}
    latents = {name: value.expand(num_particles, log_p.shape[1], *value.shape[2:]) for name, value in latents.items()}
    return log_p - log_q, latents, log_lik


def check_weights(
    log_w: Tensor, model: Program, guide: Program | None, *args: Any, first: int = 0, **kwargs: Any
) -> None:
    """See that no log weight is NaN or +inf.

    Args:
        log_w: With shape (K, N).
        model: Pyro program whose weights they are.
        guide: Pyro program; None where it has no part in them.
        *args: Arguments of both.
        first: The number that the first of these data has for the reader.
        **kwargs: Keyword arguments of both.

    Raises:
        ValueError: Naming the first such datum, and the sites whose density shows it at a draw.
    """
    largest = log_w.detach().amax(0)  # nan if one weight is
    bad = largest.isnan() | (largest == torch.inf)
    if not bool(bad.any()):
        return
    datum = int(bad.nonzero()[0])
    sites = nonfinite_sites(model, guide, args, kwargs, datum)
    where = f"the density of {' and '.join(sites)} is not finite there" if sites else "draws of now do not show where"
    raise ValueError(
        f"the log weights of datum {first + datum} are {'NaN' if bool(largest[datum].isnan()) else 'unbounded'} "
        f"({int(bad.sum()):,} of {len(bad):,} data); {where}; look for data or parameters that are NaN, or a scale "
        "that went to zero"
    )


def nonfinite_sites(
    model: Program, guide: Program | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], datum: int | None = None
) -> list[str]:
    """The sites whose log density is NaN or +inf at draws of now, the guide's first; else those where it is -inf.

    Args:
        model: Pyro program.
        guide: Pyro program; None for the model alone.
        args: Arguments of both.
        kwargs: Keyword arguments of both.
        datum: The datum to look at; None for all.
    """
    undefined, impossible = [], []
    programs = (model,) if guide is None else (model, guide)
    with suppress(Exception), evaluating(*programs), isolated_rng(), pyro.validation_enabled(False):
        drawn = trace_with_particles(model if guide is None else guide, _STRANGE_DRAWS, *args, **kwargs)
        scored = trace_with_particles(poutine.replay(model, trace=drawn), _STRANGE_DRAWS, *args, **kwargs)
        for program, trace in (("guide", None if guide is None else drawn), ("model", scored)):
            for name, site in ({} if trace is None else sample_sites(trace)).items():
                log_p = site["fn"].log_prob(site["value"])
                log_p = log_p if datum is None or not log_p.dim() else log_p[..., datum]
                if bool((log_p.isnan() | (log_p == torch.inf)).any()):
                    undefined.append(f"site {name!r} of the {program}")
                elif not bool(log_p.isfinite().all()):
                    impossible.append(f"site {name!r} of the {program}")
    return undefined or impossible
