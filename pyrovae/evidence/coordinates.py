"""Unconstrained coordinates u of latents: real vectors that bijections map to the domain of each site."""

import math
from collections.abc import Mapping
from copy import copy
from typing import Any, Protocol

import torch
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import ComposeTransform, Transform

from pyrovae.bijections import bijection
from pyrovae.densities import Image, Site, VectorizedProgram, domain_of, entry_support

Latents = dict[str, Tensor]
Supports = dict[str, constraints.Constraint]

OTHER_DRAWS = 8  # of the latents, to see whether a support depends on them

# Supports whose bounds, if tensors, belong to single entries.
_BOUNDED = (
    constraints.greater_than,
    constraints.greater_than_eq,
    constraints.less_than,
    constraints.interval,
    constraints.half_open_interval,
)


class Coordinates(Protocol):
    """Bijection between u, with shape (K, N, U), and the latents of N data."""

    size: int
    event_shapes: Mapping[str, torch.Size]

    def unpack(self, u: Tensor) -> tuple[Latents, Tensor]:
        """Convert u to latents, and return log |det dz/du|, with shape (K, N)."""

    def pack(self, latents: Latents) -> Tensor:
        """Convert latents, with shape (K, N, ...), to u."""


class FixedCoordinates:
    """Coordinates of latents whose supports are known before any latent is drawn.

    Args:
        supports: Support of an entry of each site. Bounds expand to the shape (K, N, ...) of the latents.
        event_shapes: Shape of the coordinates of each site for one datum.

    Attributes:
        centres: Middle of the period of each angle, opposite to its cut, by site, with shape (1, N, ...); 0 if absent.
    """

    def __init__(self, supports: Supports, event_shapes: Mapping[str, torch.Size]) -> None:
        self.supports, self.event_shapes = supports, event_shapes
        self.centres: Latents = {}
        self.size = sum(map(math.prod, event_shapes.values()))

    @property
    def is_identity(self) -> bool:
        """Whether all supports are the real line."""
        return all(isinstance(entry_support(each), type(constraints.real)) for each in self.supports.values())

    def unpack(self, u: Tensor) -> tuple[Latents, Tensor]:
        """Convert u to latents, and return log |det dz/du|, with shape (K, N)."""
        latents, log_det = {}, u.new_zeros(u.shape[:-1])
        for name, y in _split(u, self.event_shapes).items():
            transform = to_domain(self.supports[name])
            latents[name] = transform(y)
            jacobian = transform.log_abs_det_jacobian(y, latents[name])
            log_det = log_det + jacobian.reshape(*u.shape[:-1], -1).sum(-1)
            if name in self.centres:
                latents[name] = wrapped(latents[name] + self.centres[name])
        return latents, log_det

    def pack(self, latents: Latents) -> Tensor:
        """Convert latents, with shape (K, N, ...), to u."""
        parts = []
        for name in self.event_shapes:
            z = latents[name]
            z = wrapped(z - self.centres[name]) if name in self.centres else z
            y = to_domain(self.supports[name]).inv(z)
            parts.append(y.reshape(*latents[name].shape[:2], -1))
        return torch.cat(parts, -1)


def has_edges(supports: Supports) -> bool:
    """Return whether a support has a bound, and all bounds are the same for all data."""
    bounds = [bound for support in supports.values() for bound in _edges(support) if bound is not None]
    return bool(bounds) and not any(isinstance(bound, Tensor) and bound.dim() for bound in bounds)


def _edges(support: constraints.Constraint) -> tuple[Any, Any]:
    """Return the lower and the upper bound of an entry of a support, None without one."""
    entry = entry_support(support)
    if entry is constraints.simplex:
        return 0.0, None
    return getattr(entry, "lower_bound", None), getattr(entry, "upper_bound", None)


