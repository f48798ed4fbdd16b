"""Laplace approximation of each datum's posterior: the mode in unconstrained coordinates, and the width there.

The curvature is the Hessian of log p(x, z) by automatic differentiation, with positive eigenvalues. Fisher's
information of p(x|z) equals the Hessian at x = E[x|z] if the decoder gives natural parameters (logits of a Bernoulli,
log rates of a Poisson), and at every x if the decoder is also piecewise linear. For other decoders it was no better.
On digits at K = 1,000, the median effective sample size was 517 with the Hessian and 503 with Fisher's information for
a softplus decoder, 314 and 281 for tanh, in the same time.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, evaluating, modules_of
from pyrovae.evidence.blocks import DEFAULT_CHUNK_SIZE, check_counts, split_count
from pyrovae.evidence.derivatives import ROWS_ONE_BY_ONE, derivatives, gradient_at, log_joint_at
from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.evidence.starts import prior_scale, starting_points

# Dampings tried in each step, in units of the mean curvature: from Newton's step to a short step up the gradient.
_DAMPING = (0.0, 0.1, 1.0, 10.0, 100.0)

# Steps per Hessian. A Hessian costs U backward passes, each further step a gradient and a few values.
_STEPS_PER_HESSIAN = 3

# Steps of a further start by the curvature at the first start's mode, before it has Hessians of its own.
_SHARED_STEPS = 8

# Squared distance of two points, in standard deviations of a mode, up to which they are one mode: in any case, and for
# each latent if no valley lies between them. Draws of U latents lie at a squared distance of about U.
_SAME, _SAME_PER_LATENT = 1.0, 0.1

# Gain of a Newton step, g' H^-1 g / 2 in nats, below which a climb stops.
_GAIN = 1e-3

# Nats that all steps by the last Hessian must have gained, or a climb stops. At a kink, as of a ReLU decoder, the
# gradient does not vanish.
_PROGRESS = 1e-2

# Minimum curvature, relative to a normal with the prior's width: no direction is wider than about 3 times the prior.
_FLOOR = 0.1

_GUIDE_DRAWS = 400  # for its moments, where a climb fails

# Distance at which the width of each axis is measured, in standard deviations, and bounds of the precision's change.
_PROBE = 1.5
_PROBE_BOUNDS = (0.2, 25.0)

SKEWED_FROM = 1.25  # ratio of the widths up and down an axis


class _Ends(NamedTuple):
    """Points of climbs, with what the next step needs, in units of the prior's width.

    Attributes:
        u: Points, with shape (S, N, U).
        value: f there, with shape (S, N).
        slope: Gradient along the eigenvectors of P, with shape (S, N, U), float64.
        curvature: Eigenvalues of P, with shape (S, N, U), float64.
        axes: Eigenvectors of P, with shape (S, N, U, U), float64.
        undefined: Whether the gradient is NaN where f is finite, with shape (S, N).
        stalled: Whether the steps of the last Hessian gained too little, with shape (S, N).
    """

    u: Tensor
    value: Tensor
    slope: Tensor
    curvature: Tensor
    axes: Tensor
    undefined: Tensor
    stalled: Tensor

    @property
    def going(self) -> Tensor:
        """Whether further steps may gain, with shape (S, N)."""
        return ((self.slope.square() / self.curvature).sum(-1) >= 2 * _GAIN) & ~self.stalled


class LaplaceFit(NamedTuple):
    """Normal approximation of p(u|x) for each datum, from one start or several.

    Attributes:
        mode: End of a climb of log p(x, z(u)) |dz/du|, with shape (N, U), or (S, N, U) from `climb`.
        scale_tril: Cholesky factor of the covariance there, with shape (N, U, U) or (S, N, U, U), float64.
        log_joint: Log p(x, z(u)) |dz/du| at the mode in nats, with shape (N,) or (S, N).
        rotation: Orthogonal matrix Q, with shape (N, U, U) or (S, N, U, U), float64: Q L^-1 (u - mode), with the
            Cholesky factor L, are the coordinates along the axes of the curvature, in standard deviations.
        sides: Widths up and down each axis relative to its standard deviation, with shape (N, 2, U) or (S, N, 2, U),
            float64; 1 if the density falls alike on both sides.
    """

    mode: Tensor
    scale_tril: Tensor
    log_joint: Tensor
    rotation: Tensor
    sides: Tensor


def laplace_fit(
    space: LatentSpace, *, steps: int = 8, starts: int = 1, chunk_size: int = DEFAULT_CHUNK_SIZE
) -> LaplaceFit:
    """Find the mode of p(u|x) for each datum and a normal there: the best of `climb`.

    Args:
        space: Continuous latents of a model and a guide at N data.
        steps: Maximum number of Hessians.
        starts: Number of starting points S per datum.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.

    Returns:
        LaplaceFit of mode (N, U), scale_tril (N, U, U) and log_joint (N,).

    Raises:
        ValueError: As `climb`.
    """
    fits = climb(space, steps=steps, starts=starts, chunk_size=chunk_size)
    best = fits.log_joint.argmax(0)
    data = torch.arange(space.num_data, device=best.device)
    return LaplaceFit(*(part[best, data] for part in fits))


def at_one_mode(
    space: LatentSpace, one: Tensor, other: Tensor, lower: Tensor, squared_distance: Tensor, chunk_size: int
) -> Tensor:
    """Find the pairs of points that are at one mode: near each other, and with no valley between them.

    Within one standard deviation two points are at one mode. Within a squared distance of 0.1 for each latent, they are
    if f half-way is not below f at the lower point. Then a kink or flat place may have stopped a climb.

    Args:
        space: Continuous latents of a model at N data.
        one: Points, with shape (S, N, U).
        other: The other points, with shape (S, N, U).
        lower: The lower f of each pair, with shape (S, N).
        squared_distance: Their squared distance, in standard deviations of a mode, with shape (S, N).
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.
    """
    same = squared_distance < _SAME
    open_pairs = ~same & (squared_distance < _SAME_PER_LATENT * space.size)
    some = open_pairs.any(1)
    if bool(some.any()):
        half_way = log_joint_at(space, (one[some] + other[some]) / 2, chunk_size)
        same[some] |= open_pairs[some] & (half_way >= lower[some])
    return same


def climb(space: LatentSpace, *, steps: int = 8, starts: int = 1, chunk_size: int = DEFAULT_CHUNK_SIZE) -> LaplaceFit:
    r"""Climb to modes of f(u) = log p(x, z(u)) |dz/du| from the guide, and find the curvature there.

    A step is the best of u + (P + lambda I)^-1 grad f over several dampings lambda, if it does not lower f. P has the
    eigenvectors of the Hessian of -f and the absolute values of its eigenvalues, in units of the prior's width (Dauphin
    et al. 2014, "Identifying and attacking the saddle point problem", https://arxiv.org/abs/1406.2572). At the end, the
    width along each eigenvector v is measured by the fall of f, sd^2 = mean over +-c of c^2 / (2 (f(u) - f(u + cv))),
    after Geweke 1989, "Bayesian inference in econometric models using Monte Carlo integration", Econometrica 57(6). A
    kink, such as that of a Laplace likelihood, has a width only in this sense. A datum without a finite f keeps the
    prior's width. If the gradient of a datum is NaN, a normal with the moments of the guide replaces its fits, with a
    warning. No parameter's gradient changes.

    Args:
        space: Continuous latents of a model and a guide at N data.
        steps: Maximum number of Hessians.
        starts: Number of starting points S per datum.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.

    Returns:
        LaplaceFit of mode (S, N, U), scale_tril (S, N, U, U) and log_joint (S, N). The first start is the guide's mean
        or its best draw; others are, in turn, the best of four draws of the prior and of the guide. Where another start
        comes to the mode of the first, a copy of the first fit fills its place, with log_joint -inf.

    Raises:
        ValueError: If a latent has no unconstrained coordinates, or a mask leaves latents out.
    """
    _check_coordinates(space)
    check_counts(steps=steps, starts=starts)
    with _fixed_programs(space):
        u = starting_points(space, starts, chunk_size)
        value = log_joint_at(space, u, chunk_size)
        ends, failed = _climb(space, u[:1], value[:1], steps, chunk_size)
        if starts == 1:
            fit = _with_widths(space, ends, chunk_size)
        else:
            u, value, undefined, arrived = _follow(space, ends, u[1:], value[1:], chunk_size)
            arrived &= ~failed
            failed &= undefined.all(0)
            fit = _with_widths(space, _highest_of(ends, u, value, arrived), chunk_size)
            others = climb_some(space, u, ~arrived, fit, steps=steps, chunk_size=chunk_size)
            fit = LaplaceFit(*(torch.cat(parts) for parts in zip(fit, others, strict=True)))
        return _with_moments(space, fit, failed, chunk_size) if bool(failed.any()) else fit


def _highest_of(ends: _Ends, u: Tensor, value: Tensor, arrived: Tensor) -> _Ends:
    """Move each mode to the highest of the points that have come to it, since a climb may stop before a kink."""
    values = torch.cat([ends.value, torch.where(arrived, value, -torch.inf)])
    best = values.argmax(0, keepdim=True)
    points = torch.cat([ends.u, u])
    return ends._replace(u=points.gather(0, best.unsqueeze(-1).expand_as(ends.u)), value=values.gather(0, best))


def climb_some(
    space: LatentSpace, u: Tensor, which: Tensor, others: LaplaceFit, *, steps: int, chunk_size: int
) -> LaplaceFit:
    """Climb as `climb` does from some of the points u.

    Args:
        space: Continuous latents of a model and a guide at N data.
        u: Starting points, with shape (S, N, U).
        which: Whether to climb from a point, with shape (S, N).
        others: Fits whose first one stands for the other points, with log_joint -inf.
        steps: Maximum number of Hessians of each climb.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.

    Returns:
        LaplaceFit of mode (S, N, U), scale_tril (S, N, U, U) and log_joint (S, N).
    """
    fit = LaplaceFit(*(part[:1].repeat(len(u), *[1] * (part.dim() - 1)) for part in others))
    fit.log_joint.fill_(-torch.inf)
    if not bool(which.any()):
        return fit
    if space.model.divisible:
        for part, chosen in _parts(space, which, chunk_size):
            found, _ = climb_from(part, u[chosen].unsqueeze(0), steps=steps, chunk_size=chunk_size)
            for old, new in zip(fit, found, strict=True):
                old[chosen] = new[0]
        return fit
    found, _ = climb_from(space, u, steps=steps, chunk_size=chunk_size)
    return found._replace(log_joint=torch.where(which, found.log_joint, -torch.inf))


def climb_from(
    space: LatentSpace, u: Tensor, *, steps: int = 8, chunk_size: int = DEFAULT_CHUNK_SIZE, held: int | None = None
) -> tuple[LaplaceFit, Tensor]:
    """Climb to modes of f(u) = log p(x, z(u)) |dz/du| as `climb` does, from given points, so that no guide is needed.

    Args:
        space: Continuous latents of a model at N data, with or without a guide.
        u: Starting points, with shape (S, N, U).
        steps: Maximum number of Hessians.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.
        held: Index of a coordinate that keeps its value, so that the other ones climb to the mode of their conditional
            density; None if all move. The fits have no correlation of the held coordinate with the other ones.

    Returns:
        LaplaceFit of mode (S, N, U), scale_tril (S, N, U, U) and log_joint (S, N); and whether the climbs of a datum
        failed since the gradient is NaN at all of its starts, with shape (N,).

    Raises:
        ValueError: As `climb`.
    """
    _check_coordinates(space)
    check_counts(steps=steps)
    with _fixed_programs(space):
        ends, failed = _climb(space, u, log_joint_at(space, u, chunk_size), steps, chunk_size, held)
        return _with_widths(space, ends, chunk_size), failed


def _climb(
    space: LatentSpace, u: Tensor, value: Tensor, steps: int, chunk_size: int, held: int | None = None
) -> tuple[_Ends, Tensor]:
    """Climb from u, with shape (S, N, U), where f is value; return the ends, and whether a datum's climbs failed."""
    start = _ends_at(space, u, value, chunk_size, held)
    ends = _go_on(space, start, steps, chunk_size, held)
    u, value = _best_step(space, ends.u, ends.value, ends.slope, ends.curvature, ends.axes, chunk_size)
    far = ends.going  # where the curvature of the last step is not that of the end
    u, value = torch.where(far.unsqueeze(-1), ends.u, u), torch.where(far, ends.value, value)
    return ends._replace(u=u, value=value), start.undefined.all(0)


