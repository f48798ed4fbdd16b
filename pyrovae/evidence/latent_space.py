"""The latents of a model and a guide at given data: their densities at any point, and a space without constraints.

Proposals, annealing and refinement stand on this: they see log densities and vectors of real numbers, never a model.
"""

import math
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

from pyrovae.bijections import bijection
from pyrovae.densities import (
    Program,
    isolated_rng,
    matched_latents,
    num_data,
    sample_sites,
    substitute,
    trace_log_density,
    trace_with_particles,
)
from pyrovae.execution import Chunks

Latents = dict[str, Tensor]


class LatentSpace:
    """What can be asked of a model and a guide at N data: densities of latents, draws, and unconstrained coordinates.

    Latents go by site, each with shape (K, N, ...). Where all sites are continuous they have coordinates u, with shape
    (K, N, U), each site carried to the real numbers by the inverse of `bijection(support)`. The modules should be in
    evaluation mode (`evaluating`). Where a value lies outside a distribution's support its density is zero.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments; None for what asks of the model alone.
        *args: Arguments of both, the data first, with shape (N, ...).
        **kwargs: Keyword arguments of both.

    Raises:
        ValueError: If the programs break the contract of `log_weights`, or the model has no latent site.

    Attributes:
        chunks: Replays densities that are asked for without gradients; None where they run eagerly.
        num_data: N.
        continuous: Whether there are coordinates u: no site is discrete, and each support has a known bijection.
        size: U; 0 where there are none.
        masked: Whether a mask leaves latents of some data out.
        memo: What proposals found out here and share.
    """

    def __init__(self, model: Program, guide: Program | None, *args: Any, **kwargs: Any) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.guide: Any = guide  # None where nothing asks of it
        self.chunks: Chunks | None = None
        self.num_data = num_data(args, kwargs)
        with isolated_rng(), torch.no_grad(), pyro.validation_enabled(False):
            if guide is not None:
                guide_trace = trace_with_particles(guide, 1, *args, **kwargs)
                model = poutine.replay(model, trace=guide_trace)
            model_trace = trace_with_particles(model, 1, *args, **kwargs)
        priors = sample_sites(model_trace)
        if guide is None:
            sites = {name: site for name, site in priors.items() if not site["is_observed"]}
            if not sites:
                raise ValueError("the model has no latent site, so log p(x) is its log density; take log_joint")
        else:
            sites = matched_latents(model_trace, guide_trace)
            trace_log_density(guide_trace, 1, "guide")
        trace_log_density(model_trace, 1, "model")
        # The model's support is the space; a guide's may be a part of it.
        self.supports = {name: priors[name]["fn"].support for name in sites}
        masks = (torch.as_tensor(True if site["mask"] is None else site["mask"]) for site in sites.values())
        self.masked = not all(bool(mask.all()) for mask in masks)
        self.memo: dict[Any, Any] = {}
        self.continuous = not any(support.is_discrete for support in self.supports.values())
        self.size = 0
        self._event_shapes = {}
        for name, site in sites.items():
            try:
                to_support = bijection(_plain(self.supports[name]))
            except ValueError:  # the reader's own support, say: all but its coordinates can still be asked for
                self.continuous = False
            else:
                self._event_shapes[name] = to_support.inverse_shape(torch.Size(site["value"].shape[2:]))
        if self.continuous:
            self.size = sum(math.prod(shape) for shape in self._event_shapes.values())

    def prior_sites(self) -> dict[str, Any]:
        """The distribution of each latent site in one run of the model."""
        with isolated_rng():
            sites = sample_sites(trace_with_particles(self.model, 1, *self.args, **self.kwargs))
        return {name: sites[name]["fn"] for name in self.supports}

    def log_model(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """Log p(z) and log p(x|z) in nats, each with shape (K, N), of latents with shape (K, N, ...)."""
        log_prior, log_lik = self._evaluated("log p(x, z)", partial(_log_model, self.model), _length(latents), latents)
        return log_prior, log_lik

    def log_guide(self, latents: Latents) -> Tensor:
        """Log q(z|x) in nats, with shape (K, N), of latents with shape (K, N, ...)."""
        function = partial(_log_guide, self._given_guide())
        return self._evaluated("log q(z|x)", function, _length(latents), latents)[0]

    def _evaluated(self, name: str, function: Any, num_particles: int, latents: Latents) -> Any:
        if self.chunks is None:
            return function(latents, self.args, self.kwargs)
        return self.chunks(name, function, (num_particles, self.num_data), latents, self.args, self.kwargs)

    def from_guide(self, num_particles: int) -> Latents:
        """Draw latents from the guide, each with shape (K, N, ...)."""
        return self._drawn("draws of the guide", self._given_guide(), num_particles)

    def from_prior(self, num_particles: int) -> Latents:
        """Draw latents from the model's p(z), each with shape (K, N, ...)."""
        return self._drawn("draws of the prior", self.model, num_particles)

    def unpack(self, u: Tensor) -> tuple[Latents, Tensor]:
        """The latents at coordinates u, with shape (K, N, U), and log |det dz/du|, with shape (K, N)."""
        latents, log_det = {}, u.new_zeros(u.shape[:-1])
        parts = u.split([math.prod(shape) for shape in self._event_shapes.values()], -1)
        for (name, shape), part in zip(self._event_shapes.items(), parts, strict=True):
            transform = bijection(_plain(self.supports[name]))
            y = part.reshape(*part.shape[:-1], *shape)
            latents[name] = transform(y)
            jacobian = transform.log_abs_det_jacobian(y, latents[name])
            log_det = log_det + jacobian.reshape(*u.shape[:-1], -1).sum(-1)
        return latents, log_det

    def pack(self, latents: Latents) -> Tensor:
        """The coordinates u, with shape (K, N, U), of latents with shape (K, N, ...)."""
        parts = []
        for name in self._event_shapes:
            y = bijection(_plain(self.supports[name])).inv(latents[name])
            parts.append(y.reshape(*latents[name].shape[:2], -1))
        return torch.cat(parts, -1)

    def log_joint(self, u: Tensor) -> Tensor:
        """Log p(x, z(u)) |dz/du| in nats, with shape (K, N), of coordinates u with shape (K, N, U)."""
        latents, log_det = self.unpack(u)
        log_prior, log_lik = self.log_model(latents)
        return log_prior + log_lik + log_det

    def _given_guide(self) -> Program:
        if self.guide is None:
            raise ValueError("no guide was given, and this needs one; give a guide with the model's latent sites")
        return self.guide

    def _drawn(self, name: str, program: Program, num_particles: int) -> Latents:
        function = partial(_draws, program, list(self.supports), (num_particles, self.num_data))
        return dict(zip(self.supports, self._evaluated(name, function, num_particles, {}), strict=True))


def _length(latents: Latents) -> int:
    return next(iter(latents.values())).shape[0]


def _draws(
    program: Program,
    names: list[str],
    shape: tuple[int, int],
    latents: Latents,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[Tensor]:
    sites = sample_sites(trace_with_particles(program, shape[0], *args, **kwargs))
    return [sites[name]["value"].expand(*shape, *sites[name]["fn"].event_shape) for name in names]


def _log_model(
    model: Program, latents: Latents, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    draws = _length(latents)
    trace = trace_with_particles(substitute(latents)(model), draws, *args, **kwargs)
    log_p, log_lik = trace_log_density(trace, draws, "model")
    return _where_supported(trace, log_p - log_lik), log_lik


def _log_guide(guide: Program, latents: Latents, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor]:
    draws = _length(latents)
    trace = trace_with_particles(substitute(latents)(guide), draws, *args, **kwargs)
    return (_where_supported(trace, trace_log_density(trace, draws, "guide")[0]),)


def _where_supported(trace: poutine.Trace, log_p: Tensor) -> Tensor:
    """The log density of latents, -inf where one lies outside its support: some of torch's go on beyond theirs."""
    for site in sample_sites(trace).values():
        if not site["is_observed"]:
            outside = ~site["fn"].support.check(site["value"])
            if site["mask"] is not None:
                outside = outside & torch.as_tensor(site["mask"], device=outside.device)
            log_p = torch.where(outside, -torch.inf, log_p)
    return log_p


def _plain(support: constraints.Constraint) -> constraints.Constraint:
    """The support of one value where a distribution says that of a vector of independent ones, or of a mixture."""
    while isinstance(support, constraints.independent | constraints.MixtureSameFamilyConstraint):
        support = support.base_constraint
    return support
