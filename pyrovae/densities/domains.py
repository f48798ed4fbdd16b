"""Domains of latents: the set of values that a latent takes, which its distribution's support does not always tell.

The support of a circular distribution is the line, though its density is of one period. The support of a transformed
distribution is all that the last transform can reach, also if the distribution under it does not reach all.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import ComposeTransform, IndependentTransform, Transform

from pyrovae.densities.masks import entry_of

CIRCLE = constraints.interval(-math.pi, math.pi)

_CIRCULAR = torch.distributions.VonMises, dist.SineBivariateVonMises, dist.SineSkewed
_TRANSFORMED_SUPPORT = torch.distributions.TransformedDistribution.support
_REAL = type(constraints.real)
_INTERVALS = constraints.interval, constraints.half_open_interval
_HALF_LINES = constraints.greater_than, constraints.greater_than_eq, constraints.less_than


class Image(constraints.Constraint):
    """Values that transforms make of a domain.

    Args:
        base: Domain of the distribution under the transforms.
        transforms: Bijections, the first one first.

    Attributes:
        event_dim: Number of dimensions of an entry.
    """

    event_dim: int = 0

    def __init__(self, base: constraints.Constraint, transforms: Sequence[Transform]) -> None:
        self.base, self.transforms = base, list(transforms)
        joint = ComposeTransform(self.transforms)
        self.event_dim = base.event_dim + joint.codomain.event_dim - joint.domain.event_dim

    def check(self, value: Tensor) -> Tensor:
        """Return whether each entry comes from the domain under the transforms."""
        shape = value.shape[: value.dim() - self.event_dim]
        inside = torch.ones(shape, dtype=torch.bool, device=value.device)
        for transform in reversed(self.transforms):
            inside = inside & _of_entries(transform.codomain.check(value), len(shape))
            value = transform.inv(value)
        return inside & _of_entries(self.base.check(value), len(shape))


def domain_of(fn: Any) -> constraints.Constraint | None:
    """Find the domain of the entries of a distribution: without masks, expansions, and `to_event`.

    Args:
        fn: Distribution.

    Returns:
        The support of an entry; one period, from -pi to pi, for circular distributions; the image of the domain under
        the transforms of a transformed distribution; None if the distribution has no support, or if the support of a
        mixture is not that of its components.
    """
    entry = entry_of(fn)
    try:
        support: constraints.Constraint = entry.support
    except (AttributeError, NotImplementedError):
        return None
    if isinstance(entry, _CIRCULAR):
        return constraints.independent(CIRCLE, len(entry.event_shape)) if entry.event_shape else CIRCLE
    if isinstance(entry, torch.distributions.MixtureSameFamily | dist.MaskedMixture):
        domains = [domain_of(component) for component in _parts_of(entry)]
        if all(domain is CIRCLE for domain in domains):
            return CIRCLE
        return None if any(domain is None or isinstance(domain, Image) for domain in domains) else support
    if getattr(type(entry), "support", None) is _TRANSFORMED_SUPPORT:
        return _domain_of_transformed(entry, support)
    return support


def is_circular(fn: Any) -> bool:
    """Return whether the density of a distribution is of one period of angles."""
    entry = entry_of(fn)
    if isinstance(entry, torch.distributions.MixtureSameFamily | dist.MaskedMixture):
        return any(is_circular(part) for part in _parts_of(entry))
    return isinstance(entry, _CIRCULAR)


def within_period(fn: Any) -> bool:
    """Return whether all draws of a distribution lie in the period from -pi to pi."""
    domain = entry_support(domain_of(fn))
    if domain is CIRCLE:
        return True
    if not isinstance(domain, _INTERVALS):
        return False
    lower, upper = (torch.as_tensor(bound) for bound in (domain.lower_bound, domain.upper_bound))
    return bool((lower >= -math.pi - 1e-6).all()) and bool((upper <= math.pi + 1e-6).all())


def is_point_mass(fn: Any) -> bool:
    """Return whether a distribution, or one that it is made of, is a point mass."""
    return isinstance(fn, dist.Delta) or any(is_point_mass(part) for part in _parts_of(fn))


def entry_support(support: constraints.Constraint | None) -> constraints.Constraint | None:
    """Find the support of a single entry of an independent vector, or of a mixture's component."""
    while isinstance(support, constraints.independent | constraints.MixtureSameFamilyConstraint):
        support = support.base_constraint
    return support


def _parts_of(fn: Any) -> Iterable[Any]:
    """List the distributions that a distribution is directly made of."""
    names = ("base_dist", "component0", "component1", "_component_distribution")
    return [vars(fn)[name] for name in names if name in getattr(fn, "__dict__", {})]


def _domain_of_transformed(fn: Any, support: constraints.Constraint) -> constraints.Constraint | None:
    """Find the domain of a transformed distribution: its support, if the transforms are applied to all they accept."""
    base = domain_of(fn.base_dist)
    reached = base
    for transform in _flat(fn.transforms):
        if not _covers(reached, transform.domain):
            if base is None or not all(transform.bijective for transform in fn.transforms):
                return None
            domain = constraints.independent(base, extra) if (extra := _extra_dims(fn.base_dist, base)) else base
            return Image(domain, list(_flat(fn.transforms)))
        reached = transform.codomain
    return support


def _extra_dims(fn: Any, domain: constraints.Constraint) -> int:
    return len(fn.event_shape) - domain.event_dim


def _covers(reached: constraints.Constraint | None, domain: constraints.Constraint) -> bool:
    """Return whether values that were reached are all that a transform accepts; decided by the kind of constraint."""
    reached, wanted = entry_support(reached), entry_support(domain)
    if isinstance(wanted, _REAL):
        return isinstance(reached, _REAL)
    if isinstance(wanted, _HALF_LINES):
        return isinstance(reached, (_REAL, *_HALF_LINES))
    return reached is not None and not isinstance(reached, Image)


def _flat(transforms: Iterable[Transform]) -> Iterator[Transform]:
    """Iterate over transforms, those inside compositions one by one."""
    for transform in transforms:
        if isinstance(transform, ComposeTransform):
            yield from _flat(transform.parts)
        elif isinstance(transform, IndependentTransform):
            yield from _flat([transform.base_transform])
        else:
            yield transform


def _of_entries(inside: Tensor, batch_dim: int) -> Tensor:
    return inside.flatten(batch_dim).all(-1) if inside.dim() > batch_dim else inside
