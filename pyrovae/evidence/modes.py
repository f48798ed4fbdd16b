"""Search for further modes of each datum's posterior, from mirrored points, modes of other data, and prior draws.

A search cannot prove that it is complete. It says for which data it was still finding modes when it ended.
"""

import itertools
import math

import torch
from torch import Tensor

from pyrovae.densities import entry_support
from pyrovae.evidence.blocks import DEFAULT_CHUNK_SIZE
from pyrovae.evidence.coordinates import FixedCoordinates
from pyrovae.evidence.derivatives import log_joint_at
from pyrovae.evidence.laplace import LaplaceFit, at_one_mode, climb, climb_some
from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.evidence.starts import from_prior, highest, prior_scale

_MOST_MODES = 48  # per datum
_MOST_CHOSEN = 12  # candidates of a round from which to climb
_MOST_MIRRORED = 8  # modes that are mirrored, the highest
_MOST_ENTRIES = 8  # of a site, whose pairs are exchanged
_EXCHANGEABLE = 0.01  # nats by which f may change
_MOST_EXCHANGES = 64  # about, of all pairs and modes
_NEIGHBOURS = 8  # other data whose best mode is tried
_PRIOR_DRAWS = 32

_ZERO = 0.5  # prior widths within which the prior's middle is taken for 0; draws know it to 0.14 (`prior_scale`)
_EQUAL = 0.3  # spread over data, in prior widths, below which all data have the same middle
_SURPRISE = 3.0  # nats by which f at a candidate exceeds the fits so far
_REACH = 12.0  # nats below the best mode down to which a candidate is worth a climb
_MASS = 0.01  # share of the posterior's mass from which a mode counts


def find_modes(
    space: LatentSpace, *, steps: int, starts: int, rounds: int, chunk_size: int = DEFAULT_CHUNK_SIZE
) -> tuple[LaplaceFit, Tensor]:
    """Climb from several starts, then search for further modes until a round finds none.

    Each round tries modes found so far with one coordinate, or all, mirrored about the prior's middle (the modes of
    models that do not determine a sign), modes of other data, and draws of the prior. The fits so far, as unnormalised
    normals, say where f is known. New climbs start where f exceeds them. A datum with several modes also gets starts
    from the prior.

    Args:
        space: Continuous latents of a model and a guide at N data.
        steps: Maximum number of Hessians of each climb.
        starts: Number of first starting points per datum.
        rounds: Maximum number of rounds.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.

    Returns:
        The fits, with shape (S, N, ...), where a mode that was found before has log_joint -inf; and whether the last
        round still found a mode with 1 % of the mass, with shape (N,).
    """
    fit = climb(space, steps=steps, starts=starts, chunk_size=chunk_size)
    fit = _alive(_without_repeats(space, fit, 0, chunk_size), 0)
    middle = _mirror(*prior_scale(space, chunk_size))
    data = torch.arange(space.num_data, device=middle.device)
    first = 0  # index of the first mode whose mirror images were not tried
    unsettled = torch.ones_like(data, dtype=torch.bool)
    for _ in range(rounds):
        candidates = _candidates(space, fit, first, middle, chunk_size)
        room = min(_MOST_CHOSEN, _MOST_MODES - len(fit.mode))
        chosen, promising = _choose(space, fit, candidates, room, chunk_size)
        several = unsettled & ((_masses(fit) > _MASS).sum(0) > 1)
        first = len(fit.mode)
        if bool(several.any()):
            chosen = torch.cat([chosen, _from_prior(space, chunk_size)])
            promising = torch.cat([promising, several.expand(2, -1)])
        more = climb_some(space, chosen, promising, fit, steps=steps, chunk_size=chunk_size)
        fit = LaplaceFit(*(torch.cat(parts) for parts in zip(fit, more, strict=True)))
        fit = _alive(_without_repeats(space, fit, first, chunk_size), first)
        unsettled = (_masses(fit)[first:] > _MASS).any(0)
        if not bool(unsettled.any()) or len(fit.mode) >= _MOST_MODES:
            break
    return fit, unsettled


