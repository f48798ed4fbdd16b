"""Components: densities q(z) per datum to draw from, made by adapting a proposal to N data."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.evidence.laplace import SKEWED_FROM
from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.evidence.points import Points

_EVEN = 0.2  # share of a mixture of modes that is equal for all modes, whose masses are known roughly


class Component(ABC):
    """Density q(z) per datum to draw from: a proposal adapted to the latents of N data.

    Attributes:
        names: Names of the parts, for tables.
        shares: Share of the draws of each part.
        undefined: Number of draws from the prior where log p(x, z) is NaN and counts as -inf, with shape (N,); None for
            a component that keeps NaN.
        lost: Whether the guide lost its share of a mixture for a datum, with shape (N,); None without a guide.
        defined: Whether log p(x, z) is a number at any draw, with shape (N,).
        unsettled: Whether the adaptation knows that it misses a part of the posterior, with shape (N,): its search for
            modes still found one when it ended, or a second scale makes a funnel; None without such a check.
        from_prior: Whether all draws of a datum come from the prior, since none of its entries is observed, with shape
            (N,); None if every datum has an observed entry.
    """

    undefined: Tensor | None = None
    lost: Tensor | None = None
    defined: Tensor = torch.ones((), dtype=torch.bool)
    unsettled: Tensor | None = None
    from_prior: Tensor | None = None
    names: tuple[str, ...] = ()
    shares: tuple[float, ...] = (1.0,)

    @abstractmethod
    def draw(self, num_particles: int) -> Points:
        """Draw latents, with shape (K, N, ...)."""

    @abstractmethod
    def log_density(self, points: Points) -> Tensor:
        """Evaluate log q(z) in nats, with shape (K, N), in the latents' own space."""

    def log_weights(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Draw log p(x, z) - log q(z) in nats, with shape (K, N), and the index of each draw's component, (K,)."""
        points = self.draw(num_particles)
        return self.weigh(points), points.component

    def weigh(self, points: Points) -> Tensor:
        """Evaluate log p(x, z) - log q(z) in nats, with shape (K, N), at draws of this component."""
        log_prior, log_lik = points.log_prior_and_likelihood
        log_p = log_prior + log_lik
        return torch.where(log_p == -torch.inf, -torch.inf, log_p - self.log_density(points))


class ProgramComponent(Component):
    """The guide or the prior.

    Args:
        space: Space of the latents.
        name: "guide" or "prior".
    """

    def __init__(self, space: LatentSpace, name: str) -> None:
        self.space, self.names = space, (name,)

    def draw(self, num_particles: int) -> Points:
        """Draw latents from the program, with shape (K, N, ...)."""
        from_program = self.space.from_guide if self.names == ("guide",) else self.space.from_prior
        return Points(self.space, from_program(num_particles))

    def log_density(self, points: Points) -> Tensor:
        """Evaluate log q(z|x) or log p(z) in nats, with shape (K, N)."""
        if self.names == ("guide",):
            return self.space.log_guide(points.latents)
        return points.log_prior_and_likelihood[0]


class EllipticalComponent(Component):
    """Mixture of S normals or Student-t distributions in u.

    Args:
        space: Space of the latents.
        name: Name for tables.
        loc: Locations, with shape (S, N, U) or (N, U).
        scale_tril: Cholesky factors, with shape (S, N, U, U) or (N, U, U).
        df: Degrees of freedom of the Student-t; None for a normal.
        rotation: Orthogonal matrices to the axes of the skewed ones, with shape (S, N, U, U); None if no one is skewed.
        sides: Widths up and down each axis relative to its scale, with shape (S, N, 2, U); None if no one is skewed.
    """

    def __init__(
        self,
        space: LatentSpace,
        name: str,
        loc: Tensor,
        scale_tril: Tensor,
        df: float | None,
        rotation: Tensor | None = None,
        sides: Tensor | None = None,
    ) -> None:
        self.space, self.names, self.df, size = space, (name,), df, loc.shape[-1]
        self.loc = loc.reshape(-1, *loc.shape[-2:])
        self.scale_tril = scale_tril.double().reshape(-1, *scale_tril.shape[-3:])
        # Invert once for all K draws: Pyro's own densities solve K N triangular systems.
        eye = torch.eye(size, dtype=torch.float64, device=loc.device).expand_as(self.scale_tril)
        self.inverse = torch.linalg.solve_triangular(self.scale_tril, eye, upper=False)
        self.log_norm = self.inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if df is None:
            self.log_norm = self.log_norm - size * math.log(2 * math.pi) / 2
        else:
            gammas = math.lgamma((df + size) / 2) - math.lgamma(df / 2)
            self.log_norm = self.log_norm + gammas - size * math.log(df * math.pi) / 2
        self.share = torch.full(self.loc.shape[:2], 1 / len(self.loc), dtype=torch.float64, device=loc.device)
        self.skew: _Skew | None = None
        if sides is not None and rotation is not None:
            skewed = (sides[..., 0, :] / sides[..., 1, :]).log().abs().amax(-1) > math.log(SKEWED_FROM)
            if bool(skewed.any()):
                self.skew = _Skew(skewed, rotation, sides, df)

    def share_by(self, log_joint: Tensor) -> None:
        """Set the shares by the mass of each mode, height times volume, where modes found twice count once."""
        log_mass = log_joint.double() + self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        away = self.loc.double().unsqueeze(1) - self.loc.double()
        found = torch.einsum("snij,tsnj->tsni", self.inverse, away).square().sum(-1).mul(-0.5).exp().sum(0)
        mass = (log_mass - found.log()).nan_to_num(-torch.inf, -torch.inf).softmax(0).nan_to_num(0.0)
        # Without a finite density, all are even.
        alive = log_joint.isfinite() | ~log_joint.isfinite().any(0)
        even = torch.where(alive, 1 / found, 0.0)
        self.share = (1 - _EVEN) * mass + _EVEN * even / even.sum(0)
        self.share = self.share / self.share.sum(0)

    def draw(self, num_particles: int) -> Points:
        """Draw u, with shape (K, N, U)."""
        _, num_data, size = self.loc.shape
        noise = torch.randn(num_particles, num_data, size, dtype=self.loc.dtype, device=self.loc.device)
        if self.df is not None:
            gamma = dist.Gamma(self.loc.new_tensor(self.df / 2), self.loc.new_tensor(self.df / 2))
            noise = noise / gamma.sample((num_particles, num_data)).sqrt().unsqueeze(-1)
        which = torch.multinomial(self.share.T, num_particles, replacement=True).T
        sides = None if self.skew is None else self.skew.two_sided(noise)
        u = torch.zeros_like(noise)
        for s, (loc, tril) in enumerate(zip(self.loc, self.scale_tril, strict=True)):
            own = noise if self.skew is None or sides is None else self.skew.noise(s, noise, *sides)
            u += (which == s).unsqueeze(-1) * (loc + torch.einsum("nij,knj->kni", tril.to(noise), own))
        return Points(self.space, u=u)

    def log_density(self, points: Points) -> Tensor:
        """Evaluate log q(z) in nats, with shape (K, N), in the latents' own space."""
        u, log_share = points.u.double(), self.share.log()
        total = torch.full(u.shape[:2], -torch.inf, dtype=u.dtype, device=u.device)
        for s, loc in enumerate(self.loc.double()):  # one mode at a time, which bounds memory
            standardized = torch.einsum("nij,knj->kni", self.inverse[s], u - loc)
            square = standardized.square().sum(-1)
            if self.df is None:
                each = self.log_norm[s] - square / 2
            else:
                each = self.log_norm[s] - (self.df + self.loc.shape[-1]) / 2 * torch.log1p(square / self.df)
            if self.skew is not None:
                log_det = self.inverse[s].diagonal(dim1=-2, dim2=-1).log().sum(-1)
                each = torch.where(self.skew.skewed[s], log_det + self.skew.log_density(s, standardized), each)
            total = torch.logaddexp(total, log_share[s] + each)
        return total - points.log_det


class _Skew:
    """Products of two-piece Student-t distributions along the axes of the curvature, for the skewed of S N posteriors.

    The density along an axis is 2 / (a + b) t(s / a) above the mode and 2 / (a + b) t(s / b) below it, with the widths
    a and b (Geweke 1989, "Bayesian inference in econometric models using Monte Carlo integration", Econometrica 57(6),
    section 4, who takes one radius for all axes).

    Args:
        skewed: Whether each is skewed, with shape (S, N).
        rotation: Orthogonal matrices to the axes, with shape (S, N, U, U).
        sides: Widths up and down each axis, with shape (S, N, 2, U).
        df: Degrees of freedom of the Student-t; None for a normal.
    """

    def __init__(self, skewed: Tensor, rotation: Tensor, sides: Tensor, df: float | None) -> None:
        self.skewed, self.rotation, self.df = skewed, rotation, df
        self.up, self.down = sides[..., 0, :], sides[..., 1, :]

    def two_sided(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the sizes and the uniform numbers that choose the sides, each with shape (K, N, U)."""
        size = torch.randn_like(like).abs()
        if self.df is not None:
            half = torch.full_like(like, self.df / 2)
            size = size / dist.Gamma(half, half).sample().sqrt()
        return size, torch.rand_like(like)

    def noise(self, s: int, noise: Tensor, size: Tensor, uniform: Tensor) -> Tensor:
        """Choose L^-1 (u - mode) of the draws from mode s, with shape (K, N, U): two-sided for skewed posteriors."""
        up, down = self.up[s].to(noise), self.down[s].to(noise)
        along = torch.where(uniform < up / (up + down), up * size, -down * size)
        drawn = torch.einsum("nji,knj->kni", self.rotation[s].to(noise), along)
        return torch.where(self.skewed[s].unsqueeze(-1), drawn, noise)

    def log_density(self, s: int, standardized: Tensor) -> Tensor:
        """Evaluate the log density at mode s in nats, with shape (K, N), at L^-1 (u - mode), with shape (K, N, U)."""
        up, down = self.up[s], self.down[s]
        along = torch.einsum("nij,knj->kni", self.rotation[s], standardized)
        along = along / torch.where(along > 0, up, down)
        if self.df is None:
            each = -along.square() / 2 - math.log(2 * math.pi) / 2
        else:
            gammas = math.lgamma((self.df + 1) / 2) - math.lgamma(self.df / 2)
            each = gammas - math.log(self.df * math.pi) / 2 - (self.df + 1) / 2 * torch.log1p(along.square() / self.df)
        return (each - ((up + down) / 2).log()).sum(-1)


class MixtureComponent(Component):
    """Mixture of components in fixed shares of the draws.

        log w = log p(x, z) - log sum_s share_s q_s(z)

    If log p(x, z) or log q(z|x) is NaN at a draw of the guide, the guide loses its share for that datum: its draws get
    weight 0, and q sums over the others. As the others keep their number of draws, K share_s, p(x) stays unbiased. If
    log p(x, z) is NaN at all draws, the weights stay NaN. At the edge of a support the prior's draws count alone.

    Args:
        space: Space of the latents.
        parts: Components.
        shares: Share of the draws of each component, in thousandths, with sum one.
    """

    def __init__(self, space: LatentSpace, parts: Sequence[Component], shares: Sequence[float]) -> None:
        self.space, self.parts, self.shares = space, parts, tuple(shares)
        self.names = tuple(" and ".join(part.names) for part in parts)
        self.cycle = cycle_of(shares)
        self.next = int(torch.randint(len(self.cycle), ()))
        self.undefined: Tensor = torch.zeros((), dtype=torch.long)
        self.left_out: Tensor = torch.zeros((), dtype=torch.long)
        self.defined: Tensor = torch.zeros((), dtype=torch.bool)
        self.lost: Tensor | None = None
        searched = [part.unsettled for part in parts if part.unsettled is not None]
        self.unsettled = torch.stack(searched).any(0) if searched else None

    def draw(self, num_particles: int) -> Points:
        """Draw latents from the components in a cycle, with shape (K, N, ...)."""
        which = self.cycle[(self.next + torch.arange(num_particles)) % len(self.cycle)]
        self.next += num_particles
        counts = which.bincount(minlength=len(self.parts)).tolist()
        drawn = [part.draw(count) for part, count in zip(self.parts, counts, strict=True) if count]
        back = which.argsort(stable=True).argsort()
        latents = {name: torch.cat([points.latents[name] for points in drawn])[back] for name in self.space.names}
        # Keep coordinates as they were drawn: the inverse of the bijection would round them.
        u = torch.cat([points.u for points in drawn])[back] if self.space.continuous else None
        return Points(self.space, latents, u, which)

    def weigh(self, points: Points) -> Tensor:
        """Evaluate the log weights in nats, with shape (K, N), at draws of this mixture."""
        log_prior, log_lik = points.log_prior_and_likelihood
        log_p, log_q = log_prior + log_lik, self._log_densities(points)
        unknown = log_p.isnan()
        of_guide, of_prior = (self._drew(name, points).to(log_p.device) for name in ("guide", "prior"))
        # Count on the device of log_p, without waiting for it.
        self.undefined = self.undefined + (unknown & of_prior).sum(0)
        self.defined = self.defined | (~unknown).any(0)
        for index, part in enumerate(self.parts):
            if part.names == ("guide",):
                failed = ((unknown | log_q[index].isnan()) & of_guide).any(0)
                self.lost = failed if self.lost is None else self.lost | failed
                log_q[index] = torch.where(self.lost, -torch.inf, log_q[index])
        log_w = log_p - log_q.nan_to_num(-torch.inf, torch.inf, -torch.inf).logsumexp(0)
        log_w = torch.where(unknown | (log_p == -torch.inf), -torch.inf, log_w)
        log_w = self._at_edge(points, log_w, log_lik, of_prior)
        if self.lost is not None:
            without = torch.where(self.defined, -torch.inf, torch.nan)
            log_w = torch.where(self.lost & of_guide, without, log_w)
        return log_w

    def log_density(self, points: Points) -> Tensor:
        """Evaluate log q(z) in nats, with shape (K, N), in the latents' own space; a part that is NaN counts as 0."""
        return self._log_densities(points).nan_to_num(-torch.inf, torch.inf, -torch.inf).logsumexp(0)

    def _log_densities(self, points: Points) -> Tensor:
        """Evaluate log share_s + log q_s(z) for each part, with shape (S, K, N)."""
        each = [part.log_density(points).double() for part in self.parts]
        return torch.stack([math.log(share) + log_q for share, log_q in zip(self.shares, each, strict=True)])

    def _at_edge(self, points: Points, log_w: Tensor, log_lik: Tensor, of_prior: Tensor) -> Tensor:
        """Let the prior alone cover the points nearer to the edge of the support than the dtype can tell.

        Their density is lost to rounding, but that of a draw from the prior cancels: w = p(x|z)/share. Draws of other
        components there get weight 0, and are counted.
        """
        edge = self.space.saturated(points.latents) if ("prior",) in (part.names for part in self.parts) else None
        if edge is None:
            return log_w
        share = sum(share for share, part in zip(self.shares, self.parts, strict=True) if part.names == ("prior",))
        alone = torch.where(of_prior, log_lik.to(log_w.dtype) - math.log(share), -torch.inf)
        self.left_out = self.left_out + (edge & ~of_prior).sum(0)
        return torch.where(edge, alone.nan_to_num(-torch.inf, torch.inf, -torch.inf), log_w)

    def _drew(self, name: str, points: Points) -> Tensor:
        """Return whether a part of this name made each draw, with shape (K, 1)."""
        of_this_name = torch.tensor([part.names == (name,) for part in self.parts])
        return of_this_name[points.component].unsqueeze(-1)


class PriorIfUnobserved(Component):
    """Component whose draws come from the prior for data without an observed entry, with weights of exactly 1.

    Args:
        inner: Component for the other data.
        from_prior: Whether the datum has no observed entry, with shape (N,).
    """

    def __init__(self, space: LatentSpace, inner: Component, from_prior: Tensor) -> None:
        self.space, self.inner, self.from_prior = space, inner, from_prior
        self.names, self.shares = inner.names, inner.shares
        self.parts = getattr(inner, "parts", [inner])
        self.unsettled = None if inner.unsettled is None else inner.unsettled & ~from_prior.to(inner.unsettled.device)

    @property
    def undefined(self) -> Tensor | None:  # type: ignore[override]  # an attribute, here of the inner one
        """Number of draws from the prior where log p(x, z) is NaN, of data with an observed entry."""
        counts = self.inner.undefined
        return None if counts is None else torch.where(self._prior(counts), 0, counts)

    @property
    def lost(self) -> Tensor | None:  # type: ignore[override]  # as `undefined`
        """Whether the guide lost its share of a mixture for a datum with an observed entry."""
        return None if self.inner.lost is None else self.inner.lost & ~self._prior(self.inner.lost)

    @property
    def defined(self) -> Tensor:  # type: ignore[override]  # as `undefined`
        """Whether log p(x, z) is a number at any draw, with shape (N,)."""
        return self.inner.defined | self._prior(self.inner.defined)

    def draw(self, num_particles: int) -> Points:
        """Draw latents from the component, and those of data without an observed entry from the prior."""
        points, prior = self.inner.draw(num_particles), self.space.from_prior(num_particles)
        latents = {name: self._choose(prior[name], value) for name, value in points.latents.items()}
        u = self._choose(self.space.pack(prior), points.u) if self.space.continuous else None
        return Points(self.space, latents, u, points.component)

    def log_density(self, points: Points) -> Tensor:
        """Evaluate log q(z) in nats, with shape (K, N), in the latents' own space."""
        return self._choose(points.log_prior_and_likelihood[0], self.inner.log_density(points))

    def log_weights(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Draw log weights in nats, with shape (K, N), and the index of each draw's component, (K,)."""
        log_w, component = self.inner.log_weights(num_particles)  # the weights of prior draws need no draws
        return self._choose(torch.zeros_like(log_w), log_w), component

    def weigh(self, points: Points) -> Tensor:
        """Evaluate the log weights in nats, with shape (K, N), at draws of this component."""
        log_w = self.inner.weigh(points)
        return self._choose(torch.zeros_like(log_w), log_w)

    def _choose(self, prior: Tensor, other: Tensor) -> Tensor:
        """Choose between two tensors with shape (K, N, ...)."""
        where = self._prior(other)
        return torch.where(where.view(-1, *[1] * (other.dim() - 2)), prior, other)

    def _prior(self, like: Tensor) -> Tensor:
        assert self.from_prior is not None
        return self.from_prior.to(like.device)


def cycle_of(shares: Sequence[float]) -> Tensor:
    """Order the components so that each stretch is as near to the shares as integers can be.

    The next component is always the one furthest behind its share.
    """
    counts = torch.tensor([round(1000 * share) for share in shares])
    length = 1000 // math.gcd(1000, *counts.tolist())
    wanted, given, out = counts / 1000, torch.zeros(len(counts)), []
    for k in range(length):
        out.append(int((wanted * (k + 1) - given).argmax()))
        given[out[-1]] += 1
    return torch.tensor(out)
