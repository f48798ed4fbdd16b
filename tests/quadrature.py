"""Quadrature over the plane and the simplex, with maps independent of the library, and tests of draws against it."""

import torch

from pyrovae import log_joint

# The trapezoid rule on (-1, 1) after r = s / (1 - s^2), which maps algebraic tails to smooth ends.


def line(size):
    """Return points of the real line, with shape (S,), and their weights."""
    s = (torch.arange(1, size, dtype=torch.float64) / size) * 2 - 1
    return s / (1 - s**2), (1 + s**2) / (1 - s**2) ** 2 * 2 / size


def plane(dim, size):
    """Return points of R^dim, with shape (S^dim, dim), and their weights."""
    r, w = line(size)
    points = torch.cartesian_prod(*[r] * dim).reshape(-1, dim)
    return points, torch.cartesian_prod(*[w] * dim).reshape(-1, dim).prod(-1)


def simplex(num_entries, size):
    """Return points z_d = (1 - z_1 - ...) sigmoid(y_d) of the simplex, with shape (S, num_entries), and weights."""
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
    """Return the log of the integral of a density, with shape (S, ...), over its first dimension."""
    return (log_density + weights.log().reshape(-1, *[1] * (log_density.dim() - 1))).logsumexp(0)


def moment_scores(draws, points, log_density, weights):
    """Compare means of waves over draws with their integrals against the density, in standard errors.

    The waves are cos(w z) and sin(w z) for twenty w. (In Pyro 1.9.2, the p-values of `pyro.distributions.testing.gof`
    become 1 if the fit is very bad.)

    Args:
        draws: Draws, with shape (M, Z).
        points: Points of a quadrature, with shape (S, Z).
        log_density: Log density to test at the points, in nats, with shape (S,).
        weights: Weights of the quadrature, with shape (S,).
    """
    frequencies = 1.5 * torch.randn(draws.shape[1], 20, dtype=draws.dtype)

    def waves(z):
        return torch.cat([(z @ frequencies).cos(), (z @ frequencies).sin()], -1)

    seen = waves(draws)
    exact = (log_density.exp() * weights) @ waves(points)
    return (seen.mean(0) - exact) / (seen.std(0) / len(draws) ** 0.5)


# One of 40 standard normal numbers exceeds this with probability 3e-4 per test, and the seeds are fixed.
SCORE = 4.5


def by_quadrature(model, x, site="z", size=4001, **kwargs):
    """Compute log p(x) of a model with a one-dimensional latent by quadrature."""
    points, weights = line(size)
    latents = {site: points[:, None, None].expand(-1, len(x), 1)}
    with torch.no_grad():
        return log_integral(log_joint(model, latents, x, **kwargs), weights)