def _mirror(middle: Tensor, width: Tensor) -> Tensor:
    """Replace middles of the prior, with shape (N, U), by 0 where draws allow it, since a mirror must be precise.

    Draws put one of 3,000 middles off by more than 0.5 widths. Where the data have nearly equal middles, their mean
    decides.
    """
    is_zero = middle.abs() < _ZERO * width
    if len(middle) > 1:
        relative = middle / width
        spread, mean = torch.std_mean(relative, 0)
        is_zero |= (spread < _EQUAL) & (mean.abs() < _ZERO)
    return torch.where(is_zero, 0.0, middle)


def _without_repeats(space: LatentSpace, fit: LaplaceFit, before: int, chunk_size: int) -> LaplaceFit:
    """Set log_joint to -inf for fits from index `before` on at modes that an earlier fit, or a better new one, found.

    Args:
        space: Continuous latents of a model and a guide at N data.
        fit: Fits with shape (S, N, ...).
        before: Number of fits that stay as they are.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.
    """
    value = fit.log_joint.clone()
    for s in range(max(1, before), len(value)):
        mode, others = fit.mode[s : s + 1], slice(0, s)
        square = _squared_distances(fit, mode, others)[:, 0]
        square = torch.where(value[others].isfinite() & value[s].isfinite(), square, torch.inf)
        modes = fit.mode[others]
        same = at_one_mode(space, mode.expand_as(modes), modes, value[others].minimum(value[s]), square, chunk_size)
        value[s] = torch.where(same.any(0), -torch.inf, value[s])
    return fit._replace(log_joint=value)


def _alive(fit: LaplaceFit, first: int) -> LaplaceFit:
    """Order the fits from index `first` on by height, and leave out places where no datum has a mode but the first."""
    data = torch.arange(fit.mode.shape[1], device=fit.mode.device)
    value, order = fit.log_joint[first:].sort(0, descending=True)
    order = order[: max(0 if first else 1, int(value.isfinite().sum(0).max()))] + first
    order = torch.cat([torch.arange(first, device=data.device).unsqueeze(-1).expand(-1, len(data)), order])
    return LaplaceFit(*(part[order, data] for part in fit))


def _squared_distances(fit: LaplaceFit, u: Tensor, which: slice = slice(None)) -> Tensor:
    """Compute squared distances from modes in standard deviations, with shape (S, C, N), of u with shape (C, N, U)."""
    found = []
    for mode, tril in zip(fit.mode[which], fit.scale_tril[which], strict=True):  # one at a time, which bounds memory
        away = (u.double() - mode.double()).permute(1, 2, 0)  # (N, U, C)
        found.append(torch.linalg.solve_triangular(tril, away, upper=False).square().sum(-2).mT)
    return torch.stack(found)


def _masses(fit: LaplaceFit) -> Tensor:
    """Compute the share of each mode in the mass, with shape (S, N); 0 without a finite density."""
    log_mass = fit.log_joint.double() + fit.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return log_mass.softmax(0).nan_to_num(0.0)


def _candidates(space: LatentSpace, fit: LaplaceFit, first: int, middle: Tensor, chunk_size: int) -> Tensor:
    """List points that may lie near further modes, with shape (C, N, U).

    They are mirror images of modes from `first` on, about the middle and about 0, other images of angles, modes with
    two entries exchanged, modes of other data, and prior draws.
    """
    modes = fit.mode[first : first + _MOST_MIRRORED]  # the highest of the last search
    mirrored = 2 * middle - modes
    one = torch.eye(space.size, dtype=torch.bool, device=modes.device)[:, None, None]
    singly = torch.where(one, mirrored, modes).flatten(0, 1)
    best = fit.mode[fit.log_joint.argmax(0), torch.arange(space.num_data, device=modes.device)]
    others = [best.roll(shift, 0).unsqueeze(0) for shift in range(1, min(_NEIGHBOURS + 1, space.num_data))]
    exchanged = _exchanged(space, modes, fit.log_joint[first:], chunk_size)
    images = [singly, mirrored, -modes, *_images_of_angles(space, modes), *exchanged]
    points = torch.cat([*images, *others, from_prior(space, _PRIOR_DRAWS, chunk_size)])
    return torch.where(points.isfinite(), points, middle)


