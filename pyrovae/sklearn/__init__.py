"""An estimator for scikit-learn: density, latent space and sampling of a table's rows in one.

    density     `VAEDensity`, with the methods of KernelDensity, PCA and GaussianMixture
    registry    parts by the names of their classes, likelihoods of columns
    rows        arrays and frames to the arguments of programs, and data back to arrays and frames
    forms       the form of rows: an array, or a frame of pandas or polars
    means       means of the guide and of the likelihood
    checks      the checks of scikit-learn that `VAEDensity` fails, with the reasons

`import pyrovae` does not import this room.
"""

from pyrovae.sklearn.checks import EXPECTED_FAILED_CHECKS
from pyrovae.sklearn.density import VAEDensity

__all__ = ["EXPECTED_FAILED_CHECKS", "VAEDensity"]
