"""A log-likelihood that a model must beat."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyrovae.data.load import Data
from pyrovae.densities import Streamed

_CHUNK = 4096  # data whose cell numbers are held at once


class IndependentPixels:
    r"""A baseline for log p(x): every pixel on its own, fitted to the training data.

    With a `maximum` M, pixel d is a histogram over 0..M with a pseudo-count a in every cell,

        log p(x) = \sum_d log [ (n_d(x_d) + a) / (N + a (M + 1)) ],

    where n_d(v) counts the training data with value v there. For M = 1 the training data may be
    grey: a value g is then g of a one and 1 - g of a zero, which makes n_d the exact expectation
    of the histogram under dynamic binarisation. a = 1 is Laplace's rule; on digits, a between 0.1
    and 1 moves the mean of log p(x) by a tenth of a nat. Without a pseudo-count a value not seen
    in training would cost infinity.

    Without a `maximum`, pixel d is Normal(mean_d, sd_d), its standard deviation the maximum
    likelihood one, floored by `scale_floor`: a pixel that is constant in training has none.

    Attributes:
        base_measure: "counting" for histograms (log p is a log probability), "lebesgue" for
            normals (a log density).

    Args:
        train: Training data, with shape (N, D).
        maximum: Largest value M of integer data, over the whole source; None for normals.
        pseudo_count: Pseudo-count a of every cell, above 0.
        scale_floor: Least standard deviation of a normal, in the data's units.

    Raises:
        ValueError: There are no training data, a pseudo-count or floor is not positive, or the
            training data are outside the histogram.
    """

    def __init__(
        self,
        train: Tensor | Streamed,
        *,
        maximum: int | None = None,
        pseudo_count: float = 1.0,
        scale_floor: float = 1e-3,
    ) -> None:
        if train.dim() != 2 or 0 in train.shape:
            raise ValueError(f"train must have shape (N, D) without zeros, got {tuple(train.shape)}")
        if not (pseudo_count > 0 and scale_floor > 0):
            raise ValueError(
                f"pseudo_count and scale_floor must be above 0, got {pseudo_count} and "
                f"{scale_floor}: without them an unseen value has log p(x) = -inf"
            )
        self.base_measure = "lebesgue" if maximum is None else "counting"
        self._maximum = maximum
        self._pseudo_count = pseudo_count
        self._num_data = len(train)
        if maximum is None:
            mean = sum(x.double().sum(0) for x in _chunks(train)) / len(train)
            variance = sum((x - mean).square().sum(0) for x in _chunks(train)) / len(train)
            scale = torch.as_tensor(variance).sqrt().clamp(min=scale_floor)
            self._normal = torch.distributions.Normal(mean, scale, validate_args=False)
            return
        is_grey = maximum == 1
        outside, last = 0, torch.ones(train.shape[1], dtype=torch.long)
        for x in _chunks(train):
            outside += int((~((x >= 0) & (x <= maximum) & (is_grey | (x == x.floor())))).sum())
            last = torch.maximum(last, x.amax(dim=0).ceil().long())
        if outside:
            raise ValueError(
                f"a histogram over 0..{maximum} needs integers in that range, and "
                f"{outside} training values are not: pass the source's maximum, "
                "or None for normals"
            )
        # One row of cells per pixel, as long as that pixel's largest training value: counts such
        # as genes' have a few large values, and a full table of D (M + 1) cells would not fit.
        self._last = last
        self._first = (self._last + 1).cumsum(0) - (self._last + 1)
        self._counts = torch.zeros(int((self._last + 1).sum()), dtype=torch.float64)
        if is_grey:
            ones = torch.as_tensor(sum(x.double().sum(0) for x in _chunks(train)))
            self._counts[self._first] = self._num_data - ones
            self._counts[self._first + 1] = ones
        else:
            for x in _chunks(train):
                cells = (x.long() + self._first).flatten()
                self._counts += torch.bincount(cells, minlength=len(self._counts))

    @classmethod
    def of(cls, data: Data, *, base_measure: str | None = None, pseudo_count: float = 1.0) -> IndependentPixels:
        """Fit the baseline to the training data of a data set.

        Args:
            data: The data set.
            base_measure: That of the likelihood it is compared with. None means "counting" where
                the model sees non-negative integers, else "lebesgue".
            pseudo_count: Pseudo-count of every cell, above 0.

        Raises:
            ValueError: "counting" is asked for data that are no counts.
        """
        if base_measure not in (None, "counting", "lebesgue"):
            raise ValueError(f"base_measure must be counting or lebesgue, got {base_measure}")
        if base_measure == "counting" and data.maximum is None:
            raise ValueError(
                f"base_measure 'counting' needs non-negative integers, and {data.name} has other values: use 'lebesgue'"
            )
        maximum = None if base_measure == "lebesgue" else data.maximum
        return cls(data.train, maximum=maximum, pseudo_count=pseudo_count)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability, or log density, of each datum.

        Args:
            x: Data, with shape (N, D).

        Returns:
            log p(x) in nats, with shape (N,), float64, on the CPU; -inf outside a histogram.
        """
        return torch.cat([self._log_prob(part.detach().cpu()) for part in x.split(_CHUNK)])

    def _log_prob(self, x: Tensor) -> Tensor:
        if self._maximum is None:
            return self._normal.log_prob(x.double()).sum(dim=-1)
        support = (x >= 0) & (x <= self._maximum) & (x == x.floor())
        value = torch.where(support, x, 0).long()
        count = self._counts[self._first + torch.minimum(value, self._last)]
        count = torch.where(value <= self._last, count, 0)
        total = self._num_data + self._pseudo_count * (self._maximum + 1)
        log_p = torch.log((count + self._pseudo_count) / total)
        return torch.where(support, log_p, -math.inf).sum(dim=-1)


def _chunks(train: Tensor | Streamed) -> Iterator[Tensor]:
    for x in train.split(_CHUNK):
        yield x.detach().cpu()
