"""Check of sums over discrete sites: enumeration along extra dims against runs at each combination of values."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.densities.looped import LoopedTrace
from pyrovae.densities.traces import ParticleTrace, Site, sample_sites
from pyrovae.densities.vectorized import VectorizedProgram

_MAX_COMBINATIONS = 64  # of values per datum
_MAX_VALUES = 8  # of each site, if all combinations are too many


def summable_latents(model_trace: poutine.Trace, guide_trace: poutine.Trace | None) -> frozenset[str]:
    """List the discrete latents of the model that the guide does not draw, and that can be summed out."""
    drawn = {} if guide_trace is None else sample_sites(guide_trace)
    return frozenset(
        name
        for name, site in sample_sites(model_trace).items()
        if not site["is_observed"] and name not in drawn and getattr(site["fn"], "has_enumerate_support", False)
    )


def reason_against_sums(names: Collection[str], error: Exception | None = None) -> str:
    """Say why sites cannot be summed out.

    Args:
        names: Names of the sites.
        error: Error of the sum; None if the sum differs from an explicit one.
    """
    start = f"the sites {sorted(names)} of the model, which the guide does not draw, cannot be summed out: "
    if error is not None:
        return f"{start}{' '.join(str(error).split())[:300].rstrip('.')}; let the guide draw the sites"
    return (
        f"{start}with all their values at once, the densities are not those of single values; index tensors by "
        "Vindex(tensor)[..., site, :], and count dims from the right, or let the guide draw the sites"
    )


def difference_of_sums(
    model: VectorizedProgram,
    names: frozenset[str],
    latents: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> float:
    """Compare sums over sites with explicit ones, and return the largest relative difference.

    The explicit sum is over at most 64 combinations of values, of as many sites as they allow; the other sites keep
    their values. If sites are left over, the densities with all values at once must be those of runs with the first
    value of each site, the second, and so on; and the sum over all must agree with that of repeated rows, if there are
    any.

    Args:
        model: Model, without sites to sum out.
        names: Names of the sites to sum out.
        latents: Values of all latents by name, with shape (K, N, ...).
        args: Positional arguments of the model, the data first, with shape (N, ...).
        kwargs: Keyword arguments of the model.
    """
    num_particles = next(iter(latents.values())).shape[0]

    def summed(model: VectorizedProgram, names: frozenset[str]) -> Tensor:
        return _run_summed(model, names, latents, args, kwargs).unscaled_log_density().double()

    sites = model.trace(num_particles, args, kwargs, latents).latents
    values = _combinations({name: site for name, site in sites.items() if name in names})
    difference = 0.0
    if values:
        count = len(next(iter(values.values())))
        explicit = {name: value.repeat(count, *[1] * (value.dim() - 1)) for name, value in latents.items()}
        for name, value in values.items():
            explicit[name] = value.repeat_interleave(num_particles, 0).expand_as(explicit[name])
        trace = model.trace(count * num_particles, args, kwargs, explicit)
        terms = trace.unscaled_log_density(unmasked=values).double()
        expected = terms.unflatten(0, (count, num_particles)).logsumexp(0)
        difference = _difference(summed(model, frozenset(values)), expected)
    if len(values) < len(names):
        difference = max(difference, _difference_at_values(model, names, latents, args, kwargs))
    if len(values) < len(names) and model.data_dim is not None:
        everything = summed(model, names)
        difference = max(difference, _difference(everything, summed(replace(model, how="tiled"), names)))
    return difference


def _run_summed(
    model: VectorizedProgram,
    names: frozenset[str],
    latents: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> ParticleTrace:
    """Run a model with some sites summed out, and the other latents given."""
    fixed = {name: value for name, value in latents.items() if name not in names}
    return replace(model, summed=names).trace(next(iter(latents.values())).shape[0], args, kwargs, fixed)


def _values_of(site: Site) -> Tensor:
    """List the values of one entry of a discrete site, with shape (values, *event)."""
    return site.fn.enumerate_support(expand=False).reshape(-1, *site.fn.event_shape)


def _difference_at_values(
    model: VectorizedProgram,
    names: frozenset[str],
    latents: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> float:
    """Compare densities with all values at once, read at one value of each site, with runs at these values."""
    num_particles = next(iter(latents.values())).shape[0]
    at_once = _run_summed(model, names, latents, args, kwargs)
    sites = model.trace(num_particles, args, kwargs, latents).latents
    choices = {name: _values_of(sites[name]) for name in names}
    difference = 0.0
    for number in range(min(_MAX_VALUES, max(len(values) for values in choices.values()))):
        chosen = {
            name: values[number % len(values)].expand_as(latents[name]).contiguous() for name, values in choices.items()
        }
        expected = model.trace(num_particles, args, kwargs, {**latents, **chosen}).unscaled_log_density(unmasked=names)
        parts = at_once.parts if isinstance(at_once, LoopedTrace) else [at_once]
        found = torch.cat([_density_at_value(part, number) for part in parts])
        difference = max(difference, _difference(found.double(), expected.double()))
    return difference


def _density_at_value(trace: ParticleTrace, number: int) -> Tensor:
    """Sum the log densities of a trace at the values of summed sites that have this number, with shape (K, N)."""
    total = torch.zeros(())
    for site in (trace.sites | trace.summed).values():
        entries = site.entries()
        while entries.dim() > site.plate_dims:
            entries = entries[number % len(entries)]
        total = total + site.sum_per_datum(entries)
    return total.expand(trace.shape)


def _combinations(sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """List all combinations of the values of some sites, each with shape (combinations, 1, *further plates, *event)."""
    choices: dict[str, tuple[Tensor, int]] = {}
    total = 1
    for name, site in sites.items():
        event = len(site.fn.event_shape)
        values = _values_of(site)
        entries = site.event_shape[: len(site.event_shape) - event].numel()
        if total * len(values) ** entries <= _MAX_COMBINATIONS:
            total *= len(values) ** entries
            choices[name] = values, entries
    if not choices:
        return {}
    ranges = [range(len(values)) for values, entries in choices.values() for _ in range(entries)]
    every = torch.tensor(list(product(*ranges)))
    found, start = {}, 0
    for name, (values, entries) in choices.items():
        part = values[every[:, start : start + entries].to(values.device)]
        found[name] = part.reshape(len(every), 1, *sites[name].event_shape)
        start += entries
    return found


def _difference(one: Tensor, other: Tensor) -> float:
    equal = (one == other) | (one.isnan() & other.isnan())
    return torch.where(equal, 0.0, (one - other).abs() / (1 + other.abs())).nan_to_num(torch.inf).max().item()
