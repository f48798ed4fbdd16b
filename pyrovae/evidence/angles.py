"""Angles: coordinates whose period is cut opposite to each datum's posterior mode."""

import math

import pyro
import torch
from torch import Tensor

from pyrovae.densities import CIRCLE, entry_support, evaluating, isolated_rng
from pyrovae.evidence.blocks import split_count
from pyrovae.evidence.coordinates import FixedCoordinates, Latents, wrapped
from pyrovae.evidence.latent_space import LatentSpace

_SEED = 20_161_127
_DRAWS = 64  # of the prior, and of the guide, from which the search for a mode starts
_GRID = 24  # values of each angle in the search
_SWEEPS = 2
_EDGE = math.pi - 1e-6
_HIGHER = 2.0  # nats above the lowest density, from which a period does not begin there
_ROUNDING = 1e-2, 1e-4  # nats, absolute and relative, between the densities at both ends of the period


def centre_angles(space: LatentSpace, chunk_size: int) -> None:
    """Turn the coordinates of each angle so that its period begins opposite to a high density, or at a low one.

    A mode at the cut of a period is two modes in coordinates, and d angles make 2^d of them. The search takes the best
    of some draws, and then the best value of each angle in turn. Coordinates stay as they are if the density differs
    at both ends of the period, as it does if a program uses an angle other than by periodic functions.

    Args:
        space: Latents of a model and a guide at N data. Its coordinates change, once.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.
    """
    coordinates = space.coordinates
    if not isinstance(coordinates, FixedCoordinates) or "angles" in space.memo:
        return
    names = [name for name, support in coordinates.supports.items() if entry_support(support) is CIRCLE]
    space.memo["angles"] = names
    if not names:
        return
    quiet = evaluating(*(program for program in (space.model, space.guide) if program is not None))
    with quiet, isolated_rng(_SEED), torch.no_grad(), pyro.validation_enabled(False):
        at_once = max(1, chunk_size // space.num_data)
        drawn = [space.from_prior(count) for count in split_count(_DRAWS, at_once)]
        if not _is_periodic(space, drawn[0], names):
            return
        if space.guide is not None:
            drawn += [space.from_guide(count) for count in split_count(_DRAWS, at_once)]
        best = _highest(space, drawn)
        for _ in range(_SWEEPS):
            for name in names:
                for entry in range(best[name][0, 0].numel()):
                    best = _highest(space, [best, *_turned(best, name, entry, at_once)])
        coordinates.centres = {name: _opposite_of_lowest(space, best, name, at_once) for name in names}


def _opposite_of_lowest(space: LatentSpace, best: Latents, name: str, at_once: int) -> Tensor:
    """Choose the middle of each angle's period: the best angle, or the angle opposite to the lowest density.

    The latter holds where the density opposite to the best angle is high. Another mode may lie there, and the cut of
    the period would divide it: cos z alone leaves z = pi/2 and -pi/2.
    """
    centre = best[name].clone()
    flat = centre.view(*centre.shape[:2], -1)
    for entry in range(flat.shape[-1]):
        values, angles = [], []
        opposite = best | {name: _with_entry(best[name], entry, wrapped(flat[..., entry] + math.pi))}
        for latents in [opposite, *_turned(best, name, entry, at_once)]:
            values.append(torch.as_tensor(sum(space.log_model(latents))).nan_to_num(torch.inf))
            angles.append(latents[name].flatten(2)[..., entry] if centre.dim() > 2 else latents[name])
        value, place = torch.cat(values).min(0)
        moved = wrapped(torch.cat(angles)[place, torch.arange(len(place), device=place.device)] + math.pi)
        flat[0, :, entry] = torch.where(values[0][0] > value + _HIGHER, moved, flat[0, :, entry])
    return centre


def _is_periodic(space: LatentSpace, latents: Latents, names: list[str]) -> bool:
    """Return whether the density is the same at both ends of the period of all angles, one after the other."""
    absolute, relative = _ROUNDING
    for name in names:
        ends = [sum(space.log_model(latents | {name: torch.full_like(latents[name], end)})) for end in (-_EDGE, _EDGE)]
        lower, upper = (torch.as_tensor(value).double() for value in ends)
        near = (lower - upper).abs() <= absolute + relative * lower.abs()
        if not bool((near | (lower == upper)).all()):
            return False
    return True


def _highest(space: LatentSpace, drawn: list[Latents]) -> Latents:
    """Select the draw of the highest density for each datum, with K = 1."""
    values = torch.cat([torch.as_tensor(sum(space.log_model(latents))) for latents in drawn])
    best = torch.where(values.isnan(), -torch.inf, values).argmax(0)
    data = torch.arange(space.num_data, device=best.device)
    return {name: torch.cat([latents[name] for latents in drawn])[best, data].unsqueeze(0) for name in drawn[0]}


def _turned(latents: Latents, name: str, entry: int, at_once: int) -> list[Latents]:
    """List the latents with one angle at each value of a grid, in chunks."""
    angles = torch.arange(_GRID, dtype=latents[name].dtype, device=latents[name].device) * (2 * math.pi / _GRID)
    turned = []
    for some in (angles - math.pi + math.pi / _GRID).split(at_once):
        copies = {key: value.expand(len(some), *value.shape[1:]) for key, value in latents.items()}
        turned.append(copies | {name: _with_entry(copies[name], entry, some.unsqueeze(-1))})
    return turned


def _with_entry(value: Tensor, entry: int, angle: Tensor) -> Tensor:
    """Replace an entry of a site's angles, with shape (K, N, ...), for all draws and data."""
    flat = value.flatten(2).clone() if value.dim() > 2 else value.unsqueeze(-1).clone()
    flat[..., entry] = angle
    return flat.reshape(value.shape)
