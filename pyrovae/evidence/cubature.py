"""Adaptive cubature of p(x, z): cells that are split where the rule's error is largest."""

import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

# Gauss-Kronrod rule of 7 and 15 points (Piessens et al. 1983, "QUADPACK", Springer), nodes from 0 up.
_NODES = (
    0.0,
    0.207784955007898467600689403773245,
    0.405845151377397166906606412076961,
    0.586087235467691130294144691693013,
    0.741531185599394439863864773280788,
    0.864864423359769072789712788640926,
    0.949107912342758524526189684047851,
    0.991455371120812639206854697526329,
)
_KRONROD = (
    0.209482141084727828012999174891714,
    0.204432940075298892414161999234649,
    0.190350578064785409913256402421014,
    0.169004726639267902826583426598550,
    0.140653259715525918745189590510238,
    0.104790010322250183839876322541518,
    0.063092092629978553290700663189204,
    0.022935322010529224963732008058970,
)
_GAUSS = (
    0.417959183673469387755102040816327,
    0.0,
    0.381830050505118944950369775488975,
    0.0,
    0.279705391489276667901467771423780,
    0.0,
    0.129484966168869693270611432679082,
    0.0,
)

_CELLS_PER_AXIS = {1: 64, 2: 16, 3: 6}  # at first
# Half the width of a cell at a mode, in standard deviations of the mode, and its growth with the distance of the cell.
_WIDEST, _GROWTH = 2.0, 0.5
_MAX_SPLITS = 120  # to reach the width of a mode

# Random points per cell that look for peaks between the rule's points, and how often they look.
_LOOKS, _MAX_LOOKS = 32, 40
_REFINED = 0.8  # share of the cells that need no look
_SAFETY = 4.0  # of the error, which is uncertain where the density has edges that few points find
_SURPRISE = 3.0  # times the highest density at the rule's points


class Peaks(NamedTuple):
    """Modes whose cells are as narrow as they are before any density is evaluated.

    Attributes:
        mode: Coordinates u, with shape (S, N, U).
        scale_tril: Cholesky factors of the covariances there, with shape (S, N, U, U).
        counts: Whether a mode of a datum counts, with shape (S, N).
        reach: Distance from each mode up to which cells are narrow, in standard deviations, with shape (S,).
    """

    mode: Tensor
    scale_tril: Tensor
    counts: Tensor
    reach: Tensor

    def rows(self, rows: Tensor) -> "Peaks":
        """Select data."""
        return Peaks(self.mode[:, rows], self.scale_tril[:, rows], self.counts[:, rows], self.reach)

    def and_others(self, others: "Peaks") -> "Peaks":
        """Join modes."""
        return Peaks(*(torch.cat(parts) for parts in zip(self, others, strict=True)))


class Cubature(NamedTuple):
    """Log p(x) and moments of p(u|x) by adaptive cubature.

    Attributes:
        log_p: Log p(x), with shape (N,).
        error: Sum over cells of the distance of two rules of different degree, and mass that random points find but
            the rule does not, relative to p(x), with shape (N,); infinite if the cells do not suffice for the peaks.
        loc: Posterior means, with shape (N, U).
        covariance: Posterior covariances, with shape (N, U, U).
        surprised: Whether random points found mass that the rule had missed, with shape (N,).
    """

    log_p: Tensor
    error: Tensor
    loc: Tensor
    covariance: Tensor
    surprised: Tensor


class _Rule(NamedTuple):
    """Points of a cell (-1, 1)^U, with shape (P, U), weights of two degrees, (P,), and differences by axis, (U, P)."""

    points: Tensor
    weights: Tensor
    lower: Tensor
    differences: Tensor


