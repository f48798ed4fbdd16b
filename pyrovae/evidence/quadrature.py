"""Quadrature of p(x, z) over one to three latents: a survey of each posterior, cubature, and checks of the sum."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.evidence.blocks import split_count
from pyrovae.evidence.cubature import Cubature, Peaks, integrate_adaptively, to_cube
from pyrovae.evidence.laplace import climb_from
from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.evidence.starts import prior_scale

POINTS = {1: 2000, 2: 100, 3: 50}  # per coordinate for one, two and three coordinates

_REACH = 3.0  # half of the points lie within 2 / 3 of this number of the posterior's standard deviations
_MAX_SPACING = 1.0  # of a grid's points, in the standard deviations of the posterior or of a mode
_MAX_MOVES = 8

# The trapezoid sum's error that is accepted in nats, the relative error that the cubature aims at, and above which it
# goes on with more points.
_ACCEPTED = {1: 1e-6, 2: 1e-4, 3: 5e-3}
_AIM = {1: 1e-8, 2: 2e-5, 3: 5e-4}
_ENOUGH = {1: 1e-6, 2: 4e-4, 3: 5e-3}
_FIRST_SHARE = {1: 8.0, 2: 6.0, 3: 1.0}  # of num_points^U, to begin with
_LAST_SHARE = {1: 50.0, 2: 50.0, 3: 6.0}  # of num_points^U, at most
_LARGEST_ERROR = 0.1  # of a value that is given, in nats

_DRAWS = 400  # of the prior, for starts and checks
_STARTS = {1: (8, 4), 2: (6, 6), 3: (4, 8)}  # of climbs: draws of the prior, peaks of the sketch
_CLIMB = 6  # Hessians
_COUNTS = 25.0  # nats below the largest mode's mass, from where a mode does not count
_GRID_PEAKS = 40  # of the final grid
_REACH_OF_PEAKS, _GRID_REACH = 15.0, 3.0  # distance of narrow cells, in the peaks' standard deviations
_APART = 0.1  # distance of starts from the prior's draws, in the prior's widths

_DATA_AT_ONCE, _HARD_DATA_AT_ONCE = 64, (16, 4)
_ROUNDINGS = 4.0  # of a float, in each of log p(z), log p(x|z) and the Jacobian


class Quadrature(NamedTuple):
    """Log p(x_n) by quadrature: the fields of `ExactMarginal`."""

    value: Tensor
    error: Tensor
    loc: Tensor
    covariance: Tensor
    reason: tuple[str, ...]


class _Survey(NamedTuple):
    """Knowledge of each posterior before the integration.

    Attributes:
        grid: The trapezoid sum at the posterior.
        wide: Log p(x) by points over the prior's range, with shape (N,); -inf if few of them lie in the posterior.
        loc: Centre of the posterior, with shape (N, U).
        root: Axes for the integration, with shape (N, U, U).
        peaks: Modes; None if densities have no gradient.
        log_lik: Log p(x|z) at draws of the prior, with shape (K, N).
        lost: Share of p(x) at draws of the prior without coordinates, with shape (N,).
        rounding: Rounding error of log p(x) in nats, with shape (N,).
        empty: Whether all points have density 0, with shape (N,).
    """

    grid: "_Grid"
    wide: Tensor
    loc: Tensor
    root: Tensor
    peaks: Peaks | None
    log_lik: Tensor
    lost: Tensor
    rounding: Tensor
    empty: Tensor


def by_quadrature(space: LatentSpace, num_points: int | None, chunk_size: int) -> Quadrature:
    """Integrate the latents out, as `exact_log_marginal` says.

    Args:
        space: Continuous latents of a model at N data.
        num_points: Number of points per coordinate, of which half make a sketch; None for `POINTS`.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.

    Raises:
        ValueError: If there are not one to three coordinates, or too few points.
    """
    if space.size not in POINTS:
        raise ValueError(f"quadrature needs one to three latent coordinates, got {space.size}; use log_marginal or ais")
    points = num_points or POINTS[space.size]
    if points < 4:
        raise ValueError(f"num_points must be at least 4, got {points}")
    blocks = []
    for rows in torch.arange(space.num_data).split(_DATA_AT_ONCE if space.model.divisible else space.num_data):
        blocks.append(_of_block(space.of_rows(rows), points, chunk_size))
    value, error, loc, covariance = (torch.cat(part) for part in list(zip(*blocks, strict=True))[:4])
    return Quadrature(value, error, loc, covariance, sum((block.reason for block in blocks), ()))


def _of_block(space: LatentSpace, points: int, chunk_size: int) -> Quadrature:
    """Take the trapezoid sums that resolve their posteriors, and integrate the other data by cubature."""
    size, survey = space.size, _survey(space, points, chunk_size)
    grid = survey.grid
    plain = torch.zeros_like(survey.empty)
    found = Cubature(*(part.clone() for part in (grid.log_p, grid.error, grid.loc, grid.covariance, plain)))
    rough = (~(grid.error <= _ACCEPTED[size]) | ~grid.resolves(survey.peaks)) & ~survey.empty
    frame = _Frame(survey.loc.clone(), survey.root.clone(), grid.peaks(_GRID_PEAKS))
    if survey.peaks is not None:
        frame = frame._replace(peaks=survey.peaks.and_others(frame.peaks))

    def integrate(rows: Tensor, share: float) -> Cubature:
        part, some = space.of_rows(rows), frame.rows(rows)
        return integrate_adaptively(
            partial(_log_density, part),
            *some,
            tolerance=survey.rounding[rows].clamp(min=_AIM[size]),
            max_points=int(share * points**size),
            at_once=max(1, chunk_size // part.num_data),
        )

    for share, most in zip((_FIRST_SHARE, _LAST_SHARE), _HARD_DATA_AT_ONCE, strict=True):
        for rows in _groups(space, rough, most):
            for whole, some in zip(found, integrate(rows, share[size]), strict=True):
                whole[rows] = some
        rough &= ~(found.error <= (5 * survey.rounding).clamp(min=_ENOUGH[size]))
        known = found.error < 0.1
        frame.loc[known], frame.root[known] = found.loc[known], _REACH * _root(found.covariance[known])
    if size > 1:  # the rule may miss more such peaks: do so again with other cells, of which it misses others
        frame = frame.turned()
        for rows in _groups(space, found.surprised, _HARD_DATA_AT_ONCE[-1]):
            again = integrate(rows, _LAST_SHARE[size])
            apart = (again.log_p - found.log_p[rows]).abs()
            better = again.log_p > found.log_p[rows]
            for whole, some in zip(found, again, strict=True):
                whole[rows] = torch.where(better.reshape(-1, *[1] * (some.dim() - 1)), some, whole[rows])
            found.error[rows] += apart
    return _judged(found, survey)


class _Frame(NamedTuple):
    """Centres and axes of cubatures, with shapes (N, U) and (N, U, U), and the peaks to resolve."""

    loc: Tensor
    root: Tensor
    peaks: Peaks

    def rows(self, rows: Tensor) -> "_Frame":
        """Select data."""
        return _Frame(self.loc[rows], self.root[rows], self.peaks.rows(rows))

    def turned(self) -> "_Frame":
        """Turn and move the axes at random."""
        size = self.loc.shape[-1]
        turn = torch.linalg.qr(torch.randn(size, size, dtype=self.root.dtype, device=self.root.device)).Q
        return self._replace(loc=self.loc + 0.1 * self.root.sum(-1), root=1.2 * self.root @ turn)


def _groups(space: LatentSpace, rough: Tensor, most: int) -> Sequence[Tensor]:
    """Split the data that are rough, with shape (N,), into groups; all data if the model runs on no fewer."""
    if space.model.divisible:
        return rough.nonzero().squeeze(1).split(most) if bool(rough.any()) else []
    return [torch.arange(space.num_data, device=rough.device)] if bool(rough.any()) else []


def _log_density(space: LatentSpace, u: Tensor) -> Tensor:
    """Evaluate f(u) = log p(x, z(u)) |dz/du| in double precision, with shape (K, N); -inf where it is not finite.

    It is NaN or infinite where the bijection saturates, say at a Gamma's z = 0.
    """
    value = space.log_joint(u.to(_dtype(space))).double()
    return torch.where(value.isfinite(), value, -torch.inf)


def _judged(found: Cubature, survey: _Survey) -> Quadrature:
    """Add up the errors, and refuse values that other estimates contradict."""
    lost = torch.where(survey.lost > 0, 2 * survey.lost + 8 / _DRAWS, 0.0)
    relative = torch.where(found.error < 1, found.error / (1 - found.error), torch.inf)
    error = (relative + survey.rounding + lost).nan_to_num(torch.inf)
    empty = found.log_p.isneginf() | found.log_p.isnan()
    w = (survey.log_lik - found.log_p).exp()
    spread = w.std(0) / len(w) ** 0.5
    many = w.sum(0).square() / w.square().sum(0) > 20
    above = torch.where(many, w.mean(0) - 1 > 6 * spread + error, w.mean(0) > 1000)
    checks = {
        "every point has density 0": empty,
        "draws of the prior without finite coordinates hold too much of p(x)": lost > _LARGEST_ERROR,
        "draws of the prior find more mass than the integral": above & ~empty,
        "points over the prior's range find more mass than the integral": survey.wide > found.log_p + 0.1,
        f"the error is larger than {_LARGEST_ERROR:g} nats; increase num_points": error > _LARGEST_ERROR,
    }
    reasons = []
    for n in range(len(error)):
        reasons.append(next((reason for reason, applies in checks.items() if bool(applies[n])), ""))
    refused = torch.tensor([bool(reason) for reason in reasons], device=error.device)
    none = refused & ~empty
    value = torch.where(none, torch.nan, torch.where(empty, -torch.inf, found.log_p))
    error = torch.where(refused, torch.inf, error)
    loc = torch.where(none[:, None], torch.nan, found.loc)
    covariance = torch.where(none[:, None, None], torch.nan, found.covariance)
    return Quadrature(value, error, loc, covariance, tuple(reasons))


def _survey(space: LatentSpace, points: int, chunk_size: int) -> _Survey:
    """Sketch p(u|x) over the prior's range, zoom in, and climb from the sketch's peaks and from draws of the prior."""
    at_once = max(1, chunk_size // space.num_data)
    loc, width = (part.double() for part in prior_scale(space, chunk_size))
    sketch = _Grid(space, max(2, points // 2), loc.expand(space.num_data, -1), width.diag_embed(), at_once)
    u, log_lik, log_f, lost = _prior_draws(space, at_once)
    from_prior, from_sketch = _STARTS[space.size]
    starts = torch.cat([_apart(u, log_f, width, from_prior), sketch.peaks(from_sketch).mode])
    wide = torch.where(sketch.is_fine, sketch.log_p, -torch.inf)
    for _ in range(_MAX_MOVES):
        sketch = _Grid(space, sketch.count, sketch.loc, sketch.axes(), at_once)
        cells, variance = (part.diagonal(dim1=-2, dim2=-1) for part in (sketch.cells, sketch.covariance))
        if bool((12 * cells <= _MAX_SPACING**2 * variance).all()):
            break
    starts = torch.cat([starts, sketch.peaks(1).mode])
    grid = _Grid(space, points - points % 2, sketch.loc, sketch.axes(), at_once)
    peaks, masses = _peaks(space, starts, chunk_size)
    means, covariances, log_p = grid.loc[None], (grid.covariance + grid.cells)[None], grid.log_p[None]
    if peaks is not None:
        means = torch.cat([means, peaks.mode.double()])
        covariances = torch.cat([covariances, peaks.scale_tril @ peaks.scale_tril.mT])
        log_p = torch.cat([log_p, masses])
    share = log_p.softmax(0).nan_to_num(0.0)
    share = torch.where(share.sum(0) > 0, share, 1 / len(share))
    middle = (share.unsqueeze(-1) * means).sum(0)
    away = means - middle
    scatter = covariances + away.unsqueeze(-1) * away.unsqueeze(-2)
    covariance = (share[..., None, None] * scatter).sum(0)
    empty = log_p.isneginf().all(0) & log_f.isneginf().all(0)
    rounding = _rounding(space, starts, peaks, covariance)
    return _Survey(grid, wide, middle, _REACH * _root(covariance), peaks, log_lik, lost, rounding, empty)


def _peaks(space: LatentSpace, starts: Tensor, chunk_size: int) -> tuple[Peaks | None, Tensor]:
    """Climb from starts, with shape (S, N, U); return the modes, and the log masses of normals there, (S, N)."""
    try:
        fit, _ = climb_from(space, starts.to(_dtype(space)), steps=_CLIMB, chunk_size=chunk_size)
    except RuntimeError:  # densities without a gradient
        return None, starts.new_zeros(0, space.num_data)
    scales = fit.scale_tril.diagonal(dim1=-2, dim2=-1)
    mass = fit.log_joint.double() + scales.log().sum(-1) + space.size / 2 * math.log(2 * math.pi)
    known = fit.mode.isfinite().all(-1) & fit.scale_tril.isfinite().flatten(-2).all(-1) & mass.isfinite()
    mass = torch.where(known, mass, -torch.inf)
    counts = known & (mass > mass.amax(0) - _COUNTS)
    mode = torch.where(known.unsqueeze(-1), fit.mode.double(), 0.0)
    eye = torch.eye(space.size, dtype=mode.dtype, device=mode.device)
    reach = torch.full(mode.shape[:1], _REACH_OF_PEAKS, dtype=mode.dtype, device=mode.device)
    return Peaks(mode, torch.where(known[..., None, None], fit.scale_tril, eye), counts, reach), mass


def _dtype(space: LatentSpace) -> torch.dtype:
    if "dtype" not in space.memo:
        space.memo["dtype"] = space.pack(space.from_prior(1)).dtype
    dtype: torch.dtype = space.memo["dtype"]
    return dtype


def _prior_draws(space: LatentSpace, at_once: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw from the prior: u, with shape (K, N, U), log p(x|z) and f(u), (K, N), and the share of p(x) without u."""
    drawn, log_lik, log_f = [], [], []
    for count in split_count(_DRAWS, at_once):
        latents = space.from_prior(count)
        drawn.append(space.pack(latents).double())
        log_lik.append(space.log_model(latents)[1].double().nan_to_num(-torch.inf))
        finite = torch.where(drawn[-1].isfinite(), drawn[-1], 0.0)
        log_f.append(_log_density(space, finite))
    u, lik, f = torch.cat(drawn), torch.cat(log_lik), torch.cat(log_f)
    # Draws beyond the floats' range have the same, last coordinates, or none.
    finite = u.isfinite()
    away = torch.zeros_like(finite)
    for extreme in (torch.where(finite, u, -torch.inf).amax(0), torch.where(finite, u, torch.inf).amin(0)):
        same = u == extreme
        away |= same & (same.sum(0) > 1)
    out = (~finite | away).any(-1)
    share = torch.where(out, lik, -torch.inf).logsumexp(0) - lik.logsumexp(0)
    return torch.where(finite, u, 0.0), lik, torch.where(out, -torch.inf, f), share.exp().nan_to_num(0.0)


