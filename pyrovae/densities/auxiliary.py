"""Auxiliary sites of Pyro's auto guides: they draw the unconstrained latents that the guide transforms.

An auto guide draws an auxiliary site, transforms the draw, and gives each latent as a `Delta` at its value, whose
log_density is the Jacobian. Only both together are the density of the latent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoContinuous, AutoGuide, AutoLaplaceApproximation, AutoNormal, AutoStructured
from torch import Tensor
from torch.distributions import biject_to

from pyrovae.densities.layout import Layout, Plates
from pyrovae.densities.modules import modules_of
from pyrovae.densities.rng import isolated_rng
from pyrovae.densities.traces import Program


@dataclass(frozen=True, eq=False)
class AuxiliarySite:
    """Auxiliary site of an auto guide.

    Attributes:
        name: Name of the site.
        guide: Auto guide that draws it.
        prototypes: Sites of the guide's first run, by the names of the latents that the auxiliary site determines.
    """

    name: str
    guide: AutoGuide
    prototypes: Mapping[str, Any]

    @property
    def is_joint(self) -> bool:
        """Whether the site joins the latents of all data."""
        return isinstance(self.guide, AutoContinuous)

    def value(self, latents: Mapping[str, Tensor], plates: Plates, layout: Layout) -> Tensor:
        """Compute the value of the site from those of its latents.

        Args:
            latents: Value of each latent by name, with shape (K, N, *further plates, *event).
            plates: Sizes of the plates around the site by dim.
            layout: Where draws and data lie.
        """
        if not self.is_joint:
            ((name, site),) = self.prototypes.items()
            return biject_to(site["fn"].support).inv(layout.to_site(latents[name], plates))
        parts = []
        for name, site in self.prototypes.items():
            around = {frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.vectorized}
            value = biject_to(site["fn"].support).inv(layout.to_site(latents[name], around))
            parts.append(value.reshape(layout.num_particles, -1))
        assert layout.particle_dim is not None
        vector = torch.cat(parts, -1)
        return vector.reshape(layout.num_particles, *(1,) * (-layout.particle_dim - 1), vector.shape[-1])


def auto_guides_of(guide: Program) -> list[AutoGuide | EasyGuide]:
    """List the auto guides in a program, and those of `pyro.contrib.easyguide`."""
    parts = {id(part): part for module in modules_of(guide) for part in module.modules()}
    return [part for part in parts.values() if isinstance(part, AutoGuide | EasyGuide)]


def set_up_auto_guides(guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Run a program once if it has an auto guide that makes its parameters in its first run, from these arguments."""
    if any(part.prototype_trace is None for part in auto_guides_of(guide)):
        with isolated_rng(), torch.no_grad(), poutine.block():
            guide(*args, **kwargs)


def auxiliary_sites(guide: Program) -> dict[str, AuxiliarySite]:
    """List the auxiliary sites of the auto guides in a program, by name.

    Raises:
        ValueError: If one is an `AutoStructured`, whose auxiliary sites move each other.
    """
    found = {}
    for part in auto_guides_of(guide):
        if isinstance(part, AutoStructured):
            raise ValueError(
                "AutoStructured has no density at latents that it has not drawn itself, since each of its draws shifts "
                "the later ones; train it with fit if you like, and give an estimator AutoMultivariateNormal, or "
                "another guide"
            )
        if part.prototype_trace is None:
            continue
        latents = dict(part.prototype_trace.iter_stochastic_nodes())
        if isinstance(part, AutoContinuous):
            name = f"_{part._pyro_name}_latent"
            found[name] = AuxiliarySite(name, part, latents)
        elif isinstance(part, AutoNormal):
            for latent, site in latents.items():
                name = f"{latent}_unconstrained"
                found[name] = AuxiliarySite(name, part, {latent: site})
    return found


def auto_guide_rows(guide: Program) -> dict[str, set[int]]:
    """List the numbers of rows that the auto guides in a program hold for plates without subsampling, by type."""
    found: dict[str, set[int]] = {}
    for part in auto_guides_of(guide):
        frames = (part.frames if isinstance(part, EasyGuide) else part._prototype_frames).values()
        sizes = {frame.size for frame in frames if frame.full_size in (None, frame.size)}
        if sizes:
            found.setdefault(type(part).__name__, set()).update(sizes)
    return found


def check_rows(guide: Program, num_data: int) -> None:
    """Raise a ValueError if an auto guide has rows for another number of data."""
    for name, sizes in auto_guide_rows(guide).items():
        if num_data not in sizes:
            raise ValueError(
                f"{name} holds one row of parameters for each datum of its first run, "
                f"{' or '.join(map(str, sorted(sizes)))} data, but got {num_data}; give the data of that run, or "
                "another guide, such as one with an encoder"
            )


def check_separate(auxiliaries: Mapping[str, AuxiliarySite]) -> None:
    """Raise a ValueError if an auxiliary site joins the latents of all data."""
    for auxiliary in auxiliaries.values():
        if auxiliary.is_joint:
            raise ValueError(
                f"{type(auxiliary.guide).__name__} draws the latents of all data jointly, so log p(x_n) is not defined "
                "per datum; use log_evidence for the whole data set, or AutoNormal, which draws each latent by itself"
            )


def check_spread(auxiliaries: Mapping[str, AuxiliarySite]) -> None:
    """Raise a ValueError if an auto guide is a point mass."""
    for auxiliary in auxiliaries.values():
        if isinstance(auxiliary.guide, AutoLaplaceApproximation):
            raise ValueError(
                "AutoLaplaceApproximation is a point mass while it is trained; give the normal that its method "
                "laplace_approximation(*args) returns"
            )
