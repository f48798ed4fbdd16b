"""Distribution of a table's row, entry by entry: each group of columns has a distribution of its own."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from pyrovae.distributions.expand import Shape


class _ByColumnSupport(constraints.Constraint):
    """Constraint on the last dimension of a value: each group of columns has a support of its own.

    Attributes:
        entries: Support of each of the D columns.
    """

    def __init__(self, groups: "ColumnGroups", supports: Sequence[constraints.Constraint]) -> None:
        self._groups, self._supports = groups, supports
        self.is_discrete = all(support.is_discrete for support in supports)
        owners = [support for support, places in zip(supports, groups.places, strict=True) for _ in places]
        self.entries = [owners[place] for place in groups.order.tolist()]

    def check(self, value: Tensor) -> Tensor:
        return self._groups.join(
            [support.check(part) for support, part in zip(self._supports, self._groups.split(value), strict=True)]
        )


class ColumnGroups(nn.Module):
    """Groups of columns: splits the last dimension of a tensor, and joins the parts in the order of the columns.

    Args:
        places: Indices of the columns of each group, with shape (D_k,). Together they are 0, ..., D - 1.

    Raises:
        ValueError: If the groups do not cover each column once.
    """

    order: Tensor

    def __init__(self, places: Sequence[Tensor]) -> None:
        super().__init__()
        joined = torch.cat(list(places))
        found = joined.sort().values.tolist()
        if found != list(range(len(found))):
            raise ValueError(f"groups must have each column once, got columns {found[:20]}; divide 0, ..., D - 1")
        self.sizes = [len(columns) for columns in places]
        for index, columns in enumerate(places):
            self.register_buffer(f"places_{index}", columns, persistent=False)
        self.register_buffer("order", joined.argsort(), persistent=False)

    @property
    def places(self) -> list[Tensor]:
        """Indices of the columns of each group."""
        return [getattr(self, f"places_{index}") for index in range(len(self.sizes))]

    def split(self, value: Tensor) -> list[Tensor]:
        """Return the columns of each group, each with shape (..., D_k), of a value with shape (..., D)."""
        return [value[..., places] for places in self.places]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the value, with shape (..., D), of the columns of each group, each with shape (..., D_k)."""
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)[..., self.order]


class ByColumn(TorchDistribution):
    """Independent entries whose distributions differ by column.

        log p(x)_d = log p_k(x_d) for each column d of group k

    Args:
        parts: Distributions of single entries, event_shape (), whose last batch dimension is the columns of the group.
        places: Columns of each group: `ColumnGroups`, or the indices from which to make them.
        validate_args: Whether to check values; None for the global setting.

    Raises:
        ValueError: If the groups do not cover each column once, or a part has an event shape or another number of
            columns.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, parts: Sequence[Any], places: Sequence[Tensor] | ColumnGroups, validate_args: bool | None = None
    ) -> None:
        groups = places if isinstance(places, ColumnGroups) else ColumnGroups(places)
        for part, size in zip(parts, groups.sizes, strict=True):
            if part.event_shape or part.batch_shape[-1:] != (size,):
                raise ValueError(
                    f"a group of {size} columns needs a distribution of single entries for each of them, got "
                    f"batch_shape {tuple(part.batch_shape)} and event_shape {tuple(part.event_shape)}"
                )
        self.parts, self.groups = list(parts), groups
        leading = torch.broadcast_shapes(*(part.batch_shape[:-1] for part in parts))
        super().__init__(torch.Size((*leading, sum(groups.sizes))), validate_args=validate_args)

    @property
    def places(self) -> list[Tensor]:
        """Indices of the columns of each group."""
        return self.groups.places

    @property
    def support(self) -> constraints.Constraint:
        """Support of each column."""
        return _ByColumnSupport(self.groups, [part.support for part in self.parts])

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "ByColumn":
        """Return the distribution expanded to batch_shape, whose last dimension is D."""
        leading = tuple(batch_shape)[:-1]
        parts = [
            part.expand(torch.Size((*leading, size))) for part, size in zip(self.parts, self.groups.sizes, strict=True)
        ]
        return ByColumn(parts, self.groups, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability or log density of each entry, in nats, with the shape of value."""
        if self._validate_args:
            self._validate_sample(value)
        values = self.groups.split(value)
        return self.groups.join([part.log_prob(one) for part, one in zip(self.parts, values, strict=True)])

    def cdf(self, value: Tensor) -> Tensor:
        """Return P(X <= value) of each entry."""
        values = self.groups.split(value)
        return self.groups.join([part.cdf(one) for part, one in zip(self.parts, values, strict=True)])

    @property
    def mean(self) -> Tensor:
        """Mean of each entry."""
        return self._of_parts(lambda part: part.mean)

    @property
    def variance(self) -> Tensor:
        """Variance of each entry."""
        return self._of_parts(lambda part: part.variance)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw, with shape sample_shape + batch_shape."""
        return self._of_parts(lambda part: part.sample(torch.Size(sample_shape)))

    def _of_parts(self, function: Callable[[Any], Tensor]) -> Tensor:
        return self.groups.join([function(part) for part in self.parts])
