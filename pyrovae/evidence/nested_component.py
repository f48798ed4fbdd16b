"""Component with one coordinate from a density on a grid, and the others given that coordinate (`nested_fit`)."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.evidence.nested import NestedFit
from pyrovae.evidence.points import Points
from pyrovae.evidence.proposal_components import Component
from pyrovae.evidence.splines import LogLinearDensity, interpolation_weights

_PIECES = 8  # of log q(a) between two slices
_LEAST_FALL = 4.0  # nats of log q(a) beyond the grid, over its length
_MATRIX_ENTRIES = 2**22  # held at once: 32 MiB in float64


class NestedComponent(Component):
    r"""Density q(a) q(b|a) of a coordinate a and the others b.

    log q(a) is piecewise linear through a cubic interpolation of the slices. q(b|a) is a normal or a Student-t in
    diag(e^d) T (b - m), where m, d and the unit lower triangular T are cubic interpolations at a of the slices' modes
    and inverse Cholesky factors diag(e^d) T. Hence the density is exact at any point, log |diag(e^d) T| = sum d.

    Args:
        space: Space of the latents.
        name: Name for tables.
        held: Index of the coordinate a.
        fit: Slices of the posterior.
        df: Degrees of freedom of the Student-t; None for a normal.
    """

    def __init__(self, space: LatentSpace, name: str, held: int, fit: NestedFit, df: float | None) -> None:
        self.space, self.names, self.held, self.df = space, (name,), held, df
        self.grid, self.loc, self.dtype = fit.grid, fit.loc.double(), fit.loc.dtype
        diagonal = fit.inverse.diagonal(dim1=-2, dim2=-1)
        self.log_diagonal, self.unit = diagonal.log(), fit.inverse / diagonal.unsqueeze(-1)
        steps = torch.arange(1, _PIECES + 1, dtype=torch.float64, device=fit.grid.device)[:, None] / _PIECES
        between = fit.grid[:-1, None] + steps * (fit.grid[1:] - fit.grid[:-1]).unsqueeze(1)  # (S - 1, pieces, N)
        fine = torch.cat([fit.grid[:1], between.flatten(0, 1)])
        log_density = torch.einsum("kns,sn->kn", interpolation_weights(fit.grid, fine), fit.log_density)
        self.marginal = LogLinearDensity(fine, log_density, _LEAST_FALL)

    def draw(self, num_particles: int) -> Points:
        """Draw u, with shape (K, N, U)."""
        a = self.marginal.draw(num_particles)
        weight = interpolation_weights(self.grid, a)
        noise = torch.randn(*a.shape, self.loc.shape[-1], dtype=a.dtype, device=a.device)
        if self.df is not None:
            half = torch.full_like(a, self.df / 2)
            noise = noise / dist.Gamma(half, half).sample().sqrt().unsqueeze(-1)
        noise = noise * (-_at(weight, self.log_diagonal)).exp()
        away, at_once = [], max(1, _MATRIX_ENTRIES // self.unit[0].numel())
        for some, right in zip(weight.split(at_once), noise.split(at_once), strict=True):
            unit = torch.einsum("kns,snij->knij", some, self.unit)
            away.append(torch.linalg.solve_triangular(unit, right.unsqueeze(-1), upper=False, unitriangular=True))
        b = _at(weight, self.loc) + torch.cat(away).squeeze(-1)
        u = torch.cat([b[..., : self.held], a.unsqueeze(-1), b[..., self.held :]], -1)
        return Points(self.space, u=u.to(self.dtype))

    def log_density(self, points: Points) -> Tensor:
        """Evaluate log q(z) in nats, with shape (K, N), in the latents' own space."""
        u = points.u.double()
        a, b = u[..., self.held], torch.cat([u[..., : self.held], u[..., self.held + 1 :]], -1)
        weight = interpolation_weights(self.grid, a)
        away, log_diagonal = b - _at(weight, self.loc), _at(weight, self.log_diagonal)
        standardized = torch.zeros_like(away)
        for s, unit in enumerate(self.unit):  # one slice at a time, which bounds memory
            standardized += weight[..., s : s + 1] * torch.einsum("nij,knj->kni", unit, away)
        square, size = (log_diagonal.exp() * standardized).square().sum(-1), b.shape[-1]
        if self.df is None:
            log_q = -square / 2 - size * math.log(2 * math.pi) / 2
        else:
            log_norm = math.lgamma((self.df + size) / 2) - math.lgamma(self.df / 2)
            log_norm -= size * math.log(self.df * math.pi) / 2
            log_q = log_norm - (self.df + size) / 2 * torch.log1p(square / self.df)
        return self.marginal.log_density(a) + log_q + log_diagonal.sum(-1) - points.log_det


def _at(weight: Tensor, values: Tensor) -> Tensor:
    """Interpolate values of the slices, (S, N, J), with weights (K, N, S): with shape (K, N, J)."""
    return torch.einsum("kns,snj->knj", weight, values)
