"""Means of guides and of likelihoods."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.columns import Columns
from pyrovae.densities import evaluating

_DRAWS = 1000  # for the mean of a guide without a closed form


def posterior_mean(guide: Any, arguments: Mapping[str, Tensor]) -> Tensor:
    """Return the mean of the latent "z" of a guide, with shape (N, Z): in closed form, or of 1,000 draws.

    Args:
        guide: Pyro program q(z|x).
        arguments: Its arguments, on its device.
    """
    with evaluating(guide):
        q: Any = poutine.trace(guide).get_trace(**arguments).nodes["z"]["fn"]
        try:
            mean: Tensor = q.mean
        except NotImplementedError:
            mean = q.sample((_DRAWS,)).mean(0)
    return mean


def expectation(p: Any, columns: Columns) -> Tensor:
    """Return the means of p(x|z), with shape (N, D), and the most probable codes of columns with levels.

    Args:
        p: Distribution p(x|z), with batch_shape (N,); independent over D if there are levels.
        columns: The columns.
    """
    x: Tensor = p.mean.clone()
    num_levels = torch.tensor([len(column.levels) for column in columns.data])
    if bool((num_levels == 0).all()):
        return x
    value, best = p.sample(), torch.full_like(x, -torch.inf)
    for code in range(int(num_levels.max())):
        places = torch.nonzero(num_levels > code).flatten()
        value[:, places] = float(code)
        log_p = p.base_dist.log_prob(value)[:, places]
        better = log_p > best[:, places]
        x[:, places] = torch.where(better, float(code), x[:, places])
        best[:, places] = torch.where(better, log_p, best[:, places])
    return x