def _go_on(space: LatentSpace, ends: _Ends, steps: int, chunk_size: int, held: int | None = None) -> _Ends:
    """Climb on from points with up to `steps` more Hessians. Where most have arrived, the others go on alone."""
    while steps:
        going = ends.going
        if not bool(going.any()):
            break
        if space.model.divisible and 2 * int(going.sum()) <= going.numel():
            ends = _Ends(*(old.clone() for old in ends))
            for part, chosen in _parts(space, going, chunk_size):
                some = _go_on(part, _Ends(*(old[chosen].unsqueeze(0) for old in ends)), steps, chunk_size, held)
                for old, new in zip(ends, some, strict=True):
                    old[chosen] = new[0]
            break
        u, value, slope = ends.u, ends.value, ends.slope
        for again in range(_STEPS_PER_HESSIAN):
            if again:
                slope = _to_eigenbasis(ends.axes, _gradient(space, u, chunk_size, held).nan_to_num(0.0, 0.0, 0.0))
            u, value = _best_step(space, u, value, slope, ends.curvature, ends.axes, chunk_size)
        stalled = value - ends.value < _PROGRESS
        ends = _ends_at(space, u, value, chunk_size, held)._replace(stalled=stalled)
        steps -= 1
    return ends


def _follow(
    space: LatentSpace, ends: _Ends, u: Tensor, value: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Climb from points u, with shape (S, N, U), by the curvature at each datum's mode, until all are at that mode.

    Args:
        space: Continuous latents of a model and a guide at N data.
        ends: Modes, with shape (1, N, U), and their curvature.
        u: Starting points, with shape (S, N, U).
        value: f there, with shape (S, N).
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.

    Returns:
        Points, with shape (S, N, U); f there; whether the gradient is NaN at the start where f is finite; and whether
        the point has come to the mode, each with shape (S, N).
    """
    _, unit = prior_scale(space, chunk_size)
    lowest = ends.value - max(_SAME, _SAME_PER_LATENT * space.size)
    undefined = None
    for step in range(_SHARED_STEPS + 1):
        away = _to_eigenbasis(ends.axes, (u - ends.u).double() / unit)
        square = torch.where(value > lowest, (away.square() * ends.curvature).sum(-1), torch.inf)
        modes = ends.u.expand_as(u)
        arrived = at_one_mode(space, u, modes, value.minimum(ends.value), square, chunk_size) & ~ends.going
        if bool(arrived.all()) or step == _SHARED_STEPS:
            break
        gradient = _gradient(space, u, chunk_size)
        if undefined is None:
            undefined = gradient.isnan().any(-1) & value.isfinite()
        slope = _to_eigenbasis(ends.axes, gradient.nan_to_num(0.0, 0.0, 0.0))
        u, value = _best_step(space, u, value, slope, ends.curvature, ends.axes, chunk_size)
    return u, value, torch.zeros_like(arrived) if undefined is None else undefined, arrived


def _parts(space: LatentSpace, which: Tensor, chunk_size: int) -> Iterator[tuple[LatentSpace, tuple[Tensor, Tensor]]]:
    """Make spaces of at most chunk_size of the chosen points, with shape (S, N), and yield them with their indices."""
    scale = prior_scale(space, chunk_size)
    for some in which.nonzero().split(chunk_size):
        starts, rows = some.unbind(1)
        part = space.of_rows(rows)
        if part is not space:
            part.memo["prior scale"] = tuple(value[rows] for value in scale)
            part.memo[ROWS_ONE_BY_ONE] = space.memo.get(ROWS_ONE_BY_ONE, False)
        yield part, (starts, rows)


def _check_coordinates(space: LatentSpace) -> None:
    """Raise a ValueError if a latent has no coordinates u for some datum."""
    if not space.continuous or space.masked:
        reason = space.obstacle or "a mask leaves latents of some data out"
        raise ValueError(f"{reason}, so there is no mode to climb to; use GuideProposal() or DefensiveProposal()")


def _with_moments(space: LatentSpace, fit: LaplaceFit, failed: Tensor, chunk_size: int) -> LaplaceFit:
    """Replace the fits of data whose climb failed by a normal with the moments of the guide, and warn."""
    warnings.warn(
        f"the climb to the mode failed for {int(failed.sum()):,} of {len(failed):,} data, since the gradient of "
        "log p(x, z) is NaN there, so a normal with the moments of the guide takes its place; look for missing values "
        "(NaN) that the model uses outside the sites that mask them, and fill them with any number",
        stacklevel=2,
    )
    counts = split_count(_GUIDE_DRAWS, chunk_size // space.num_data)
    drawn = torch.cat([space.pack(space.from_guide(count)) for count in counts])
    mean, away = drawn.mean(0), (drawn - drawn.mean(0)).double()
    variance = away.square().mean(0)
    root = away.movedim(0, 1) / len(drawn) ** 0.5  # (N, M, U)
    noise = (1e-4 * variance + torch.finfo(torch.float64).tiny).sqrt().diag_embed()
    tril = torch.linalg.qr(torch.cat([root, noise], 1), mode="r").R.mT
    tril = tril * tril.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    mode = torch.where(failed[:, None], mean, fit.mode)
    scale_tril = torch.where(failed[:, None, None], tril, fit.scale_tril)
    rotation = torch.where(failed[:, None, None], torch.eye(tril.shape[-1]).to(tril), fit.rotation)
    sides = torch.where(failed[:, None, None], 1.0, fit.sides)
    return LaplaceFit(mode, scale_tril, log_joint_at(space, mode, chunk_size), rotation, sides)


def normal_at(space: LatentSpace, u: Tensor, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> LaplaceFit:
    """Find the normals at points u as `climb` does at modes, by the curvature and the widths there.

    Args:
        space: Continuous latents of a model and a guide at N data.
        u: Coordinates, with shape (S, N, U).
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.

    Returns:
        LaplaceFit of mode u, with shape (S, N, U), scale_tril (S, N, U, U) and log_joint (S, N).
    """
    with _fixed_programs(space):
        return _with_widths(space, _ends_at(space, u, log_joint_at(space, u, chunk_size), chunk_size), chunk_size)


def curvature_at(space: LatentSpace, u: Tensor, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Tensor:
    """Compute the curvature of f along each coordinate at points u, (S, N, U), in units of the prior's width.

    It is the absolute value of the second derivative, at least the minimum curvature of climbs, with the shape of u,
    float64.
    """
    with _fixed_programs(space):
        _, unit = prior_scale(space, chunk_size)
        _, hessian = derivatives(space, u, chunk_size)
        second = (hessian.diagonal(dim1=-2, dim2=-1) * unit.square()).double()
        return second.nan_to_num(0.0, 0.0, 0.0).abs().clamp(min=_FLOOR)


def _best_step(
    space: LatentSpace, u: Tensor, value: Tensor, slope: Tensor, curvature: Tensor, axes: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Select the best of the damped steps from u, or u itself: the point, with shape (S, N, U), and f there, (S, N)."""
    _, unit = prior_scale(space, chunk_size)
    mean = curvature.mean(-1, keepdim=True)
    moves = [_from_eigenbasis(axes, slope / (curvature + damping * mean)) for damping in _DAMPING]
    trials = torch.stack([u, *(u + unit * move.to(u) for move in moves)])
    values = log_joint_at(space, trials[1:].flatten(0, 1), chunk_size).unflatten(0, (-1, len(u)))
    values = torch.cat([value.unsqueeze(0), values])
    best = values.argmax(0, keepdim=True)  # the first of equal values, so that u stays without a gain
    return trials.gather(0, best.unsqueeze(-1).expand(-1, *u.shape))[0], values.gather(0, best)[0]


def _gradient(space: LatentSpace, u: Tensor, chunk_size: int, held: int | None = None) -> Tensor:
    """Compute the gradient of f, with shape (S, N, U), in units of the prior's width, float64."""
    _, unit = prior_scale(space, chunk_size)
    gradient = (gradient_at(space, u, chunk_size) * unit).double()
    if held is not None:
        gradient[..., held] = 0.0
    return gradient


def _ends_at(space: LatentSpace, u: Tensor, value: Tensor, chunk_size: int, held: int | None = None) -> _Ends:
    """Compute the gradient of f, and the eigenvalues and eigenvectors of P, at u, where f is value."""
    _, unit = prior_scale(space, chunk_size)
    gradient, hessian = derivatives(space, u, chunk_size)
    gradient = (gradient * unit).double()
    hessian = (unit[..., None] * hessian * unit[..., None, :]).double().nan_to_num(0.0, 0.0, 0.0)
    if held is not None:
        gradient[..., held], hessian[..., held, :], hessian[..., held] = 0.0, 0.0, 0.0
        # Eigenvectors of equal eigenvalues may mix: give the held axis the largest, alone.
        hessian[..., held, held] = -1 - 2 * hessian.abs().amax((-2, -1))
    undefined = gradient.isnan().any(-1) & value.isfinite()
    curvature, axes = torch.linalg.eigh(-hessian)
    # A flat spot of a kinked density has no curvature: use the prior's.
    slope = _to_eigenbasis(axes, gradient.nan_to_num(0.0, 0.0, 0.0))
    stalled = torch.zeros_like(undefined)
    return _Ends(u, value, slope, curvature.abs().clamp(min=_FLOOR), axes, undefined, stalled)


def _with_widths(space: LatentSpace, ends: _Ends, chunk_size: int) -> LaplaceFit:
    """Make the fit at the ends: axes of P, with the widths measured along them."""
    _, unit = prior_scale(space, chunk_size)
    root = unit.double().unsqueeze(-1) * ends.axes / ends.curvature.sqrt().unsqueeze(-2)
    measured = partial(_variances, space, ends.u, ends.value, root, chunk_size)
    variances = measured(_PROBE)  # (2, S, N, U)
    variance = variances.mean(0)
    widths = variances.log()
    if bool(((widths[0] - widths[1]).abs() > math.log(SKEWED_FROM**2)).any()):
        # The longer tail may fall slower further out, as that of an exponential.
        variances = variances.maximum(measured(2 * _PROBE))
    root = root * variance.sqrt().unsqueeze(-2)
    # R of root' = Q R gives the Cholesky factor of root root' without squaring its condition.
    rotation, upper = torch.linalg.qr(root.mT)
    sign = upper.diagonal(dim1=-2, dim2=-1).sign()
    sides = (variances / variance).sqrt().movedim(0, -2)
    return LaplaceFit(ends.u, upper.mT * sign.unsqueeze(-2), ends.value, rotation * sign.unsqueeze(-2), sides)


def _variances(space: LatentSpace, u: Tensor, value: Tensor, steps: Tensor, chunk_size: int, probe: float) -> Tensor:
    """Measure the variances up and down each axis by the fall of f, relative to the curvature's: (2, S, N, U)."""
    moves = probe * steps.movedim(-1, 0).to(u)  # (U, S, N, U)
    variances = []
    for sign in (1, -1):
        points = (u + sign * moves).flatten(0, 1)
        fall = value - log_joint_at(space, points, chunk_size).unflatten(0, moves.shape[:2])
        fall = fall.double().nan_to_num(0.0, torch.inf)
        variances.append(1 / (2 * fall / probe**2).clamp(*_PROBE_BOUNDS))
    return torch.stack(variances).movedim(1, -1)


def _from_eigenbasis(axes: Tensor, v: Tensor) -> Tensor:
    return (axes @ v.unsqueeze(-1)).squeeze(-1)


def _to_eigenbasis(axes: Tensor, v: Tensor) -> Tensor:
    return _from_eigenbasis(axes.mT, v)


@contextmanager
def _fixed_programs(space: LatentSpace) -> Iterator[None]:
    """Put the programs into evaluation mode, and freeze their parameters, so that no graph goes through them."""
    programs = [program for program in (space.model, space.guide) if program is not None]
    with evaluating(*programs), _frozen(*programs):
        yield


@contextmanager
def _frozen(*programs: Program) -> Iterator[None]:
    """Freeze the programs' parameters meanwhile."""
    parameters = {p for program in programs for m in modules_of(program) for p in m.parameters() if p.requires_grad}
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
