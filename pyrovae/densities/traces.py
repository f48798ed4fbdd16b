"""Traces of programs with particles, and the log densities of their sites."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

Program = Callable[..., Any]

_PARTICLE_PLATE = "_pyrovae_particles"


def trace_log_density(trace: poutine.Trace, num_particles: int, program: str) -> tuple[Tensor, Tensor]:
    """Sum the log densities of the sites of a trace, per particle and datum.

    Args:
        trace: Trace of a program that ran inside the plate of particles.
        num_particles: Number of draws K per datum.
        program: Name of the program in error messages, "model" or "guide".

    Returns:
        The log densities of all sites, and of the observed sites alone, in nats, each with shape (K, N).

    Raises:
        ValueError: If the sites do not lie inside one plate at dim -1, or one carries a scale other than 1.
    """
    total: dict[bool, Tensor | float] = {True: 0.0, False: 0.0}
    plate = None
    for name, site in sample_sites(trace).items():
        frames = {f.dim: f for f in site["cond_indep_stack"] if f.vectorized}
        if -1 not in frames:
            raise ValueError(
                f"site {name!r} of the {program} lies outside a plate over the data at dim -1, so log p(x_n) is not "
                "defined per datum; move it inside, or make it a parameter"
            )
        plate = plate or frames[-1]
        if (frames[-1].name, frames[-1].size) != (plate.name, plate.size):
            raise ValueError(
                f"site {name!r} of the {program} lies in plate {frames[-1].name!r} of size {frames[-1].size}, others "
                f"in {plate.name!r} of size {plate.size}; put every site into one plate over the data"
            )
        if not _equals_one(site["scale"]):
            raise ValueError(
                f"site {name!r} of the {program} carries scale {site['scale']} (poutine.scale or a subsampling plate), "
                "so its value is no log density; remove the scale, and weight the objective instead"
            )
        log_p = site_log_density(site)
        if log_p.dim() > 2:
            raise ValueError(
                f"the log density of site {name!r} of the {program} must have shape (K, N) = ({num_particles}, "
                f"{plate.size}), got {tuple(log_p.shape)}; call .to_event on the dimensions of one datum"
            )
        total[site["is_observed"]] = total[site["is_observed"]] + log_p
    if plate is None:
        raise ValueError(f"the {program} needs a sample site, but has none; call pyro.sample inside a plate at dim -1")
    shape = (num_particles, plate.size)
    return torch.as_tensor(total[True] + total[False]).expand(shape), torch.as_tensor(total[True]).expand(shape)


def site_log_density(site: Mapping[str, Any]) -> Tensor:
    """Compute the log density of one trace site in nats. Applies the site's mask, ignores its scale."""
    return scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])


def trace_with_particles(program: Program, num_particles: int, *args: Any, **kwargs: Any) -> poutine.Trace:
    """Trace a program inside a plate of K particles at dim -2."""
    with pyro.plate(_PARTICLE_PLATE, num_particles, dim=-2):
        return poutine.trace(program).get_trace(*args, **kwargs)


def sample_sites(trace: poutine.Trace) -> dict[str, Any]:
    """Return the sample sites of a trace by name, in order, without those of plates and of pyro.deterministic."""
    return {
        name: site
        for name, site in dict[str, Any](trace.nodes).items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    }


def _equals_one(scale: Any) -> bool:
    return bool((scale == 1).all()) if isinstance(scale, Tensor) else scale == 1
