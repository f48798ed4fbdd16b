"""Draws of the real latents of a model and a guide, and their log densities by dimension, in blocks of data."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro.distributions import MultivariateStudentT
from torch import Tensor
from torch.distributions import (
    IndependentTransform,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    TransformedDistribution,
)

from pyrovae.densities import (
    CIRCLE,
    ParticleTrace,
    Program,
    Site,
    VectorizedProgram,
    domain_of,
    entry_of,
    entry_support,
    evaluating,
    is_partial,
    isolated_rng,
    take,
    vectorize_pair,
)
from pyrovae.diagnostics.labels import dimension_labels
from pyrovae.distributions import HierarchicalDistribution

DRAWS_AT_ONCE = 2**15

# How the density of a vector splits into densities of its dimensions: it is their product, they are its marginals, or
# each is given the dimensions before it.
Split = Literal["independent", "marginal", "chain rule"]


class Pair(NamedTuple):
    """Model and guide that run on draws, and their arguments.

    Attributes:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        args: Positional arguments of both programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of both programs.
    """

    model: VectorizedProgram
    guide: VectorizedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def size(self) -> int:
        """Number of data N."""
        return self.guide.num_data(self.args, self.kwargs)

    @property
    def divisible(self) -> bool:
        """Whether both programs run on some of the data."""
        return self.model.divisible and self.guide.divisible

    def at(self, rows: slice | Tensor) -> "Pair":
        """Return the pair with the arguments at some rows."""
        return Pair(self.model, self.guide, *take(self.args, self.kwargs, rows))

    def blocks(self, at_once: int) -> Iterator[tuple[slice, "Pair"]]:
        """Iterate over rows and the pair at these rows; there is one block if the programs need all data."""
        at_once = max(1, at_once) if self.divisible else self.size
        for start in range(0, self.size, at_once):
            rows = slice(start, min(start + at_once, self.size))
            yield rows, self.at(rows) if self.divisible else self

    def posterior(self, num_particles: int) -> ParticleTrace:
        """Trace the guide on K draws for each datum."""
        return self.guide.trace(num_particles, self.args, self.kwargs)

    def joint(self, num_particles: int, latents: Mapping[str, Tensor] | None = None) -> ParticleTrace:
        """Trace the model on K draws for each datum, at given latents; other latents come from the prior."""
        return self.model.trace(num_particles, self.args, self.kwargs, latents)


def make_pair(model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Pair:
    """Find how a model and a guide run on draws (`vectorize_pair`)."""
    return Pair(*vectorize_pair(model, guide, args, kwargs), args, dict(kwargs))


@contextmanager
def evaluation(pair: Pair, seed: int) -> Iterator[None]:
    """Put the programs into evaluation mode, without gradients and validation, and with random numbers of their own.

    Data that a user simulates after setting the same small seed do not share the random numbers of the draws.

    Args:
        pair: Model and guide with their arguments.
        seed: Random seed; the global random state is restored at the end.
    """
    own_seed = (seed + 1) * 0x9E3779B97F4A7C15 % 2**63
    with isolated_rng(own_seed), evaluating(pair.model, pair.guide), pyro.validation_enabled(False), torch.no_grad():
        yield


@dataclass(frozen=True)
class RealLatents:
    """Real latent sites of a program, in the order of the model.

    Attributes:
        names: Names of the sites.
        shapes: Shape of one draw for one datum, by site.
        skipped: One sentence for each latent site that is not real.
    """

    names: tuple[str, ...]
    shapes: dict[str, torch.Size]
    skipped: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each dimension, such as "z[0]"; the name of the site alone for a scalar."""
        return tuple(label for name in self.names for label in dimension_labels(name, self.shapes[name]))

    def of(self, trace: ParticleTrace) -> Tensor:
        """Return the draws of a trace on the CPU in float64, with shape (K, N, J)."""
        return torch.cat([flat(trace.sites[name].value) for name in self.names], -1)

    def index(self, name: str) -> slice:
        """Return the places of the dimensions of a site among all J."""
        sizes = [self.shapes[other].numel() for other in self.names]
        start = sum(sizes[: self.names.index(name)])
        return slice(start, start + self.shapes[name].numel())

    @classmethod
    def find(cls, model_trace: ParticleTrace, guide_trace: ParticleTrace) -> "RealLatents":
        """Find the real latents of a model and a guide.

        Raises:
            ValueError: If there is none.
        """
        names, skipped = [], []
        for name, prior in model_trace.latents.items():
            if name not in guide_trace.sites:
                continue  # `matched_latents` refuses it where densities count
            reason = _not_real(guide_trace.sites[name], prior)
            if reason:
                skipped.append(f"site {name!r} {reason}")
            else:
                names.append(name)
        if not names:
            raise ValueError(
                f"this diagnostic needs a real latent that model and guide share, but {'; '.join(skipped) or 'none'}; "
                "use it for latents with a density"
            )
        shapes = {name: guide_trace.sites[name].event_shape for name in names}
        return cls(tuple(names), shapes, tuple(skipped))