def _apart(u: Tensor, log_f: Tensor, width: Tensor, count: int) -> Tensor:
    """Select the highest of K points, then the highest of those not near it, and so on, with shape (count, N, U)."""
    chosen = []
    for _ in range(count):
        best = log_f.argmax(0)
        chosen.append(u[best, torch.arange(u.shape[1], device=u.device)])
        near = ((u - chosen[-1]) / width).square().sum(-1) < _APART**2
        log_f = torch.where(near, -torch.inf, log_f)
    return torch.stack(chosen)


def _rounding(space: LatentSpace, starts: Tensor, peaks: Peaks | None, covariance: Tensor) -> Tensor:
    """Bound the rounding error of log p(x) in nats, with shape (N,), by terms and differences at the highest point."""
    eps = torch.finfo(_dtype(space)).eps
    points = starts if peaks is None else torch.cat([starts, peaks.mode])
    best = _log_density(space, points).argmax(0)
    data = torch.arange(space.num_data, device=best.device)
    u = points[best, data]
    latents, log_det = space.unpack(u.to(_dtype(space)).unsqueeze(0))
    terms = [part.double().abs().nan_to_num(0.0, 0.0, 0.0)[0] for part in (*space.log_model(latents), log_det)]
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    if peaks is not None:
        narrow = peaks.scale_tril.square().sum(-1).sqrt()
        sd = torch.minimum(sd, torch.where(peaks.counts.unsqueeze(-1), narrow, torch.inf).amin(0))
    moves = torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0], dtype=u.dtype, device=u.device)
    noise = _log_density(space, u * (1 + eps * moves[:, None, None]))
    noise = (noise.amax(0) - noise.amin(0)).nan_to_num(0.0, 0.0, 0.0)
    single = _dtype(space) != torch.float64
    within = space.rounding_at(latents) if single else torch.zeros_like(noise)  # of terms that cancel in an entry
    return _ROUNDINGS * eps * (1 + sum(terms)) + (eps * u.abs() / sd).sum(-1).nan_to_num(0.0, 0.0) + noise + within


