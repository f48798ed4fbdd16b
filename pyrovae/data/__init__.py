"""Data as the model sees them: read, checked, split, binarised; and the baseline they must beat.

A datum is a vector of float32; the shape it had as an image is kept beside. Everything random
here is drawn from generators of its own, so loading data moves no global random state. The one
exception is `Binarize`, which belongs to training and draws from the global generator.
"""

from pyrovae.data.baseline import IndependentPixels
from pyrovae.data.load import EVALUATION_SEED, Binarize, Data, load_data

__all__ = ["EVALUATION_SEED", "Binarize", "Data", "IndependentPixels", "load_data"]
