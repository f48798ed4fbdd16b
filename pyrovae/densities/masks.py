"""Masks of sample sites, by `poutine.mask` around a site or by `.mask` inside its distribution, and their supports."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor

Mask = bool | Tensor

_WRAPPERS = (dist.Independent, dist.MaskedDistribution, ExpandedDistribution)


def mask_of(fn: Any, site_mask: Mask | None) -> Mask:
    """Combine the masks of a site into one.

    Args:
        fn: Distribution of the site.
        site_mask: Mask by `poutine.mask`; None if there is none.

    Returns:
        True if no entry is masked out, False if all are, else a boolean tensor that expands to the shape of a value,
        true where the entry counts.
    """
    mask = _for_entries(True if site_mask is None else site_mask, fn)
    while isinstance(fn, _WRAPPERS):
        if isinstance(fn, dist.MaskedDistribution):
            mask = _both(mask, _for_entries(fn._mask, fn))
        fn = fn.base_dist
    return mask


def entry_of(fn: Any) -> Any:
    """Return the distribution of single entries: without masks, expansions, and `to_event`."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return fn


def is_partial(mask: Mask) -> bool:
    """Return whether a mask leaves entries out."""
    return not (mask if isinstance(mask, bool) else bool(mask.all()))


def same_mask(one: Mask, other: Mask) -> bool:
    """Return whether two masks, whose shapes may differ by expansion, keep the same entries."""
    if one is other or (isinstance(one, bool) and isinstance(other, bool)):
        return one is other
    return bool((torch.as_tensor(one) == torch.as_tensor(other)).all())


def support_of(fn: Any) -> constraints.Constraint | None:
    """Return the support of the entries of a distribution; None if it has none."""
    try:
        support: constraints.Constraint = entry_of(fn).support
    except (AttributeError, NotImplementedError):
        return None
    return support


def in_support(fn: Any, value: Tensor, mask: Mask, support: constraints.Constraint | None) -> Tensor:
    """Return whether each entry of a value lies in the support of a distribution, or is masked out.

    Args:
        fn: Distribution.
        value: Value with the shape of the distribution.
        mask: Entries that count (`mask_of`).
        support: Support of the entries; None accepts every value.

    Returns:
        Booleans with the shape of value, less the dimensions of entries that are vectors themselves.
    """
    entry = entry_of(fn)
    if support is None:
        inside = torch.ones(value.shape[: value.dim() - len(entry.event_shape)], dtype=torch.bool, device=value.device)
    else:
        inside = support.check(value)
    return inside | ~entry_mask(mask, entry, inside)


def fill_masked(fn: Any, value: Tensor, mask: Mask) -> Tensor:
    """Replace the entries of a value that are masked out by points of the support, if there is a simple one.

    Gradients of a log density at a masked NaN are NaN, since 0 times NaN is.

    Args:
        fn: Distribution.
        value: Value with the shape of the distribution.
        mask: Entries that count (`mask_of`).
    """
    if isinstance(mask, bool):
        return value
    point = _point_of(support_of(fn), value)
    return torch.where(mask | ~value.isnan() if point is None else mask, value, 0 if point is None else point)


def _point_of(support: constraints.Constraint | None, value: Tensor) -> Tensor | None:
    """Find a point of a support for each entry: its attribute `point`, if any; None if there is no simple one."""
    while isinstance(support, constraints.independent | constraints.MixtureSameFamilyConstraint):
        support = support.base_constraint
    if support is None:
        return None
    if hasattr(support, "point"):
        return torch.full_like(value, support.point)
    if support.is_discrete:
        lower = 0 if support is constraints.boolean else getattr(support, "lower_bound", None)
        return None if lower is None else torch.zeros_like(value) + torch.as_tensor(lower).to(value)
    try:
        to_support = torch.distributions.biject_to(support)
        return to_support(value.new_zeros(to_support.inverse_shape(value.shape))).to(value)
    except NotImplementedError:
        return None


def entry_mask(mask: Mask, entry: Any, like: Tensor) -> Tensor:
    """Return a mask that broadcasts with `like`, which has one element per entry of a distribution."""
    if isinstance(mask, bool):
        return torch.as_tensor(mask, device=like.device)
    if entry.event_shape:  # a mask cannot split an entry
        mask = mask.flatten(mask.dim() - len(entry.event_shape))[..., 0]
    return mask


def _for_entries(mask: Mask, fn: Any) -> Mask:
    """Append the event dimensions of a distribution to a mask over its batch."""
    if isinstance(mask, bool):
        return mask
    return mask.reshape(mask.shape + (1,) * len(fn.event_shape)).bool()


def _both(one: Mask, other: Mask) -> Mask:
    if isinstance(one, bool):
        return other if one else False
    if isinstance(other, bool):
        return one if other else False
    return one & other
