"""Baselines for log p(x): densities without latents, fitted to the training data by maximum likelihood."""

from pyrovae.baselines.columns import IndependentColumns

__all__ = ["IndependentColumns"]
