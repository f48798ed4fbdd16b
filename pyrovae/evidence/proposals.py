"""Proposals: where importance sampling draws the latents of each datum, for any model and guide.

A proposal is a value: what to do. Adapted to the latents of some data it is a component, which draws and has a density.
What it adapts to are draws and densities of its own, never the draws of an estimate.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.densities import evaluating, isolated_rng, sample_sites
from pyrovae.evidence.laplace import LaplaceFit, chunks, climb, laplace_fit, normal_at
from pyrovae.evidence.latent_space import Latents, LatentSpace

_ADAPTATION_DRAWS = 1000  # for moments of a guide that does not tell its own
_PILOT_DRAWS = 250  # of a round of adaptation
_PILOT_SHARES = (0.7, 0.1, 0.2)  # of what was found so far, the guide, the prior
_EVEN = 0.2  # of a mixture of modes in equal shares: the mass of a mode is known roughly


class Points:
    """Draws of the latents, with what all components and the estimate ask of them worked out once.

    Args:
        space: The latents' space.
        latents: Values by site, each with shape (K, N, ...); None where u tells them.
        u: Coordinates, with shape (K, N, U); None where the latents tell them.
        component: Which component of a mixture each draw came from, with shape (K,); None for one and the same.
    """

    def __init__(
        self,
        space: LatentSpace,
        latents: Latents | None = None,
        u: Tensor | None = None,
        component: Tensor | None = None,
    ) -> None:
        self.space = space
        if latents is not None:
            self.latents = latents
        if u is not None:
            self.u = u
        if component is not None:
            self.component = component

    @cached_property
    def latents(self) -> Latents:
        """Values by site, each with shape (K, N, ...)."""
        return self.space.unpack(self.u)[0]

    @cached_property
    def u(self) -> Tensor:
        """Coordinates, with shape (K, N, U)."""
        return self.space.pack(self.latents)

    @cached_property
    def component(self) -> Tensor:
        """Which component of a mixture each draw came from, with shape (K,)."""
        return torch.zeros(len(self), dtype=torch.long)

    @cached_property
    def log_det(self) -> Tensor:
        """Log |det dz/du|, with shape (K, N)."""
        return self.space.unpack(self.u)[1]

    @cached_property
    def log_prior_and_likelihood(self) -> tuple[Tensor, Tensor]:
        """Log p(z) and log p(x|z) in nats, each with shape (K, N)."""
        return self.space.log_model(self.latents)

    def __len__(self) -> int:
        return len(next(iter(self.latents.values())) if "latents" in self.__dict__ else self.u)


class Component(ABC):
    """A density q(z) for each datum, to draw from: a proposal after it was adapted to the latents of N data.

    Attributes:
        names: What it is made of, in the reader's words.
        shares: The share of the draws that each of these gets.
        undefined: At how many draws of the prior log p(x, z) was NaN and counts as -inf, with shape (N,); None for a
            component that leaves NaN where it is.
    """

    undefined: Tensor | None = None
    names: tuple[str, ...] = ()
    shares: tuple[float, ...] = (1.0,)

    @abstractmethod
    def draw(self, num_particles: int) -> Points:
        """Draw latents, with shape (K, N, ...)."""

    @abstractmethod
    def log_density(self, points: Points) -> Tensor:
        """Log q(z) in nats, with shape (K, N), in the latents' own space."""

    def log_weights(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Draw, and return log p(x, z) - log q(z) in nats, with shape (K, N), and which component drew, (K,)."""
        points = self.draw(num_particles)
        log_prior, log_lik = points.log_prior_and_likelihood
        log_p = self._log_joint(points, log_prior + log_lik)
        return torch.where(log_p == -torch.inf, -torch.inf, log_p - self.log_density(points)), points.component

    def _log_joint(self, points: Points, log_p: Tensor) -> Tensor:
        return log_p


class Proposal(ABC):
    """Where to draw the latents of each datum from; a value, that `adapt` fits to data."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name, for tables."""

    @abstractmethod
    def adapt(self, space: LatentSpace, *, chunk_size: int = 8192) -> Component:
        """Fit it to the latents of N data.

        Args:
            space: Latents of a model and a guide at these data.
            chunk_size: Latents decoded at once.

        Raises:
            ValueError: If it cannot serve latents of this kind.
        """


@dataclass(frozen=True)
class GuideProposal(Proposal):
    """The guide q(z|x) itself, as in the published protocol; for any program."""

    name = "guide"

    def adapt(self, space: LatentSpace, *, chunk_size: int = 8192) -> Component:
        """Take the guide as it is."""
        return _Program(space, self.name)


@dataclass(frozen=True)
class PriorProposal(Proposal):
    """The model's p(z): simple Monte Carlo; for any program."""

    name = "prior"

    def adapt(self, space: LatentSpace, *, chunk_size: int = 8192) -> Component:
        """Take the prior as it is."""
        return _Program(space, self.name)


class _Program(Component):
    def __init__(self, space: LatentSpace, name: str) -> None:
        self.space, self.names = space, (name,)

    def draw(self, num_particles: int) -> Points:
        from_program = self.space.from_guide if self.names == ("guide",) else self.space.from_prior
        return Points(self.space, from_program(num_particles))

    def log_density(self, points: Points) -> Tensor:
        if self.names == ("guide",):
            return self.space.log_guide(points.latents)
        return points.log_prior_and_likelihood[0]


@dataclass(frozen=True)
class WidenedProposal(Proposal):
    """A wider or heavier-tailed copy of the guide: its mean, its covariance times scale^2, in the coordinates u.

    Mean and covariance are exact where the guide's sites are normal (diagonal, full or low rank) and independent of one
    another; else they are those of 1,000 draws from the guide, which the estimate does not use.

    Args:
        scale: Factor of the standard deviations.
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
        """Its name, for tables."""
        return "guide widened" + ("" if self.df is None else f", t({self.df:g})")

    def adapt(self, space: LatentSpace, *, chunk_size: int = 8192) -> Component:
        """Read off the guide's mean and covariance."""
        _check_continuous(space, self.name)
        loc, tril = _moments(space)
        return _Elliptical(space, self.name, loc, self.scale * tril, self.df)


@dataclass(frozen=True)
class LaplaceProposal(Proposal):
    """A Student-t or a normal, with full covariance, at the mode of p(z|x) in the coordinates u; see `laplace_fit`.

    In each round of adaptation 250 draws, which the estimate does not use, come from a mixture of what was found so far
    with the guide and the prior, and the one with the largest weight, where the mixture misses most, becomes the centre
    of one more Student-t or normal (incremental mixture importance sampling: Raftery and Bao 2010, "Estimating and
    projecting trends in HIV/AIDS generalized epidemics using incremental mixture importance sampling", Biometrics
    66(4), https://doi.org/10.1111/j.1541-0420.2010.01399.x; they take the covariance from neighbours, here it comes
    from the curvature). That finds skewed and further modes where there are few latents; with many it wastes draws.

    Args:
        df: Degrees of freedom of the Student-t; None for a normal.
        steps: Hessians at most, in the climb to the mode.
        starts: Starting points for each datum.
        modes: "best" for the highest mode, "all" for a mixture of those that the starts found, by their weight.
        rounds: Rounds of adaptation, which need modes "all".

    Raises:
        ValueError: If df is not positive, modes is another word, or rounds are asked of the best mode alone.
    """

    df: float | None = 5.0
    steps: int = 8
    starts: int = 1
    modes: Literal["best", "all"] = "best"
    rounds: int = 0

    def __post_init__(self) -> None:
        _check_positive(df=self.df)
        if self.modes not in ("best", "all"):
            raise ValueError(f'modes must be "best" or "all", got {self.modes!r}')
        if self.rounds < 0 or (self.rounds and self.modes != "all"):
            raise ValueError(f'rounds must be 0 or more, and need modes="all"; got {self.rounds}, {self.modes!r}')

    @property
    def name(self) -> str:
        """Its name, for tables."""
        shape = "Laplace normal" if self.df is None else f"Laplace t({self.df:g})"
        return f"adapted {shape}" if self.rounds else shape

    def adapt(self, space: LatentSpace, *, chunk_size: int = 8192) -> Component:
        """Climb to the mode of each datum; proposals that differ in df alone share one climb."""
        _check_continuous(space, self.name)
        key = ("laplace", self.steps, self.starts, self.modes, self.rounds)
        if key not in space.memo:
            find = climb if self.modes == "all" else laplace_fit
            fit = find(space, steps=self.steps, starts=self.starts, chunk_size=chunk_size)
            for _ in range(self.rounds):
                more = normal_at(space, self._most_missed(space, fit, chunk_size), chunk_size=chunk_size)
                fit = LaplaceFit(*(torch.cat(parts) for parts in zip(fit, more, strict=True)))
            space.memo[key] = fit
        return self._component(space, space.memo[key])

    def _component(self, space: LatentSpace, fit: LaplaceFit) -> "_Elliptical":
        component = _Elliptical(space, self.name, fit.mode, fit.scale_tril, self.df)
        if self.modes == "all":
            component.share_by(fit.log_joint)
        return component

    def _most_missed(self, space: LatentSpace, fit: LaplaceFit, chunk_size: int) -> Tensor:
        """The pilot draw with the largest weight, with shape (1, N, U)."""
        parts = [replace(self, df=5.0)._component(space, fit), _Program(space, "guide"), _Program(space, "prior")]
        mixture, drawn, log_w = _Mixture(space, parts, _PILOT_SHARES), [], []
        for count in chunks(_PILOT_DRAWS, chunk_size // space.num_data):
            points = mixture.draw(count)
            weight = sum(points.log_prior_and_likelihood) - mixture.log_density(points)
            drawn.append(points.u.nan_to_num(0.0, 0.0, 0.0))
            log_w.append(torch.where(points.u.isfinite().all(-1), weight.nan_to_num(-torch.inf), -torch.inf))
        highest = torch.cat(log_w).argmax(0)
        return torch.cat(drawn)[highest, torch.arange(space.num_data, device=highest.device)].unsqueeze(0)


class _Elliptical(Component):
    """Normals or Student-t's in u: loc with shape (S, N, U) or (N, U), scale_tril with one U more, shares (S, N)."""

    def __init__(self, space: LatentSpace, name: str, loc: Tensor, scale_tril: Tensor, df: float | None) -> None:
        self.space, self.names, self.df, size = space, (name,), df, loc.shape[-1]
        self.loc = loc.reshape(-1, *loc.shape[-2:])
        self.scale_tril = scale_tril.double().reshape(-1, *scale_tril.shape[-3:])
        # One inverse for all K draws: Pyro's own densities solve K N triangular systems.
        eye = torch.eye(size, dtype=torch.float64, device=loc.device).expand_as(self.scale_tril)
        self.inverse = torch.linalg.solve_triangular(self.scale_tril, eye, upper=False)
        self.log_norm = self.inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if df is None:
            self.log_norm = self.log_norm - size * math.log(2 * math.pi) / 2
        else:
            gammas = math.lgamma((df + size) / 2) - math.lgamma(df / 2)
            self.log_norm = self.log_norm + gammas - size * math.log(df * math.pi) / 2
        self.share = torch.full(self.loc.shape[:2], 1 / len(self.loc), dtype=torch.float64, device=loc.device)

    def share_by(self, log_joint: Tensor) -> None:
        """Share by the mass of each mode, its height times its volume; a mode found again counts once."""
        log_mass = log_joint.double() + self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        away = self.loc.double().unsqueeze(1) - self.loc.double()
        found = torch.einsum("snij,tsnj->tsni", self.inverse, away).square().sum(-1).mul(-0.5).exp().sum(0)
        mass = (log_mass - found.log()).nan_to_num(-torch.inf, -torch.inf).softmax(0).nan_to_num(0.0)
        self.share = (1 - _EVEN) * mass + _EVEN / len(mass)
        self.share = self.share / self.share.sum(0)

    def draw(self, num_particles: int) -> Points:
        _, num_data, size = self.loc.shape
        noise = torch.randn(num_particles, num_data, size, dtype=self.loc.dtype, device=self.loc.device)
        if self.df is not None:
            gamma = dist.Gamma(self.loc.new_tensor(self.df / 2), self.loc.new_tensor(self.df / 2))
            noise = noise / gamma.sample((num_particles, num_data)).sqrt().unsqueeze(-1)
        which = torch.multinomial(self.share.T, num_particles, replacement=True).T
        u = sum(
            (which == s).unsqueeze(-1) * (loc + torch.einsum("nij,knj->kni", tril.to(noise), noise))
            for s, (loc, tril) in enumerate(zip(self.loc, self.scale_tril, strict=True))
        )
        return Points(self.space, u=u)

    def log_density(self, points: Points) -> Tensor:
        away = points.u.double().unsqueeze(1) - self.loc.double()  # (K, S, N, U)
        square = torch.einsum("snij,ksnj->ksni", self.inverse, away).square().sum(-1)
        if self.df is None:
            each = self.log_norm - square / 2
        else:
            each = self.log_norm - (self.df + self.loc.shape[-1]) / 2 * torch.log1p(square / self.df)
        return (self.share.log() + each).logsumexp(1) - points.log_det


@dataclass(frozen=True)
class MixtureProposal(Proposal):
    r"""Several proposals in fixed shares: log w = log p(x, z) - log sum_s share_s q_s(z), whichever drew z.

    The balance heuristic of multiple importance sampling (Veach and Guibas 1995, "Optimally combining sampling
    techniques for Monte Carlo rendering", https://doi.org/10.1145/218380.218498; Owen and Zhou 2000, "Safe and
    effective importance sampling", JASA 95(449)). Draws follow a cycle that holds the shares exactly and any stretch of
    it as well as integers can; where in the cycle it starts is drawn, so that p(x) is unbiased for any K. A draw whose
    log p(x, z) is NaN, far out, has no weight, unless the guide drew it.

    Args:
        components: The proposals.
        shares: The share of the draws of each, rounded to thousandths; positive, with sum one.

    Raises:
        ValueError: If there is not one positive share for each, or their sum is not one.
    """

    components: Sequence[Proposal]
    shares: Sequence[float]
    label: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        counts = [round(1000 * share) for share in self.shares]
        if len(counts) != len(self.components) or not counts or min(counts) < 1 or sum(counts) != 1000:
            raise ValueError(
                f"shares must be one positive number for each of the {len(self.components)} components, in "
                f"thousandths, with sum one; got {tuple(self.shares)}"
            )

    @property
    def name(self) -> str:
        """Its name, for tables."""
        parts = zip(self.components, self.shares, strict=True)
        return self.label or " + ".join(f"{share:g} {part.name}" for part, share in parts)

    def adapt(self, space: LatentSpace, *, chunk_size: int = 8192) -> Component:
        """Adapt every component."""
        return _Mixture(space, [part.adapt(space, chunk_size=chunk_size) for part in self.components], self.shares)


class _Mixture(Component):
    def __init__(self, space: LatentSpace, parts: Sequence[Component], shares: Sequence[float]) -> None:
        self.space, self.parts, self.shares = space, parts, tuple(shares)
        self.names = tuple(" and ".join(part.names) for part in parts)
        self.cycle = _cycle(shares)
        self.next = int(torch.randint(len(self.cycle), ()))
        self.undefined: Tensor = torch.zeros((), dtype=torch.long)

    def draw(self, num_particles: int) -> Points:
        which = self.cycle[(self.next + torch.arange(num_particles)) % len(self.cycle)]
        self.next += num_particles
        counts = which.bincount(minlength=len(self.parts)).tolist()
        drawn = [part.draw(count) for part, count in zip(self.parts, counts, strict=True) if count]
        back = which.argsort(stable=True).argsort()
        latents = {name: torch.cat([points.latents[name] for points in drawn])[back] for name in self.space.supports}
        # Coordinates of their own stay as they were drawn: the inverse of the bijection would round them.
        u = torch.cat([points.u for points in drawn])[back] if self.space.continuous else None
        return Points(self.space, latents, u, which)

    def log_density(self, points: Points) -> Tensor:
        each = []
        for index, (share, part) in enumerate(zip(self.shares, self.parts, strict=True)):
            log_q = math.log(share) + part.log_density(points).double()
            far = log_q.isnan()
            if part.names == ("guide",):  # which has a density where it drew: NaN there is to be refused
                far &= (points.component != index).to(log_q.device).unsqueeze(-1)
            each.append(torch.where(far, -torch.inf, log_q))
        return torch.stack(each).logsumexp(0)

    def _log_joint(self, points: Points, log_p: Tensor) -> Tensor:
        """Far draws may have no density, by overflow; those of the guide are to be refused, the prior's told of."""

        def drew(name: str) -> Tensor:
            of_this_name = torch.tensor([part.names == (name,) for part in self.parts])
            return of_this_name[points.component].to(log_p.device).unsqueeze(-1)

        unknown = log_p.isnan()
        self.undefined = self.undefined + (unknown & drew("prior")).sum(0)  # where log_p is: nothing waits for a card
        return torch.where(unknown & ~drew("guide"), -torch.inf, log_p)


def DefensiveProposal(share: float = 0.2) -> MixtureProposal:  # noqa: N802  # one of the proposals, to the reader
    """The guide with this share of draws from the prior, which bounds the weights by p(x|z) / share; any program."""
    return MixtureProposal((GuideProposal(), PriorProposal()), (1 - share, share))


def default_proposal(space: LatentSpace) -> Proposal:
    """The proposal that serves these latents: a mixture around `LaplaceProposal` where they are continuous.

    Where one is discrete, or a mask leaves some out, `DefensiveProposal`.
    """
    if not space.continuous or space.masked:
        return DefensiveProposal()
    # More latents have more places to be missed; with many, a place is worth less than the draws it takes.
    rounds = 0 if space.size > 6 else 8 if space.size > 2 else 3
    laplace = LaplaceProposal(starts=4, modes="all", rounds=rounds)  # posteriors may have several modes, of any size
    parts = (laplace, replace(laplace, df=None), GuideProposal(), PriorProposal())
    return MixtureProposal(parts, (0.6, 0.1, 0.1, 0.2))


def _cycle(shares: Sequence[float]) -> Tensor:
    """Components in turn, each stretch as near to the shares as integers can: the one that is furthest behind next."""
    counts = torch.tensor([round(1000 * share) for share in shares])
    length = 1000 // math.gcd(1000, *counts.tolist())
    wanted, given, out = counts / 1000, torch.zeros(len(counts)), []
    for k in range(length):
        out.append(int((wanted * (k + 1) - given).argmax()))
        given[out[-1]] += 1
    return torch.tensor(out)


def _moments(space: LatentSpace) -> tuple[Tensor, Tensor]:
    """Mean, with shape (N, U), and Cholesky factor of the covariance, (N, U, U), of the guide in u; see the class."""
    with evaluating(space.guide), isolated_rng():
        sites = sample_sites(poutine.trace(space.guide).get_trace(*space.args, **space.kwargs))
    if len(sites) == 1:
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
        reason = "a mask leaves latents of some data out" if space.continuous else "a latent is discrete"
        raise ValueError(f"the proposal {name!r} cannot serve: {reason}; take GuideProposal() or DefensiveProposal()")


def _check_positive(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value}")


ProposalName = Literal["default", "laplace", "guide", "prior", "defensive", "widened", "widened-t"]

# What the scripts call them; None is the default of the model at hand.
PROPOSALS: dict[ProposalName, Proposal | None] = {
    "default": None,
    "laplace": None,
    "guide": GuideProposal(),
    "prior": PriorProposal(),
    "defensive": DefensiveProposal(),
    "widened": WidenedProposal(),
    "widened-t": WidenedProposal(df=5.0),
}
