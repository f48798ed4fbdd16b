"""Plates and scales of the programs that `fit` trains: sites outside the data plate, and subsampling plates."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from pyrovae.densities import Program, evaluating, isolated_rng, run_once, unused_sites
from pyrovae.training.batch_sites import AnyBatches, BatchSite, fewer_rows, find_changing, sites_of


@dataclass(frozen=True)
class OutsideSites:
    """Sites outside the data plate, such as global weights, whose KL divergence counts once for all data.

    Attributes:
        size: Number of data N.
        plates: Names of the plates over the rows of a batch that have a size.
        rows: Names of other sites that have a row per datum, or lie in a plate over the rows without a size.
        joint: Names of those sites among them whose rows have one joint density, such as a Gaussian process.
    """

    size: int
    plates: frozenset[str]
    rows: frozenset[str]
    joint: frozenset[str]

    def weighed(self, batch: int) -> AbstractContextManager[Any]:
        """Multiply the log densities of these sites by B/N, so that the batches of an epoch count them once.

        Args:
            batch: Number of data B of the batch.
        """
        return _Weigh(self, batch / self.size)


class _Weigh(Messenger):
    """Handler that multiplies the log densities of sites outside the data plate by a factor."""

    def __init__(self, outside: OutsideSites, factor: float) -> None:
        super().__init__()
        self.outside, self.factor = outside, factor

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["name"] in self.outside.rows:
            return
        if self.outside.plates.isdisjoint(frame.name for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.factor


def weighed(outside: OutsideSites | None, batch: int) -> AbstractContextManager[Any]:
    """Weigh the sites outside the data plate, if any, for a batch of B data."""
    return nullcontext() if outside is None else outside.weighed(batch)


class Subsampling(NamedTuple):
    """Relation of the loss of a step to the ELBO of its data.

    Attributes:
        full_size: Number of data that the loss of a step stands for; None for those of the step.
        reason: Reason why the loss is no ELBO per datum; None if it is one.
        remedy: What to write for an ELBO per datum.
    """

    full_size: int | None = None
    reason: str | None = None
    remedy: str = (
        "put the data into a plate, one row per datum, and weigh the KL divergence by kl_weight of fit, not by a scale"
    )


def hide_unused(model: Program, guide: Program, batches: AnyBatches) -> tuple[Program, Program]:
    """Hide latents that `poutine.do` replaces from Pyro's objectives, in the guide too if their value is given there.

    Pyro's objectives would count the log densities of these sites, though none is a latent that the guide draws. Other
    observed sites of the guide stay, since their densities may be a loss of their own.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        batches: Batches of the training data.
    """
    names: Mapping[str, frozenset[str]] = {}
    # Programs that fail here fail in the checks that follow, which say why.
    with suppress(Exception), isolated_rng(), evaluating(model, guide), pyro.validation_enabled(False):
        unused = unused_sites(run_once({"model": model, "guide": guide}, *batches.first()))
        names = {"model": unused["model"], "guide": unused["guide"] & unused["model"]}
    hidden = [
        poutine.block(program, hide=sorted(names[name])) if names.get(name) else program
        for name, program in (("model", model), ("guide", guide))
    ]
    return hidden[0], hidden[1]


def find_outside_sites(
    sites: list[BatchSite], model: Program, guide: Program, batches: AnyBatches
) -> OutsideSites | None:
    """Find the sites outside the data plate, for programs whose plate takes its size from the batch.

    Args:
        sites: Sites of a full batch, compared with fewer rows.
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        batches: Batches of the training data.

    Returns:
        The sites; None if there are none, if a batch holds all data, or if a scale or a subsampling plate shows that
        the programs weigh their sites by themselves.

    Raises:
        ValueError: If an observation or factor among them depends on the rows, so that it is no term of all data.
    """
    if batches.batch_size >= batches.size:
        return None
    if any(frame.size != (frame.full_size or frame.size) for site in sites for frame in site.frames):
        return None
    outside = [site for site in sites if not site.over_rows]
    if len(outside) in (0, len(sites)) or not all(site.is_unscaled for site in sites):
        return None
    fewer = fewer_rows(batches.batch_size)
    if any(site.has_rows is None for site in outside):
        sites_of(model, guide, batches, fewer)  # programs that fail on fewer rows say why
        return None
    once = [site for site in outside if not site.has_rows]
    observed = [site for site in once if site.is_observed]
    latents = {site.name for site in once if not site.is_observed}
    changing = find_changing(observed, latents, model, guide, batches, fewer)
    if changing is not None:
        names = sorted(set().union(*(site.over_rows for site in sites)))
        raise ValueError(
            f"site {changing.name!r} of the {changing.program} is an observation or factor outside plate "
            f"{' and '.join(map(repr, names))}, but its log density depends on the rows of the batch, so it would not "
            f"count once for all data; put it into the plate, one term per row, or give batch_size={batches.size}"
        )
    unsized = {frame.name for site in sites for frame in site.frames if frame.size == -1}
    plates = frozenset(name for site in sites for name in site.over_rows - unsized)
    rows = frozenset(site.name for site in sites if not site.over_rows & plates and (site.over_rows or site.has_rows))
    return OutsideSites(batches.size, plates, rows, frozenset(s.name for s in outside if s.has_joint_rows))


def find_subsampling(
    sites: list[BatchSite], batches: AnyBatches, outside: OutsideSites | None = None, plate: str | None = None
) -> Subsampling:
    """Find whether the loss is an ELBO, up to the scale of a subsampling plate over the data.

    Args:
        sites: Sites of a full batch, compared with fewer rows.
        batches: Batches of the training data.
        outside: Sites outside the data plate, if any.
        plate: Name of the plate over the data; None to find it by its size.
    """
    batch = min(batches.batch_size, batches.size)
    whole = f"give batch_size={batches.size}, or put independent data into a plate, one row per datum"
    for site in sites:
        if site.program == "guide" and site.is_observed:
            return Subsampling(
                reason=f"site {site.name!r} of the guide is observed or a factor, which the objective subtracts",
                remedy=f"write poutine.block(guide, hide=[{site.name!r}]) for the ELBO alone",
            )
    if outside is not None and outside.joint:
        reason = f"the rows of a batch have one joint density at site {min(outside.joint)!r}"
        return Subsampling(reason=reason, remedy=whole)
    for site in sites:
        if not site.is_unscaled:
            return Subsampling(reason=f"site {site.name!r} of the {site.program} carries scale {_shown(site)}")
    frames = [frame for site in sites for frame in site.frames if plate in (None, frame.name)]
    if sites and not frames and batch < batches.size:
        return Subsampling(reason="the programs have no plate over the rows of a batch", remedy=whole)
    if frames and not any(site.over_rows for site in sites) and batches.size not in {f.full_size for f in frames}:
        sizes = {frame.name: frame.size for frame in frames}
        if not {-1, batch}.isdisjoint(sizes.values()):
            reason = f"no plate is over the rows of a batch, since {sorted(sizes)} do not follow them"
            return Subsampling(reason=reason, remedy=whole)
        return Subsampling(reason=f"no plate has the size of a batch, {batch}, only {sizes}")
    other = None if plate is not None else _other_data_plate(sites)
    if other is not None:
        return Subsampling(
            reason=f"the data may be the {batch} rows of the first dim, or plate {other!r} with latents of its own",
            remedy=f"name the plate over the data, as in plate={other!r}",
        )
    subsampled = {
        frame.name: (frame.size, frame.full_size)
        for site in sites
        for frame in site.frames
        if frame.size not in (-1, frame.full_size or frame.size)
    }
    if not subsampled:
        return Subsampling()
    full_sizes = {full for size, full in subsampled.values() if size == batch or full == batches.size}
    if len(full_sizes) != 1:
        return Subsampling(reason=f"subsampling plates {sorted(subsampled)} scale the programs, none as the data's")
    for site in sites:
        if site.subsampling == 1 and site.over_rows:
            return Subsampling(
                reason=f"plates {sorted(subsampled)} scale some sites by subsampling, but not {site.name!r} of the "
                f"{site.program}"
            )
    return Subsampling(full_size=int(full_sizes.pop()))


def _other_data_plate(sites: list[BatchSite]) -> str | None:
    """Find a plate that crosses the one over the rows at an observed site, and holds latents where that holds none."""

    def names(site: BatchSite, over_rows: bool) -> set[str]:
        return {frame.name for frame in site.frames if frame.vectorized and (frame.name in site.over_rows) == over_rows}

    latents = [site for site in sites if site.program == "model" and not site.is_observed]
    if any(names(site, True) and not names(site, False) for site in latents):
        return None
    for site in latents:
        if not names(site, True):
            for observed in sites:
                common = names(site, False) & names(observed, False)
                if observed.is_observed and common and names(observed, True):
                    return min(common)
    return None


def _shown(site: BatchSite) -> str:
    scale = torch.as_tensor(site.scale, dtype=torch.float64)
    return f"{scale.item():g}" if scale.numel() == 1 else "of several values"
