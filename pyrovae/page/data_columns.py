"""Columns of the data of a run: their names, their levels, and the statistics that suit their kinds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.columns import LEVELLED, Columns
from pyrovae.diagnostics import default_statistics


@dataclass(frozen=True)
class DataColumns:
    """Columns of data with shape (N, D).

    Attributes:
        names: Name of each column.
        levels: Names of the levels of each column that has levels, by column.
        kinds: Kind of each column of a table; empty for arrays and images.
    """

    names: tuple[str, ...]
    levels: Mapping[int, tuple[str, ...]]
    kinds: tuple[str, ...] = ()

    @classmethod
    def of(cls, schema: Columns | None, size: int) -> "DataColumns":
        """Read the columns of a table; number those of arrays.

        Args:
            schema: Columns of a table; None for arrays and images.
            size: Number of columns D.
        """
        if schema is None:
            return cls(tuple(f"column {d}" for d in range(size)), {})
        columns = schema.data
        levels = {d: column.levels for d, column in enumerate(columns) if column.kind in LEVELLED}
        return cls(tuple(column.name for column in columns), levels, tuple(column.kind for column in columns))

    @property
    def of_table(self) -> bool:
        """Whether the data are a table, whose columns have names of their own."""
        return bool(self.kinds)

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
