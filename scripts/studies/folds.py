"""Number of epochs by cross-validation, for the studies of tables."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDS = 5
_SMOOTHED = 9  # epochs


def best_epochs(train: Callable[[Tensor, Tensor, int], Any], num_rows: int, seed: int, most: int) -> int:
    """Return the number of epochs with the largest sum of the bounds on held-out fifths, a mean over nine epochs.

    Args:
        train: Function from the rows to train on and the held-out ones, both with shape (N,), bool, and the number of
            epochs, to the history of `fit`.
        num_rows: Number of rows N.
        seed: Random seed of the folds.
        most: Largest number of epochs.
    """
    fold = torch.from_numpy(np.random.default_rng([1, seed]).permutation(num_rows) % FOLDS)
    total = np.zeros(most)
    for number in range(FOLDS):
        held_out = fold == number
        total += np.array(train(~held_out, held_out, most)["validation_objective"]) * int(held_out.sum())
    width = min(_SMOOTHED, most)
    return int(np.convolve(total, np.ones(width) / width, "valid").argmax()) + width // 2 + 1
