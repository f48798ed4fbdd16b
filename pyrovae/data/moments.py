"""Numbers of a column from the observed cells of its training rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from pyrovae.columns import COMMON_SHARE, NUMERIC, ODD_FACTOR, Column, grid_of

_OFFSET = 100  # standard deviations between 0 and the mean, beyond which an origin is subtracted
_NOISE = 1e-12  # relative gaps below it are rounding errors
_DIGITS = 6  # of a gap, at most


def complete(column: Column, values: np.ndarray, train: np.ndarray) -> Column:
    """Fill in the numbers that a column does not have yet. Rows outside the training rows change none of them.

    Args:
        column: Column, with levels if its kind has some.
        values: Values in original units, with shape (N,), float64; NaN for missing cells.
        train: Whether each row is a training row, with shape (N,).

    Raises:
        ValueError: If the training rows have no two values, with the column's name.
    """
    if column.kind not in NUMERIC:
        return column
    observed = values[train & ~np.isnan(values)]
    distinct, counts = np.unique(observed, return_counts=True)
    if len(distinct) < 2:
        raise ValueError(
            f"column {column.name!r} has no two values in the training rows, so kind {column.kind} has no scale; write "
            "kind: drop"
        )
    origin = column.origin
    if column.kind == "real" and origin == 0 and column.centre is None:  # a centre is relative to its origin
        origin = _origin(column, observed, distinct)
    x, error = observed - origin, float(np.spacing(np.abs(observed).max()))
    found: dict[str, Any] = {
        "low": float(distinct[0]),
        "high": float(distinct[-1]),
        "resolution": smallest_gap(distinct - origin, counts, error)[0],
        "grid": column.resolution or grid_of(torch.from_numpy(distinct - origin), error),
        "centre": float(x.mean()),
        "spread": float(x.std()),
    }
    if column.kind == "positive":
        logs = np.log(observed[observed > 0])
        spread = float(logs.std()) if len(logs) else 0.0
        found |= {"log_centre": float(logs.mean()) if len(logs) else 0.0, "log_spread": spread or 1.0}
    return dataclasses.replace(column, origin=origin, **found | _known(column, found))


def _known(column: Column, found: dict[str, Any]) -> dict[str, Any]:
    return {key: getattr(column, key) for key in found if getattr(column, key) is not None}


def _origin(column: Column, observed: np.ndarray, distinct: np.ndarray) -> float:
    """Return the median for dates, and for numbers that are far from 0 or that float32 does not tell apart; else 0."""
    is_far = abs(observed.mean()) > _OFFSET * observed.std()
    middle = float(np.sort(observed)[(len(observed) - 1) // 2])
    lost = len(distinct) - len(np.unique(distinct.astype(np.float32)))
    kept = len(np.unique((distinct - middle).astype(np.float32)))
    if column.format == "date":
        return float(np.floor(middle))
    return middle if column.format or is_far or (lost and kept > len(distinct) - lost) else 0.0


def smallest_gap(distinct: np.ndarray, counts: np.ndarray, error: float = 0.0) -> tuple[float, int | None]:
    """Find the smallest gap between values, to six digits or as many as they have, without rounding errors.

    If nine tenths of the cells or more have values that occur more than once, and those are more than ten times as far
    apart, a few odd values, such as a mistyped cell, do not count. Otherwise one of them would make the floor of
    learned scales useless.

    Args:
        distinct: At least two distinct values, increasing.
        counts: How often each occurs.
        error: Rounding error of a value.

    Returns:
        The gap, and the place of a value that does not count; None if all count.
    """
    gaps = np.diff(distinct)
    is_real = gaps > _NOISE * np.abs(distinct).max()
    smallest = gaps[is_real].min() if is_real.any() else gaps.min()
    common = counts > 1
    if common.sum() > 2 and counts[common].sum() >= COMMON_SHARE * counts.sum():
        of_common = np.diff(distinct[common]).min()
        if of_common > ODD_FACTOR * smallest:
            place = int(np.flatnonzero(gaps == smallest)[0])
            return _to_digits(of_common, error), place + int(common[place])
    return _to_digits(smallest, error), None


def _to_digits(gap: float, error: float) -> float:
    """Round a gap to the digits that rounding errors of its two values leave."""
    digits = _DIGITS if error == 0 else int(np.clip(np.log10(gap / (2 * error)), 1, _DIGITS))
    return float(f"{gap:.{digits}g}")
