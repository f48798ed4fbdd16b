"""Log joint densities and log importance weights, per draw and datum, and the check that they are finite."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae.densities.arguments import num_data
from pyrovae.densities.contract import matched_latents
from pyrovae.densities.coverage import warn_of_missed_mass
from pyrovae.densities.entry import entry
from pyrovae.densities.modules import evaluating
from pyrovae.densities.rng import isolated_rng
from pyrovae.densities.traces import ParticleTrace, Program
from pyrovae.densities.vectorize import vectorize, vectorize_pair
from pyrovae.densities.vectorized import VectorizedProgram

_DIAGNOSTIC_DRAWS = 100  # draws per datum in the search for sites with a nonfinite log density


@entry()
def log_joint(
    model: Program, latents: Mapping[str, Tensor], *args: Any, plate: str | None = None, **kwargs: Any
) -> Tensor:
    """Evaluate log p(x_n, z_kn) at given latents.

    Args:
        model: Pyro program p(z) p(x|z).
        latents: Value of each latent site by name, with shape (K, N, ...). Discrete sites without a value are summed
            out. It is empty, with K = 1, if all latents are, or if the model has none.
        *args: Positional arguments of the model, the data first, with shape (N, ...).
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of the model.

    Returns:
        The log densities in nats, with shape (K, N).

    Raises:
        ValueError: If the names in latents are not those of the model's latent sites, if their shapes do not agree on
            K, or if the sites do not lie inside one plate over the data.
    """
    num_particles, size = next((value.shape[0] for value in latents.values()), 1), num_data(args, kwargs)
    for name, value in latents.items():
        if value.dim() < 2 or value.shape[0] != num_particles:
            raise ValueError(
                f"latent {name!r} must have shape ({num_particles}, N, ...), got {tuple(value.shape)}; give all "
                "latents the same K"
            )
    model, _ = vectorize(model, None, args, kwargs, plate=plate, given=latents)
    trace = model.trace(num_particles, args, kwargs, {name: _expand(z, size) for name, z in latents.items()})
    for name in latents:
        if name not in trace.latents:
            raise ValueError(f"the model has no latent {name!r}, only {list(trace.latents)}; remove it from latents")
    for name in trace.latents:
        if name not in latents:
            raise ValueError(f"latents gives no value for site {name!r}; give one of shape (K, N, ...)")
    return trace.log_densities()[0]


@entry()
def log_weights(
    model: Program, guide: Program, *args: Any, num_particles: int = 1, plate: str | None = None, **kwargs: Any
) -> Tensor:
    """Draw latents from the guide and return their log importance weights, per datum.

        log w_kn = log p(x_n, z_kn) - log q(z_kn|x_n),  z_kn ~ q(z|x_n)

    The mean over k estimates the ELBO of datum n. The log-mean-exp over k is in expectation a lower bound of log p(x_n)
    (Burda, Grosse, Salakhutdinov 2016, https://arxiv.org/abs/1509.00519). Pathwise gradients flow through the result.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        num_particles: Number of draws K per datum.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs.

    Returns:
        The log weights in nats, with shape (K, N).

    Raises:
        ValueError: If num_particles is below 1, if the sites do not lie inside one plate over the data, if a site
            carries a scale other than 1, or if the latent sites of model and guide differ in name, shape or mask.
    """
    return _weighted_draws(model, guide, args, kwargs, num_particles, plate).log_weights


class WeightedDraws(NamedTuple):
    """Draws from a guide with their log importance weights.

    Attributes:
        log_weights: log p(x_n, z_kn) - log q(z_kn|x_n) in nats, with shape (K, N).
        latents: Draws of each latent site by name, with shape (K, N, ...).
        log_likelihood: log p(x_n|z_kn), the log density of the observed sites, in nats, with shape (K, N).
    """

    log_weights: Tensor
    latents: dict[str, Tensor]
    log_likelihood: Tensor


@entry()
def weighted_draws(
    model: Program, guide: Program, *args: Any, num_particles: int = 1, plate: str | None = None, **kwargs: Any
) -> WeightedDraws:
    """Draw latents from the guide, with their log importance weights and log p(x|z).

    The softmax over k of the log weights of datum n weighs its draws like draws from p(z|x_n). `to_arviz` writes such
    draws. Modules stay in their mode, and pathwise gradients flow through the result.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        num_particles: Number of draws K per datum.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: As `log_weights`.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyrovae import to_arviz
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.8))
        >>> x = torch.randn(5)
        >>> draws = weighted_draws(model, guide, x, num_particles=100)
        >>> tree = to_arviz(
        ...     draws.latents,
        ...     observed={"x": x},
        ...     log_likelihood={"x": draws.log_likelihood},
        ...     log_weights=draws.log_weights,
        ... )
        >>> dict(tree["posterior"].sizes)
        {'chain': 1, 'draw': 100, 'datum': 5}
    """
    return _weighted_draws(model, guide, args, kwargs, num_particles, plate)


def _weighted_draws(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    num_particles: int,
    plate: str | None,
) -> WeightedDraws:
    if num_particles < 1:
        raise ValueError(f"num_particles must be at least 1, got {num_particles}")
    checked = isinstance(guide, VectorizedProgram)  # by an estimator, which warns itself
    model, guide = vectorize_pair(model, guide, args, kwargs, plate=plate)
    if not checked:
        warn_of_missed_mass(guide)
    model_trace, guide_trace = draw_from_guide(model, guide, args, kwargs, num_particles)
    drawn = matched_latents(model_trace, guide_trace)
    log_p, log_lik = model_trace.log_densities()
    log_q, _ = guide_trace.log_densities()
    return WeightedDraws(log_p - log_q, {name: site.value for name, site in drawn.items()}, log_lik)


def draw_from_guide(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any], num_particles: int
) -> tuple[ParticleTrace, ParticleTrace]:
    """Trace the guide on K draws for each datum, and the model on the guide's draws.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        args: Positional arguments of both programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of both programs.
        num_particles: Number of draws K per datum.

    Returns:
        The traces of model and guide.

    Raises:
        ValueError: As `vectorize`.
    """
    model, guide = vectorize_pair(model, guide, args, kwargs)
    guide_trace = guide.trace(num_particles, args, kwargs)
    drawn = {name: site.value for name, site in guide_trace.latents.items()}
    return model.trace(num_particles, args, kwargs, drawn), guide_trace


def _expand(latent: Tensor, size: int) -> Tensor:
    return latent.expand(latent.shape[0], size, *latent.shape[2:])


def check_weights(
    log_w: Tensor, model: Program, guide: Program | None, *args: Any, first: int = 0, **kwargs: Any
) -> None:
    """Check that no log weight is NaN or +inf.

    Args:
        log_w: Log weights in nats, with shape (K, N).
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments; None for the model alone.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        first: Index of the first datum in the full data set, for error messages.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If a weight is NaN or +inf. The message names the first such datum and the sites whose log density
            is nonfinite at new draws.
    """
    largest = log_w.detach().amax(0)  # nan if one weight is
    bad = largest.isnan() | (largest == torch.inf)
    if not bool(bad.any()):
        return
    datum = int(bad.nonzero()[0])
    sites = nonfinite_sites(model, guide, args, kwargs, datum)
    where = f"the density of {' and '.join(sites)} is not finite there" if sites else "new draws do not show which site"
    raise ValueError(
        f"the log weights of datum {first + datum} are {'NaN' if bool(largest[datum].isnan()) else 'unbounded'} "
        f"({int(bad.sum()):,} of {len(bad):,} data); {where}; look for data or parameters that are NaN, or a scale "
        "that went to zero"
    )


def nonfinite_sites(
    model: Program, guide: Program | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], datum: int | None = None
) -> list[str]:
    """List the sites whose log density is NaN or +inf at new draws, the guide's first; if none, those with -inf.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments; None for the model alone.
        args: Positional arguments of both programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of both programs.
        datum: Index of the datum to examine; None for all.
    """
    undefined, impossible = [], []
    programs = (model,) if guide is None else (model, guide)
    with suppress(Exception), evaluating(*programs), isolated_rng(), pyro.validation_enabled(False):
        if guide is None:
            traces = [vectorize(model, None, args, kwargs)[0].trace(_DIAGNOSTIC_DRAWS, args, kwargs)]
        else:
            traces = list(reversed(draw_from_guide(model, guide, args, kwargs, _DIAGNOSTIC_DRAWS)))
        for name, site in ((name, site) for trace in traces for name, site in (trace.summed | trace.sites).items()):
            log_p = site.log_density()[:, slice(None) if datum is None else datum]
            if bool((log_p.isnan() | (log_p == torch.inf)).any()):
                undefined.append(f"site {name!r} of the {site.program}")
            elif not bool(log_p.isfinite().all()):
                impossible.append(f"site {name!r} of the {site.program}")
    return undefined or impossible