def saturated(supports: Supports, latents: Latents) -> Tensor | None:
    """Find the points at which a latent lies as near to the edge of its support as its dtype can tell.

    There the inverse of the bijection is arbitrary, and so is the density: log z of an entry that rounds to the
    smallest number of its dtype may have any value below.

    Args:
        supports: Support of an entry of each site.
        latents: Values by site, each with shape (K, N, ...).

    Returns:
        Mask of shape (K, N); None if no support has an edge.
    """
    found = None
    for name, support in supports.items():
        low, high = _edges(support)
        if low is None and high is None:
            continue
        value = latents[name]
        kind = torch.finfo(value.dtype)
        edge = ~value.isfinite()
        if low is not None:
            edge = edge | (value <= low + 8 * kind.tiny)
        if high is not None:
            edge = edge | (value >= high - 2 * kind.eps * abs(high))
        edge = edge.flatten(2).any(-1) if edge.dim() > 2 else edge
        found = edge if found is None else found | edge
    return found


class MovingCoordinates:
    """Coordinates of latents whose supports depend on the latents before them, so that the model runs to find them.

    Args:
        model: Pyro program p(z) p(x|z).
        args: Positional arguments of the model, the data first, with shape (N, ...).
        kwargs: Keyword arguments of the model.
        event_shapes: Shape of the coordinates of each site for one datum.
    """

    def __init__(
        self,
        model: VectorizedProgram,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        event_shapes: Mapping[str, torch.Size],
    ) -> None:
        self.model, self.args, self.kwargs, self.event_shapes = model, args, kwargs, event_shapes
        self.size = sum(map(math.prod, event_shapes.values()))

    def unpack(self, u: Tensor) -> tuple[Latents, Tensor]:
        """Convert u to latents, and return log |det dz/du|, with shape (K, N)."""
        layout = self.model.layout(len(u), self.args, self.kwargs)
        with _Constrain(layout.to_site, _split(u, self.event_shapes)) as handler:
            trace = self.model.trace(len(u), self.args, self.kwargs)
        log_det = u.new_zeros(u.shape[:-1])
        for name, jacobian in handler.jacobians.items():
            jacobian = _per_datum(trace.sites[name], jacobian)
            log_det = log_det + jacobian.reshape(*trace.shape, -1).sum(-1)
        return {name: trace.sites[name].value for name in self.event_shapes}, log_det

    def pack(self, latents: Latents) -> Tensor:
        """Convert latents, with shape (K, N, ...), to u."""
        num_particles = len(next(iter(latents.values())))
        trace = self.model.trace(num_particles, self.args, self.kwargs, latents)
        parts = []
        for name in self.event_shapes:
            site = trace.sites[name]
            transform = _transform_of(site.fn)
            parts.append(_per_datum(site, transform.inv(site.raw_value)).reshape(*trace.shape, -1))
        return torch.cat(parts, -1)


