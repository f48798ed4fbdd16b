"""Features of a table's rows: the first module of an encoder for mixed columns with missing cells."""

import math
from typing import NamedTuple

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
    usual: Tensor
    order: Tensor

    def __init__(self, columns: Columns, mask_extra: float = 0.0) -> None:
        super().__init__()
        if not 0 <= mask_extra < 1:
            raise ValueError(f"mask_extra must be in [0, 1), got {mask_extra}; 0.2 hides a fifth of the cells")
        for column in columns.data:
            if not column.is_complete:
                raise ValueError(f"column {column.name!r} is not complete; read its table with read_table first")
        self.mask_extra = mask_extra
        self.in_features = len(columns.data)
        found = [(place, feature) for place, column in enumerate(columns.data) for feature in _features_of(column)]
        self.fill = nn.Parameter(torch.zeros(len(found)))
        self.out_features = len(found) + self.in_features
        usual = [0.0 if column.levels else float(column.centre or 0.0) for column in columns.data]
        self._keep("usual", torch.tensor(usual))
        self._keep("owner", torch.tensor([place for place, _ in found]))
        self.forms = list(dict.fromkeys(feature.form for _, feature in found))
        members = [[n for n, (_, feature) in enumerate(found) if feature.form == form] for form in self.forms]
        for form, places in zip(self.forms, members, strict=True):
            self._keep(f"{form}_columns", self.owner[places])
            for name in ("unit", "start", "step"):
                self._keep(f"{form}_{name}", torch.tensor([getattr(found[n][1], name) for n in places]))
        self._keep("order", torch.tensor([n for places in members for n in places]).argsort())

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows, with shape (..., D + C) and NaN where missing, to features, with shape (..., out_features + C).

        The last C numbers are covariates, which stay unchanged.
        """
        x, covariates = x.tensor_split((self.in_features,), -1)
        seen = ~x.isnan()
        if self.training and self.mask_extra:
            seen = seen & (torch.rand_like(x) >= self.mask_extra)
        cells = torch.where(seen, x, self.usual.to(x))
        found = torch.cat([self._of_form(form, cells) for form in self.forms], -1)[..., self.order]
        features = torch.where(seen[..., self.owner], found, self.fill)
        return torch.cat([features, seen.to(features.dtype), covariates], -1)

    def _of_form(self, form: str, cells: Tensor) -> Tensor:
        """Map cells, with shape (..., D), to the features of one form."""
        places, unit, start, step = (getattr(self, f"{form}_{name}") for name in ("columns", "unit", "start", "step"))
        chosen = cells[..., places]
        if form == "equal":
            return (chosen == start).to(cells.dtype)
        if form == "above":
            return (chosen > start).to(cells.dtype)
        number = (chosen / unit).log1p() if form == "log" else chosen
        return (number - start) / step


class _Feature(NamedTuple):
    """Number that is made of a cell x.

    Attributes:
        form: "linear" for (x - start) / step, "log" for (log(1 + x/unit) - start) / step, "equal" for the indicator of
            x = start, "above" for that of x > start.
        start: Number to subtract, or to compare with.
        step: Positive number to divide by.
        unit: Unit of x.
    """

    form: str
    start: float
    step: float = 1.0
    unit: float = 1.0


def _features_of(column: Column) -> list[_Feature]:
    """Return the features of a column's cells (see `Features`)."""
    if column.kind == "category":
        return [_Feature("equal", float(level)) for level in range(len(column.levels))]
    if column.kind == "ordered":
        return [_Feature("above", float(level)) for level in range(len(column.levels) - 1)]
    if column.kind == "binary":
        return [_Feature("linear", 0.5, 0.5)]
    assert column.centre is not None
    assert column.spread is not None
    if column.kind == "positive":
        assert column.log_centre is not None
        assert column.log_spread is not None
        return [_Feature("log", math.log(2), column.log_spread, math.exp(column.log_centre))]
    if column.kind == "count":
        low, high = math.log1p(column.centre), math.log1p(column.centre + column.spread)
        return [_Feature("log", low, high - low)]
    return [_Feature("linear", column.centre, column.spread)]
