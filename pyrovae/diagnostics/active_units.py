"""Active units: the latent dimensions that a guide uses."""

from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.densities import Program, entry, evaluating, isolated_rng, num_data, take, vectorize

ACTIVE_FROM = 0.01

_DRAWS_AT_ONCE = 2**15


@entry()
def unit_activity(
    guide: Program, *args: Any, num_particles: int = 64, seed: int = 0, **kwargs: Any
) -> dict[str, Tensor]:
    """Estimate the activity Var_x(E_q[z|x]) of every latent dimension. Units above 0.01 are active.

    Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders" (ICLR 2016, https://arxiv.org/abs/1509.00519),
    section 5.2. The estimate is the variance over data of the mean of K draws, minus the mean variance of these means.
    It is unbiased for every guide, and can be negative.

    Args:
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of the guide, the data first, with shape (N, ...).
        num_particles: Number of draws K per datum.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of the guide.

    Returns:
        The activity by site, with the shape of one latent, in the square of its unit.

    Raises:
        ValueError: If there are fewer than two data or draws.
    """
    size = num_data(args, kwargs)
    if size < 2 or num_particles < 2:
        raise ValueError(f"a variance needs at least two data and two draws, got {size} and {num_particles}; give more")
    at_once = max(1, _DRAWS_AT_ONCE // num_particles)
    means: dict[str, list[Tensor]] = {}
    within: dict[str, list[Tensor]] = {}
    with isolated_rng(seed), evaluating(guide), pyro.validation_enabled(False):
        for start in range(0, size, at_once):
            rows = slice(start, min(start + at_once, size))
            some_args, some_kwargs = take(args, kwargs, rows)
            trace = vectorize(guide, None, some_args, some_kwargs)[0].trace(num_particles, some_args, some_kwargs)
            for name, site in trace.sites.items():
                z = site.value.double()
                means.setdefault(name, []).append(z.mean(0))
                within.setdefault(name, []).append(z.var(0))
    return {name: torch.cat(means[name]).var(0) - torch.cat(within[name]).mean(0) / num_particles for name in means}
