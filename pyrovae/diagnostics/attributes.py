"""Attribute vectors: directions of latent space from data without an attribute to data with it."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, entry
from pyrovae.diagnostics.codes import Codes
from pyrovae.diagnostics.places import LatentSpace


class AttributeVector(NamedTuple):
    """Direction of an attribute in latent space.

    Attributes:
        vector: Difference of mean codes, balanced against the other attribute, with shape (J,).
        std_error: Standard error of vector over data, with shape (J,).
        unbalanced: Difference of mean codes of all data with and without the attribute, with shape (J,).
        unbalanced_error: Standard error of unbalanced, with shape (J,).
        angle: Angle between vector and unbalanced in degrees.
        counts: Number of data without and with the attribute, by value of the other attribute, with shape (2, V).
    """

    vector: Tensor
    std_error: Tensor
    unbalanced: Tensor
    unbalanced_error: Tensor
    angle: float
    counts: Tensor


def attribute_vector(z: Tensor, attribute: Tensor, other: Tensor) -> AttributeVector:
    """Compute the direction of an attribute, balanced against a second attribute by replication.

    If the two occur together, the difference of mean codes contains the second attribute as well. Replication of data
    until each pair of values is equally frequent removes this (White, "Sampling generative networks", 2016,
    https://arxiv.org/abs/1609.04468). In the limit of many copies it is the mean over values v of

        E[z | attribute, other = v] - E[z | no attribute, other = v],

    computed here without copies, so that the standard error counts each datum once.

    Args:
        z: Codes, with shape (N, J), such as `Codes.mean`.
        attribute: Whether each datum has the attribute, with shape (N,), bool.
        other: Value of the second attribute, with shape (N,), bool or integer.

    Raises:
        ValueError: If the shapes do not agree, or fewer than two data have some pair of values.
    """
    if z.dim() != 2 or attribute.shape != z.shape[:1] or other.shape != z.shape[:1]:
        raise ValueError(
            f"z must have shape (N, J), attribute and other (N,), got {tuple(z.shape)}, {tuple(attribute.shape)}, "
            f"{tuple(other.shape)}"
        )
    z, attribute = z.detach().double().cpu(), attribute.cpu().bool()
    values = other.cpu().unique()
    cells = [[z[(attribute == has) & (other.cpu() == value)] for value in values] for has in (False, True)]
    counts = torch.tensor([[len(cell) for cell in row] for row in cells])
    if int(counts.min()) < 2:
        raise ValueError(
            "balancing needs at least two data with each pair of values of attribute and other, got counts "
            f"{counts.tolist()}; merge rare values of other, or leave their data out"
        )
    moments = [[(cell.mean(0), cell.var(0) / len(cell)) for cell in row] for row in cells]
    without, with_it = (torch.stack([mean for mean, _ in row]).mean(0) for row in moments)
    variance = torch.stack([noise for row in moments for _, noise in row]).sum(0) / len(values) ** 2
    groups = [z[~attribute], z[attribute]]
    unbalanced = groups[1].mean(0) - groups[0].mean(0)
    error = sum((group.var(0) / len(group) for group in groups), torch.zeros(z.shape[1]).double()).sqrt()
    vector = with_it - without
    return AttributeVector(vector, variance.sqrt(), unbalanced, error, _degrees(vector, unbalanced), counts)


def _degrees(one: Tensor, two: Tensor) -> float:
    """Compute the angle between two vectors in degrees; NaN if one is 0."""
    if not float(one.norm() * two.norm()) > 0:
        return math.nan
    one, two = one / one.norm(), two / two.norm()
    return math.degrees(2 * math.atan2(float((one - two).norm()), float((one + two).norm())))


class AttributeSteps(NamedTuple):
    """Decoded means on a line along an attribute's direction.

    Attributes:
        steps: Multiples of the vector that are added, with shape (T,).
        ways: "balanced", "unbalanced".
        z: Places, with shape (2, T, J).
        means: Means E[x|z], with shape (2, T, D).
    """

    steps: Tensor
    ways: tuple[str, ...]
    z: Tensor
    means: Tensor


@entry()
def attribute_steps(
    model: Program,
    *args: Any,
    codes: Codes,
    vector: AttributeVector,
    base: Tensor | int = 0,
    steps: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0),
    seed: int = 0,
    **kwargs: Any,
) -> AttributeSteps:
    """Add multiples of an attribute's vector to one code, and decode; the unbalanced vector for comparison.

    Args:
        model: Pyro program p(z) p(x|z), with one observed site.
        *args: Positional arguments of the model for one datum, with shape (1, ...).
        codes: Codes of data, for the names and shapes of latents.
        vector: Direction of the attribute.
        base: Place to begin at, with shape (J,), or the number of a datum, for its posterior mean.
        steps: Multiples of the vector.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of the model for one datum.

    Raises:
        ValueError: If a place lies outside the support of a latent, or as `decode_means`.
    """
    start = codes.mean[base] if isinstance(base, int) else base.double().cpu()
    times = torch.tensor(steps, dtype=torch.float64)
    z = torch.stack([start + times[:, None] * way for way in (vector.vector, vector.unbalanced)])
    means = LatentSpace(model, args, kwargs, codes.sites, seed).decode(z.flatten(0, 1))
    return AttributeSteps(times, ("balanced", "unbalanced"), z, means.reshape(*z.shape[:2], -1))
