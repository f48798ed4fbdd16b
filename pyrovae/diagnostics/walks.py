"""Walks through latent space and their decoded means: traversals, interpolation, redrawn codes, grids by label."""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, entry
from pyrovae.diagnostics.codes import Codes, DecodedGrid, decoded_grid
from pyrovae.diagnostics.kl import KLByDimension
from pyrovae.diagnostics.places import LatentSpace

TRAVERSED = (0.025, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.975)  # probabilities of the prior, symmetric about 0.5

_OPPOSITE = 1e-6  # distance of an angle from 180 degrees, in radians


class Traversals(NamedTuple):
    """Decoded means along single latent dimensions; R of the J dimensions, by falling KL divergence.

    Attributes:
        names: Name of each of the R dimensions.
        dims: Number of each of them among the J dimensions.
        kl: Mean of KL_j(x) in nats, with shape (R,); NaN if it is unknown.
        kl_error: Standard error of kl, with shape (R,).
        levels: Probabilities of the prior, ascending and symmetric about 0.5, with shape (G,).
        places: Quantiles of the prior at these levels, with shape (R, G).
        base: Place of the other dimensions, with shape (J,).
        means: Means E[x|z], with shape (R, G, D).
    """

    names: tuple[str, ...]
    dims: tuple[int, ...]
    kl: Tensor
    kl_error: Tensor
    levels: Tensor
    places: Tensor
    base: Tensor
    means: Tensor


def by_kl(codes: Codes, kl: KLByDimension) -> list[int]:
    """Order the dimensions of codes by falling mean KL divergence; those of which it is unknown come last, by activity.

    Args:
        codes: Codes of data.
        kl: Divergences of the same model and guide.

    Raises:
        ValueError: If no dimension of the codes is among those of kl.
    """
    found, _ = _kl_of(codes, kl)
    if not set(kl.labels) & set(codes.names):
        raise ValueError(f"kl has dimensions {list(kl.labels)}, codes have {list(codes.names)}; use those of one model")
    by_activity = torch.tensor(codes.order)
    values = found[by_activity].nan_to_num(-math.inf)
    return by_activity[values.sort(descending=True, stable=True).indices].tolist()


def _kl_of(codes: Codes, kl: KLByDimension) -> tuple[Tensor, Tensor]:
    """Return mean KL divergence and standard error of each dimension of codes, with shape (J,), NaN if unknown."""
    places = {label: j for j, label in enumerate(kl.labels)}
    known = [places.get(name, -1) for name in codes.names]
    mean, error = (torch.cat([part.double(), torch.tensor([math.nan]).double()]) for part in (kl.mean, kl.std_error))
    return mean[known], error[known]


@entry()
def traverse(
    model: Program,
    *args: Any,
    codes: Codes,
    kl: KLByDimension,
    base: Tensor | int = 0,
    num_dims: int = 10,
    levels: tuple[float, ...] = TRAVERSED,
    seed: int = 0,
    **kwargs: Any,
) -> Traversals:
    """Decode a walk along each latent dimension through the prior's quantiles, the others at one datum's mean.

    The range is the prior's, not that of the codes. So a dimension that the guide leaves at the prior and the decoder
    ignores shows equal means.

    Args:
        model: Pyro program p(z) p(x|z), with one observed site.
        *args: Positional arguments of the model for one datum, with shape (1, ...).
        codes: Codes of data.
        kl: KL divergence by dimension, for the order.
        base: Place of the other dimensions, with shape (J,), or the number of a datum, for its posterior mean.
        num_dims: Largest number of dimensions.
        levels: Probabilities of the prior.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of the model for one datum.

    Raises:
        ValueError: If the levels are not ascending and symmetric about 0.5, or as `decode_means`.
        OutsideSupportError: If a walk leaves the support of a latent, such as a simplex.
    """
    steps = torch.tensor(levels, dtype=torch.float64)
    if (
        len(steps) < 2
        or bool((steps.diff() <= 0).any())
        or not torch.allclose(steps + steps.flip(0), steps.new_ones(1))
    ):
        raise ValueError(f"levels must be ascending and symmetric about 0.5, got {levels}")
    space = LatentSpace(model, args, kwargs, codes.sites, seed)
    start = codes.mean[base] if isinstance(base, int) else base.double().cpu()
    dims = by_kl(codes, kl)[:num_dims]
    places = space.quantiles(steps)[:, dims].T
    z = start.repeat(len(dims), len(steps), 1)
    for row, j in enumerate(dims):
        z[row, :, j] = places[row]
    means = space.decode(z.flatten(0, 1)).reshape(len(dims), len(steps), -1)
    mean, error = _kl_of(codes, kl)
    names = tuple(codes.names[j] for j in dims)
    return Traversals(names, tuple(dims), mean[dims], error[dims], steps, places, start, means)