def _images_of_angles(space: LatentSpace, modes: Tensor) -> list[Tensor]:
    """List points whose angles z are -z, pi - z or z + pi, one by one and all, which leave cos, sin or tan z the same.

    The coordinates of an angle begin opposite to a mode (`centre_angles`), so their own mirror images are others.
    """
    coordinates = space.coordinates
    if not isinstance(coordinates, FixedCoordinates) or not coordinates.centres:
        return []
    latents, _ = space.unpack(modes)
    is_angle = [name in coordinates.centres for name in latents for _ in range(coordinates.event_shapes[name].numel())]
    one = torch.eye(space.size, dtype=torch.bool)[is_angle].to(modes.device)[:, None, None]
    found = []
    for sign, shift in ((-1, 0.0), (-1, math.pi), (1, math.pi)):
        turned = {name: sign * latents[name] + shift for name in coordinates.centres}
        image = space.pack(latents | turned)
        found += [torch.where(one, image, modes).flatten(0, 1), image]
    return found


def _exchanged(space: LatentSpace, modes: Tensor, height: Tensor, chunk_size: int) -> list[Tensor]:
    """List modes with two entries exchanged where f stays the same, as the components of a mixture may be.

    The entries are those of all sites with the same number of them. There are none for more than eight entries, and for
    matrices such as those of correlations.

    Args:
        space: Continuous latents of a model and a guide at N data.
        modes: Modes, with shape (M, N, U).
        height: f there, with shape (M, N).
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.
    """
    coordinates = space.coordinates
    if not isinstance(coordinates, FixedCoordinates):
        return []
    latents, _ = space.unpack(modes)
    supports = {name: entry_support(support) for name, support in coordinates.supports.items()}
    matrices = {name for name, support in supports.items() if support is not None and support.event_dim > 1}
    sizes = {name: z.shape[2] for name, z in latents.items() if z.dim() > 2 and name not in matrices}
    found = []
    for size in sorted({size for size in sizes.values() if 1 < size <= _MOST_ENTRIES}):
        pairs = list(itertools.combinations(range(size), 2))
        count = min(len(modes), _MOST_EXCHANGES // len(pairs))
        images = []
        for pair in pairs:
            order = torch.arange(size)
            order[list(pair)] = order[list(pair)].flip(0)
            exchanged = {name: latents[name][:, :, order] for name in sizes if sizes[name] == size}
            images.append(space.pack(latents | exchanged)[:count])
        image = torch.cat(images)
        change = log_joint_at(space, image, chunk_size) - height[:count].repeat(len(pairs), 1)
        same = change.abs() < _EXCHANGEABLE
        kept = same.any(1)
        found.append(torch.where(same.unsqueeze(-1), image, modes[:count].repeat(len(pairs), 1, 1))[kept])
    return found


def _from_prior(space: LatentSpace, chunk_size: int) -> Tensor:
    """Choose the best of four draws of the prior twice, with shape (2, N, U)."""
    return torch.cat([highest(space, from_prior(space, 4, chunk_size), chunk_size) for _ in range(2)])


def _choose(
    space: LatentSpace, fit: LaplaceFit, candidates: Tensor, count: int, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Choose the candidates where f exceeds the fits most, (count, N, U), and whether each is promising, (count, N)."""
    value = log_joint_at(space, candidates, chunk_size).double()  # (C, N)
    best = fit.log_joint.double().amax(0).nan_to_num(neginf=0.0)
    known = (fit.log_joint.double().unsqueeze(1) - _squared_distances(fit, candidates) / 2).logsumexp(0)
    data, chosen, promising = torch.arange(space.num_data, device=value.device), [], []
    top = fit.log_joint.argmax(0)
    best_mode, tril = fit.mode[top, data], fit.scale_tril[top, data]
    for _ in range(count):
        gain = torch.where(value > best - _REACH, value - known, -torch.inf)
        gain, index = gain.max(0)
        point, height = candidates[index, data], value[index, data]
        promising.append(gain > _SURPRISE)
        chosen.append(torch.where(promising[-1].unsqueeze(-1), point, best_mode))
        # Take the best mode's width for the next choice.
        away = (candidates - point).double().permute(1, 2, 0)
        square = torch.linalg.solve_triangular(tril, away, upper=False).square().sum(-2).mT
        known = torch.logaddexp(known, height - square / 2)
        if not bool(promising[-1].any()):
            break
    return torch.stack(chosen), torch.stack(promising)
