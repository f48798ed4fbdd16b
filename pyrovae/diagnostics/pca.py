"""Latent axes against principal components."""

import math
from typing import Any, NamedTuple

import torch
from scipy.linalg import subspace_angles
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyrovae.densities import Program, entry
from pyrovae.diagnostics.draws import RealLatents, evaluation, make_pair

_NO_AXIS = 1e-6  # length relative to the longest axis


class PCAAlignment(NamedTuple):
    """Axes of a latent space in data space, against the principal components of the data.

    Attributes:
        cosines: |cos| of the angle between each axis and its component, with shape (Z,); NaN for an axis of length 0.
        component: Index of the component of each axis, from 0 for the largest variance, with shape (Z,); -1 for none.
        mean_cosine: Mean of cosines over the axes that are not 0.
        largest_angle: Largest angle, in degrees, between the span of the axes that are not 0 and that of as many
            leading components. It is 0 if the axes span them, whatever their rotation.
        components: Leading components, with shape (Z, D), each of length 1.
        variance: Variance of the data along the components, with shape (Z,).
    """

    cosines: Tensor
    component: Tensor
    mean_cosine: float
    largest_angle: float
    components: Tensor
    variance: Tensor


def pca_alignment(axes: Tensor, x: Tensor) -> PCAAlignment:
    """Compare latent axes with the principal components of data.

    The linear decoder W of probabilistic PCA with the largest likelihood spans the leading components; each rotation of
    W has the same likelihood (Tipping and Bishop, "Probabilistic principal component analysis", 1999,
    https://doi.org/10.1111/1467-9868.00196). A guide with a diagonal covariance has the largest ELBO if the columns of
    W are orthogonal, so then the axes are components, up to order and sign (Rolinek, Zietlow, Martius, "Variational
    autoencoders pursue PCA directions (by accident)", CVPR 2019, https://arxiv.org/abs/1812.06775). With a full
    covariance the rotation is arbitrary. Axes and components are matched by the largest sum of |cos| (the Hungarian
    algorithm), so order and sign do not matter. Among components of nearly equal variance, the match is arbitrary.

    Args:
        axes: Directions of the latent dimensions in data space, with shape (D, Z), such as the weight of a linear
            decoder, or `decoded_axes`.
        x: Data with shape (N, D).

    Raises:
        ValueError: If the shapes do not agree, there are more axes than columns or than data less one, or all axes
            are 0.
    """
    if axes.dim() != 2 or x.dim() != 2 or axes.shape[0] != x.shape[1] or axes.shape[1] > min(x.shape[1], len(x) - 1):
        raise ValueError(
            "axes need shape (D, Z) and data shape (N, D) with Z at most D and N - 1, got "
            f"{tuple(axes.shape)} and {tuple(x.shape)}; give the weight of a linear decoder, or decoded_axes(...)"
        )
    axes, x = axes.detach().double().cpu(), x.detach().double().cpu()
    centred = x - x.mean(0)
    _, singular, components = torch.linalg.svd(centred, full_matrices=False)
    count = axes.shape[1]
    components, variance = components[:count], singular[:count].square() / (len(x) - 1)
    length = axes.norm(dim=0)
    kept = length > _NO_AXIS * length.max()
    if not bool(kept.any()):
        raise ValueError("all axes are 0, so they have no direction; use axes of latents that the decoder uses")
    table = (components @ (axes / length.clamp_min(torch.finfo(torch.float64).tiny))).abs()  # (Z, Z)
    rows, columns = linear_sum_assignment(-table[:, kept].numpy())
    cosines, component = torch.full((count,), math.nan, dtype=torch.float64), torch.full((count,), -1)
    places = kept.nonzero().flatten()[torch.as_tensor(columns)]
    component[places] = torch.as_tensor(rows)
    cosines[places] = table[torch.as_tensor(rows), places].clamp_max(1.0)
    angles = subspace_angles(axes[:, kept].numpy(), components[: int(kept.sum())].T.numpy())
    mean = cosines[places].mean().item()
    return PCAAlignment(cosines, component, mean, math.degrees(angles.max()), components, variance)


@entry()
def decoded_axes(
    model: Program,
    guide: Program,
    *args: Any,
    site: str | None = None,
    num_data: int = 100,
    num_particles: int = 64,
    seed: int = 0,
    **kwargs: Any,
) -> Tensor:
    """Compute how the decoded mean moves along each dimension of a latent, as axes for `pca_alignment`.

        axis_j = mean_n (E[x | z_n + s_j e_j] - E[x | z_n - s_j e_j]) / (2 s_j)

    z_n are means of the guide's draws, and s_j their standard deviation over data (1 if it is 0). For a linear decoder
    this is its weight. For others it is an average over the data, in which slopes of opposite sign cancel.

    Args:
        model: Pyro program p(z) p(x|z), with one observed site.
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        site: Name of the latent; None for the only real one.
        num_data: Largest number of data, chosen at random.
        num_particles: Number of draws K per datum, for the means.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of both programs.

    Returns:
        Axes with shape (D, Z), float64 on the CPU, in the unit of x per unit of z.

    Raises:
        ValueError: If there are several real latents and site is None, site is no real latent, there is not one
            observed site, or it has no mean in closed form.
    """
    pair = make_pair(model, guide, args, kwargs)
    with evaluation(pair, seed):
        if pair.divisible and pair.size > num_data:
            pair = pair.at(torch.randperm(pair.size)[:num_data].sort().values)
        trace = pair.posterior(num_particles)
        drawn = {name: each.value for name, each in trace.latents.items()}
        model_trace = pair.joint(num_particles, drawn)
        names = RealLatents.find(model_trace, trace).names
        if len(names) > 1 and site is None:
            raise ValueError(f"the model has several real latents, {list(names)}; choose one by site=")
        name = names[0] if site is None else site
        if name not in names:
            raise ValueError(f"site {name!r} is no real latent of the model, which has {list(names)}")
        means = {key: value.double().mean(0, keepdim=True).to(value) for key, value in drawn.items() if key == name}
        base = {key: means.get(key, value[:1]) for key, value in drawn.items()}
        shape, flat = base[name].shape, base[name].reshape(*base[name].shape[:2], -1)
        steps = flat.std(1).squeeze(0) if flat.shape[1] > 1 else torch.ones_like(flat[0, 0])
        axes = []
        for j, step in enumerate(torch.where(steps > 0, steps, 1.0)):
            move = torch.zeros_like(flat)
            move[..., j] = step
            up, down = (
                _decoded_mean(pair.joint(1, base | {name: (flat + sign * move).reshape(shape)})) for sign in (1, -1)
            )
            axes.append((up - down) / (2 * step.double().cpu()))
        return torch.stack(axes, -1)


def _decoded_mean(trace: Any) -> Tensor:
    """Compute the mean over data of E[x|z], with shape (D,)."""
    observed = [site for site in trace.sites.values() if site.is_observed]
    if len(observed) != 1:
        raise ValueError(f"decoded_axes needs one observed site, got {[site.name for site in observed]}")
    (site,) = observed
    try:
        mean = site.layout.per_datum(site.fn.mean, site.plate_sizes, len(site.fn.event_shape))
    except (NotImplementedError, AttributeError):
        raise ValueError(
            f"site {site.name!r} has no mean in closed form ({type(site.fn).__name__}); give pca_alignment axes of "
            "your own"
        ) from None
    return mean.double().cpu().mean((0, 1)).flatten()
