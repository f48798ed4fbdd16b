"""Baseline for log p(x) with independent dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyrovae.data.dataset import Data
from pyrovae.densities import Streamed

_CHUNK = 4096  # data whose histogram cells are in memory at once


class IndependentPixels:
    """Baseline for log p(x) with independent dimensions, fitted to the training data.

        log p(x) = sum_d log [(n_d(x_d) + a) / (N + a (M + 1))]   with a maximum M,
        log p(x) = sum_d log N(x_d; mean_d, sd_d^2)               without

    n_d(v) counts the training data with value v in dimension d, and a is a pseudo-count, without which an unseen value
    has log p = -inf. a = 1 is Laplace's rule; on digits, a between 0.1 and 1 moves the mean of log p(x) by a tenth of a
    nat. For M = 1 the training data may be grey values g, which count as g ones and 1 - g zeros. Then n_d is the exact
    expectation of the histogram under dynamic binarisation. sd_d is the maximum likelihood estimate, at least
    `scale_floor`, since a dimension may be constant in the training data.

    Attributes:
        base_measure: Base measure of p: "counting" for histograms, "lebesgue" for normals.

    Args:
        train: Training data, with shape (N, D).
        maximum: Largest value M of integer data, over the whole source; None for normals.
        pseudo_count: Positive pseudo-count a of every cell.
        scale_floor: Smallest standard deviation of a normal, in the data's units.

    Raises:
        ValueError: If train is empty, pseudo_count or scale_floor is not positive, or a training value lies outside
            0..M.
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
            raise ValueError(
                f"train must have shape (N, D) with N, D >= 1, got {tuple(train.shape)}; give training data"
            )
        if not (pseudo_count > 0 and scale_floor > 0):
            raise ValueError(
                f"pseudo_count and scale_floor must be above 0, got {pseudo_count} and {scale_floor}; give positive "
                "numbers, since without them log p(x) of an unseen value is -inf"
            )
        self.base_measure = "lebesgue" if maximum is None else "counting"
        self._maximum = maximum
        self._pseudo_count = pseudo_count
        self._num_data = len(train)
        if maximum is None:
            self._fit_normals(train, scale_floor)
        else:
            self._fit_histograms(train, maximum)

    def _fit_normals(self, train: Tensor | Streamed, scale_floor: float) -> None:
        mean = sum(x.double().sum(0) for x in _chunks(train)) / len(train)
        variance = sum((x - mean).square().sum(0) for x in _chunks(train)) / len(train)
        scale = torch.as_tensor(variance).sqrt().clamp(min=scale_floor)
        self._normal = torch.distributions.Normal(mean, scale, validate_args=False)

    def _fit_histograms(self, train: Tensor | Streamed, maximum: int) -> None:
        is_grey = maximum == 1
        outside, last = 0, torch.ones(train.shape[1], dtype=torch.long)
        for x in _chunks(train):
            outside += int((~((x >= 0) & (x <= maximum) & (is_grey | (x == x.floor())))).sum())
            last = torch.maximum(last, x.amax(dim=0).ceil().long())
        if outside:
            raise ValueError(
                f"a histogram over 0..{maximum} needs integers in that range, but {outside} training values are not; "
                "give the maximum of the source, or None for normals"
            )
        # Each dimension has cells up to its largest training value. Counts such as genes' have a few large values, and
        # a table of D (M + 1) cells would not fit into memory.
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
            data: Data set.
            base_measure: Base measure of the likelihood to compare with, "counting" or "lebesgue"; None for "counting"
                if the model's data are non-negative integers, else "lebesgue".
            pseudo_count: Positive pseudo-count of every cell.

        Raises:
            ValueError: If base_measure is "counting" and the data are not non-negative integers.
        """
        if base_measure not in (None, "counting", "lebesgue"):
            raise ValueError(f"base_measure must be counting or lebesgue, got {base_measure}")
        if base_measure == "counting" and data.maximum is None:
            raise ValueError(
                f"base_measure 'counting' needs non-negative integers, but {data.name} has other values; use 'lebesgue'"
            )
        maximum = None if base_measure == "lebesgue" else data.maximum
        return cls(data.train, maximum=maximum, pseudo_count=pseudo_count)

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log probability or log density of each datum.

        Args:
            x: Data, with shape (N, D).

        Returns:
            The values log p(x) in nats, with shape (N,), float64, on the CPU; -inf outside a histogram.
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