def _root(covariance: Tensor) -> Tensor:
    """Find a Cholesky factor; the standard deviations where rounding leaves none."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    sd = covariance.diagonal(dim1=-2, dim2=-1).nan_to_num(1.0, 1.0).clamp(min=1e-300).sqrt()
    bad = (failed > 0) | ~root.isfinite().flatten(1).all(1)
    return torch.where(bad[:, None, None], sd.diag_embed(), root)


class _Grid:
    """Log p(x) and moments of p(u|x) by the trapezoid rule over u = loc + root t, t = s / (1 - s^2), s in (-1, 1)^U.

    Args:
        space: Continuous latents of a model at N data.
        count: Number of intervals per coordinate.
        loc: Centre, with shape (N, U).
        root: Axes, with shape (N, U, U).
        at_once: Number of points decoded at once, for all data.

    Attributes:
        log_p: Log p(x), with shape (N,).
        error: Error of log p(x) in nats, with shape (N,).
        is_fine: Whether many points share p(x), and half of them would do, with shape (N,).
        loc: Posterior means, with shape (N, U).
        covariance: Posterior covariances, with shape (N, U, U).
        cells: Covariances within the cells between points, with shape (N, U, U), if the posterior is uniform there.
    """

    def __init__(self, space: LatentSpace, count: int, loc: Tensor, root: Tensor, at_once: int) -> None:
        size = space.size
        s = torch.arange(1, count, dtype=torch.float64, device=loc.device) / count * 2 - 1
        t = torch.cartesian_prod(*[s / (1 - s**2)] * size).reshape(-1, size)
        widths = torch.cartesian_prod(*[(1 + s**2) / (1 - s**2) ** 2 * 2 / count] * size).reshape(-1, size)
        self.count, self.t, self.widths, self.root, self.centre = count, t, widths, root, loc
        log_f = [_log_density(space, loc + torch.einsum("nuv,kv->knu", root, some)) for some in t.split(at_once)]
        self.log_f = torch.cat(log_f)
        terms = self.log_f + widths.log().sum(-1, keepdim=True)
        log_sum = terms.logsumexp(0)
        self.log_p = log_sum + torch.linalg.slogdet(root).logabsdet
        share = (terms - log_sum).exp().nan_to_num(0.0)
        features = torch.cat([t, (t.unsqueeze(-1) * t.unsqueeze(-2)).flatten(1), widths**2 / 12], -1)
        mean, square, within = (share.T @ features).split([size, size**2, size], -1)
        within = torch.where(log_sum.isneginf().unsqueeze(-1), 1.0, within)  # without any density, the points stay
        covariance = square.unflatten(-1, (size, size)) - mean.unsqueeze(-1) * mean.unsqueeze(-2)
        self.loc = loc + (root @ mean.unsqueeze(-1)).squeeze(-1)
        self.covariance = root @ covariance @ root.mT
        self.cells = root @ within.diag_embed() @ root.mT
        self.error = self._error(share)
        self.is_fine = (share.square().sum(0) < 1 / 30) & (self.error < 0.02)

    def _error(self, share: Tensor) -> Tensor:
        """Estimate the error of log p(x) in nats, with shape (N,), by sums over every second, fourth and eighth point.

        The last two say where the error of every second point is small by chance: it falls with the spacing squared
        at a kink, and faster otherwise.
        """
        size, index = self.t.shape[-1], torch.arange(1, self.count, device=share.device)
        second, fourth, eighth = (
            (share[torch.cartesian_prod(*[index % step == self.count // 2 % step] * size).reshape(-1, size).all(-1)])
            .sum(0)
            .mul(step**size)
            .log()
            .abs()
            for step in (2, 4, 8)
        )
        ratio = (fourth / eighth).nan_to_num(1.0).clamp(max=1)
        guess = torch.maximum(fourth / 4, eighth / 8) if size == 1 else fourth * ratio
        return torch.maximum(second, guess).nan_to_num(torch.inf)

    def axes(self) -> Tensor:
        """Compute the axes of the next points, `_REACH` times a Cholesky factor, with shape (N, U, U)."""
        return _REACH * _root(self.covariance + self.cells)

    def resolves(self, peaks: Peaks | None) -> Tensor:
        """Return whether points lie close together within each mode that counts, with shape (N,)."""
        if peaks is None:
            return torch.ones_like(self.log_p, dtype=torch.bool)
        t = torch.einsum("nuv,snv->snu", torch.linalg.inv(self.root), peaks.mode - self.centre)
        s = to_cube(t)
        spacing = self.root * ((1 + s**2) / (1 - s**2) ** 2 * 2 / self.count).unsqueeze(-2)  # (S, N, U, U)
        whitened = torch.linalg.solve_triangular(peaks.scale_tril, spacing, upper=False)
        close = torch.linalg.matrix_norm(whitened.nan_to_num(1e9, 1e9, -1e9), 2) <= _MAX_SPACING
        return (close | ~peaks.counts).all(0)

    def peaks(self, count: int) -> Peaks:
        """Select the highest of the points that are higher than their neighbours, as wide as the grid's spacing."""
        size = self.t.shape[-1]
        grid = self.log_f.T.reshape(-1, 1, *[self.count - 1] * size)
        pool = (torch.nn.functional.max_pool1d, torch.nn.functional.max_pool2d, torch.nn.functional.max_pool3d)
        highest = pool[size - 1](grid, 3, stride=1, padding=1)
        values, best = torch.where(grid == highest, grid, -torch.inf).flatten(1).topk(count, 1)
        best = best.T  # (S, N)
        mode = self.centre + torch.einsum("nuv,snv->snu", self.root, self.t[best])
        reach = torch.full((count,), _GRID_REACH, dtype=mode.dtype, device=mode.device)
        return Peaks(mode, self.root * self.widths[best].unsqueeze(-2), (values > values[:, :1] - _COUNTS).T, reach)
