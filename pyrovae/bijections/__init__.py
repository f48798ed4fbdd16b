"""Bijections from real vectors to the supports of distributions.

Priors, encoders and samplers use them to work on unconstrained vectors. This room imports torch alone.
"""

from pyrovae.bijections.supports import bijection

__all__ = [
    "bijection",
]
