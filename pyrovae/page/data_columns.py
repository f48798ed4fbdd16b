"""Columns of the data of a run: their names, their levels, and the statistics that suit their kinds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.columns import LEVELLED, Columns
from pyrovae.diagnostics import default_statistics

_FEW = 24  # columns, up to which those of an array may have a unit each
_SEVERAL = 10  # ratio of standard deviations, from which columns have several units


class Spread(NamedTuple):
    """Means and standard deviations of columns, each with shape (D,)."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class DataColumns:
    """Columns of data with shape (N, D).

    Attributes:
        names: Name of each column.
        levels: Names of the levels of each column that has levels, by column.
        kinds: Kind of each column of a table; empty for arrays and images.
        spread: Spread of the columns of an array if they have several units; None otherwise.
    """

    names: tuple[str, ...]
    levels: Mapping[int, tuple[str, ...]]
    kinds: tuple[str, ...] = ()
    spread: Spread | None = None

    @classmethod
    def of(cls, schema: Columns | None, x: Tensor, *, image: bool) -> "DataColumns":
        """Read the columns of a table; number those of arrays.

        Args:
            schema: Columns of a table; None for arrays and images.
            x: Data, with shape (N, D), NaN where missing.
            image: Whether the data are images, whose pixels have one unit.
        """
        if schema is None:
            return cls(
                tuple(f"column {d}" for d in range(x.shape[1])),
                {},
                spread=None if image else _spread_of_several_units(x),
            )
        columns = schema.data
        levels = {d: column.levels for d, column in enumerate(columns) if column.kind in LEVELLED}
        return cls(tuple(column.name for column in columns), levels, tuple(column.kind for column in columns))

    @property
    def of_table(self) -> bool:
        """Whether the data are a table, whose columns have names of their own."""
        return bool(self.kinds)

    @property
    def in_several_units(self) -> bool:
        """Whether columns have units of their own: those of tables, and few real ones that spread very differently."""
        return self.of_table or self.spread is not None

    def on_one_scale(self, values: Tensor) -> Tensor:
        """Standardise values, with shape (..., D), by the data if the columns of an array have several units."""
        return values if self.spread is None else (values - self.spread.mean) / self.spread.std

    @property
    def decoded_names(self) -> list[str]:
        """Names of the columns of decoded means, where each level has its own."""
        parts = (
            [f"{name}: {level}" for level in self.levels[d]] if d in self.levels else [name]
            for d, name in enumerate(self.names)
        )
        return [name for part in parts for name in part]

    def as_decoded(self, x: Tensor) -> Tensor:
        """Write data, with shape (N, D), in the columns of decoded means: 1 for the level of a datum, 0 for others."""
        parts = []
        for d, column in enumerate(x.double().unbind(1)):
            codes = range(len(self.levels.get(d, ())))
            parts += [torch.where(column.isnan(), column, (column == code).double()) for code in codes] or [column]
        return torch.stack(parts, 1)

    def statistics(self) -> dict[str, Callable[[Tensor], Tensor]] | None:
        """Return the statistics of predictive checks of a table, by its names; None for the default of arrays."""
        if not self.of_table:
            return None
        return dict(
            default_statistics([self._kind(d) for d in range(len(self.names))], names=self.names, levels=self.levels)
        )

    def _kind(self, d: int) -> str:
        kind = self.kinds[d]
        if kind in ("binary", "count"):
            return kind
        return f"category:{len(self.levels[d])}" if d in self.levels else "real"


def _spread_of_several_units(x: Tensor) -> Spread | None:
    """Return the spread of real columns if they are few and their standard deviations differ much, otherwise None."""
    seen = x[~x.isnan()]
    if x.shape[1] > _FEW or bool(((seen >= 0) & (seen == seen.floor())).all()):  # counts have one unit
        return None
    mean = x.double().nanmean(0)
    std = (x.double() - mean).square().nanmean(0).sqrt()
    known = std[std > 0]
    if not len(known) or float(known.max() / known.min()) <= _SEVERAL:
        return None
    return Spread(mean.nan_to_num(), std.where(std > 0, 1.0))
