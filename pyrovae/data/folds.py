"""Folds of cross-validation: the test rows of fold k of K, and the validation rows among the others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.table_splits import SPLITS

Fold = tuple[int, int]
"""Number k of the fold whose rows are held out for testing, from 1, and number of folds K."""


def check_fold(fold: Fold, num_rows: int) -> None:
    """Check that there is such a fold, and that rows are left to train on.

    Raises:
        ValueError: If there is not, or none is left.
    """
    number, folds = fold
    if folds < 2:
        raise ValueError(f"--folds {folds}: cross-validation needs two folds or more; give 10, for example")
    if not 1 <= number <= folds:
        raise ValueError(f"--fold {number}: the folds are 1 to {folds}; give one of them")
    if folds > num_rows:
        raise ValueError(f"--folds {folds}: there are only {num_rows:,} rows; use fewer folds")
    if num_rows - -(-num_rows // folds) - _num_validation(num_rows) < 1:
        raise ValueError(f"--folds {folds}: no row of {num_rows:,} is left to train on; give more rows")


def fold_rows(num_rows: int, seed: int, fold: Fold) -> dict[str, Tensor]:
    """Return the rows of each split, with shape (N_split,), int64, if fold k of K is held out.

    The rows are permuted by the seed, as without folds, and cut into K folds whose sizes differ by at most one. Fold k
    is the test set. The floor(N / 10) rows before it in the permutation, which is taken as a circle, are the validation
    set, and the rest is the training set. So every row is a test row once, and fold 10 of 10 is the split without
    folds.

    Args:
        num_rows: Number of rows N.
        seed: Random seed of the permutation.
        fold: Number k of the fold, from 1, and number of folds K.

    Raises:
        ValueError: If there is no such fold, or no row is left to train on.
    """
    check_fold(fold, num_rows)
    number, folds = fold
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    sizes = [len(part) for part in np.array_split(np.arange(num_rows), folds)]
    num_test, num_validation = sizes[number - 1], _num_validation(num_rows)
    rolled = order.roll(-sum(sizes[:number]))
    parts = rolled.split([num_rows - num_test - num_validation, num_validation, num_test])
    return dict(zip(SPLITS, parts, strict=True))


def fold_splits(num_rows: int, group: np.ndarray | None, seed: int, fold: Fold) -> np.ndarray:
    """Return the split of each row, 0 for train, 1 for validation, 2 for test, with shape (N,), if a fold is held out.

    Without groups the rows are those of `fold_rows`. Whole groups are dealt, the largest first, each to the fold with
    the fewest rows; groups of one size are in random order. Of the other folds, random groups that fit into
    floor(N / 10) rows are the validation set, or the smallest group if none fits.

    Args:
        num_rows: Number of rows N.
        group: Group of each row, 0, 1, ..., with shape (N,); None for rows that are independent.
        seed: Random seed.
        fold: Number k of the fold, from 1, and number of folds K.

    Raises:
        ValueError: If there is no such fold, there are fewer groups than folds, or no group is left to train on.
    """
    check_fold(fold, num_rows)
    if group is None:
        splits = np.zeros(num_rows, dtype=np.int64)
        for code, rows in enumerate(fold_rows(num_rows, seed, fold).values()):
            splits[rows.numpy()] = code
        return splits
    number, folds = fold
    sizes = np.bincount(group)
    if len(sizes) < folds:
        raise ValueError(f"--folds {folds}: the rows have only {len(sizes)} groups; use at most {len(sizes)} folds")
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).numpy()
    fold_of_group, filled = np.empty(len(sizes), dtype=np.int64), np.zeros(folds, dtype=np.int64)
    for one in order[np.argsort(-sizes[order], kind="stable")]:
        fold_of_group[one] = filled.argmin()
        filled[fold_of_group[one]] += sizes[one]
    others = [one for one in order if fold_of_group[one] != number - 1]
    if len(others) < 2:
        raise ValueError(
            f"--folds {folds}: beside fold {number} there is one group, but training and validation need one each; "
            "give more groups"
        )
    validation: list[int] = []
    room = _num_validation(num_rows)
    for one in others:
        if sizes[one] <= room and len(validation) < len(others) - 1:
            validation.append(one)
            room -= sizes[one]
    of_group = np.where(fold_of_group == number - 1, 2, 0)
    of_group[validation or [min(others, key=lambda one: sizes[one])]] = 1
    return of_group[group]


def _num_validation(num_rows: int) -> int:
    return max(1, num_rows // 10)
