"""Checks that the traces of model and guide agree: latent sites, event shapes, masks and KL weights."""

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.densities.traces import sample_sites


def take_kl_weight(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> float | Tensor | None:
    """Remove the KL weight (`temper`) from the latent sites of both traces, and return it.

    Args:
        model_trace: Trace of the model.
        guide_trace: Trace of the guide.

    Returns:
        The scale of all latent sites in both programs; None if it is the number 1.

    Raises:
        ValueError: If two latent sites have different scales.
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
        # The identical tensor is not compared by value, so that recording can trace this function.
        if scale is not weight and not bool(torch.as_tensor(scale == weight).all()):
            raise ValueError(
                f"site {name!r} of the {program} carries scale {scale}, site {latents[0][1]!r} of the model {weight}; "
                "the KL weight must be equal for all latents of both programs; set it with one `temper`"
            )
        site["scale"] = 1.0
    return None if not isinstance(weight, Tensor) and weight == 1 else weight


def matched_latents(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> dict[str, Any]:
    """Return the guide's sites, after checking that they match the model's latent sites.

    Args:
        model_trace: Trace of the model.
        guide_trace: Trace of the guide.

    Raises:
        ValueError: If the names, event shapes or masks of the latent sites differ.
    """
    drawn = sample_sites(guide_trace)
    wanted = {name: site for name, site in sample_sites(model_trace).items() if not site["is_observed"]}
    for name in wanted:
        if name not in drawn:
            raise ValueError(
                f"the guide does not draw site {name!r} of the model, only {sorted(drawn)}; give both the same latent "
                "sites"
            )
    for name, site in drawn.items():
        if site["is_observed"] or name not in wanted:
            raise ValueError(
                f"site {name!r} of the guide is no latent of the model, which has {sorted(wanted)}; remove it from the "
                "guide, since log p(x) has no auxiliary or observed sites of a guide"
            )
        ours, theirs = tuple(site["fn"].event_shape), tuple(wanted[name]["fn"].event_shape)
        if ours != theirs:
            raise ValueError(
                f"site {name!r} has event shape {ours} in the guide and {theirs} in the model; give the encoder's "
                "latent the dimension of the prior's"
            )
        if not _same_mask(site["mask"], wanted[name]["mask"]):
            raise ValueError(
                f"site {name!r} carries one mask in the model and another in the guide; give both the same mask, so "
                "that their densities are of the same latents"
            )
    return drawn


def _same_mask(one: Any, other: Any) -> bool:
    one, other = (True if mask is None else mask for mask in (one, other))
    if isinstance(one, bool) and isinstance(other, bool):
        return one == other
    return bool((torch.as_tensor(one) == torch.as_tensor(other)).all())
