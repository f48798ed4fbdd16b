"""Check that a guide may draw all latents that the posterior holds possible."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from pyrovae.densities.domains import domain_of
from pyrovae.densities.masks import entry_of
from pyrovae.densities.vectorized import VectorizedProgram

_DRAWS = 200  # per datum
_FEWEST_DRAWS, _MOST_RUN = 20, 2600  # of programs that run on all data alone; draws times data
_LEAST_MASS = 0.01


class MissedMass(NamedTuple):
    """Part of a posterior where a guide has density 0.

    Attributes:
        site: Name of the latent whose values the guide does not draw.
        kind: Name of the guide's distribution of this latent.
        mass: Rough mass of the part, between 0 and 1, of the datum with the largest.
    """

    site: str
    kind: str
    mass: float

    def __str__(self) -> str:
        """Say what the guide misses."""
        return (
            f"the guide's {self.kind} never draws values of latent {self.site!r} with roughly {self.mass:.0%} of the "
            "posterior mass of a datum"
        )


def missed_mass(
    model: VectorizedProgram, guide: VectorizedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> MissedMass | None:
    """Find the latent of which the guide misses most, by at most 200 draws from the prior, weighted by the likelihood.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        args: Positional arguments of both programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of both programs.

    Returns:
        The latent; None if the guide misses less than 1 % of the posterior of each datum, or if draws of the prior
        have no density.
    """
    try:
        if _same_domains(model, guide, args, kwargs):
            return None
        num_particles = max(_FEWEST_DRAWS, min(_DRAWS, _MOST_RUN // model.num_data(args, kwargs)))
        drawn = model.trace(num_particles, args, kwargs)
        latents = {name: site.value for name, site in drawn.latents.items()}
        sites = guide.trace(num_particles, args, kwargs, latents).latents
        log_lik = drawn.log_densities()[1].double()
        inside = {name: site.in_support() for name, site in sites.items() if name in latents}
    except Exception:  # the estimate itself says what is wrong
        return None
    share = log_lik.nan_to_num(-torch.inf, -torch.inf).softmax(0).nan_to_num(0.0)
    worst: MissedMass | None = None
    for name, within in inside.items():
        mass = (share * ~within).sum(0).max().item()
        if mass > max(_LEAST_MASS, 0.0 if worst is None else worst.mass):
            worst = MissedMass(name, type(entry_of(sites[name].fn)).__name__, mass)
    return worst


def _same_domains(
    model: VectorizedProgram, guide: VectorizedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Return whether the guide's latents have the domains of the model's, by one draw."""
    drawn = guide.trace(1, args, kwargs).latents
    sites = model.trace(1, args, kwargs, {name: site.value for name, site in drawn.items()}).sites
    return all(_is_same(domain_of(site.fn), domain_of(sites[name].fn)) for name, site in drawn.items() if name in sites)


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two domains are equal by their numbers. Others may depend on draws, or are unknown (None)."""
    if one is None or type(one) is not type(other):
        return False
    known = all(isinstance(value, int | float) for value in vars(one).values())
    return known and vars(one) == vars(other)


def warn_of_missed_mass(guide: VectorizedProgram | None) -> None:
    """Warn if log p(x) by draws of a guide alone is too low, since the guide never draws a part of the posterior."""
    if guide is not None and guide.missed is not None:
        warnings.warn(
            f"{guide.missed}, so log p(x) by draws of the guide alone is too low by more than its standard error says; "
            "use the default proposal, or give the guide a distribution with the prior's support",
            stacklevel=2,
        )
