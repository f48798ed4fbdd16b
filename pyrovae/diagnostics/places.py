"""Places of latent space for one datum: the prior's quantiles and density, and decoding inside its support."""

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.densities import (
    ParticleTrace,
    Program,
    device_of,
    entry_of,
    evaluating,
    isolated_rng,
    num_data,
    vectorize,
)
from pyrovae.diagnostics.codes import decode_means, quantiles_of
from pyrovae.diagnostics.draws import flat, site_entries

_ALIKE = 1e-5  # relative difference of the scales of an isotropic normal


class OutsideSupportError(ValueError):
    """A place lies outside the support of a latent, such as a simplex."""


class LatentSpace:
    """Latent space of a model, given the arguments of one datum.

    Args:
        model: Pyro program p(z) p(x|z).
        args: Positional arguments of the model for one datum, with shape (1, ...).
        kwargs: Keyword arguments of the model for one datum.
        sites: Shape of one latent of each site, by name, as `Codes.sites`.
        seed: Random seed; the global random state is restored at the end.

    Raises:
        ValueError: If the arguments are not those of one datum.
    """

    def __init__(
        self,
        model: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        sites: Mapping[str, torch.Size],
        seed: int = 0,
    ) -> None:
        if num_data(args, kwargs) != 1:
            raise ValueError(f"latent space needs the arguments of one datum, got {num_data(args, kwargs)}; select one")
        self.model, self.args, self.kwargs, self.sites, self.seed = model, args, kwargs, sites, seed

    def trace(self, z: Tensor | None = None, count: int = 0) -> ParticleTrace:
        """Trace the model at places with shape (M, J), or at draws of the prior; gradients pass if they are enabled."""
        given: dict[str, Tensor] | None = None
        start, grad = 0, torch.is_grad_enabled()
        if z is not None:
            given, device = {}, device_of(self.args, self.kwargs)
            for name, shape in self.sites.items():
                values = z[:, start : start + shape.numel()].to(device, torch.get_default_dtype())
                given[name], start = values.reshape(len(z), 1, *shape), start + shape.numel()
        with isolated_rng(self.seed), evaluating(self.model), pyro.validation_enabled(False):
            program = vectorize(self.model, None, self.args, self.kwargs)[0]
            with torch.set_grad_enabled(grad):
                return program.trace(count if z is None else len(z), self.args, self.kwargs, given)

    def prior(self, count: int) -> Tensor:
        """Draw from the prior, with shape (M, J), float64."""
        return self._joined(self.trace(count=count))

    def quantiles(self, levels: Tensor, count: int = 10_000) -> Tensor:
        """Return the prior's quantiles, with shape (G, J): exact if it has an inverse cdf, else those of draws."""
        trace = self.trace(count=count)
        return torch.cat([quantiles_of(trace.latents[name], levels).cpu() for name in self.sites], 1)

    def log_prior(self, z: Tensor) -> Tensor:
        """Compute log p(z) in nats at places with shape (M, J), differentiable in z; the result has shape (M,)."""
        trace = self.trace(z)
        parts = [trace.latents[name].log_density()[:, 0] for name in self.sites]
        return torch.stack(parts).sum(0).double().cpu()

    def isotropic_normal(self) -> tuple[Tensor, float] | None:
        """Return mean, with shape (J,), and standard deviation of the prior if it is N(m, s^2 I), else None."""
        trace = self.trace(count=2)
        found = [(site, entry_of(site.fn)) for site in (trace.latents[name] for name in self.sites)]
        if not all(isinstance(entry, torch.distributions.Normal) for _, entry in found):
            return None
        means, scales = (
            torch.cat([site_entries(site, part(entry)).flatten(0, 1).double().cpu() for site, entry in found], -1)
            for part in (lambda entry: entry.loc.detach(), lambda entry: entry.scale.detach())
        )
        scale = float(scales.mean())
        if float((scales - scale).abs().max()) > _ALIKE * scale or not bool((means == means[:1]).all()):
            return None
        return means[0], scale

    def decode(self, z: Tensor) -> Tensor:
        """Compute E[x|z] at places with shape (M, J); the result has shape (M, D).

        Raises:
            OutsideSupportError: If a place lies outside the support of a latent.
        """
        with torch.no_grad():
            trace = self.trace(z)
            for name in self.sites:
                site = trace.latents[name]
                if not bool(site.fn.support.check(site.raw_value).all()):
                    raise OutsideSupportError(
                        f"a place lies outside the support of site {name!r}, {site.fn.support}; choose places inside, "
                        "such as draws or points between data"
                    )
        return decode_means(self.model, *self.args, z=z, sites=self.sites, seed=self.seed, **self.kwargs)

    def _joined(self, trace: ParticleTrace) -> Tensor:
        return torch.cat([flat(trace.latents[name].value)[:, 0] for name in self.sites], -1)
