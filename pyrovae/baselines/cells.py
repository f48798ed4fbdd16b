"""Cells of training data by column, with weights; equal values are counted together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor

from pyrovae.densities import Streamed

_CHUNK = 4096  # rows of training data that are counted at once
_MOST_CELLS = 20_000_000  # values of a fit; the first rows of more data are as good


class Cells(NamedTuple):
    """Observed values of C columns.

    Attributes:
        values: Values, with shape (V, C), float64, all of them in the support.
        weights: Number of cells with the value, or the sum of their case weights, with shape (V, C), float64.
    """

    values: Tensor
    weights: Tensor

    @property
    def total(self) -> Tensor:
        """Number of observed cells of each column, with shape (C,), at least 1e-300."""
        return self.weights.sum(0).clamp(min=1e-300)

    def of(self, columns: Tensor) -> Cells:
        """Return the cells of some columns, without rows that none of them needs."""
        weights = self.weights[:, columns]
        needed = (weights > 0).any(1)
        needed[0] = True
        return Cells(self.values[:, columns][needed], weights[needed])

    def joined(self, value: float, weights: Tensor) -> Cells:
        """Return the cells with one more value, of weights with shape (C,)."""
        values = torch.full((1, self.values.shape[1]), value, dtype=torch.float64)
        return Cells(torch.cat([self.values, values]), torch.cat([self.weights, weights.double()[None]]))


def rows(train: Tensor | Streamed, weights: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over training data in chunks (x, weights), with shapes (n, D) and (n,)."""
    start = 0
    for x in train.split(_CHUNK):
        stop = start + len(x)
        yield x.detach().cpu(), torch.ones(len(x)) if weights is None else weights[start:stop].detach().cpu()
        start = stop


def level_counts(train: Tensor | Streamed, weights: Tensor | None, places: list[int], num_levels: int) -> Tensor:
    """Count the cells of each level 0..L-1, with shape (L, C), float64.

    Of two levels, a grey value g counts as g ones and 1 - g zeros, the mean over its binarisations.

    Raises:
        ValueError: If a cell is no level.
    """
    counts = torch.zeros(num_levels, len(places), dtype=torch.float64)
    grey = num_levels == 2
    for x, w in rows(train, weights):
        cells = x[:, places]
        seen = ~cells.isnan()
        valid = (cells >= 0) & (cells <= num_levels - 1) & (grey | (cells == cells.floor()))
        if bool((seen & ~valid).any()):
            worst = cells[seen & ~valid][0].item()
            raise ValueError(f"training data must be levels 0..{num_levels - 1}, got {worst:g}; check the likelihood")
        w = torch.where(seen, w.double()[:, None], 0.0)
        level = torch.where(seen, cells, 0).double()
        if grey:
            counts += torch.stack([(w * (1 - level)).sum(0), (w * level).sum(0)])
        else:
            counts.scatter_add_(0, level.long(), w)
    return counts


def cells_of(train: Tensor | Streamed, weights: Tensor | None, places: list[int], support: Any) -> Cells:
    """Collect the observed cells of columns.

    Args:
        train: Training data, with shape (N, D); NaN where missing.
        weights: Case weights, with shape (N,); None for 1.
        places: The C columns.
        support: Support of a cell; a column without an observed cell gets a value in it, of weight 0.
    """
    num_rows = min(len(train), max(_MOST_CELLS // len(places), 1000))
    parts = []
    for x, w in rows(train[:num_rows], None if weights is None else weights[:num_rows]):
        parts.append((x[:, places].double(), w.double()))
    x, w = (torch.cat(part) for part in zip(*parts, strict=True))
    ordered, row = x.sort(0)  # NaN is last
    seen = ~ordered.isnan()
    first = torch.where(seen[0], ordered[0], inside(support))
    last = torch.where(seen, ordered, -torch.inf).amax(0)
    cell_weights = torch.where(seen, w[row], 0.0)
    ordered = torch.where(seen, ordered, torch.where(seen[0], last, first))
    rank = torch.cat([torch.zeros_like(row[:1]), (ordered.diff(dim=0) > 0).cumsum(0)])
    shape = int(rank.max()) + 1, len(places)
    values = first.expand(shape).scatter(0, rank, ordered)
    return Cells(values, torch.zeros(shape, dtype=torch.float64).scatter_add_(0, rank, cell_weights))


def without_holes(x: Tensor, value: float) -> Tensor:
    """Fill the missing entries of each column with its observed entries in turn, or with a value if it has none."""
    filled = x.clone()
    for column in filled.unbind(1):
        missing = column.isnan()
        if bool(missing.any()):
            seen = column[~missing] if not bool(missing.all()) else column.new_tensor([value])
            column[missing] = seen[torch.arange(int(missing.sum())) % len(seen)]
    return filled


def inside(support: Any) -> float:
    """Return a value in a support."""
    low, high = bounds(support)
    for value in (1.0, 0.5, 0.0, (low + high) / 2):
        if support is None or bool(support.check(torch.tensor(value, dtype=torch.float64)).all()):
            return value
    return 1.0


def bounds(support: Any) -> tuple[float, float]:
    """Return the bounds of a support; -inf and inf if it has none."""
    if support is constraints.boolean:
        return 0.0, 1.0
    low, high = getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)
    return float(torch.as_tensor(low).min()), float(torch.as_tensor(high).max())


def num_levels(support: Any) -> int | None:
    """Return the number L of values 0..L-1 of a support; None if it has other values, or infinitely many."""
    low, high = bounds(support)
    return int(high) + 1 if support is not None and support.is_discrete and low == 0 and high < 2**24 else None


def smoothed(cells: Cells, support: Any) -> Cells:
    """Add observations without which an estimate would give probability 0 to values that may occur.

    - A point with mass beside a density, such as the zero of a hurdle: one observation of each point, and one of the
      rest, which is spread over the cells of the rest. These are the estimates (n + 1)/(N + 2) of Laplace's rule.
    - A column of counts without a total that are all 0: half a count.
    - A column that is always at one end of a bounded support: half a success and half a failure in counts with a
      total, one observation of the middle in a density.
    """
    low, high = bounds(support)
    atoms = getattr(support, "atoms", ())
    if atoms:
        return _with_atoms(cells, support, atoms)
    mean = (cells.values * cells.weights).sum(0) / cells.total
    empty = cells.weights.sum(0) == 0
    if support is None or low == -math.inf:
        return cells
    if high == math.inf:
        return cells.joined(1.0, 0.5 * (mean == 0)) if support.is_discrete and low == 0 else cells
    at_end = ((mean <= low) | (mean >= high)) & ~empty
    if not bool(at_end.any()):
        return cells
    if support.is_discrete:
        half = at_end / (2 * (high - low))
        return cells.joined(low, half).joined(high, half)
    return cells.joined((low + high) / 2, at_end.double())


def _with_atoms(cells: Cells, support: Any, atoms: tuple[float, ...]) -> Cells:
    rest = torch.ones_like(cells.values, dtype=torch.bool)
    for atom in atoms:
        rest &= cells.values != atom
    total = torch.where(rest, cells.weights, 0.0).sum(0)
    more = cells._replace(weights=torch.where(rest & (total > 0), cells.weights * (1 + 1 / total), cells.weights))
    reaches_two = bool(support.check(torch.tensor(2.0, dtype=torch.float64)))
    more = more.joined(1.0 if reaches_two else 0.5, (total == 0).double())
    for atom in atoms:
        more = more.joined(atom, torch.ones_like(total))
    return more
