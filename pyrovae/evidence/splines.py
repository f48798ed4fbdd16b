"""Smooth interpolation between slices of a posterior, and densities on the line whose logarithm is piecewise linear."""

import torch
from torch import Tensor

_EVEN = 1e-6  # change of the log density over a piece, up to which the piece counts as flat


def interpolation_weights(grid: Tensor, a: Tensor) -> Tensor:
    """Evaluate the weights of the points of a grid in a cubic interpolation, with shape (K, N, S).

    The polynomials between the points are cubic Hermite splines. Their slope at a point is that of the parabola through
    the point and its two neighbours. Beyond the ends of the grid, the weight of the last point is one.

    Args:
        grid: Points, rising, with shape (S, N), S at least 3.
        a: Values, with shape (K, N).
    """
    index = (_place(grid, a) - 1).clamp(0, len(grid) - 2)
    left, right = grid.gather(0, index), grid.gather(0, index + 1)
    t = ((a - left) / (right - left)).clamp(0, 1).unsqueeze(-1)
    width, index = (right - left).unsqueeze(-1), index.unsqueeze(-1)
    slopes = _slope_weights(grid).expand(len(a), -1, -1, -1)  # (K, N, S, S)
    rows = index.unsqueeze(-1).expand(-1, -1, 1, len(grid))
    at_left, at_right = slopes.gather(2, rows).squeeze(2), slopes.gather(2, rows + 1).squeeze(2)
    weight = width * (t * (1 - t).square() * at_left - t.square() * (1 - t) * at_right)
    rise = t.square() * (3 - 2 * t)
    return weight.scatter_add(-1, index, 1 - rise).scatter_add(-1, index + 1, rise)


def _slope_weights(grid: Tensor) -> Tensor:
    """Compute the matrices from values on a grid, (S, N), to the slopes there, with shape (N, S, S)."""
    eye = torch.eye(len(grid), dtype=grid.dtype, device=grid.device)
    width = (grid[1:] - grid[:-1]).T  # (N, S - 1)
    secants = (eye[1:] - eye[:-1]) / width.unsqueeze(-1)  # (N, S - 1, S)
    share = (width[:, 1:] / (width[:, 1:] + width[:, :-1])).unsqueeze(-1)
    inner = share * secants[:, :-1] + (1 - share) * secants[:, 1:]
    # The mean of a parabola's slopes at two points is the slope of its secant.
    return torch.cat([2 * secants[:, :1] - inner[:, :1], inner, 2 * secants[:, -1:] - inner[:, -1:]], 1)


class LogLinearDensity:
    """Densities of N numbers whose logarithms are linear between points of a grid, and beyond its ends.

    Args:
        grid: Points, rising, with shape (S, N), float64.
        log_density: Log density there, up to a constant, with shape (S, N), float64.
        least_fall: Fall of the log density beyond either end, at least, over the length of the grid.
    """

    def __init__(self, grid: Tensor, log_density: Tensor, least_fall: float) -> None:
        self.grid = grid
        width = grid[1:] - grid[:-1]
        slope = (log_density[1:] - log_density[:-1]) / width
        least = least_fall / (grid[-1] - grid[0])
        up, down = slope[:1].maximum(least), slope[-1:].minimum(-least)
        rise = (slope * width).abs()
        mean = torch.where(rise > _EVEN, -torch.expm1(-rise) / rise.clamp(min=_EVEN), 1 - rise / 2)
        inner = torch.maximum(log_density[1:], log_density[:-1]) + width.log() + mean.log()
        # Parts of the line, with shape (S + 1, N): the lower tail, the pieces between the points, the upper tail.
        log_mass = torch.cat([log_density[:1] - up.log(), inner, log_density[-1:] - (-down).log()])
        self.log_norm = log_mass.logsumexp(0)
        self.mass = (log_mass - self.log_norm).exp()
        self.slope = torch.cat([up, slope, down])
        # Each part starts at a point; the lower tail starts at its upper end.
        self.start, self.log_start = (torch.cat([part[:1], part]) for part in (grid, log_density))

    def draw(self, num_draws: int) -> Tensor:
        """Draw numbers, with shape (K, N), by the inverse distribution function of a randomly chosen part."""
        part = torch.multinomial(self.mass.T, num_draws, replacement=True).T
        uniform = torch.rand(part.shape, dtype=self.grid.dtype, device=self.grid.device)
        start, slope = self.start.gather(0, part), self.slope.gather(0, part)
        tail = (part == 0) | (part == len(self.grid))
        width = torch.where(tail, 1.0, self.start.gather(0, (part + 1).clamp(max=len(self.grid))) - start)
        rise = slope * width
        steep = rise.abs().clamp(min=_EVEN)
        from_higher = torch.where(rise.abs() > _EVEN, -torch.log1p(uniform * torch.expm1(-steep)) / steep, uniform)
        inner = torch.where(rise > 0, 1 - from_higher, from_higher) * width
        return start + torch.where(tail, torch.log1p(-uniform) / slope, inner)

    def log_density(self, a: Tensor) -> Tensor:
        """Evaluate the log density at a, with shape (K, N)."""
        part = _place(self.grid, a)
        rise = self.slope.gather(0, part) * (a - self.start.gather(0, part))
        return self.log_start.gather(0, part) + rise - self.log_norm


def _place(grid: Tensor, a: Tensor) -> Tensor:
    """Count the points of a grid, (S, N), below each of a, (K, N): with shape (K, N)."""
    return torch.searchsorted(grid.T.contiguous(), a.T.contiguous()).T
