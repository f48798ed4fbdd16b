"""Traces of programs that run once per draw, put side by side."""

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from functools import cached_property

import torch
from torch import Tensor

from pyrovae.densities.traces import ParticleTrace, Site


class LoopedSite(Site):
    """Sample site of several runs with one draw each.

    The distribution, the mask and the shapes are those of the first run.

    Args:
        parts: The site in each run.
    """

    def __init__(self, parts: Sequence[Site]) -> None:
        first = parts[0]
        for field in fields(first):
            setattr(self, field.name, getattr(first, field.name))
        self.parts = parts
        self.layout = replace(first.layout, num_particles=len(parts))
        if first.auxiliary is not None:
            self.auxiliary = LoopedSite([part.auxiliary for part in parts if part.auxiliary is not None])

    @cached_property
    def value(self) -> Tensor:
        """Value, with shape (K, 1, *further plates, *event)."""
        return torch.cat([part.value for part in self.parts])

    def log_density(self) -> Tensor:
        """Compute the log density in nats, with shape (K, 1)."""
        return torch.cat([part.log_density() for part in self.parts])

    def in_support(self) -> Tensor:
        """Return whether all entries of the value lie in the domain, or are masked out, with shape (K, 1)."""
        return torch.cat([part.in_support() for part in self.parts])

    def is_seen(self) -> Tensor:
        """Return whether any entry of the site counts, with shape (K, 1)."""
        return torch.cat([part.is_seen() for part in self.parts])

    def mask_per_datum(self) -> Tensor:
        """Return the entries that count, with the shape of `value`."""
        return torch.cat([part.mask_per_datum() for part in self.parts])


class LoopedTrace(ParticleTrace):
    """Traces of several runs with one draw each, as the trace of a run on K draws.

    Args:
        parts: Trace of each run.
    """

    def __init__(self, parts: Sequence[ParticleTrace]) -> None:
        first = parts[0]
        self.parts = parts
        self.layout, self.program = replace(first.layout, num_particles=len(parts)), first.program
        self.shape = (len(parts), 1)
        self.sites = {name: LoopedSite([part.sites[name] for part in parts]) for name in first.sites}
        self.summed = {name: LoopedSite([part.summed[name] for part in parts]) for name in first.summed}
        self.given, self.determined = first.given, first.determined

    def log_densities(self) -> tuple[Tensor, Tensor]:
        """Sum the log densities of all sites, and of the observed sites alone, each with shape (K, 1)."""
        every, observed = zip(*(part.log_densities() for part in self.parts), strict=True)
        return torch.cat(_with_shape(every)), torch.cat(_with_shape(observed))

    def unscaled_log_density(self, unmasked: Collection[str] = ()) -> Tensor:
        """Sum the log densities of all sites, with shape (K, 1), as those of each run."""
        return torch.cat([part.unscaled_log_density(unmasked) for part in self.parts])

    def log_prior_of_dependents(self) -> Tensor:
        """Compute the log density of the latents that depend on summed sites, in nats, with shape (K, 1)."""
        return torch.cat([part.log_prior_of_dependents() for part in self.parts])


def _with_shape(densities: Sequence[Tensor]) -> list[Tensor]:
    """Expand densities of programs without latents, which are single numbers."""
    return [density.expand(1, 1) for density in densities]
