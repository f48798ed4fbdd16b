"""Case weights of `fit`: the plates over the data, whose sites the weights multiply."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from pyro.infer import ELBO

from pyrovae.densities import Program
from pyrovae.objectives import CaseWeighted, TensorELBO
from pyrovae.training.batch_sites import AnyBatches, BatchSite, fewer_rows, sites_of


def weigh_cases(
    elbo: ELBO,
    sites: Sequence[BatchSite],
    model: Program,
    guide: Program,
    batches: AnyBatches,
    plate: str | None,
    *,
    dtype: torch.dtype,
) -> CaseWeighted:
    """Make the objective whose terms are multiplied by case weights.

    Args:
        elbo: Objective, a sum of terms per datum.
        sites: Sites of a run on a full batch.
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        batches: Batches of the training data.
        plate: Name of the plate over the data; None to find it by its size.
        dtype: Floating point type of the computation.

    Raises:
        ValueError: If the log densities of each datum cannot be told from those of the others.
    """
    of_sites = not isinstance(elbo, TensorELBO) and not hasattr(elbo, "weighted_loss")
    return CaseWeighted(elbo, _plates(sites, model, guide, batches, plate) if of_sites else (), dtype)


def _plates(
    sites: Sequence[BatchSite], model: Program, guide: Program, batches: AnyBatches, plate: str | None
) -> frozenset[str]:
    """Find the names of the plates over the data, by runs on a full batch and on fewer rows."""
    batch = min(batches.batch_size, batches.size)
    fewer = fewer_rows(batch)
    others: dict[tuple[str, str], BatchSite] | None = None
    names = {f.name for site in sites for f in site.frames if f.size in (-1, batch) and plate in (None, f.name)}
    with suppress(Exception):  # programs with rows for single data run on all of them alone
        if batches.size > 1:
            others = {(site.program, site.name): site for site in sites_of(model, guide, batches, fewer)}
    if others is not None:
        names &= {f.name for site in others.values() for f in site.frames if f.size in (-1, fewer)}
    inside = {(site.program, site.name) for site in sites if _is_inside(site, names)}
    for site in sites:
        _check_site(site, inside, sites)
        other = None if others is None else others.get((site.program, site.name))
        loose = any(frame.name in names and frame.size == -1 for frame in site.frames)
        rows = None if other is None else site.shape != other.shape
        if (site.program, site.name) not in inside and rows:
            raise ValueError(_refusal(site, "has a row for each datum outside a plate over the data"))
        if loose and not rows:
            raise ValueError(_refusal(site, "lies in a plate without a size, and has no row for each datum"))
    return frozenset(names)


def _is_inside(site: BatchSite, names: set[str]) -> bool:
    """Return whether a site lies in the plate over the data."""
    found = sorted({frame.name for frame in site.frames if frame.name in names})
    if len(found) > 1:
        raise ValueError(
            f"plates {found} around site {site.name!r} of the {site.program} all may be over the data, so the data of "
            f"the case weights are not known; name the one over the data, as in plate={found[0]!r}"
        )
    return bool(found)


def _check_site(site: BatchSite, inside: set[tuple[str, str]], sites: Sequence[BatchSite]) -> None:
    """Check that the log density of a site is one of each datum, or a latent's of all data in both programs.

    Raises:
        ValueError: If it is another.
    """
    if (
        site.program == "model"
        and site.enumerated
        and not any(other.program == "guide" and other.name == site.name for other in sites)
    ):
        raise ValueError(
            f"TraceEnum_ELBO sums out {site.name!r} in the model, where Pyro allows no case weights; draw it in the "
            'guide with infer={"enumerate": "parallel"}, or use ImportanceWeightedELBO(1), which sums it out, too'
        )
    if (site.program, site.name) in inside:
        return
    if site.is_observed:
        raise ValueError(_refusal(site, "is observed outside a plate over the data"))
    partner = "guide" if site.program == "model" else "model"
    if not any(other.program == partner and other.name == site.name for other in sites):
        raise ValueError(_refusal(site, f"lies outside a plate over the data, and the {partner} has no such latent"))
    if (partner, site.name) in inside:
        raise ValueError(_refusal(site, f"lies outside a plate over the data, but inside it in the {partner}"))


def _refusal(site: BatchSite, reason: str) -> str:
    return (
        f"site {site.name!r} of the {site.program} {reason}, so case weights cannot multiply the term of each datum; "
        "put it into pyro.plate(name, len(x))"
    )
