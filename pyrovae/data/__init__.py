"""From files to tensors: data are read, checked, split and binarised here, and a baseline is fitted to them.

A datum is a float32 vector; its original shape is stored separately. Loading uses its own random generators and leaves
the global random state unchanged. Only `Binarize`, a part of training, draws from the global generator.
"""

from pyrovae.data.baseline import IndependentPixels
from pyrovae.data.load import EVALUATION_SEED, Binarize, Data, load_data

__all__ = ["EVALUATION_SEED", "Binarize", "Data", "IndependentPixels", "load_data"]