def _not_real(site: Site, prior: Site) -> str:
    """Say why the dimensions of a latent site have no variance, or not the same for all data; empty if they have."""
    support = entry_support(domain_of(prior.fn))
    if support is None:
        support = entry_support(domain_of(site.fn))
    if getattr(support, "is_discrete", False):
        return f"is discrete ({type(entry_of(prior.fn)).__name__})"
    if support is CIRCLE:
        return "is an angle, which has no variance"
    if is_partial(site.mask) or is_partial(prior.mask):
        return "has a mask that leaves entries out"
    return ""


def flat(value: Tensor) -> Tensor:
    """Flatten entries with shape (K, N, ...) to (K, N, J), on the CPU in float64."""
    return value.detach().reshape(*value.shape[:2], -1).double().cpu()


class ByDimension(NamedTuple):
    """Densities of the dimensions of one site.

    Attributes:
        split: Relation of these densities to the joint density; None if they are not known.
        log_prob: Log densities at the draws in nats, with shape (K, N, J); None if not known.
        entries: Distribution of single dimensions; None if there is none to ask for closed forms.
    """

    split: Split | None
    log_prob: Tensor | None = None
    entries: Any = None


def by_dimension(site: Site) -> ByDimension:
    """Find the densities of the dimensions of a latent site at its draws."""
    if site.depends_on_sums or site.auxiliary is not None:
        return ByDimension(None)
    return _split(site, site.fn)


def _split(site: Site, fn: Any) -> ByDimension:
    entry = entry_of(fn)
    if isinstance(entry, HierarchicalDistribution):
        log_p = _hierarchical(entry, site.raw_value)
        return ByDimension(None) if log_p is None else ByDimension("chain rule", site_entries(site, log_p))
    found = _scalars(entry)
    if found is None:
        return ByDimension(None)
    split: Split = "marginal" if entry.event_shape else "independent"
    return ByDimension(split, site_entries(site, found.log_prob(site.raw_value)), found)


class _MixtureMarginals:
    """Marginals of a mixture of vectors: mixtures with the same weights."""

    def __init__(self, mixture: MixtureSameFamily, components: Any) -> None:
        self.log_weights = mixture.mixture_distribution.logits.log_softmax(-1).unsqueeze(-1)
        self.components = components

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log densities in nats, with the shape of value."""
        return (self.log_weights + self.components.log_prob(value.unsqueeze(-2))).logsumexp(-2)


def _scalars(entry: Any) -> Any:
    """Find the marginals of the dimensions of a distribution of vectors or scalars; None if they are not known."""
    if not entry.event_shape:
        return entry
    if isinstance(entry, MultivariateNormal | LowRankMultivariateNormal):
        return Normal(entry.mean, entry.variance.sqrt(), validate_args=False)
    if isinstance(entry, MultivariateStudentT):
        scale = entry.scale_tril.square().sum(-1).sqrt()
        return StudentT(entry.df.unsqueeze(-1), entry.loc, scale, validate_args=False)
    if isinstance(entry, MixtureSameFamily) and len(entry.event_shape) == 1:
        components = _scalars(entry_of(entry.component_distribution))
        return None if components is None else _MixtureMarginals(entry, components)
    if isinstance(entry, TransformedDistribution):
        base = _scalars(entry_of(entry.base_dist))
        transforms = [t.base_transform if isinstance(t, IndependentTransform) else t for t in entry.transforms]
        by_entry = all(t.domain.event_dim == t.codomain.event_dim == 0 for t in transforms)
        if by_entry and isinstance(base, torch.distributions.Distribution):
            return TransformedDistribution(base, transforms, validate_args=False)
    return None


def _hierarchical(fn: HierarchicalDistribution, value: Tensor) -> Tensor | None:
    """Compute the log densities of the first block, and of the second block given the first; None if not known."""
    size = fn.base.event_shape[0]
    first = value[..., fn.event_shape[0] - size :] if fn.reverse else value[..., :size]
    second = value[..., : fn.event_shape[0] - size] if fn.reverse else value[..., size:]
    parts = [entry_of(fn.base), entry_of(fn.conditional(first))]
    if any(part.event_shape for part in parts):
        return None
    found = [part.log_prob(block) for part, block in zip(parts, (first, second), strict=True)]
    return torch.cat(found[::-1] if fn.reverse else found, -1)


def site_entries(site: Site, entries: Tensor) -> Tensor:
    """Move draws and data to the front of a quantity of each entry of a site, and flatten: shape (K, N, J)."""
    event = site.fn.event_shape
    entries = entries.expand(torch.broadcast_shapes(entries.shape, event))
    entries = site.layout.per_datum(entries, site.plate_sizes, len(event))
    return entries.reshape(*entries.shape[:2], -1)
