"""Sample sites of the programs that `fit` trains, and how they change with the number of rows of a batch."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent

from pyrovae.densities import Program, evaluating, isolated_rng, run_once, sample_sites, take
from pyrovae.training.batches import Batches, ProgramArguments
from pyrovae.training.loaders import LoaderBatches

AnyBatches = Batches | LoaderBatches

_ROUNDING = 1e-5  # relative, between scales and between log densities


class BatchSite(NamedTuple):
    """Sample site of a run.

    Attributes:
        program: "model" or "guide".
        name: Name of the site.
        shape: Shape of the value.
        joint_shape: Shape of the dims that have one joint density: the event, without the dims of `to_event`.
        scale: Factor on the log density.
        frames: Plates around the site, vectorized or sequential.
        is_observed: Whether the value is observed.
        enumerated: Whether the site asks to be enumerated.
        event_dim: Number of dims of the event.
        over_rows: Names of the plates around the site that are over the rows of a batch.
        has_rows: Whether the shape changes with the number of rows; None if not known.
        has_joint_rows: Whether the joint shape changes with the number of rows.
    """

    program: str
    name: str
    shape: torch.Size
    joint_shape: torch.Size
    scale: Any
    frames: tuple[Any, ...]
    is_observed: bool
    enumerated: bool = False
    event_dim: int = 0
    over_rows: frozenset[str] = frozenset()
    has_rows: bool | None = None
    has_joint_rows: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """Program and name."""
        return self.program, self.name

    @property
    def subsampling(self) -> float:
        """Factor on the log density by subsampling plates."""
        ratio = 1.0
        for frame in self.frames:
            ratio *= float(frame.full_size or frame.size) / float(frame.size)
        return ratio

    @property
    def is_unscaled(self) -> bool:
        """Whether the scale is that of the subsampling plates alone."""
        scale = torch.as_tensor(self.scale, dtype=torch.float64)
        return bool(((scale / self.subsampling - 1).abs() <= _ROUNDING).all())


def sites_of(model: Program, guide: Program, batches: AnyBatches, rows: int | None = None) -> list[BatchSite]:
    """Run the guide, and the model on its draws, and list their sample sites. The random state is restored.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        batches: Batches of the training data.
        rows: Number of data of the run; None for a full batch.
    """
    with isolated_rng(), evaluating(model, guide), pyro.validation_enabled(False):
        traces = run_once({"model": model, "guide": guide}, *batches.first(rows))
    return [
        BatchSite(
            program,
            name,
            torch.as_tensor(site["value"]).shape,
            _joint_shape(site["fn"]),
            site["scale"],
            site["cond_indep_stack"],
            site["is_observed"],
            bool(site["infer"].get("enumerate")) and not site["is_observed"],
            len(site["fn"].event_shape),
        )
        for program, trace in reversed(list(traces.items()))  # the model first, so that messages name its sites
        for name, site in sample_sites(trace).items()
    ]


def fewer_rows(batch: int) -> int:
    """Choose the number of rows to compare a batch of B data with: about half of them, or 2 if B is 1."""
    return max(batch // 2, 1) if batch > 1 else 2


def compared_sites(model: Program, guide: Program, batches: AnyBatches, plate: str | None = None) -> list[BatchSite]:
    """List the sites of a full batch, with the plates over its rows.

    A plate is over the rows if its size follows them from a full batch to fewer rows, or if it keeps the size of the
    batch around observations that follow them. A plate without a size is over the rows if the shape of a site in it
    follows them. A latent of the guide whose shape does not lies outside such a plate, since Pyro counts its log
    density once. Sizes alone decide if a batch holds all data, or if the programs do not run on fewer rows.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        batches: Batches of the training data.
        plate: Name of the plate over the data; None to find it.
    """
    sites = sites_of(model, guide, batches)
    batch = min(batches.batch_size, batches.size)
    fewer = fewer_rows(batch)
    if batch < batches.size:
        with suppress(Exception):
            return _compared(sites, sites_of(model, guide, batches, fewer), batch, fewer, plate)
    names = {frame.name for site in sites for frame in site.frames if frame.size in (-1, batch)}
    return [site._replace(over_rows=_around(site, names, plate)) for site in sites]


def _compared(
    sites: Sequence[BatchSite], others: Sequence[BatchSite], batch: int, fewer: int, plate: str | None
) -> list[BatchSite]:
    """Add to the sites of a batch how they change on fewer rows."""
    again = {site.key: site for site in others}
    names = _plates_over_rows(sites, again, batch, fewer)
    missing = again.keys() - {site.key for site in sites}
    renamed = any(not _around(again[key], names, plate) for key in missing)
    drawn = {site.name for site in sites if site.program == "guide" and not site.is_observed}
    compared = []
    for site in sites:
        other = again.get(site.key)
        has_rows = None if other is None else site.shape != other.shape
        unsized = {frame.name for frame in site.frames if frame.size == -1}
        is_single = has_rows is False and site.name in drawn and not site.is_observed
        over_rows = _around(site, names - unsized if is_single else names, plate)
        compared.append(
            site._replace(
                over_rows=over_rows,
                has_rows=None if renamed and not over_rows else has_rows,
                has_joint_rows=other is not None and site.joint_shape != other.joint_shape,
            )
        )
    return compared


def _plates_over_rows(
    sites: Sequence[BatchSite], again: Mapping[tuple[str, str], BatchSite], batch: int, fewer: int
) -> set[str]:
    """Find the names of the plates over the rows, from a batch and the same sites on fewer rows."""
    following = {frame.name for site in again.values() for frame in site.frames if frame.size == fewer}
    names = set()
    for site in sites:
        other = again.get(site.key)
        for frame in site.frames:
            if frame.size == -1:
                found = other is not None and site.shape != other.shape
            else:
                kept = other is not None and site.is_observed and frame.vectorized
                found = frame.size == batch and (
                    frame.name in following or (kept and _size_along(other, frame.dim) == fewer)
                )
            if found:
                names.add(frame.name)
    return names


def _around(site: BatchSite, names: Collection[str], plate: str | None) -> frozenset[str]:
    """Return those of some plates that are around a site, or the named one among them."""
    return frozenset(frame.name for frame in site.frames if frame.name in names and plate in (None, frame.name))


def _size_along(site: BatchSite | None, dim: int) -> int | None:
    """Return the size of a value along a dim of its batch shape, counted from the right; None if it has no such dim."""
    shape = () if site is None else site.shape[: len(site.shape) - site.event_dim]
    return shape[dim] if -dim <= len(shape) else None


def find_changing(
    observed: Sequence[BatchSite],
    latents: Collection[str],
    model: Program,
    guide: Program,
    batches: AnyBatches,
    rows: int,
) -> BatchSite | None:
    """Find an observation or factor whose log density differs on other rows, at the same latents of all data.

    Args:
        observed: Sites to compare, those of a full batch.
        latents: Names of the latents of all data, which keep their values.
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        batches: Batches of the training data.
        rows: Number of other rows.

    Returns:
        The first such site; None if there is none.
    """
    if not observed:
        return None
    programs = {"model": model, "guide": guide}
    with isolated_rng(), evaluating(model, guide), pyro.validation_enabled(False):
        traces = run_once(programs, *batches.first())
        drawn = (item for trace in traces.values() for item in sample_sites(trace).items())
        values = {name: site["value"] for name, site in drawn if name in latents}
        fixed = {name: poutine.condition(program, data=values) for name, program in programs.items()}
        expected = [_log_density(traces, site) for site in observed]
        for arguments in _other_rows(batches, rows):
            others = run_once(fixed, *arguments)
            for site, before in zip(observed, expected, strict=True):
                if not torch.isclose(_log_density(others, site), before, _ROUNDING, _ROUNDING, equal_nan=True):
                    return site
    return None


def _other_rows(batches: AnyBatches, rows: int) -> Iterator[ProgramArguments]:
    """Iterate over the arguments at the first and at the last of the rows of a batch."""
    yield batches.first(rows)
    batch = min(batches.batch_size, batches.size)
    if rows < batch:
        yield take(*batches.first(), slice(batch - rows, batch))


def _log_density(traces: Mapping[str, poutine.Trace], site: BatchSite) -> Tensor:
    """Sum the log density of a site, its mask applied and its scale not, in nats."""
    found: Any = traces[site.program].nodes[site.name]
    return torch.as_tensor(scale_and_mask(found["fn"].log_prob(found["value"]), 1.0, found["mask"])).sum().double()


def _joint_shape(distribution: Any) -> torch.Size:
    """Return the event shape of a distribution without the dims of `to_event`, which are independent."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return torch.Size(distribution.event_shape)
