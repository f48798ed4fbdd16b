"""Proposals: where importance sampling draws the latents of each datum, for any model and guide.

A proposal is an immutable value. `adapt` fits it to the latents of some data and returns a `Component`, which draws and
has a density. Adaptation uses separate draws and densities, never the draws of an estimate.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.densities import evaluating, isolated_rng, sample_sites
from pyrovae.evidence.angles import centre_angles
from pyrovae.evidence.blocks import DEFAULT_CHUNK_SIZE, split_count
from pyrovae.evidence.laplace import LaplaceFit, climb, laplace_fit, normal_at
from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.evidence.modes import find_modes
from pyrovae.evidence.nested import funnel_coordinate, nested_fit, other_funnels
from pyrovae.evidence.nested_component import NestedComponent
from pyrovae.evidence.proposal_components import (
    Component,
    EllipticalComponent,
    MixtureComponent,
    PriorIfUnobserved,
    ProgramComponent,
)

_ADAPTATION_DRAWS = 1000  # for the moments of a guide that are not known in closed form
_PILOT_DRAWS = 250  # per round of adaptation
_PILOT_SHARES = (0.7, 0.1, 0.2)  # of the fit so far, the guide, and the prior


class Proposal(ABC):
    """Choice of where to draw the latents of each datum; `adapt` fits it to data."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name for tables."""

    @abstractmethod
    def adapt(self, space: LatentSpace, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Component:
        """Fit the proposal to the latents of N data.

        Args:
            space: Latents of a model and a guide at these data.
            chunk_size: Number of latents, K times N, decoded at once, which bounds memory.

        Raises:
            ValueError: If the proposal does not support latents of this kind.
        """


@dataclass(frozen=True)
class GuideProposal(Proposal):
    """The guide q(z|x), as in the published protocol; supports any program."""

    name = "guide"

    def adapt(self, space: LatentSpace, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Component:
        """Use the guide unchanged."""
        return ProgramComponent(space, self.name)


@dataclass(frozen=True)
class PriorProposal(Proposal):
    """The model's prior p(z), for simple Monte Carlo; supports any program."""

    name = "prior"

    def adapt(self, space: LatentSpace, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Component:
        """Use the prior unchanged."""
        return ProgramComponent(space, self.name)


@dataclass(frozen=True)
class WidenedProposal(Proposal):
    """Wider or heavier-tailed copy of the guide: its mean and its covariance times scale^2, in the coordinates u.

    Mean and covariance are exact if the guide has one site that is normal (diagonal, full or low rank). Otherwise they
    are estimated from 1,000 draws of the guide, which the estimate does not use.

    Args:
        scale: Factor on the standard deviations.
        df: Degrees of freedom of a Student-t; None for a normal.

    Raises:
        ValueError: If scale or df is not positive.
    """

    scale: float = 1.2
    df: float | None = None

    def __post_init__(self) -> None:
        _check_positive(scale=self.scale, df=self.df)

    @property
    def name(self) -> str:
        """Name for tables."""
        return "guide widened" + ("" if self.df is None else f", t({self.df:g})")

    def adapt(self, space: LatentSpace, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Component:
        """Find the guide's mean and covariance."""
        _check_continuous(space, self.name)
        centre_angles(space, chunk_size)
        loc, tril = _moments(space)
        return EllipticalComponent(space, self.name, loc, self.scale * tril, self.df)


@dataclass(frozen=True)
class LaplaceProposal(Proposal):
    """Student-t or normal with full covariance at the mode of p(z|x) in the coordinates u; see `laplace_fit`.

    In each round of adaptation, 250 draws, which the estimate does not use, come from a mixture of the fit so far, the
    guide and the prior. The draw with the largest weight, where the mixture misses most, becomes the centre of one more
    Student-t or normal (incremental mixture importance sampling: Raftery and Bao 2010, "Estimating and projecting
    trends in HIV/AIDS generalized epidemics using incremental mixture importance sampling", Biometrics 66(4),
    https://doi.org/10.1111/j.1541-0420.2010.01399.x; they take the covariance from neighbours, here it comes from the
    curvature). Adaptation finds skewed and further modes if there are few latents; with many latents it wastes draws.

    Args:
        df: Degrees of freedom of the Student-t; None for a normal.
        steps: Maximum number of Hessians in the climb to the mode.
        starts: Number of starting points per datum.
        modes: "best" for the highest mode, or "all" for a mixture of the modes found, shared by their mass.
        rounds: Number of rounds of adaptation; needs modes="all".
        searches: Maximum number of rounds of the search for further modes (`find_modes`); needs modes="all". Data for
            which the last round still found one get an infinite khat.

    Raises:
        ValueError: If df is not positive, modes is unknown, or rounds or searches is not 0 with modes="best".
    """

    df: float | None = 5.0
    steps: int = 8
    starts: int = 1
    modes: Literal["best", "all"] = "best"
    rounds: int = 0
    searches: int = 0

    def __post_init__(self) -> None:
        _check_positive(df=self.df)
        if self.modes not in ("best", "all"):
            raise ValueError(f'modes must be "best" or "all", got {self.modes!r}')
        for name, rounds in (("rounds", self.rounds), ("searches", self.searches)):
            if rounds < 0 or (rounds and self.modes != "all"):
                raise ValueError(
                    f'{name} must be at least 0, and above 0 needs modes="all"; got {rounds} with {self.modes!r}'
                )

    @property
    def name(self) -> str:
        """Name for tables."""
        shape = "Laplace normal" if self.df is None else f"Laplace t({self.df:g})"
        return f"adapted {shape}" if self.rounds else shape

    def adapt(self, space: LatentSpace, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Component:
        """Climb to the mode of each datum; proposals that differ only in df share one climb."""
        _check_continuous(space, self.name)
        centre_angles(space, chunk_size)
        key = ("laplace", self.steps, self.starts, self.modes, self.rounds, self.searches)
        if key not in space.memo:
            space.memo[key] = self._fit(space, chunk_size)
        return self._component(space, *space.memo[key])

    def _fit(self, space: LatentSpace, chunk_size: int) -> tuple[LaplaceFit, Tensor | None]:
        options: dict[str, int] = {"steps": self.steps, "starts": self.starts, "chunk_size": chunk_size}
        unsettled = None
        if self.searches:
            fit, unsettled = find_modes(space, rounds=self.searches, **options)
        else:
            fit = (climb if self.modes == "all" else laplace_fit)(space, **options)
        for _ in range(self.rounds):
            more = normal_at(space, self._most_missed(space, fit, chunk_size), chunk_size=chunk_size)
            fit = LaplaceFit(*(torch.cat(parts) for parts in zip(fit, more, strict=True)))
        several = fit.mode.dim() > 2
        data = torch.arange(space.num_data, device=fit.mode.device)
        space.climbed = fit.mode[fit.log_joint.argmax(0), data] if several else fit.mode
        return fit, unsettled

    def _component(self, space: LatentSpace, fit: LaplaceFit, unsettled: Tensor | None = None) -> EllipticalComponent:
        component = EllipticalComponent(space, self.name, fit.mode, fit.scale_tril, self.df, fit.rotation, fit.sides)
        if self.modes == "all":
            component.share_by(fit.log_joint)
        component.unsettled = unsettled
        return component

    def _most_missed(self, space: LatentSpace, fit: LaplaceFit, chunk_size: int) -> Tensor:
        """Find the pilot draw with the largest weight, with shape (1, N, U)."""
        programs = [ProgramComponent(space, name) for name in ("guide", "prior")]
        parts = [replace(self, df=5.0)._component(space, fit), *programs]
        mixture, drawn, log_w = MixtureComponent(space, parts, _PILOT_SHARES), [], []
        for count in split_count(_PILOT_DRAWS, chunk_size // space.num_data):
            points = mixture.draw(count)
            weight = sum(points.log_prior_and_likelihood) - mixture.log_density(points)
            drawn.append(points.u.nan_to_num(0.0, 0.0, 0.0))
            log_w.append(torch.where(points.u.isfinite().all(-1), weight.nan_to_num(-torch.inf), -torch.inf))
        highest = torch.cat(log_w).argmax(0)
        return torch.cat(drawn)[highest, torch.arange(space.num_data, device=highest.device)].unsqueeze(0)


@dataclass(frozen=True)
class NestedLaplaceProposal(Proposal):
    """Nested Laplace approximation of a funnel, such as the posterior of a scale and the entries that it scales.

    One coordinate is drawn from its approximate marginal posterior on a grid (`nested_fit`), the others from a
    Student-t or normal at the mode of their posterior given that coordinate, with full covariance. Modes and
    covariances are interpolated between the points of the grid (`NestedComponent`). The coordinate is that of a site
    with one coordinate on which the curvature of the others depends most (`funnel_coordinate`). Data at which a second
    coordinate makes a funnel too get an infinite khat (`other_funnels`).

    Args:
        df: Degrees of freedom of the Student-t; None for a normal.

    Raises:
        ValueError: If df is not positive.
    """

    df: float | None = 5.0

    def __post_init__(self) -> None:
        _check_positive(df=self.df)

    @property
    def name(self) -> str:
        """Name for tables."""
        return "nested Laplace normal" if self.df is None else f"nested Laplace t({self.df:g})"

    def adapt(self, space: LatentSpace, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Component:
        """Fit the slices of the funnel; proposals that differ only in df share them."""
        _check_continuous(space, self.name)
        centre_angles(space, chunk_size)
        held = funnel_coordinate(space, chunk_size)
        if held is None:
            raise ValueError(
                f"the proposal {self.name!r} needs a latent site with one coordinate on which the curvature of the "
                "others depends, such as a scale, but there is none; use LaplaceProposal()"
            )
        if "nested" not in space.memo:
            fit = nested_fit(space, held, chunk_size)
            space.memo["nested"] = fit, other_funnels(space, fit, held, chunk_size)
        fit, unsettled = space.memo["nested"]
        component = NestedComponent(space, self.name, held, fit, self.df)
        component.unsettled = unsettled
        return component


@dataclass(frozen=True)
class MixtureProposal(Proposal):
    r"""Mixture of proposals in fixed shares, log w = log p(x, z) - log sum_s share_s q_s(z) for every draw.

    These weights are the balance heuristic of multiple importance sampling (Veach and Guibas 1995, "Optimally combining
    sampling techniques for Monte Carlo rendering", https://doi.org/10.1145/218380.218498; Owen and Zhou 2000, "Safe and
    effective importance sampling", JASA 95(449)). Draws follow a cycle that holds the shares exactly, and every stretch
    of it as nearly as integers can. The start in the cycle is random, so that p(x) is unbiased for any K. A far draw
    whose log p(x, z) is NaN gets weight 0, unless the guide drew it.

    Args:
        components: Proposals.
        shares: Share of the draws of each proposal, positive, with sum one, rounded to thousandths.

    Raises:
        ValueError: If there is not one positive share for each proposal, or their sum is not one.
    """

    components: Sequence[Proposal]
    shares: Sequence[float]
    label: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        counts = [round(1000 * share) for share in self.shares]
        if len(counts) != len(self.components) or not counts or min(counts) < 1 or sum(counts) != 1000:
            raise ValueError(
                f"shares must be one positive number for each of the {len(self.components)} components, in "
                f"thousandths, with sum one, got {tuple(self.shares)}; divide by the sum, and round"
            )

    @property
    def name(self) -> str:
        """Name for tables."""
        parts = zip(self.components, self.shares, strict=True)
        return self.label or " + ".join(f"{share:g} {part.name}" for part, share in parts)

    def adapt(self, space: LatentSpace, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Component:
        """Adapt every component."""
        parts = [part.adapt(space, chunk_size=chunk_size) for part in self.components]
        return MixtureComponent(space, parts, self.shares)


def DefensiveProposal(share: float = 0.2) -> MixtureProposal:  # noqa: N802  # used like the classes
    """Mix the guide with a share of draws from the prior, which bounds weights by p(x|z) / share; any program."""
    return MixtureProposal((GuideProposal(), PriorProposal()), (1 - share, share))


@dataclass(frozen=True)
class _UnlessUnobserved(Proposal):
    """Another proposal, or the prior for data without an observed entry, whose posterior is the prior."""

    other: Proposal

    @property
    def name(self) -> str:
        """Name for tables."""
        return self.other.name

    def adapt(self, space: LatentSpace, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Component:
        """Adapt the other proposal."""
        return PriorIfUnobserved(space, self.other.adapt(space, chunk_size=chunk_size), space.unobserved)


def default_proposal(space: LatentSpace, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Proposal:
    """Choose the proposal for these latents: a mixture around `LaplaceProposal` if all are continuous.

    If the posterior is a funnel (`funnel_coordinate`), most of the mixture is `NestedLaplaceProposal`. If a latent is
    discrete, or a mask leaves latents out, the choice is `DefensiveProposal`. A distribution without a support causes a
    warning. Data without an observed entry are drawn from the prior, with weights of exactly 1.

    Args:
        space: Latents of a model and a guide at N data.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.
    """
    if "has no support" in space.obstacle:
        warnings.warn(f"{space.obstacle}; draws come from guide and prior alone", stacklevel=2)
    if bool(space.unobserved.all()):
        return _UnlessUnobserved(PriorProposal())
    chosen = _for_observed(space, chunk_size)
    return _UnlessUnobserved(chosen) if bool(space.unobserved.any()) else chosen


def _for_observed(space: LatentSpace, chunk_size: int) -> Proposal:
    """Choose the proposal for data with an observed entry."""
    if not space.continuous or space.masked:
        return DefensiveProposal()
    # More latents have more places to miss; with many latents, finding a place is not worth the draws.
    rounds = 0 if space.size > 6 else 8 if space.size > 2 else 3
    laplace = LaplaceProposal(starts=4, modes="all", rounds=rounds, searches=6)  # posteriors may have several modes
    others = (GuideProposal(), PriorProposal())
    if funnel_coordinate(space, chunk_size) is not None:
        nested = NestedLaplaceProposal()
        parts = (nested, replace(nested, df=None), laplace, replace(laplace, df=None), *others)
        return MixtureProposal(parts, (0.35, 0.1, 0.2, 0.05, 0.1, 0.2))
    return MixtureProposal((laplace, replace(laplace, df=None), *others), (0.6, 0.1, 0.1, 0.2))


def _moments(space: LatentSpace) -> tuple[Tensor, Tensor]:
    """Find the guide's mean, with shape (N, U), and Cholesky factor of the covariance, (N, U, U), in u."""
    with evaluating(space.guide), isolated_rng():
        sites = sample_sites(poutine.trace(space.guide).get_trace(*space.args, **space.kwargs))
    if len(sites) == 1 and space.is_real and space.guide.data_dim is not None:
        (fn,) = (site["fn"] for site in sites.values())
        while isinstance(fn, dist.Independent):
            fn = fn.base_dist
        shape = (space.num_data, space.size)
        if isinstance(fn, torch.distributions.Normal):
            return fn.mean.expand(*shape[:1], *fn.mean.shape[1:]).reshape(shape), torch.diag_embed(
                fn.stddev.expand(*shape[:1], *fn.stddev.shape[1:]).reshape(shape).double()
            )
        if isinstance(fn, torch.distributions.MultivariateNormal | torch.distributions.LowRankMultivariateNormal):
            return fn.mean.expand(shape), fn.scale_tril.double().expand(*shape, space.size)
    u = space.pack(space.from_guide(_ADAPTATION_DRAWS))
    away = (u - u.mean(0)).double()
    covariance = torch.einsum("kni,knj->nij", away, away) / (len(u) - 1)
    floor = torch.diag_embed(1e-9 * covariance.diagonal(dim1=-2, dim2=-1) + torch.finfo(torch.float64).tiny)
    return u.mean(0), torch.linalg.cholesky(covariance + floor)


def _check_continuous(space: LatentSpace, name: str) -> None:
    if not space.continuous or space.masked:
        reason = space.obstacle or "a mask leaves latents of some data out"
        raise ValueError(
            f"the proposal {name!r} needs continuous latents for all data, but {reason}; use GuideProposal() or "
            "DefensiveProposal()"
        )


def _check_positive(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value}")


ProposalName = Literal["default", "laplace", "guide", "prior", "defensive", "widened", "widened-t"]

# Proposals by their names on the command line; None for the default of the model.
PROPOSALS: dict[ProposalName, Proposal | None] = {
    "default": None,
    "laplace": None,
    "guide": GuideProposal(),
    "prior": PriorProposal(),
    "defensive": DefensiveProposal(),
    "widened": WidenedProposal(),
    "widened-t": WidenedProposal(df=5.0),
}
