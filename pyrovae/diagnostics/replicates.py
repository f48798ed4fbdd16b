"""Replicates of a data set: draws of the observed sites of a model, with the covariates and the holes of the data."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.densities import (
    ParticleTrace,
    Program,
    Site,
    VectorizedProgram,
    entry,
    entry_of,
    evaluating,
    isolated_rng,
    take,
    vectorize,
)
from pyrovae.diagnostics.simulation import NotAnArgumentError, drawing, simulate
from pyrovae.evidence import check_counts, chunk_size_or_default

_MOST_NUMBERS = 6_500_000  # of replicates held at once
_CHECKED = 3  # data at which a model is checked to draw its data from latents alone


@entry()
def replicate(
    model: Program,
    *args: Any,
    guide: Program | None = None,
    num_replicates: int = 100,
    seed: int = 0,
    chunk_size: int | None = None,
    plate: str | None = None,
    **kwargs: Any,
) -> dict[str, Tensor]:
    """Draw whole data sets from the model, each with the N data's covariates and holes.

        z_n ~ p(z_n),  x_n ~ p(x_n | z_n)                  (default: prior predictive replicates)
        z_n ~ q(z_n | x_n),  x_n ~ p(x_n | z_n)            (with a guide: reconstructions)

    Replicates with z from the prior answer whether the model makes such data. Reconstructions know the data that they
    are compared with, so that a check with them is conservative (see `check_predictive`). Modules are in evaluation
    mode.

    Args:
        model: Pyro program p(z) p(x|z). Its data must depend on the latents, the covariates, and sites drawn before.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        guide: Pyro program q(z|x), with the model's arguments, for reconstructions; None for draws from the prior.
        num_replicates: Number of data sets S.
        seed: Random seed; the global random state is restored at the end.
        chunk_size: Number of latents decoded at once, which bounds memory; None for 8,192.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs, such as mask and covariates.

    Returns:
        The replicates of each observed site, with shape (S, N, *event); NaN where a mask leaves an entry out.

    Raises:
        ValueError: If the model has no observed site or a `pyro.factor`, if it draws its data from the data themselves,
            or the guide leaves a latent out.

    Example:
        >>> from pyrovae import MLP, VAE, NormalEncoder, NormalLikelihood, StandardNormalPrior
        >>> vae = VAE(StandardNormalPrior(1), NormalLikelihood(MLP(1, 3)), NormalEncoder(MLP(3, 2)))
        >>> replicate(vae.model, torch.randn(4, 3), num_replicates=10)["x"].shape
        torch.Size([10, 4, 3])
    """
    check_counts(num_replicates=num_replicates)
    source = ReplicateSource.of(model, guide, args, kwargs, plate=plate)
    with isolated_rng(seed), source.evaluating():
        parts = list(source.data_sets(num_replicates, chunk_size))
    return {name: torch.cat([part[name] for part in parts]) for name in source.names}


@dataclass(frozen=True)
class ReplicateSource:
    """Source of replicates of N data.

    Attributes:
        model: Pyro program p(z) p(x|z).
        drawing: The same, but it draws its observed sites.
        guide: Pyro program q(z|x); None for latents from the prior.
        args: Positional arguments of both programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of both programs.
        names: Names of the observed sites.
    """

    model: VectorizedProgram
    drawing: VectorizedProgram
    guide: VectorizedProgram | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        model: Program,
        guide: Program | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        plate: str | None = None,
    ) -> "ReplicateSource":
        """Make the source of a model at N data, and check that the model can draw them.

        Raises:
            ValueError: As `replicate`.
        """
        vectorized, vectorized_guide = vectorize(model, guide, args, kwargs, plate=plate)
        if vectorized.summed:
            raise ValueError(
                f"reconstructions need a guide that draws all latents, but it leaves {', '.join(vectorized.summed)} to "
                "a sum over their values; leave guide out for draws from the prior"
            )
        found = cls(vectorized, vectorized, vectorized_guide, args, dict(kwargs), ())
        with isolated_rng(0), found.evaluating():
            few = found.some(slice(0, min(_CHECKED, found.num_data)))
            names = tuple(_observed_sites(few.model.trace(1, few.args, few.kwargs)))
            with suppress(NotAnArgumentError):  # the data may be part of the model
                simulate(few.model, few.args, few.kwargs)
        return replace(found, drawing=drawing(vectorized, names), names=names)

    @property
    def num_data(self) -> int:
        """Number of data N."""
        return self.model.num_data(self.args, self.kwargs)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the programs' modules into evaluation mode, without gradients and without Pyro's validation."""
        programs = (self.model,) if self.guide is None else (self.model, self.guide)
        with evaluating(*programs), pyro.validation_enabled(False):
            yield

    def some(self, rows: slice | Tensor) -> "ReplicateSource":
        """Return the source of some of the data; of all of them if the model cannot be divided."""
        if not self.model.divisible:
            return self
        args, kwargs = take(self.args, self.kwargs, rows)
        return replace(self, args=args, kwargs=kwargs)

    def blocks(self, at_once: int) -> Iterator["ReplicateSource"]:
        """Iterate over sources of at most so many data."""
        step = at_once if self.model.divisible else self.num_data
        for start in range(0, self.num_data, step):
            yield self.some(slice(start, min(start + step, self.num_data)))

    def trace(self, count: int) -> ParticleTrace:
        """Trace the model on K draws of latents and data, with latents from the guide, if any."""
        latents = {}
        if self.guide is not None:
            drawn = self.guide.trace(count, self.args, self.kwargs).latents
            latents = {name: site.value for name, site in drawn.items()}
        return self.drawing.trace(count, self.args, self.kwargs, latents)

    def draw(self, count: int) -> dict[str, Tensor]:
        """Draw the data, each observed site with shape (K, N, *event); NaN where a mask leaves an entry out."""
        sites = self.trace(count).sites
        return {name: with_holes(sites[name]) for name in self.names}

    def data_sets(self, count: int, chunk_size: int | None) -> Iterator[dict[str, Tensor]]:
        """Draw whole data sets, some at a time, each observed site with shape (k, N, *event)."""
        chunk = chunk_size_or_default(chunk_size, self.args, self.kwargs)
        check_counts(chunk_size=chunk)
        one = next(self.blocks(1)).draw(1)
        numbers = sum(value[0, 0].numel() for value in one.values())
        latents = max(1, min(chunk, _MOST_NUMBERS // max(1, numbers)))
        at_once = max(1, latents // self.num_data)
        for done in range(0, count, at_once):
            size = min(at_once, count - done)
            parts = [block.draw(size) for block in self.blocks(max(1, latents // size))]
            yield {name: torch.cat([part[name] for part in parts], 1) for name in self.names}

    def observed(self, chunk_size: int | None = None) -> dict[str, Tensor]:
        """Return the data of each observed site, with shape (N, *event); NaN where a mask leaves an entry out."""
        parts = []
        for block in self.blocks(chunk_size_or_default(chunk_size, self.args, self.kwargs)):
            sites = block.model.trace(1, block.args, block.kwargs).sites
            parts.append({name: with_holes(sites[name])[0] for name in self.names})
        return {name: torch.cat([part[name] for part in parts]) for name in self.names}


def one_site(names: Collection[str], site: str | None) -> str:
    """Return the name of an observed site: the given one, or the only one.

    Raises:
        ValueError: If there is no such site, or several and none is named.
    """
    if site is not None and site not in names:
        raise ValueError(f"the model has no observed site {site!r}, but {', '.join(map(repr, names))}; give site=...")
    if site is None and len(names) > 1:
        raise ValueError(f"the model has the observed sites {', '.join(map(repr, names))}; choose one by site=...")
    return next(iter(names)) if site is None else site


def with_holes(site: Site) -> Tensor:
    """Return the value of a site, with shape (K, N, *event), floating, with NaN where a mask leaves an entry out."""
    value = site.value if site.value.is_floating_point() else site.value.float()
    mask = site.mask_per_datum()
    return value if bool(mask.all()) else torch.where(mask, value, torch.nan)


def _observed_sites(trace: ParticleTrace) -> dict[str, Site]:
    """Return the observed sites of a trace, and check that they can be drawn for each datum."""
    found = {name: site for name, site in trace.sites.items() if site.is_observed}
    if not found:
        raise ValueError("the model observes no data at these arguments, so there is nothing to replicate; give data")
    for name, site in found.items():
        site.check_plate()
        if isinstance(entry_of(site.fn), dist.Unit):
            raise ValueError(
                f"site {name!r} is a pyro.factor, which has no draws, so the model cannot be replicated; write it as a "
                "sample site with a distribution"
            )
    return found
