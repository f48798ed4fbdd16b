"""Bijections from unconstrained space onto the supports of distributions. Imports torch alone."""

from pyrovae.bijections.supports import bijection

__all__ = [
    "bijection",
]
