"""Traces of programs on K draws for N data, and the log densities of their sites per draw and datum."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.densities.layout import Layout
from pyrovae.densities.masks import Mask, in_support, mask_of

Program = Callable[..., Any]

PARTICLE_PLATE = "_pyrovae_particles"


@dataclass
class Site:
    """Sample site of a trace on K draws for N data.

    Attributes:
        name: Name of the site.
        program: Name of the program in error messages, "model" or "guide".
        fn: Distribution, whose batch shape follows `layout`.
        raw_value: Value, whose batch shape follows `layout`.
        site_mask: Mask by `poutine.mask`; None if there is none.
        scale: Factor on the log density.
        is_observed: Whether the value was given.
        infer: Hints of the program.
        plate_names: Name of each plate around the site by dim, without that of the particles.
        plate_sizes: Size of each plate around the site by dim, without that of the particles; -1 if it has none.
        layout: Where draws and data lie.
    """

    name: str
    program: str
    fn: Any
    raw_value: Tensor
    site_mask: Mask | None
    scale: Any
    is_observed: bool
    infer: Mapping[str, Any]
    plate_names: dict[int, str]
    plate_sizes: dict[int, int]
    layout: Layout

    @cached_property
    def value(self) -> Tensor:
        """Value, with shape (K, N, *further plates, *event)."""
        return self._per_datum(self.raw_value, "value", len(self.fn.event_shape))

    @property
    def mask(self) -> Mask:
        """Entries that count: True for all, False for none, else a tensor that expands to the raw value."""
        return mask_of(self.fn, self.site_mask)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of the value for one draw and one datum."""
        further = (self.plate_sizes[dim] for dim in self.layout.other_dims(self.plate_sizes))
        return torch.Size((*further, *self.fn.event_shape))

    def log_density(self) -> Tensor:
        """Compute the log density in nats, with shape (K, N). Applies masks, ignores the scale."""
        return self.sum_per_datum(scale_and_mask(self.fn.log_prob(self.raw_value), mask=self.site_mask))

    def in_support(self) -> Tensor:
        """Return whether all entries of the value lie in the support, or are masked out, with shape (K, N)."""
        inside = in_support(self.fn, self.raw_value, self.mask)
        inside = self.layout.per_datum(inside, self.plate_sizes, inside.dim() - self._batch_dim)
        return inside.flatten(2).all(-1) if inside.dim() > 2 else inside

    @property
    def _batch_dim(self) -> int:
        return self.raw_value.dim() - len(self.fn.event_shape)

    def sum_per_datum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor with the batch shape of the site over its further plates, to shape (K, N).

        Raises:
            ValueError: If the site lies outside the data plate, or has batch dimensions without a plate.
        """
        self.check_plate()
        tensor = self._per_datum(tensor, "log density")
        return tensor.sum(tuple(range(2, tensor.dim()))) if tensor.dim() > 2 else tensor

    def _per_datum(self, tensor: Tensor, what: str, event_dim: int = 0) -> Tensor:
        try:
            return self.layout.per_datum(tensor, self.plate_sizes, event_dim)
        except ValueError as error:
            raise ValueError(
                f"the {what} of site {self.name!r} of the {self.program} has a shape that its plates do not "
                f"explain: {error}; call .to_event on the dimensions of one datum, or put them into a plate"
            ) from error

    def check_plate(self) -> None:
        """Raise a ValueError if the site lies outside the data plate."""
        dim = self.layout.data_dim
        if dim is not None and dim not in self.plate_sizes:
            raise ValueError(
                f"site {self.name!r} of the {self.program} lies outside a plate over the data at dim {dim}, so "
                "log p(x_n) is not defined per datum; move it inside, or make it a parameter"
            )


class ParticleTrace:
    """Trace of a program that ran on K draws for N data.

    Args:
        trace: Trace of the run.
        layout: Where draws and data lie in the run.
        program: Name of the program in error messages, "model" or "guide".
    """

    def __init__(self, trace: poutine.Trace, layout: Layout, program: str) -> None:
        self.layout, self.program = layout, program
        self.shape = (layout.num_particles, layout.num_data)
        self.sites = {name: self._site(name, site) for name, site in sample_sites(trace).items()}

    @property
    def latents(self) -> dict[str, Site]:
        """Latent sites by name, in order."""
        return {name: site for name, site in self.sites.items() if not site.is_observed}

    def log_densities(self) -> tuple[Tensor, Tensor]:
        """Sum the log densities of the sites, per draw and datum.

        Returns:
            The log densities of all sites, and of the observed sites alone, in nats, each with shape (K, N).

        Raises:
            ValueError: If the sites do not lie inside one plate over the data, or one carries a scale other than 1.
        """
        if not self.sites:
            raise ValueError(
                f"the {self.program} needs a sample site, but has none; call pyro.sample inside a plate over the data"
            )
        total: dict[bool, Tensor | float] = {True: 0.0, False: 0.0}
        plate = next(iter(self.sites.values()))
        for name, site in self.sites.items():
            site.check_plate()
            self._check_same_plate(site, plate)
            if not _equals_one(site.scale):
                raise ValueError(
                    f"site {name!r} of the {self.program} carries scale {site.scale} (poutine.scale or a subsampling "
                    "plate), so its value is no log density; remove the scale, and weight the objective instead"
                )
            total[site.is_observed] = total[site.is_observed] + site.log_density()
        everything = torch.as_tensor(total[True] + total[False])
        return everything.expand(self.shape), torch.as_tensor(total[True]).expand(self.shape)

    def unscaled_log_density(self) -> Tensor:
        """Sum the log densities of all sites, with shape (K, N), without their scales."""
        total = torch.stack([site.log_density() for site in self.sites.values()]).sum(0)
        return total.expand(self.shape)

    def _check_same_plate(self, site: Site, other: Site) -> None:
        dim = self.layout.data_dim
        if dim is not None and site.plate_names[dim] != other.plate_names[dim]:
            raise ValueError(
                f"site {site.name!r} of the {self.program} lies in plate {site.plate_names[dim]!r}, others in "
                f"{other.plate_names[dim]!r}; put every site into one plate over the data"
            )

    def _site(self, name: str, site: Mapping[str, Any]) -> Site:
        frames = [f for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLE_PLATE]
        sizes = {f.dim: self._plate_size(f, site) for f in frames}
        return Site(
            name,
            self.program,
            site["fn"],
            site["value"],
            site["mask"],
            site["scale"],
            site["is_observed"],
            site["infer"],
            {f.dim: f.name for f in frames},
            sizes,
            self.layout,
        )

    def _plate_size(self, frame: Any, site: Mapping[str, Any]) -> int:
        if frame.size != -1:
            return frame.size
        if frame.dim == self.layout.data_dim:
            return self.layout.leading[frame.dim]
        batch = site["value"].shape[: site["value"].dim() - len(site["fn"].event_shape)]
        return batch[frame.dim] if len(batch) >= -frame.dim else 1


def sample_sites(trace: poutine.Trace) -> dict[str, Any]:
    """Return the sample sites of a trace by name, in order, without those of plates and of pyro.deterministic."""
    return {
        name: site
        for name, site in dict[str, Any](trace.nodes).items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    }


def _equals_one(scale: Any) -> bool:
    return bool((scale == 1).all()) if isinstance(scale, Tensor) else scale == 1
