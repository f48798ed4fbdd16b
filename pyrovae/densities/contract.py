"""Checks that the traces of model and guide agree: latent sites, shapes, masks, domains and KL weights."""

from collections.abc import Container

import torch
from pyro.distributions import Unit
from torch import Tensor

from pyrovae.densities.domains import is_circular, is_point_mass, within_period
from pyrovae.densities.masks import entry_of, same_mask
from pyrovae.densities.traces import ParticleTrace, Site


def take_kl_weight(model_trace: ParticleTrace, guide_trace: ParticleTrace) -> float | Tensor | None:
    """Remove the KL weight (`temper`) from the latent sites of both traces, and return it.

    Args:
        model_trace: Trace of the model.
        guide_trace: Trace of the guide.

    Returns:
        The scale of all latent sites in both programs; None if it is the number 1.

    Raises:
        ValueError: If two latent sites have different scales, or the density of a given site outside the data plate has
            a gradient.
    """
    _check_given(model_trace)
    latents = [site for trace in (model_trace, guide_trace) for site in trace.latents.values()]
    if not latents:
        return None
    weight = latents[0].scale
    for site in (*latents, *model_trace.summed.values()):
        # The identical tensor is not compared by value, so that recording can trace this function.
        if site.scale is not weight and not bool(torch.as_tensor(site.scale == weight).all()):
            raise ValueError(
                f"site {site.name!r} of the {site.program} carries scale {site.scale}, site {latents[0].name!r} of the "
                f"model {weight}; the KL weight must be equal for all latents of both programs; set it with one "
                "`temper`"
            )
        site.scale = 1.0
    return None if not isinstance(weight, Tensor) and weight == 1 else weight


def _check_given(trace: ParticleTrace) -> None:
    """Raise a ValueError if the density of a given site that is left out would train parameters."""
    for site in trace.given:
        if torch.is_grad_enabled() and site.entries().requires_grad:
            raise ValueError(
                f"site {site.name!r} of the {site.program} lies outside the data plate, so an objective per datum "
                "leaves out its density, but parameters that are trained change it; train with "
                "pyro.infer.Trace_ELBO(), or fix the parameters of its distribution and its value"
            )


def matched_latents(model_trace: ParticleTrace, guide_trace: ParticleTrace) -> dict[str, Site]:
    """Return the guide's sites, after checking that they match the model's latent sites.

    Args:
        model_trace: Trace of the model.
        guide_trace: Trace of the guide.

    Raises:
        ValueError: If the names, shapes or masks of the latent sites differ, if one is a point mass, or if one is
            circular in the model alone.
    """
    drawn, wanted = guide_trace.sites, model_trace.latents
    for name in wanted:
        if name not in drawn:
            remedy = "give both the same latent sites"
            if getattr(wanted[name].fn.support, "is_discrete", False):
                remedy += ", or sum it out: by a distribution that enumerates its values, its dimensions in a plate"
            raise ValueError(f"the guide does not draw site {name!r} of the model, only {sorted(drawn)}; {remedy}")
    for name, site in drawn.items():
        if site.is_observed or name not in wanted:
            raise ValueError(_unwanted(site, model_trace))
        ours, theirs = tuple(site.event_shape), tuple(wanted[name].event_shape)
        if ours != theirs:
            raise ValueError(
                f"site {name!r} has event shape {ours} in the guide and {theirs} in the model; give the encoder's "
                "latent the dimension of the prior's"
            )
        if not same_mask(site.mask, wanted[name].mask):
            raise ValueError(
                f"site {name!r} carries one mask in the model and another in the guide; give both the same mask, so "
                "that their densities are of the same latents"
            )
        check_density(site, guide_trace.determined)
        check_density(wanted[name])
        _check_circle(site, wanted[name])
    return drawn


def check_density(site: Site, determined: Container[str] = ()) -> None:
    """Raise a ValueError if a latent site is a point mass.

    Args:
        site: Latent site.
        determined: Names of the latents of an auto guide, whose point masses an auxiliary site gives a density.
    """
    if is_point_mass(site.fn) and site.name not in determined:
        remedy = (
            "give it a distribution with a density, such as a Normal"
            if site.program == "guide"
            else "compute the value without pyro.sample, or by pyro.deterministic"
        )
        raise ValueError(
            f"site {site.name!r} of the {site.program} needs a density, but is a point mass (Delta), so log p(x) has "
            f"no estimate by its draws; {remedy}"
        )


def _check_circle(site: Site, prior: Site) -> None:
    """Raise a ValueError if a latent is circular in the model, and has draws of more than one period in the guide."""
    if is_circular(prior.fn) and not within_period(site.fn):
        raise ValueError(
            f"site {site.name!r} of the model is an angle from -pi to pi ({type(entry_of(prior.fn)).__name__}), but "
            f"the guide's {type(entry_of(site.fn)).__name__} has no such period; use a circular distribution, such as "
            "VonMises, or one from -pi to pi"
        )


def _unwanted(site: Site, model_trace: ParticleTrace) -> str:
    """Say why a guide's site has no place in log p(x), and what to write."""
    name, wanted = site.name, sorted(model_trace.latents)
    if site.is_observed and isinstance(site.fn, Unit):
        return (
            f"site {name!r} of the guide is a factor, so the guide is no density of its draws; draw the latents from "
            "a distribution with this density, such as dist.TransformedDistribution, and remove the factor"
        )
    if site.is_observed:
        return (
            f"site {name!r} of the guide is observed, but log q(z|x) is the density of draws alone; write "
            f"poutine.block(guide, hide=[{name!r}]) in place of the guide"
        )
    problem = f"site {name!r} of the guide is no latent of the model, which has {wanted}"
    latent = name.removesuffix("_unconstrained")
    if latent != name and site.infer.get("is_auxiliary"):
        if latent in wanted:
            return (
                f"{problem}; draw {latent!r} itself from dist.TransformedDistribution, since only the auxiliary sites "
                "of Pyro's AutoNormal are known to belong to a latent"
            )
        return f"{problem}; write poutine.block(guide, hide=[{name!r}, {latent!r}]) in place of the guide"
    if name in model_trace.sites:
        return (
            f"{problem}, since the model observes it; write poutine.block(guide, hide=[{name!r}]) in place of the "
            "guide, if its other sites do not depend on this one"
        )
    return (
        f"{problem}; sum it out of the guide, such as by dist.MixtureSameFamily, or add it to the model: log p(x) "
        "needs the density of the model's latents alone"
    )