class _Constrain(Messenger):
    """Handler that maps coordinates to the domain of each latent site, in the order of the program.

    Args:
        to_site: Function that moves draws and data from the front to their dims in a site (`Layout.to_site`).
        coordinates: Coordinates of each site, with shape (K, N, ...).

    Attributes:
        jacobians: Log |dz/du| of each site, with the batch shape of the site and more.
    """

    def __init__(self, to_site: Any, coordinates: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.to_site, self.coordinates = to_site, coordinates
        self.jacobians: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self.coordinates or msg["is_observed"] or site_is_subsample(msg):
            return
        plates = {f.dim: f.size for f in msg["cond_indep_stack"] if f.vectorized}
        y = self.to_site(self.coordinates[name], plates)
        transform = _transform_of(msg["fn"])
        msg["value"], msg["done"] = transform(y), True
        self.jacobians[name] = transform.log_abs_det_jacobian(y, msg["value"])


def _transform_of(fn: Any) -> Transform:
    """Make the bijection from coordinates to the values of a site."""
    domain = domain_of(fn)
    assert domain is not None
    return to_domain(domain)


def wrapped(angle: Tensor) -> Tensor:
    """Bring angles into the period from -pi to pi."""
    return angle - 2 * math.pi * torch.floor((angle + math.pi) / (2 * math.pi)).detach()


def to_domain(support: constraints.Constraint) -> Transform:
    """Make a bijection from real vectors to the entries of a domain.

    Raises:
        ValueError: If torch knows no bijection, for example for a discrete support, or no Jacobian of it.
    """
    entry = entry_support(support)
    if isinstance(entry, Image):
        return ComposeTransform([to_domain(entry.base), *entry.transforms], cache_size=1)
    assert entry is not None
    return bijection(entry)


def coordinate_shape(site: Site, support: constraints.Constraint) -> torch.Size:
    """Find the shape of the coordinates of a site for one datum.

    Raises:
        ValueError: If the support has no bijection from real vectors with a known Jacobian.
    """
    transform = to_domain(support)
    y = transform.inv(site.raw_value)
    try:
        transform.log_abs_det_jacobian(y, site.raw_value)
    except NotImplementedError as error:
        raise ValueError(f"the bijection to support {support} has no Jacobian") from error
    return _per_datum(site, y).shape[2:]


def fixed_supports(sites: Mapping[str, Site], supports: Supports, others: Mapping[str, Site]) -> Supports | None:
    """Bring the bounds of supports into the shape (1, N, ...).

    Args:
        sites: Latent sites at one draw for each datum.
        supports: Domains of their entries.
        others: The same sites at other draws.

    Returns:
        The supports; None if one of them depends on the latents before its site, or is of a kind whose parts have no
        place among draws and data.
    """
    fixed = {}
    for name, support in supports.items():
        if not _tensors_of(support):
            fixed[name] = support
            continue
        entry = entry_support(support)
        if not isinstance(entry, _BOUNDED):
            return None
        bounds, other_bounds = _bounds(sites[name], entry), _bounds(others[name], domain_of(others[name].fn))
        if any(bool((bound != other_bounds[key]).any()) for key, bound in bounds.items()):
            return None
        fixed[name] = copy(entry)
        vars(fixed[name]).update(bounds)
    return fixed


def depends_on_run(supports: Supports) -> bool:
    """Return whether a support holds tensors, which may depend on the data or on latents."""
    return any(_tensors_of(support) for support in supports.values())


def _bounds(site: Site, support: constraints.Constraint | None) -> dict[str, Tensor]:
    """List the tensors among the bounds of a site's support, each with shape (K, N, ...), or (1,) if all are equal."""
    found = {}
    for key, bound in vars(entry_support(support)).items():
        if isinstance(bound, Tensor):
            full = bound.expand(site.raw_value.shape)
            same = bool((full == full.flatten()[0]).all())
            event_dim = len(site.fn.event_shape)
            found[key] = full.flatten()[:1] if same else site.layout.per_datum(full, site.plate_sizes, event_dim)
    return found


def _tensors_of(thing: Any) -> list[Tensor]:
    """List the tensors in a constraint or transform, and in those that it is made of."""
    found, seen, remaining = [], set(), [thing]
    while remaining:
        part = remaining.pop()
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, list | tuple):
            remaining.extend(part)
        elif isinstance(part, Transform | constraints.Constraint | torch.nn.Module) and id(part) not in seen:
            seen.add(id(part))
            remaining.extend(value for name, value in vars(part).items() if not name.startswith("_cached"))
    return found


def _split(u: Tensor, event_shapes: Mapping[str, torch.Size]) -> Latents:
    """Split u into the coordinates of each site, with shape (K, N, ...)."""
    parts = u.split([math.prod(shape) for shape in event_shapes.values()], -1)
    return {
        name: part.reshape(*part.shape[:-1], *shape)
        for (name, shape), part in zip(event_shapes.items(), parts, strict=True)
    }


def _per_datum(site: Site, tensor: Tensor) -> Tensor:
    """Move draws and data to the front of a tensor with the batch shape of a site and any further dimensions."""
    batch_dim = site.raw_value.dim() - len(site.fn.event_shape)
    return site.layout.per_datum(tensor, site.plate_sizes, tensor.dim() - batch_dim)
