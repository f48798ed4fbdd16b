"""Per-datum log densities of Pyro programs, ours or the reader's own.

A program signs a contract: every sample site lies inside one plate over the data at dim -1. Particles take dim -2.
Everything here follows from the traces alone; nothing asks what a prior or a likelihood is.
"""

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.densities.traces import sample_sites


def take_kl_weight(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> float | Tensor | None:
    """Take the weight of the KL divergence (`temper`) off the latent sites of both programs' traces.

    Returns:
        The one scale that all latents carry in both programs; None where it is the number 1.

    Raises:
        ValueError: If they carry different ones.
    """
    latents = [
        (program, name, site)
        for program, trace in (("model", model_trace), ("guide", guide_trace))
        for name, site in sample_sites(trace).items()
        if not site["is_observed"]
    ]
    if not latents:
        return None
    weight = latents[0][2]["scale"]
    for program, name, site in latents:
        scale = site["scale"]
        # The very same tensor needs no look at its value, so that this can be recorded.
        if scale is not weight and not bool(torch.as_tensor(scale == weight).all()):
            raise ValueError(
                f"site {name!r} of the {program} carries scale {scale}, site {latents[0][1]!r} of the model {weight}; "
                "a weight of the KL divergence is one and the same for all latents of both programs (`temper`)"
            )
        site["scale"] = 1.0
    return None if not isinstance(weight, Tensor) and weight == 1 else weight


def matched_latents(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> dict[str, Any]:
    """The guide's sites, after seeing that they are the model's latents, each under the same mask."""
    drawn = sample_sites(guide_trace)
    wanted = {name: site for name, site in sample_sites(model_trace).items() if not site["is_observed"]}
    for name in wanted:
        if name not in drawn:
            raise ValueError(
                f"the guide does not draw site {name!r} of the model; it draws {sorted(drawn)}. Give both the same "
                "latent sites"
            )
    for name, site in drawn.items():
        if site["is_observed"] or name not in wanted:
            raise ValueError(
                f"site {name!r} of the guide is no latent of the model, which has {sorted(wanted)}; weights over "
                "auxiliary or observed sites of a guide are not those of log p(x). Take it out of the guide"
            )
        ours, theirs = tuple(site["fn"].event_shape), tuple(wanted[name]["fn"].event_shape)
        if ours != theirs:
            raise ValueError(
                f"site {name!r} has an event {_of(ours)} in the guide and {_of(theirs)} in the model; make the "
                "encoder's latent as large as the prior's"
            )
        if not _same_mask(site["mask"], wanted[name]["mask"]):
            raise ValueError(
                f"site {name!r} carries one mask in the model and another in the guide, so their densities are not of "
                "the same latents; mask it alike in both"
            )
    return drawn


def _of(shape: tuple[int, ...]) -> str:
    return f"of {shape[0]}" if len(shape) == 1 else f"{shape}"


def _same_mask(one: Any, other: Any) -> bool:
    one, other = (True if mask is None else mask for mask in (one, other))
    if isinstance(one, bool) and isinstance(other, bool):
        return one == other
    return bool((torch.as_tensor(one) == torch.as_tensor(other)).all())
