"""Traces of programs on K draws for N data, and the log densities of their sites per draw and datum."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.densities.domains import domain_of
from pyrovae.densities.enumeration import Factor, log_sum, plate_symbol, sum_symbol
from pyrovae.densities.layout import Layout
from pyrovae.densities.masks import Mask, entry_of, fill_masked, in_support, mask_of

Program = Callable[..., Any]


class MovedProgram:
    """Program whose arguments have the data first, around one whose data lie along other dims.

    Args:
        program: Pyro program.
        dims: Dim of the data in each tensor argument of the program, by place or name.
    """

    def __init__(self, program: Program, dims: Mapping[int | str, int]) -> None:
        self.program, self.dims = program, dict(dims)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        args = tuple(self._back(place, value) for place, value in enumerate(args))
        return self.program(*args, **{name: self._back(name, value) for name, value in kwargs.items()})

    def _back(self, key: int | str, value: Any) -> Any:
        return value.movedim(0, self.dims[key]) if key in self.dims else value


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
        summed: Whether the site is summed out, so that its value holds all values.
        plate_dims: Number of dims of all plates; those left of them belong to summed sites.
        auxiliary: Auxiliary site of an auto guide, whose density counts with that of this site; None if there is none.
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
    summed: bool = False
    plate_dims: int = 0
    auxiliary: "Site | None" = None

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
        """Compute the log density in nats, with shape (K, N). Applies masks, ignores the scale.

        If it depends on summed sites, it is the largest for any of their values.
        """
        log_p = self.entries()
        if self.depends_on_sums:
            log_p = log_p.reshape(-1, *log_p.shape[log_p.dim() - self.plate_dims :]).amax(0)
        log_p = self.sum_per_datum(log_p)
        return log_p if self.auxiliary is None else log_p + self.auxiliary.log_density()

    def positive_part(self) -> Tensor:
        """Sum the positive log densities of the entries in nats, with shape (K, N), also of masked entries.

        If the site depends on summed sites, the sum is the largest for any of their values.
        """
        log_p = entry_of(self.fn).log_prob(self.raw_value).nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
        further = len(self.fn.event_shape) - len(entry_of(self.fn).event_shape)
        log_p = log_p.flatten(log_p.dim() - further).sum(-1) if further else log_p
        log_p = log_p.expand(torch.broadcast_shapes(log_p.shape, self.fn.batch_shape))
        if self.depends_on_sums:
            log_p = log_p.reshape(-1, *log_p.shape[log_p.dim() - self.plate_dims :]).amax(0)
        return self.sum_per_datum(log_p)

    def entries(self, *, masked: bool = True) -> Tensor:
        """Compute the log density of each entry in nats, for all values of summed sites if it depends on them.

        A masked value of a summed site counts, since the sum over its values must be 1.
        """
        if self.summed or not masked:
            log_p = entry_of(self.fn).log_prob(self.raw_value)
            batch = torch.broadcast_shapes(log_p.shape, self.fn.batch_shape)
            return log_p.expand(batch)
        value = fill_masked(self.fn, self.raw_value, self.mask) if self.is_observed else self.raw_value
        return scale_and_mask(self.fn.log_prob(value), mask=self.site_mask)

    @cached_property
    def depends_on_sums(self) -> bool:
        """Whether the log density depends on the values of summed sites."""
        if not self.infer.get("_dim_to_id"):
            return False
        mask = self.site_mask.shape if isinstance(self.site_mask, Tensor) else ()
        value = self.raw_value.shape[: self._batch_dim]
        batch = torch.broadcast_shapes(self.fn.batch_shape, value, mask)
        return batch[: max(0, len(batch) - self.plate_dims)].numel() > 1

    def factor(self, symbols: dict[str, str]) -> Factor:
        """Return the log densities with names of their dims; `symbols` has those of plates by name and grows."""
        entries = self.entries()
        plates = {dim: plate_symbol(place) for place, dim in enumerate(self.layout.leading)}
        for dim, name in self.plate_names.items():
            if dim not in plates:
                plates[dim] = symbols.setdefault(name, plate_symbol(2 + len(symbols)))
        sums = {dim: sum_symbol(number) for dim, number in self.infer.get("_dim_to_id", {}).items()}
        sizes = {symbol: self.layout.leading.get(dim) or self.plate_sizes[dim] for dim, symbol in plates.items()}
        if not self.is_observed and not self.summed:
            entries = torch.where(self._entries_in_support(), entries, -torch.inf)
        return Factor(entries, sums | plates, sizes)

    def mask_per_datum(self) -> Tensor:
        """Return the entries that count, with the shape of `value`."""
        mask = torch.as_tensor(self.mask, device=self.raw_value.device)
        mask = mask.expand(torch.broadcast_shapes(mask.shape, self.raw_value.shape))  # data may lack a dim of draws
        return self.layout.per_datum(mask, self.plate_sizes, len(self.fn.event_shape))

    def is_seen(self) -> Tensor:
        """Return whether any entry of the site counts, with shape (K, N), for any values of summed sites."""
        if self.raw_value.numel() == 0:  # pyro.factor: its density counts, though it has no entries
            return torch.ones(self.layout.num_particles, self.layout.num_data, dtype=torch.bool)
        mask, event = torch.as_tensor(self.mask, device=self.raw_value.device), len(self.fn.event_shape)
        if mask.dim() < event:
            mask = mask.expand(self.fn.event_shape)
        if mask.dim() > self.plate_dims + event:
            mask = mask.flatten(0, mask.dim() - self.plate_dims - event - 1).any(0)
        seen = self.layout.per_datum(mask, self.plate_sizes, event)
        return seen.flatten(2).any(-1) if seen.dim() > 2 else seen

    def in_support(self) -> Tensor:
        """Return whether all entries of the value lie in the domain, or are masked out, with shape (K, N).

        If the support depends on summed sites, one of their values suffices.
        """
        if self.depends_on_sums:
            inside = self._entries_in_support()
            inside = inside.reshape(-1, *inside.shape[inside.dim() - self.plate_dims :]).any(0)
            inside = self.layout.per_datum(inside, self.plate_sizes)
        else:
            inside = in_support(self.fn, self.raw_value, self.mask, domain_of(self.fn))
            inside = self.layout.per_datum(inside, self.plate_sizes, inside.dim() - self._batch_dim)
        return inside.flatten(2).all(-1) if inside.dim() > 2 else inside

    def _entries_in_support(self) -> Tensor:
        """Return whether each entry lies in the support, with dims as `entries`."""
        inside = in_support(self.fn, self.raw_value, self.mask, domain_of(self.fn))
        further = len(self.fn.event_shape) - len(entry_of(self.fn).event_shape)
        return inside.flatten(inside.dim() - further).all(-1) if further else inside

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
                "log p(x_n) is not defined per datum; move it inside, make it a parameter, or use log_evidence for all "
                "data"
            )


class ParticleTrace:
    """Trace of a program that ran on K draws for N data.

    Args:
        trace: Trace of the run.
        layout: Where draws and data lie in the run.
        program: Name of the program in error messages, "model" or "guide".
        summed: Names of the discrete sites that are summed out.
        plate_dims: Number of dims of all plates.
        determined_by: Name of the auxiliary site by the name of each latent of an auto guide.
        left_out: Names of sites without a part in log p(x_n).

    Attributes:
        sites: Sample sites by name, in order, without those summed out. An auxiliary site belongs to the first of its
            latents.
        summed: Sites summed out by name, in order.
        given: Observed sites that are left out, such as global latents with given values.
        determined: Names of the latents that an auto guide computes from its auxiliary sites.
    """

    def __init__(
        self,
        trace: poutine.Trace,
        layout: Layout,
        program: str,
        summed: frozenset[str] = frozenset(),
        plate_dims: int = 0,
        determined_by: Mapping[str, str] | None = None,
        left_out: Collection[str] = (),
    ) -> None:
        self.layout, self.program, self._plate_dims = layout, program, plate_dims
        self.shape = (layout.num_particles, layout.num_data)
        self.sites: dict[str, Site] = {}
        self.summed: dict[str, Site] = {}
        self.given: list[Site] = []
        for name, site in sample_sites(trace).items():
            made = self._site(name, site, name in summed)
            if name in left_out and not made.depends_on_sums:
                self.given += [made] if made.is_observed else []
                continue
            (self.summed if name in summed else self.sites)[name] = made
        self.determined = frozenset(determined_by or ())
        for latent, auxiliary in (determined_by or {}).items():
            if latent not in self.sites:
                continue
            if auxiliary in self.sites:
                self.sites[latent].auxiliary = self.sites.pop(auxiliary)
            elif isinstance(self.sites[latent].fn, Delta) and not any(
                site.auxiliary is not None and site.auxiliary.name == auxiliary for site in self.sites.values()
            ):
                raise ValueError(
                    f"site {latent!r} of the {program} is a point mass without its auxiliary site {auxiliary!r}; hide "
                    "neither of the two, or both"
                )

    @property
    def latents(self) -> dict[str, Site]:
        """Latent sites by name, in order."""
        return {name: site for name, site in self.sites.items() if not site.is_observed}

    @property
    def draws(self) -> dict[str, Site]:
        """Latent sites by name, each auxiliary site before its latent, in order."""
        pairs = ((site.auxiliary, site) for site in self.latents.values())
        return {site.name: site for pair in pairs for site in pair if site is not None}

    def unobserved(self) -> Tensor:
        """Return whether the datum has no observed entry at any draw, since masks leave all out, with shape (N,).

        A model without observed sites has no such data.
        """
        seen = [site.is_seen().any(0).cpu() for site in self.sites.values() if site.is_observed]
        return ~torch.stack(seen).any(0) if seen else torch.zeros(self.shape[1], dtype=torch.bool)

    def log_densities(self) -> tuple[Tensor, Tensor]:
        """Sum the log densities of the sites, per draw and datum.

        Returns:
            The log densities of all sites, and of the observed sites alone, in nats, each with shape (K, N). Summed
            sites are summed out: then the log densities are log p(x, z), and log p(x, z) - log p(z).

        Raises:
            ValueError: If the sites do not lie inside one plate over the data, or one carries a scale other than 1.
        """
        if not self.sites and not self.summed:
            if self.program == "guide":  # of a model whose latents are all summed out
                return torch.zeros(()), torch.zeros(())
            raise ValueError(
                f"the {self.program} needs a sample site, but has none; call pyro.sample inside a plate over the data"
            )
        total: dict[bool, Tensor | float] = {True: 0.0, False: 0.0}
        sites = self.sites | self.summed
        plate = next(iter(sites.values()))
        for name, site in sites.items():
            site.check_plate()
            self._check_same_plate(site, plate)
            if not _equals_one(site.scale):
                raise ValueError(
                    f"site {name!r} of the {self.program} carries scale {site.scale} (poutine.scale or a subsampling "
                    "plate), so its value is no log density; remove the scale, and weight the objective instead"
                )
            if not site.summed and not site.depends_on_sums:
                total[site.is_observed] = total[site.is_observed] + site.log_density()
        if self.summed:
            log_p, log_prior = self._sums()
            total[False] = total[False] + log_prior
            # A latent of density 0 leaves log p(x|z) undefined.
            total[True] = total[True] + torch.where(log_prior == -torch.inf, 0.0, log_p - log_prior)
        everything = torch.as_tensor(total[True] + total[False])
        return everything.expand(self.shape), torch.as_tensor(total[True]).expand(self.shape)

    def unscaled_log_density(self, unmasked: Collection[str] = ()) -> Tensor:
        """Sum the log densities of all sites, with shape (K, N), without their scales, and without some sites' masks.

        Args:
            unmasked: Names of sites whose masks do not count.
        """
        summands = [
            site.sum_per_datum(site.entries(masked=site.name not in unmasked))
            for site in self.sites.values()
            if not site.depends_on_sums
        ]
        if self.summed:
            summands.append(self._sums()[0])
        total = torch.stack(summands).sum(0) if summands else torch.zeros(())  # the guide of a model without latents
        return total.expand(self.shape)

    def positive_part(self) -> Tensor:
        """Sum the positive log densities of all entries in nats, with shape (K, N): sums of them may cancel."""
        parts = [site.positive_part() for site in self.sites.values()]
        return torch.stack([part.expand(self.shape) for part in parts]).sum(0) if parts else torch.zeros(self.shape)

    def log_prior_of_dependents(self) -> Tensor:
        """Compute the log density of the latents that depend on summed sites, in nats, with shape (K, N)."""
        return self._sums()[1]

    def _sums(self) -> tuple[Tensor, Tensor]:
        """Sum out the summed sites: with all sites that depend on them, and with the latents among these alone."""
        dependents = [site for site in self.sites.values() if site.depends_on_sums]
        symbols: dict[str, str] = {}
        factors = {site.name: site.factor(symbols) for site in [*self.summed.values(), *dependents]}
        latents = [site.name for site in dependents if not site.is_observed]
        log_p = self._log_sum(list(factors.values()))
        if not latents:
            return log_p, torch.zeros_like(log_p)
        if len(latents) == len(dependents):
            return log_p, log_p
        return log_p, self._log_sum([factors[name] for name in (*self.summed, *latents)])

    def _log_sum(self, factors: list[Factor]) -> Tensor:
        leading = self.layout.leading
        places = {dim: place for place, dim in enumerate(leading)}
        total = log_sum(factors, {plate_symbol(places[dim]): leading[dim] for dim in sorted(leading)})
        total = total[tuple(slice(None) if dim in leading else None for dim in range(min(leading), 0))]
        return self.layout.per_datum(total, {})

    def _check_same_plate(self, site: Site, other: Site) -> None:
        dim = self.layout.data_dim
        if dim is not None and site.plate_names[dim] != other.plate_names[dim]:
            raise ValueError(
                f"site {site.name!r} of the {self.program} lies in plate {site.plate_names[dim]!r}, others in "
                f"{other.plate_names[dim]!r}; put every site into one plate over the data"
            )

    def _site(self, name: str, site: Mapping[str, Any], summed: bool) -> Site:
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
            summed,
            self._plate_dims,
        )

    def _plate_size(self, frame: Any, site: Mapping[str, Any]) -> int:
        if frame.size != -1:
            return frame.size
        if frame.dim == self.layout.data_dim:
            return self.layout.leading[frame.dim]
        batch = site["value"].shape[: site["value"].dim() - len(site["fn"].event_shape)]
        if site["infer"].get("_enumerate_dim") is not None:
            batch = site["fn"].batch_shape
        return batch[frame.dim] if len(batch) >= -frame.dim else 1


def replay_draws(model: Program, guide_trace: poutine.Trace) -> Program:
    """Make a model draw the latents of a guide's trace; sites that the guide observes are drawn anew."""
    drawn = guide_trace.copy()
    for name, site in sample_sites(guide_trace).items():
        if site["is_observed"]:
            drawn.remove_node(name)
    return poutine.replay(model, trace=drawn)


def sample_sites(trace: poutine.Trace) -> dict[str, Any]:
    """Return the sample sites of a trace by name, in order, without those of plates and of pyro.deterministic."""
    return {
        name: site
        for name, site in dict[str, Any](trace.nodes).items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    }


def _equals_one(scale: Any) -> bool:
    return bool((scale == 1).all()) if isinstance(scale, Tensor) else scale == 1
