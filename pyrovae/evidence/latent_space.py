"""Latents of a model and a guide at given data: densities at any point, and unconstrained coordinates.

Proposals, annealing and refinement use only these log densities and vectors of real numbers, never the model itself.
"""

import warnings
from functools import cached_property, partial
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.densities import (
    ParticleTrace,
    Program,
    Site,
    VectorizedProgram,
    check_density,
    domain_of,
    draw_from_guide,
    entry_of,
    is_partial,
    isolated_rng,
    log_density_rounding,
    matched_latents,
    shared_rounding,
    sum_discrete,
    take,
    vectorize_pair,
)
from pyrovae.evidence.coordinates import (
    OTHER_DRAWS,
    Coordinates,
    FixedCoordinates,
    Latents,
    MovingCoordinates,
    coordinate_shape,
    depends_on_run,
    fixed_supports,
    has_edges,
    saturated,
)
from pyrovae.execution import Chunks
from pyrovae.stats import Rounding

_SATURATION_DRAWS = 200
_SATURATION_DATA = 4

_CANCELLED = 4.0  # rounding relative to its bound by sums, from which terms of single entries cancel
_APART = 8.0  # epsilons by which parameters are moved, after which their rounding is another one
_MUCH_ROUNDING = 0.1  # nats, from which it is told
_DRAWS = 16  # from which the best is taken there, and rounds of the measurement


