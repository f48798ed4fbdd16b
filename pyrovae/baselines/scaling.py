"""Units in which multivariate densities are fitted, and floors of their covariances."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovae.likelihoods import Moments, floor_of

_SMALLEST = 1e-3  # smallest standard deviation in units of the spread, as in the models' tables of few-valued columns


class Scaling:
    """Centre and spread of the columns of training data, or of their logarithms.

    Attributes:
        floor: Smallest standard deviation f of each column, in units of its spread, with shape (D,).

    Args:
        train: Training data, with shape (N, D), float64; NaN where missing.
        resolution: Resolution of each column in the data's units, with shape (D,) or a number; None for the smallest
            gap of its values, but at most its standard deviation.
        log: Whether the logarithm of each column is taken, with shape (D,), bool; None for no column.

    Raises:
        ValueError: If train is empty, a column has no observed cell, or a column whose logarithm is taken has a value
            that is not positive.
    """

    def __init__(self, train: Tensor, resolution: Tensor | float | None, log: Tensor | None) -> None:
        if train.dim() != 2 or 0 in train.shape:
            raise ValueError(f"train must have shape (N, D) with N, D >= 1, got {tuple(train.shape)}")
        if bool(train.isnan().all(0).any()):
            raise ValueError("each column of train needs an observed cell; leave the others out")
        self.num_dims = train.shape[1]
        self.log = torch.zeros(self.num_dims, dtype=torch.bool) if log is None else log.cpu()
        if bool((train[:, self.log] <= 0).any()):
            raise ValueError("log needs positive numbers, but train has others; leave their columns out of log")
        gaps = floor_of(train, train.new_zeros(self.num_dims))
        resolutions = gaps if resolution is None else torch.as_tensor(resolution).double().expand(self.num_dims)
        values = torch.where(self.log, train.log(), train) if bool(self.log.any()) else train
        moments = Moments.of(values)
        self.centre, self.spread = moments.mean, moments.spread
        relative = torch.where(self.log, resolutions * (-self.centre).exp(), resolutions) / self.spread
        self.floor = relative.clamp(min=_SMALLEST)

    def to_units(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map data to units of the spread.

        Args:
            x: Data, with shape (N, D); NaN where missing.

        Returns:
            The data with 0 for missing cells, whether each cell is observed, both with shape (N, D), and the log of the
            Jacobian of each datum's observed cells, with shape (N,); -inf outside the support.
        """
        if x.dim() != 2 or x.shape[1] != self.num_dims:
            raise ValueError(f"x must have shape (N, {self.num_dims}), got {tuple(x.shape)}")
        x = x.detach().cpu().double()
        seen = ~x.isnan()
        outside = self.log & (x <= 0)
        logs = torch.where(seen & self.log & ~outside, x, 1.0).log()
        u = (torch.where(self.log, logs, x) - self.centre) / self.spread
        jacobian = torch.where(seen, -self.spread.log() - logs, 0.0).sum(1)
        return torch.where(seen, u, 0.0), seen, torch.where(outside.any(1), -torch.inf, jacobian)


def floored(covariance: Tensor, floor: Tensor) -> Tensor:
    """Return the covariances that maximise a normal likelihood among those of at least diag(f^2), given that without.

        Sigma = F V max(L, 1) V' F,  F = diag(f),  V L V' = F^-1 S F^-1

    So every linear combination of the columns has at least the variance that the floors of the columns imply.

    Args:
        covariance: Covariances S, with shape (..., D, D).
        floor: Smallest standard deviations f, with shape (D,).
    """
    outer = floor[:, None] * floor
    values, vectors = torch.linalg.eigh(covariance / outer)
    if bool((values >= 1).all()):
        return covariance
    return (vectors * values.clamp(min=1).unsqueeze(-2)) @ vectors.mT * outer
