"""Features of a table's rows: the first module of an encoder for mixed columns with missing cells."""

import math

import torch
from torch import Tensor, nn

from pyrovae.columns import Column, Columns


class Features(nn.Module):
    """Numbers near 1 from the cells of a row, for the network of an encoder.

    | kind | features of a cell |
    |---|---|
    | real, interval | (x - centre) / spread |
    | positive | log(1 + x/m) - log 2, divided by the spread of log x, with m = exp(mean of log x) |
    | count | log(1 + x) - log(1 + mean), divided by its change over one spread |
    | binary | 2 x - 1 |
    | category with L levels | L indicators |
    | ordered with L levels | L - 1 indicators of x >= 1, ..., x >= L - 1 |

    The features of a missing cell are learned, initially 0. One more number per column says whether the cell is there.

    Args:
        columns: Columns of the table; those of role "data" are the D columns of x. Each must be complete.
        mask_extra: Probability with which an observed cell is hidden in training, as if it were missing. The bound
            stays a bound, since q(z|x) may use any part of x.

    Raises:
        ValueError: If a column is not complete, or mask_extra is not in [0, 1).
    """

    owner: Tensor

    def __init__(self, columns: Columns, mask_extra: float = 0.0) -> None:
        super().__init__()
        if not 0 <= mask_extra < 1:
            raise ValueError(f"mask_extra must be in [0, 1), got {mask_extra}; 0.2 hides a fifth of the cells")
        for column in columns.data:
            if not column.is_complete:
                raise ValueError(f"column {column.name!r} is not complete; read its table with read_table first")
        self.mask_extra = mask_extra
        self.cells = [_Cell.of(column) for column in columns.data]
        self.in_features = len(self.cells)
        sizes = [cell.size for cell in self.cells]
        self.fill = nn.Parameter(torch.zeros(sum(sizes)))
        self.out_features = sum(sizes) + len(sizes)
        self.register_buffer("owner", torch.repeat_interleave(torch.tensor(sizes)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows, with shape (..., D + C) and NaN where missing, to features, with shape (..., out_features + C).

        The last C numbers are covariates, which stay unchanged.
        """
        x, covariates = x.tensor_split((self.in_features,), -1)
        seen = ~x.isnan()
        if self.training and self.mask_extra:
            seen = seen & (torch.rand_like(x) >= self.mask_extra)
        found = [cell(torch.where(seen[..., d], x[..., d], cell.usual)) for d, cell in enumerate(self.cells)]
        features = torch.where(seen[..., self.owner], torch.cat(found, -1), self.fill)
        return torch.cat([features, seen.to(features.dtype), covariates], -1)


class _Cell:
    """Features of the cells of one column.

    Attributes:
        size: Number of features.
        usual: A value that the column may have, in place of a missing one.
    """

    def __init__(self, column: Column, size: int, usual: float) -> None:
        self.column, self.size, self.usual = column, size, usual

    @classmethod
    def of(cls, column: Column) -> "_Cell":
        levels = len(column.levels)
        sizes = {"category": levels, "ordered": levels - 1}
        usual = 0.0 if column.levels else float(column.centre or 0.0)
        return cls(column, sizes.get(column.kind, 1), usual)

    def __call__(self, x: Tensor) -> Tensor:
        """Map cells, with shape (...), to features, with shape (..., size)."""
        column = self.column
        if column.kind == "category":
            return (x.unsqueeze(-1) == torch.arange(self.size, device=x.device)).to(x.dtype)
        if column.kind == "ordered":
            return (x.unsqueeze(-1) > torch.arange(self.size, device=x.device)).to(x.dtype)
        return self._number(x).unsqueeze(-1)

    def _number(self, x: Tensor) -> Tensor:
        column = self.column
        if column.kind == "binary":
            return 2 * x - 1
        assert column.centre is not None
        assert column.spread is not None
        if column.kind == "positive":
            assert column.log_centre is not None
            assert column.log_spread is not None
            return ((x / math.exp(column.log_centre)).log1p() - math.log(2)) / column.log_spread
        if column.kind == "count":
            low, high = math.log1p(column.centre), math.log1p(column.centre + column.spread)
            return (x.log1p() - low) / (high - low)
        return (x - column.centre) / column.spread