class LatentSpace:
    """Latents of a model and a guide at N data: their densities, draws, and unconstrained coordinates.

    Latents are stored by site, each with shape (K, N, ...). If all sites are continuous they have coordinates u, with
    shape (K, N, U), in which the inverse of a bijection to its domain maps each site to the real numbers. The modules
    should be in evaluation mode (`evaluation_mode`). Outside a distribution's support the density is zero.

    Discrete sites that the guide does not draw are summed out, and are no latents here. Without a guide, they are
    summed out if the model has continuous latents too.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments; None for the model alone.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If the programs break the contract of `log_weights`, or the model has no latent site.

    Attributes:
        chunks: Replays densities that need no gradient; None to run them eagerly.
        num_data: Number of data N.
        names: Names of the latent sites.
        coordinates: The coordinates u; None if there are none.
        obstacle: Why the latents have no coordinates; empty if they have.
        continuous: Whether the latents have coordinates u: no site is discrete, and each support has a bijection.
        size: Number of coordinates U; 0 if there are none.
        masked: Whether a mask leaves latents of some data out.
        unobserved: Whether masks leave out all observed entries of a datum, with shape (N,): then log p(x) is 0.
        memo: Cache of fits that proposals share.
        climbed: Highest point that a proposal found for each datum, with shape (N, U); None if there is none.
    """

    def __init__(self, model: Program, guide: Program | None, *args: Any, **kwargs: Any) -> None:
        if guide is None:
            model = sum_discrete(model, args, kwargs)
        else:
            model, guide = vectorize_pair(model, guide, args, kwargs)
        self.model, self.args, self.kwargs = model, args, kwargs
        self.guide: Any = guide
        self.chunks: Chunks | None = None
        # Blocked, so that handlers around the call do not see this run.
        with isolated_rng(), torch.no_grad(), pyro.validation_enabled(False), poutine.block():
            if guide is None:
                model_trace = model.trace(1, args, kwargs)
                sites = model_trace.latents
                if not sites and not model.summed:
                    raise ValueError("the model has no latent site, so log p(x) is its log density; use log_joint")
                for site in sites.values():
                    check_density(site)
            else:
                model_trace, guide_trace = draw_from_guide(model, guide, args, kwargs, 1)
                sites = matched_latents(model_trace, guide_trace)
                guide_trace.log_densities()
            log_p, _ = model_trace.log_densities()
        self._dtype = log_p.dtype
        self._trace = None if log_p.dtype == torch.float64 else model_trace  # for `rounding`
        self.num_data = model_trace.layout.num_data
        self.masked = any(is_partial(site.mask) for site in sites.values())
        self.unobserved = self._find_unobserved(model_trace)
        self.memo: dict[Any, Any] = {}
        self.climbed: Tensor | None = None
        # The model's domains define the space; the guide's may be smaller.
        latents = {name: model_trace.sites[name] for name in sites}
        self.names = list(latents)
        self.coordinates, self.obstacle = self._find_coordinates(latents)
        self.continuous = self.coordinates is not None
        self.size = 0 if self.coordinates is None else self.coordinates.size

    @cached_property
    def rounding(self) -> Rounding:
        """Rounding of the model's log densities, from one draw for each datum, and from more where terms cancel."""
        if self._trace is None:
            return Rounding.of(self._dtype)
        with isolated_rng(0), torch.no_grad(), pyro.validation_enabled(False), poutine.block():
            log_p = self._trace.log_densities()[0][0]
            bound = Rounding.of(self._dtype, self._trace.positive_part()[0])
            once = log_density_rounding(self._trace, 1)[0]
            self._trace = None
            cancelled = bool((once.abs() > _CANCELLED * bound.error(log_p.double())).any())
            if not cancelled:
                return bound
            measured = self._measured_rounding()
        if bool((measured > _MUCH_ROUNDING).any()):
            warnings.warn(
                f"in single precision log p(x, z) is rounded by more than {_MUCH_ROUNDING} nats at some data, since "
                "large terms of its density cancel; the errors of log p(x) include it; use double precision "
                "(model.double() and guide.double(), or float64 parameters, and x.double())",
                stacklevel=4,
            )
        return bound._replace(measured=measured)

    def _measured_rounding(self) -> Tensor:
        """Measure the rounding at the best known point of each datum, with shape (N,)."""
        if not self.names:
            return self.rounding_at({})
        drawn = self.from_prior(_DRAWS) if self.guide is None else self.from_guide(_DRAWS)
        if self.climbed is not None:
            modes, _ = self.unpack(self.climbed.unsqueeze(0))
            drawn = {name: torch.cat([value, modes[name]]) for name, value in drawn.items()}
        log_prior, log_lik = self.log_model(drawn)
        best = (log_prior + log_lik).nan_to_num(-torch.inf).argmax(0)
        data = torch.arange(len(best), device=best.device)
        return self.rounding_at({name: value[best, data].unsqueeze(0) for name, value in drawn.items()})

    def rounding_at(self, latents: Latents) -> Tensor:
        """Measure the rounding of log p(x, z) at latents with shape (1, N, ...), in nats, with shape (N,)."""
        trace = self.model.trace(1, self.args, self.kwargs, latents)
        found = [shared_rounding(log_density_rounding(trace, _DRAWS, apart)) for apart in (0.0, _APART)]
        return torch.stack(found).amax(0)

    def _find_unobserved(self, model_trace: ParticleTrace) -> Tensor:
        """Find the data without an observed entry, with shape (N,)."""
        unobserved = model_trace.unobserved()
        if bool(unobserved.any()):  # a mask may depend on the latents
            with isolated_rng(), torch.no_grad(), pyro.validation_enabled(False), poutine.block():
                unobserved = unobserved & self.model.trace(OTHER_DRAWS, self.args, self.kwargs).unobserved()
        return unobserved

    def _find_coordinates(self, sites: dict[str, Site]) -> tuple[Coordinates | None, str]:
        """Find the coordinates of the latents, or the reason why they have none."""
        supports, shapes = {}, {}
        for name, site in sites.items():
            kind, domain = type(entry_of(site.fn)).__name__, domain_of(site.fn)
            if domain is None:
                return None, f"latent {name!r} ({kind}) has no support, which its distribution may declare (support)"
            if domain.is_discrete:
                return None, f"latent {name!r} ({kind}) is discrete"
            try:
                shapes[name] = coordinate_shape(site, domain)
            except ValueError:
                return None, f"latent {name!r} ({kind}) has a support without unconstrained coordinates, {domain}"
            supports[name] = domain
        if depends_on_run(supports):
            if self.model.how == "looped":
                return None, "the bounds of a latent may depend on other latents, and the program runs once per draw"
            with isolated_rng(), torch.no_grad(), pyro.validation_enabled(False):
                others = self.model.trace(OTHER_DRAWS, self.args, self.kwargs).latents
            fixed = fixed_supports(sites, supports, others)
            if fixed is None:
                return MovingCoordinates(self.model, self.args, self.kwargs, shapes), ""
            supports = fixed
        return FixedCoordinates(supports, shapes), ""

    def of_rows(self, rows: Tensor) -> "LatentSpace":
        """Make the space of these rows of the data, which may repeat; of all data if they cannot be divided."""
        if not self.model.divisible or torch.equal(rows, torch.arange(self.num_data, device=rows.device)):
            return self
        args, kwargs = take(self.args, self.kwargs, rows)
        space = LatentSpace(self.model, self.guide, *args, **kwargs)
        if isinstance(self.coordinates, FixedCoordinates) and isinstance(space.coordinates, FixedCoordinates):
            space.coordinates.centres = {name: value[:, rows] for name, value in self.coordinates.centres.items()}
        return space

    @property
    def is_real(self) -> bool:
        """Whether coordinates are the latents themselves: each domain is the real line."""
        return isinstance(self.coordinates, FixedCoordinates) and self.coordinates.is_identity

    def require_continuous(self) -> None:
        """Raise a ValueError if the latents have no coordinates u."""
        if not self.names:
            raise ValueError(
                "this method needs continuous latents, but all latents are discrete and are summed out; use "
                "log_marginal, which is exact then"
            )
        if not self.continuous:
            raise ValueError(f"{self.obstacle}, but this method needs gradients in coordinates; use log_marginal")

    def prior_sites(self) -> dict[str, Site]:
        """Run the model once and return its latent sites."""
        with isolated_rng():
            return self.model.trace(1, self.args, self.kwargs).latents

    def log_model(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """Evaluate log p(z) and log p(x|z) in nats, each with shape (K, N), at latents with shape (K, N, ...)."""
        log_prior, log_lik = self._evaluate(
            "log p(x, z)", partial(_log_model, self.model), _num_particles(latents), latents
        )
        return log_prior, log_lik

    def log_guide(self, latents: Latents) -> Tensor:
        """Evaluate log q(z|x) in nats, with shape (K, N), at latents with shape (K, N, ...)."""
        function = partial(_log_guide, self._require_guide())
        return self._evaluate("log q(z|x)", function, _num_particles(latents), latents)[0]

    def _evaluate(self, name: str, function: Any, num_particles: int, latents: Latents) -> Any:
        if self.chunks is None:
            return function(latents, self.args, self.kwargs)
        return self.chunks(name, function, (num_particles, self.num_data), latents, self.args, self.kwargs)

    def from_guide(self, num_particles: int) -> Latents:
        """Draw latents from the guide, each with shape (K, N, ...)."""
        return self._draw("draws of the guide", self._require_guide(), num_particles)

    def from_prior(self, num_particles: int) -> Latents:
        """Draw latents from the model's p(z), each with shape (K, N, ...)."""
        return self._draw("draws of the prior", self.model, num_particles)

    def unpack(self, u: Tensor) -> tuple[Latents, Tensor]:
        """Convert coordinates u, with shape (K, N, U), to latents, and return log |det dz/du|, with shape (K, N)."""
        assert self.coordinates is not None
        return self.coordinates.unpack(u)

    def pack(self, latents: Latents) -> Tensor:
        """Convert latents, with shape (K, N, ...), to coordinates u, with shape (K, N, U)."""
        assert self.coordinates is not None
        return self.coordinates.pack(latents)

    def log_joint(self, u: Tensor) -> Tensor:
        """Evaluate log p(x, z(u)) |dz/du| in nats, with shape (K, N), at coordinates u, with shape (K, N, U)."""
        latents, log_det = self.unpack(u)
        log_prior, log_lik = self.log_model(latents)
        return log_prior + log_lik + log_det

    def saturated(self, latents: Latents) -> Tensor | None:
        """Find the points too near to the edge of a support, with shape (K, N); None if there can be none."""
        return saturated(self.coordinates.supports, latents) if isinstance(self.coordinates, FixedCoordinates) else None

    def warn_of_saturation(self) -> None:
        """Warn if more than 1 % of draws from the prior lie too near to the edge of its support, at the first data."""
        if not isinstance(self.coordinates, FixedCoordinates) or not has_edges(self.coordinates.supports):
            return
        args, kwargs = self.args, self.kwargs
        if self.model.divisible:
            args, kwargs = take(args, kwargs, slice(0, _SATURATION_DATA))
        with isolated_rng(0), torch.no_grad():
            latents = self.model.trace(_SATURATION_DRAWS, args, kwargs).latents
        edge = self.saturated({name: site.value for name, site in latents.items()})
        assert edge is not None
        share = edge.double().mean().item()
        if share > 0.01:
            dtype = next(site.value.dtype for site in latents.values())
            advice = "a prior with less mass there" if dtype == torch.float64 else "double precision (model.double())"
            warnings.warn(
                f"{share:.0%} of the prior's mass lies nearer to the edge of its support than "
                f"{str(dtype).removeprefix('torch.')} can tell, where only draws of the prior are weighed right: "
                f"log p(x) of data whose posterior lies there may be too low; use {advice}",
                stacklevel=4,
            )

    def _require_guide(self) -> VectorizedProgram:
        if self.guide is None:
            raise ValueError("this method needs a guide, got None; give a guide with the model's latent sites")
        return self.guide

    def _draw(self, name: str, program: VectorizedProgram, num_particles: int) -> Latents:
        function = partial(_draws, program, self.names, num_particles)
        return dict(zip(self.names, self._evaluate(name, function, num_particles, {}), strict=True))


def _num_particles(latents: Latents) -> int:
    return next(iter(latents.values())).shape[0]


def _draws(
    program: VectorizedProgram,
    names: list[str],
    num_particles: int,
    latents: Latents,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[Tensor]:
    sites = program.trace(num_particles, args, kwargs).sites
    return [sites[name].value for name in names]


def _log_model(
    model: VectorizedProgram, latents: Latents, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    trace = model.trace(_num_particles(latents), args, kwargs, latents)
    log_p, log_lik = trace.log_densities()
    return _where_supported(trace, log_p - log_lik), log_lik


def _log_guide(
    guide: VectorizedProgram, latents: Latents, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor]:
    trace = guide.trace(_num_particles(latents), args, kwargs, latents)
    return (_where_supported(trace, trace.log_densities()[0]),)


def _where_supported(trace: ParticleTrace, log_p: Tensor) -> Tensor:
    """Set log densities to -inf outside the support, where some of torch's formulas stay finite."""
    for site in trace.latents.values():
        log_p = torch.where(site.in_support(), log_p, -torch.inf)
    return log_p
