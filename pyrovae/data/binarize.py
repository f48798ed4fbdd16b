"""Binarisation of grey values: new bits for every minibatch of training, fixed bits for evaluation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyrovae.densities import Streamed

EVALUATION_SEED = 20160304
"""Random seed of the bits of evaluation and static binarisation, equal in all runs."""

_CHUNK = 4096  # data whose uniform draws are in memory at once


class Binarize:
    """Dynamic binarisation of a minibatch, which draws new bits at every call.

        x ~ Bernoulli(grey)

    The bits come from the global generator of the tensor's device, so the seed of a run determines them. Evaluation
    does not use this class; `load_data` fixes its bits.

    Example:
        >>> Binarize()(torch.tensor([[0.0, 1.0, 1.0]]))
        tensor([[0., 1., 1.]])
    """

    def __call__(self, grey: Tensor) -> Tensor:
        """Draw the bits.

        Args:
            grey: Probabilities of a one in [0, 1], with any shape.

        Returns:
            The bits, with the shape, dtype and device of grey.
        """
        return torch.bernoulli(grey)

    def __repr__(self) -> str:
        return "Binarize()"


def evaluation_bits(grey: Tensor | Streamed, splits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draw the bits of splits in source order, equal in every run, with shape (N_split, D), float32."""
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    bits = {split: torch.empty(len(rows), grey.shape[1]) for split, rows in splits.items()}
    start = 0
    for part in grey.split(_CHUNK):
        drawn = (torch.rand(part.shape, generator=generator) < part).float()
        for split, rows in splits.items():
            here = (rows >= start) & (rows < start + len(part))
            bits[split][here] = drawn[rows[here] - start]
        start += len(part)
    return bits