class Interpolation(NamedTuple):
    """Decoded means on ways between two places of latent space.

    Attributes:
        share: Share of the way, from 0 to 1, with shape (T,).
        kinds: "straight", and "spherical" if the prior is an isotropic normal; W ways.
        z: Places, with shape (W, T, J).
        means: Means E[x|z], with shape (W, T, D).
        log_prior: log p(z) in nats, with shape (W, T).
    """

    share: Tensor
    kinds: tuple[Literal["straight", "spherical"], ...]
    z: Tensor
    means: Tensor
    log_prior: Tensor


@entry()
def interpolate(
    model: Program, *args: Any, codes: Codes, ends: Tensor, num_steps: int = 9, seed: int = 0, **kwargs: Any
) -> Interpolation:
    """Decode the way between two places: a straight line, and for a prior N(m, s^2 I) also an arc about m.

    In many dimensions draws of N(m, s^2 I) lie near a sphere of radius s sqrt(J), and the middle of a straight line
    lies inside. The arc turns from one end to the other at a constant rate, and its distance from m changes in
    proportion to the share of the way. For other priors an arc has no reason, and there is none. `log_prior` tells how
    usual the places are.

    Args:
        model: Pyro program p(z) p(x|z), with one observed site.
        *args: Positional arguments of the model for one datum, with shape (1, ...).
        codes: Codes of data, for the names and shapes of latents.
        ends: The two places, with shape (2, J), such as `codes.mean[[3, 8]]`, or mean codes of two labels.
        num_steps: Number of steps T, with both ends.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of the model for one datum.

    Raises:
        ValueError: If ends has another shape, there are fewer than two steps, or the way leaves the support of a
            latent, or as `decode_means`.
    """
    if ends.shape != (2, len(codes.names)) or num_steps < 2:
        raise ValueError(
            f"ends must have shape (2, {len(codes.names)}) and num_steps must be at least 2, got {tuple(ends.shape)} "
            f"and {num_steps}"
        )
    space = LatentSpace(model, args, kwargs, codes.sites, seed)
    share = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    first, last = ends.double().cpu()
    kinds: list[Literal["straight", "spherical"]] = ["straight"]
    ways = [first + share[:, None] * (last - first)]
    normal = space.isotropic_normal()
    arc = None if normal is None else _arc(first - normal[0], last - normal[0], share)
    if normal is not None and arc is not None:
        kinds.append("spherical")
        ways.append(normal[0] + arc)
    z = torch.stack(ways)
    means = space.decode(z.flatten(0, 1)).reshape(*z.shape[:2], -1)
    with torch.no_grad():
        log_p = space.log_prior(z.flatten(0, 1)).reshape(z.shape[:2])
    return Interpolation(share, tuple(kinds), z, means, log_p)


