"""Integrals over the plane and the simplex, by grids and maps written here and nowhere else, and draws against them."""

import torch

from pyrovae import log_joint

# The trapezoid rule on (-1, 1) after r = s / (1 - s^2), which takes algebraic tails to smooth ends.


def line(size):
    """Points of the real line, with shape (S,), and their weights."""
    s = (torch.arange(1, size, dtype=torch.float64) / size) * 2 - 1
    return s / (1 - s**2), (1 + s**2) / (1 - s**2) ** 2 * 2 / size


def plane(dim, size):
    """Points of R^dim, with shape (S^dim, dim), and their weights."""
    r, w = line(size)
    points = torch.cartesian_prod(*[r] * dim).reshape(-1, dim)
    return points, torch.cartesian_prod(*[w] * dim).reshape(-1, dim).prod(-1)


def simplex(num_entries, size):
    """Points of the simplex, with shape (S, num_entries), and their weights: z_d = (1 - z_1 - ... ) sigmoid(y_d)."""
    y, w = plane(num_entries - 1, size)
    w, inside = w.clone(), (y.abs() < 30).all(-1)  # beyond, entries are 0 in double precision
    y, w = y[inside], w[inside]
    left, entries = torch.ones_like(w), []
    for each in y.unbind(-1):
        share = each.sigmoid()
        w = w * left * share * (-each).sigmoid()
        entries.append(left * share)
        left = left * (-each).sigmoid()
    return torch.stack([*entries, left], -1), w


def log_integral(log_density, weights):
    """log of the integral of a density with shape (S, ...), over its first dimension."""
    return (log_density + weights.log().reshape(-1, *[1] * (log_density.dim() - 1))).logsumexp(0)


def moment_scores(draws, points, log_density, weights):
    """How far the means of waves over draws are from their integrals against the density, in standard errors.

    The waves are cos(w z) and sin(w z) for twenty w. (The p-values of `pyro.distributions.testing.gof` turn to 1 where
    the fit is very bad, as of Pyro 1.9.2.)

    Args:
        draws: Draws, with shape (M, Z).
        points: Points of a quadrature, with shape (S, Z).
        log_density: The density to test there, in nats, with shape (S,).
        weights: The quadrature's weights, with shape (S,).
    """
    frequencies = 1.5 * torch.randn(draws.shape[1], 20, dtype=draws.dtype)

    def waves(z):
        return torch.cat([(z @ frequencies).cos(), (z @ frequencies).sin()], -1)

    seen = waves(draws)
    exact = (log_density.exp() * weights) @ waves(points)
    return (seen.mean(0) - exact) / (seen.std(0) / len(draws) ** 0.5)


# The probability that one of 40 standard normal numbers is beyond is 3e-4 for every test, once: the seeds are fixed.
SCORE = 4.5


def by_quadrature(model, x, site="z", size=4001, **kwargs):
    points, weights = line(size)
    latents = {site: points[:, None, None].expand(-1, len(x), 1)}
    with torch.no_grad():
        return log_integral(log_joint(model, latents, x, **kwargs), weights)
