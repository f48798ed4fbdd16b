"""Baselines for log p(x): densities without latents, fitted to the training data by maximum likelihood.

    choice            `fit_baselines`, the baselines that are comparable with a likelihood
    columns           independent columns in a likelihood's own family
    real              multivariate normal and Student-t, with missing cells
    gaussian_mixture  mixture of normals, its size chosen by BIC
    words             comparison of a model with its baselines, in words
    newton            maximum likelihood of many columns at once
    cells             counted cells of the training data, and additions to them
    scaling           units and floors of multivariate densities

All are in the data's units: in other units log p(x) changes by the Jacobian alone. No scale is below the resolution of
its column.
"""

from pyrovae.baselines.choice import Baseline, fit_baselines
from pyrovae.baselines.columns import IndependentColumns
from pyrovae.baselines.gaussian_mixture import GaussianMixture
from pyrovae.baselines.real import MultivariateNormal, MultivariateStudentT
from pyrovae.baselines.words import Comparison, compare_with_baselines, paired_difference

__all__ = [
    "Baseline",
    "Comparison",
    "GaussianMixture",
    "IndependentColumns",
    "MultivariateNormal",
    "MultivariateStudentT",
    "compare_with_baselines",
    "fit_baselines",
    "paired_difference",
]