def _arc(first: Tensor, last: Tensor, share: Tensor) -> Tensor | None:
    """Turn from one vector to another, with shape (T, J); None if their plane is not defined."""
    lengths = first.norm(), last.norm()
    if len(first) < 2 or min(lengths) == 0:
        return None
    one, two = first / lengths[0], last / lengths[1]
    angle = torch.atan2((two - (one @ two) * one).norm(), one @ two)
    if float(angle) > math.pi - _OPPOSITE:
        return None
    away = two - (one @ two) * one
    away = away / away.norm().clamp_min(torch.finfo(torch.float64).tiny)
    length = lengths[0] + share * (lengths[1] - lengths[0])
    return length[:, None] * ((share * angle).cos()[:, None] * one + (share * angle).sin()[:, None] * away)


class Redraws(NamedTuple):
    """One datum, encoded and decoded many times.

    Attributes:
        x: The datum, with shape (D,), NaN where it is missing.
        z: Draws from q(z|x), with shape (S, J).
        means: Means E[x|z] at these draws, with shape (S, D).
        spread: Standard deviation of the means over draws, with shape (D,).
    """

    x: Tensor
    z: Tensor
    means: Tensor
    spread: Tensor


@entry()
def redraw(
    model: Program, guide: Program, *args: Any, codes: Codes, num_draws: int = 15, seed: int = 0, **kwargs: Any
) -> Redraws:
    """Draw codes of one datum and decode each: what the guide leaves open about the datum.

    Args:
        model: Pyro program p(z) p(x|z), with one observed site.
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs for one datum, the data first, with shape (1, ...).
        codes: Codes of data, for the names and shapes of latents.
        num_draws: Number of draws S.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of both programs for one datum.

    Raises:
        ValueError: If num_draws is below 2, or the arguments are not those of one datum.
    """
    if num_draws < 2:
        raise ValueError(f"num_draws must be at least 2, got {num_draws}")
    space = LatentSpace(guide, args, kwargs, codes.sites, seed)
    z = space.prior(num_draws)  # the guide's draws
    means = LatentSpace(model, args, kwargs, codes.sites, seed).decode(z)
    data = args[0] if args else kwargs["x"]
    return Redraws(data[0].detach().double().cpu().flatten(), z, means, means.std(0))


class LabelGrids(NamedTuple):
    """Decoded grids of a model with covariates, one for each of L labels.

    Attributes:
        labels: Names of the labels.
        grids: Decoded grids, one for each label.
    """

    labels: tuple[str, ...]
    grids: tuple[DecodedGrid, ...]


@entry()
def label_grids(
    model: Program,
    *args: Any,
    codes: Codes,
    dims: tuple[int, int],
    label_covariates: Tensor,
    labels: tuple[str, ...],
    num_steps: int = 7,
    seed: int = 0,
    **kwargs: Any,
) -> LabelGrids:
    """Decode one grid for each label, through the quantiles of the prior given that label.

    Args:
        model: Pyro program p(z|c) p(x|z, c), with one observed site and an argument covariates.
        *args: Positional arguments of the model for one datum, with shape (1, ...).
        codes: Codes of data, for the names, shapes and medians of latents.
        dims: The two dimensions.
        label_covariates: Covariates of each label, with shape (L, C), in place of those of the datum.
        labels: Names of the labels.
        num_steps: Number of places along each dimension, from the 2.5 to the 97.5 % quantile.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of the model for one datum, also covariates.

    Raises:
        ValueError: If there is not one label for each row of covariates, or as `decode_means`.
    """
    if len(labels) != len(label_covariates) or not labels:
        raise ValueError(
            f"there must be one label for each row of covariates, got {len(labels)} for {len(label_covariates)}"
        )
    levels, grids = torch.linspace(0.025, 0.975, num_steps, dtype=torch.float64), []
    for row in label_covariates.split(1):
        options = {**kwargs, "covariates": row}
        places = LatentSpace(model, args, options, codes.sites, seed).quantiles(levels)
        sides = places[:, dims[0]], places[:, dims[1]]
        grids.append(decoded_grid(model, *args, codes=codes, dims=dims, places=sides, **options))
    return LabelGrids(tuple(labels), tuple(grids))
