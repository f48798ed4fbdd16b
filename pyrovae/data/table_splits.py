"""Splits of the rows of a table into training, validation and test rows."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch

from pyrovae.data.table_files import RawTable

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def read_split(table: RawTable, name: str) -> np.ndarray:
    """Read the splits of a column, with shape (N,), int64: 0 for train, 1 for validation, 2 for test.

    Raises:
        ValueError: If a cell is another word or missing, or no row is a training row.
    """
    codes: dict[str, int] = {word: code for code, word in enumerate(SPLITS)}
    for row, text in enumerate(table.columns[name]):
        if text not in codes:
            got = "is missing" if text is None else f"is {text!r:.40}"
            raise ValueError(f"{table.place(name, row)} {got}; write train, validation or test in every row")
    splits = np.array([codes[text or ""] for text in table.columns[name]], dtype=np.int64)
    if not (splits == 0).any():
        raise ValueError(f"{table.place(name)} has no training row; write train in most rows")
    return splits


def draw_split(num_rows: int, group: np.ndarray | None, seed: int) -> np.ndarray:
    """Draw splits, with shape (N,), int64: floor(N / 10) validation rows, as many test rows, and the rest for training.

    With groups, whole groups are drawn, so that the shares hold as nearly as their sizes allow; of three groups or
    more, each split has one. The permutation depends on the seed alone.

    Args:
        num_rows: Number of rows N.
        group: Group of each row, 0, 1, ..., with shape (N,); None for rows that are independent.
        seed: Random seed.
    """
    generator = torch.Generator().manual_seed(seed)
    if group is None:
        order = torch.randperm(num_rows, generator=generator).numpy()
        tenth = num_rows // 10
        splits = np.zeros(num_rows, dtype=np.int64)
        splits[order[num_rows - 2 * tenth : num_rows - tenth]] = 1
        splits[order[num_rows - tenth :]] = 2
        return splits
    sizes = np.bincount(group)
    order = torch.randperm(len(sizes), generator=generator).numpy()
    middle = (np.cumsum(sizes[order]) - sizes[order] / 2) / num_rows
    drawn = np.digitize(middle, (0.8, 0.9))
    if len(sizes) >= 3:
        drawn[-1], drawn[0] = 2, 0
        if not (drawn == 1).any():
            drawn[-2 if (drawn == 2).sum() == 1 or len(sizes) == 3 else int((drawn < 2).sum())] = 1
    of_group = np.empty(len(sizes), dtype=np.int64)
    of_group[order] = drawn
    return of_group[group]


def check_groups(table: RawTable, name: str, group: np.ndarray, splits: np.ndarray) -> None:
    """Check that each group lies in one split.

    Raises:
        ValueError: With the first group that does not.
    """
    split_of_group = np.empty(int(group.max()) + 1, dtype=np.int64)
    split_of_group[group] = splits  # of one row of each group
    crossed = np.flatnonzero(split_of_group[group] != splits)
    if len(crossed):
        row = int(crossed[0])
        words = " and ".join(SPLITS[one] for one in np.unique(splits[group == group[row]]))
        raise ValueError(
            f"{table.place(name, row)}: the rows of group {table.columns[name][row]!r:.40} lie in {words}; give them "
            "one split, or leave out split= to draw it"
        )