def integrate_adaptively(
    log_density: Callable[[Tensor], Tensor],
    loc: Tensor,
    root: Tensor,
    peaks: Peaks | None,
    *,
    tolerance: Tensor,
    max_points: int,
    at_once: int,
) -> Cubature:
    """Integrate a density over u = loc + root t, t = s / (1 - s^2), by splitting cells of s in (-1, 1)^U.

    The rule is Gauss and Kronrod's with one coordinate, and with more that of Genz and Malik 1980, "Remarks on
    algorithm 006: an adaptive algorithm for numerical integration over an N-dimensional rectangular region", J. Comput.
    Appl. Math. 6(4). Cells around peaks are split to the peaks' widths first. Then those with the largest error are
    split, along the axis of the largest fourth difference; the error of the halves is at least half of the difference
    from the whole. At the end, random points look for peaks between the
    rule's points. If one finds a much higher density, its cell is split too.

    Args:
        log_density: Function of u, with shape (K, N, U), that returns log densities, with shape (K, N).
        loc: Centre, with shape (N, U).
        root: Axes, with shape (N, U, U).
        peaks: Modes to resolve; None if none are known.
        tolerance: Relative error at which splitting stops, with shape (N,).
        max_points: Maximum number of points per datum.
        at_once: Number of points decoded at once, for all data.
    """
    rule = _rule(loc.shape[-1], loc)
    cells = _Cells(log_density, loc, root, rule, at_once)
    max_cells = max_points // len(rule.points)
    if peaks is not None:
        cells.narrow_to(peaks, max_cells // 2)
    cells.evaluate(slice(None))
    for _ in range(_MAX_LOOKS):
        cells.refine(tolerance, int(_REFINED * max_cells))
        cells.look(tolerance)
        total = cells.value.sum(0)
        surprising = (cells.missed > 0) & (cells.missed.sum(0) > 0.1 * tolerance * total)
        count = min(int(surprising.sum(0).max()), max_cells - len(cells.centre))
        if count < 1:
            break
        cells.split_and_evaluate(cells.missed, count)
    return cells.total(tolerance)


class _Cells:
    """Boxes of s, with shape (C, N, U), and the integrals over them, relative to exp(reference)."""

    def __init__(
        self, log_density: Callable[[Tensor], Tensor], loc: Tensor, root: Tensor, rule: _Rule, at_once: int
    ) -> None:
        self.log_density, self.loc, self.root, self.rule, self.at_once = log_density, loc, root, rule, at_once
        num_data, size = loc.shape
        count = _CELLS_PER_AXIS[size]
        middles = (torch.arange(count, dtype=loc.dtype, device=loc.device) * 2 + 1) / count - 1
        grid = torch.cartesian_prod(*[middles] * size).reshape(-1, 1, size)
        self.centre = grid.expand(-1, num_data, -1).clone()
        self.half = torch.full_like(self.centre, 1 / count)
        self.reference = loc.new_full((num_data,), -torch.inf)
        self.unseen = loc.new_zeros(num_data)
        self.unresolved = torch.zeros(num_data, dtype=torch.bool, device=loc.device)
        self.surprised = torch.zeros(num_data, dtype=torch.bool, device=loc.device)
        self.axis = torch.zeros(self.centre.shape[:2], dtype=torch.long, device=loc.device)
        self.value, self.error, self.highest, self.missed, self.fresh = (
            loc.new_zeros(self.centre.shape[:2]) for _ in range(5)
        )
        self.moments = loc.new_zeros(*self.centre.shape[:2], size + size**2)

    def narrow_to(self, peaks: Peaks, max_cells: int) -> None:
        """Split the cells at peaks until none is wide beside its peak."""
        inverse = torch.linalg.inv(self.root)
        t = torch.einsum("nuv,snv->snu", inverse, peaks.mode.double() - self.loc)
        s = to_cube(t)
        # The width along each axis while the other coordinates stay: the precision's diagonal, to the power -1/2.
        whitened = torch.linalg.solve_triangular(peaks.scale_tril, self.root.expand_as(peaks.scale_tril), upper=False)
        width = (1 - s**2) ** 2 / (1 + s**2) / whitened.square().sum(-2).sqrt()
        counts = peaks.counts & width.isfinite().all(-1) & (width > 1e-14).all(-1)
        width = torch.where(counts.unsqueeze(-1), width, 1.0)

        def excess(centre: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
            """Compute the width of cells relative to the bound, and the axis where it is largest, with shape (C, N)."""
            away = (s - centre.unsqueeze(1)).abs() - half.unsqueeze(1)  # (C, S, N, U)
            distance = (away / width).amax(-1).clamp(min=0)
            near = (distance < peaks.reach.unsqueeze(-1)) & counts
            bound = torch.where(near, _WIDEST + _GROWTH * distance, torch.inf)
            largest, axis = (half.unsqueeze(1) / width / bound.unsqueeze(-1)).amax(1).max(-1)
            return largest, axis

        ratio, self.axis = excess(self.centre, self.half)
        for _ in range(_MAX_SPLITS):
            count = int((ratio > 1).sum(0).max())
            if count == 0 or len(ratio) + count > max_cells:
                self.unresolved = (ratio > 1).any(0)
                break
            chosen = self.split(ratio, count)
            every = chosen.unsqueeze(-1).expand(-1, -1, self.loc.shape[-1])
            old, new = (
                excess(self.centre.gather(0, every), self.half.gather(0, every)),
                excess(self.centre[-count:], self.half[-count:]),
            )
            ratio = torch.cat([ratio.scatter(0, chosen, old[0]), new[0]])
            self.axis.scatter_(0, chosen, old[1])
            self.axis[-count:] = new[1]

    def split(self, priority: Tensor, count: int) -> Tensor:
        """Halve the cells with the highest priority, with shape (C, N), and return which, with shape (B, N).

        The second halves are the last cells.
        """
        chosen = priority.topk(count, 0).indices
        every = chosen.unsqueeze(-1).expand(-1, -1, self.loc.shape[-1])
        centre, half = self.centre.gather(0, every), self.half.gather(0, every)
        along = torch.nn.functional.one_hot(self.axis.gather(0, chosen), self.loc.shape[-1]).to(half)
        half = half * (1 - along / 2)
        move = along * half
        self.centre = torch.cat([self.centre.scatter(0, every, centre - move), centre + move])
        self.half = torch.cat([self.half.scatter(0, every, half), half])
        self.axis = torch.cat([self.axis, self.axis.gather(0, chosen)])
        parts = self.value, self.error, self.highest, self.missed, self.fresh, self.moments
        self.value, self.error, self.highest, self.missed, self.fresh, self.moments = (
            torch.cat([part, part.new_zeros(count, *part.shape[1:])]) for part in parts
        )
        return chosen

    def split_and_evaluate(self, priority: Tensor, count: int) -> None:
        """Halve the cells with the highest priority, with shape (C, N), and integrate the halves."""
        chosen = self.split(priority, count)
        new = torch.arange(len(self.centre) - count, len(self.centre), device=chosen.device)
        new = new.unsqueeze(-1).expand_as(chosen)
        before, reference = self.value.gather(0, chosen), self.reference
        self.evaluate(torch.cat([chosen, new]))
        before = before * (reference - self.reference).exp().nan_to_num(0.0)
        # A whole that differs from its halves says that the rule does not see all: the halves share the difference.
        change = (self.value.gather(0, chosen) + self.value.gather(0, new) - before).abs() / 2
        for halves in (chosen, new):
            self.error.scatter_(0, halves, torch.maximum(self.error.gather(0, halves), change))

    def evaluate(self, which: Tensor | slice) -> None:
        """Integrate over these cells, given by their numbers, with shape (B, N)."""
        if isinstance(which, slice):
            which = torch.arange(len(self.centre), device=self.loc.device)[:, None].expand(-1, len(self.loc))
        size, points = self.loc.shape[-1], len(self.rule.points)
        for some in which.split(max(1, self.at_once // points)):
            every = some.unsqueeze(-1).expand(-1, -1, size)
            centre, half = self.centre.gather(0, every), self.half.gather(0, every)
            s = centre.unsqueeze(1) + half.unsqueeze(1) * self.rule.points.unsqueeze(1)  # (B, P, N, U)
            t, f = self._density(s)
            volume = half.prod(-1) * 2**size
            weighted = self.rule.weights[:, None] * f
            value, lower = weighted.sum(1), torch.einsum("p,bpn->bn", self.rule.lower, f)
            features = torch.cat([t, (t.unsqueeze(-1) * t.unsqueeze(-2)).flatten(-2)], -1)
            moments = torch.einsum("bpn,bpnf->bnf", weighted, features) * volume.unsqueeze(-1)
            axis = torch.einsum("up,bpn->ubn", self.rule.differences, f).abs() + 1e-30 * half.movedim(-1, 0)
            self.value.scatter_(0, some, value * volume)
            self.error.scatter_(0, some, (value - lower).abs() * volume)
            self.highest.scatter_(0, some, f.amax(1))
            self.missed.scatter_(0, some, 0.0)
            self.fresh.scatter_(0, some, 1.0)
            self.axis.scatter_(0, some, axis.argmax(0))
            self.moments.scatter_(0, some.unsqueeze(-1).expand_as(moments), moments)

    def refine(self, tolerance: Tensor, max_cells: int) -> None:
        """Split cells until the error of each datum is small, or there are as many as may be."""
        while True:
            total, count = self.value.sum(0), len(self.error)
            rough = self.error.sum(0) > tolerance * total
            room = max_cells - count
            if room < 1 or not bool(rough.any()):
                return
            # Cells that together have half of the error that may stay need no split.
            left = self.error.sort(0).values.cumsum(0) <= tolerance * total / 2
            wanted = int(((count - left.sum(0)) * rough).max())
            self.split_and_evaluate(self.error * rough, min(room, wanted, max(4, count // 4)))

    def look(self, tolerance: Tensor) -> None:
        """Estimate the mass that the rule misses in cells without a look yet, by random points: 0 if it seems fine.

        The mass that was found by one point alone estimates the mass that no point found (Good 1953, "The population
        frequencies of species and the estimation of population parameters", Biometrika 40(3)).
        """
        volume = self.half.prod(-1) * 2 ** self.half.shape[-1]
        worth = (self.fresh > 0) & (self.highest < 1 / _SURPRISE)
        total = self.value.sum(0)
        worth &= volume > 1e-3 * tolerance * total
        self.fresh.zero_()
        if not bool(worth.any()):
            return
        which = (volume * worth).topk(int(worth.sum(0).max()), 0).indices
        for some in which.split(max(1, self.at_once // _LOOKS)):
            every = some.unsqueeze(-1).expand(-1, -1, self.half.shape[-1])
            centre, half = self.centre.gather(0, every).unsqueeze(1), self.half.gather(0, every).unsqueeze(1)
            shape = (len(some), _LOOKS, *centre.shape[2:])
            f = self._density(centre + half * (2 * torch.rand(shape, dtype=half.dtype, device=half.device) - 1))[1]
            hits = (f > _SURPRISE * self.highest.gather(0, some).unsqueeze(1)).sum(1)
            mass = f.mean(1) * volume.gather(0, some)
            self.missed.scatter_(0, some, torch.where(hits > 0, mass, 0.0))
            self.surprised |= (torch.where(hits > 0, mass, 0.0) > 1e-3 * tolerance * total).any(0)
            self.unseen += torch.where(hits == 1, mass, 0.0).sum(0)

    def _density(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Compute t and the density of s, relative to exp(reference), at s with shape (B, P, N, U)."""
        t = s / (1 - s**2)
        u = self.loc + torch.einsum("nuv,bpnv->bpnu", self.root, t)
        log_f = self.log_density(u.flatten(0, 1)).unflatten(0, u.shape[:2])
        log_f = log_f + ((1 + s**2) / (1 - s**2) ** 2).log().sum(-1)
        self._raise_reference(log_f.amax((0, 1)))
        return t, (log_f - self.reference).exp().nan_to_num(0.0)

    def _raise_reference(self, largest: Tensor) -> None:
        """Express all integrals relative to the largest density so far."""
        if not bool((largest > self.reference).any()):
            return
        new = torch.maximum(self.reference, largest)
        factor = torch.where(self.reference.isfinite(), (self.reference - new).exp(), 1.0)
        self.reference = new
        for part in (self.value, self.error, self.highest, self.missed, self.unseen):
            part.mul_(factor)
        self.moments = self.moments * factor.unsqueeze(-1)

    def total(self, tolerance: Tensor) -> Cubature:
        """Add the cells up. The error holds the mass that the rule misses, and is never below the tolerance."""
        total, (num_data, size) = self.value.sum(0), self.loc.shape
        error = (self.error + self.missed).sum(0) + self.unseen
        moments = self.moments.sum(0) / total.unsqueeze(-1)
        mean, square = moments.split([size, size**2], -1)
        covariance = square.reshape(num_data, size, size) - mean.unsqueeze(-1) * mean.unsqueeze(-2)
        return Cubature(
            self.reference + total.log() + torch.linalg.slogdet(self.root).logabsdet,
            torch.where(self.unresolved, torch.inf, _SAFETY * torch.maximum(error / total, tolerance)),
            self.loc + (self.root @ mean.unsqueeze(-1)).squeeze(-1),
            self.root @ covariance @ self.root.mT,
            self.surprised,
        )


def to_cube(t: Tensor) -> Tensor:
    """Compute s from t = s / (1 - s^2)."""
    return 2 * t / (1 + (1 + 4 * t**2).sqrt())


def _rule(size: int, like: Tensor) -> _Rule:
    """Make the rule of a cell: weights of the mean over (-1, 1)^U."""
    if size == 1:
        nodes = [-node for node in _NODES[:0:-1]] + list(_NODES)
        kronrod, gauss = (like.new_tensor(half[:0:-1] + half) / 2 for half in (_KRONROD, _GAUSS))
        return _Rule(like.new_tensor(nodes).unsqueeze(-1), kronrod, gauss, like.new_zeros(1, len(nodes)))
    n, near, far, corner = size, math.sqrt(9 / 70), math.sqrt(9 / 10), math.sqrt(9 / 19)
    eye = torch.eye(n, dtype=like.dtype, device=like.device)
    signs = like.new_tensor(list(product((-1, 1), repeat=n)))
    pairs = [i * eye[d] + j * eye[e] for d in range(n) for e in range(d) for i, j in product((-1, 1), repeat=2)]
    axes = torch.stack([-eye, eye], 1).flatten(0, 1)
    # The orbits of the rule's points, with their weights in the rules of degree seven and five.
    orbits = (
        (like.new_zeros(1, n), (12824 - 9120 * n + 400 * n**2) / 19683, (729 - 950 * n + 50 * n**2) / 729),
        (near * axes, 980 / 6561, 245 / 486),
        (far * axes, (1820 - 400 * n) / 19683, (265 - 100 * n) / 1458),
        (far * torch.stack(pairs), 200 / 19683, 25 / 729),
        (corner * signs, 6859 / 19683 / 2**n, 0.0),
    )
    points = torch.cat([orbit for orbit, _, _ in orbits])
    weights = torch.cat([like.new_full((len(orbit),), weight) for orbit, weight, _ in orbits])
    lower = torch.cat([like.new_full((len(orbit),), weight) for orbit, _, weight in orbits])
    differences = like.new_zeros(n, len(points))
    for d in range(n):
        differences[d, 1 + 2 * d : 3 + 2 * d] = 1.0
        differences[d, 1 + 2 * n + 2 * d : 3 + 2 * n + 2 * d] = -(near**2) / far**2
        differences[d, 0] = -2 + 2 * near**2 / far**2
    return _Rule(points, weights, lower, differences)
