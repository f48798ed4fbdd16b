"""Files to tensors: sources, splits, binarisation, and a baseline.

    sources     arrays of digits, MNIST and files
    load        `load_data`: checks, covariates, splits
    binarize    dynamic and static binarisation
    baseline    log p(x) with independent dimensions

A datum is a float32 vector; its original shape is stored separately. Loading uses its own random generators and leaves
the global random state unchanged. Only `Binarize`, a part of training, draws from the global generator.
"""

from pyrovae.data.baseline import IndependentPixels
from pyrovae.data.binarize import EVALUATION_SEED, Binarize
from pyrovae.data.load import Data, load_data

__all__ = ["EVALUATION_SEED", "Binarize", "Data", "IndependentPixels", "load_data"]
