"""Default statistics of predictive checks, by kind of data: images, counts, and tables of mixed columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.densities import entry_of
from pyrovae.distributions import ByColumn

Statistic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NamedElements:
    """Statistic that is a vector and names its elements.

    Attributes:
        function: Function of a data set.
        names: Name of each element.
    """

    function: Statistic
    names: tuple[str, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the statistic of a data set."""
        return self.function(x)


QUANTILES = (0.05, 0.5, 0.95)
_MOST_PAIRS = 20  # columns up to which each correlation is a statistic of its own
_MOST_COLUMNS = 256  # columns up to which all correlations are computed


def default_statistics(
    kinds: Sequence[str],
    shape: Sequence[int] | None = None,
    *,
    names: Sequence[str] | None = None,
    levels: Mapping[int, Sequence[str]] | None = None,
) -> dict[str, Statistic]:
    """Choose statistics of a data set by the kind of its columns.

    - Images, whose shape has two or three dimensions: "ink" and "ink sd", the mean and the standard deviation over data
      of the mean entry of a datum; "row profile" and "column profile", the mean entry of each row and column; and
      "neighbour correlation" of entries side by side (0) and one above the other (1).
    - Counts: "mean", "dispersion" (variance / mean), "zeros" (share), "max" of each column, and "total sd", the
      standard deviation over data of their sum.
    - Real numbers: "mean", "sd" and the quantiles 5, 50 and 95 % of each column.
    - Two levels: the "mean"; unordered levels: the "share" of each level.
    - "correlation" of each pair of columns, up to 20 columns; "rms correlation" of all pairs, up to 256.

    Args:
        kinds: Kind of each of the D columns: "real", "count", "binary", or "category:L" with L levels.
        shape: Shape of one datum, if it is an image, with product D.
        names: Names of the columns, which name the elements then, as "mean of income"; None for "column 0", ... where
            the columns are of several kinds, and in correlations, and for indices of elements otherwise.
        levels: Names of the levels of a column, by its number; None for 0, 1, ...

    Returns:
        Functions of a data set, with shape (N, D), NaN where missing, to a number or a vector.

    Raises:
        ValueError: If the product of the shape is not the number of columns.
    """
    size = len(kinds)
    if shape is not None and len(shape) > 1:
        if int(np.prod(shape)) != size:
            raise ValueError(f"shape {tuple(shape)} has {int(np.prod(shape))} entries, but a datum has {size}")
        found = _of_images(shape)
    else:
        found = _of_columns(kinds, names, levels or {})
    ordered = [place for place, kind in enumerate(kinds) if not kind.startswith("category")]
    if 1 < len(ordered) <= _MOST_PAIRS:
        known = [f"column {place}" for place in range(size)] if names is None else names
        pairs = combinations((known[place] for place in ordered), 2)
        elements = tuple(f"correlation of {a} and {b}" for a, b in pairs)  # an index of a pair tells nobody which it is
        found["correlation"] = NamedElements(partial(_correlations, columns=ordered), elements)
    elif _MOST_PAIRS < len(ordered) <= _MOST_COLUMNS:
        found["rms correlation"] = partial(_rms_correlation, columns=ordered)
    return found


def kinds_of(fn: Any, num_columns: int) -> list[str]:
    """Find the kind of each column from the distribution of the entries (see `default_statistics`)."""
    fn = entry_of(fn)
    if isinstance(fn, ByColumn):
        kinds = ["real"] * num_columns
        for part, places in zip(fn.parts, fn.places, strict=True):
            for place in places.tolist():
                kinds[place] = kinds_of(part, 1)[0]
        return kinds
    if isinstance(fn, torch.distributions.Categorical):
        levels = fn.logits.shape[-1]
        return ["binary" if levels == 2 else f"category:{levels}"] * num_columns
    try:
        support = fn.support
    except (AttributeError, NotImplementedError):
        return ["real"] * num_columns
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is torch.distributions.constraints.boolean:
        return ["binary"] * num_columns
    counted = support.is_discrete and getattr(support, "lower_bound", None) == 0
    return ["count" if counted else "real"] * num_columns


def element_names(name: str, function: Statistic, size: int) -> list[str]:
    """Name the elements of a statistic: as it says, or its own name if it is one number, else with their indices."""
    if isinstance(function, NamedElements):
        return list(function.names)
    return [name] if size == 1 else [f"{name}[{index}]" for index in range(size)]


def _of_images(shape: Sequence[int]) -> dict[str, Statistic]:
    height, width = shape[-2], shape[-1]
    along = {"row profile": -1, "column profile": -2}
    found: dict[str, Statistic] = {
        "ink": lambda x: x.nanmean(1).nanmean(0),
        "ink sd": lambda x: _sd(x.nanmean(1).unsqueeze(-1)),
    }
    for name, dim in along.items():
        found[name] = partial(_profile, height=height, width=width, dim=dim)
    found["neighbour correlation"] = partial(_neighbour_correlation, shape=(-1, height, width))
    return found


def _of_columns(
    kinds: Sequence[str], names: Sequence[str] | None, levels: Mapping[int, Sequence[str]]
) -> dict[str, Statistic]:
    places: dict[str, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    if names is None and len(places) > 1:
        names = [f"column {place}" for place in range(len(kinds))]
    found: dict[str, Statistic] = {}

    def add(name: str, columns: list[int], function: Statistic, elements: Sequence[str] = ()) -> None:
        """Add a statistic of some columns. Its elements have the names given, else those of the columns, if any."""
        statistic: Statistic = partial(_of_some, columns=columns, function=function)
        own = tuple(elements) or tuple(f"{name} of {names[column]}" for column in columns if names is not None)
        known = found.get(name)
        if isinstance(known, NamedElements):  # of the columns of another kind
            found[name] = NamedElements(partial(_joined, functions=(known, statistic)), (*known.names, *own))
        else:
            found[name] = NamedElements(statistic, own) if own else statistic

    for kind, columns in places.items():
        if kind.startswith("category"):
            count = int(kind.partition(":")[2])
            shares = [
                f"share of {names[column] if names is not None else f'column {column}'} = {level}"
                for column in columns
                for level in levels.get(column, range(count))
            ]
            add("share", columns, partial(_shares, count=count), shares)
            continue
        add("mean", columns, _mean)
        if kind == "count":
            add("dispersion", columns, _dispersion)
            add("zeros", columns, partial(_share, level=0))
            add("max", columns, _max)
            found["total sd"] = partial(_of_some, columns=columns, function=_total_sd)
        elif kind == "real":
            add("sd", columns, _sd)
            for share in QUANTILES:
                add(f"quantile {share:g}", columns, partial(_quantile, level=share))
    return found


def _joined(x: Tensor, functions: Sequence[Statistic]) -> Tensor:
    return torch.cat([function(x) for function in functions])


def _profile(x: Tensor, height: int, width: int, dim: int) -> Tensor:
    return x.reshape(-1, height, width).nanmean(0).nanmean(dim)


def _of_some(x: Tensor, columns: list[int], function: Statistic) -> Tensor:
    """Compute a statistic of some columns."""
    return torch.as_tensor(function(x[:, columns]))


def _total_sd(x: Tensor) -> Tensor:
    return _sd(x.nansum(1, keepdim=True))


def _mean(x: Tensor) -> Tensor:
    return x.nanmean(0).nan_to_num(0.0)


def _sd(x: Tensor) -> Tensor:
    return _variance(x).sqrt()


def _variance(x: Tensor) -> Tensor:
    """Compute the variance of each column over its observed entries, with divisor n - 1; 0 for fewer than two."""
    count = (~x.isnan()).sum(0)
    squares = (x - x.nanmean(0)).square().nansum(0)
    return squares / (count - 1).clamp(min=1)


def _dispersion(x: Tensor) -> Tensor:
    """Compute variance / mean of each column; 0 for columns of zeros."""
    mean = _mean(x)
    return torch.where(mean > 0, _variance(x) / mean.clamp(min=1e-300), 0.0)


def _share(x: Tensor, level: int) -> Tensor:
    """Compute the share of observed entries that equal a level."""
    return (x == level).double().sum(0) / (~x.isnan()).sum(0).clamp(min=1)


def _shares(x: Tensor, count: int) -> Tensor:
    """Compute the share of each level among the observed entries of each column, the levels of a column together."""
    return torch.stack([_share(x, level) for level in range(count)], 1).flatten()


def _max(x: Tensor) -> Tensor:
    return x.nan_to_num(-torch.inf).amax(0).nan_to_num(0.0, 0.0, 0.0)


def _quantile(x: Tensor, level: float) -> Tensor:
    seen = ~x.isnan().all(0)
    found = torch.zeros(x.shape[1], dtype=torch.float64)
    if bool(seen.any()):
        found[seen] = torch.from_numpy(np.nanquantile(x[:, seen].numpy(), level, axis=0))
    return found


def _correlation_matrix(x: Tensor, columns: Sequence[int]) -> Tensor:
    """Compute correlations over the data where both entries are observed; 0 for constant columns."""
    x = x[:, columns]
    seen = (~x.isnan()).double()
    residual = (x - x.nanmean(0)).nan_to_num(0.0)
    covariance = residual.T @ residual
    squares = residual.square().T @ seen  # of column i where j is observed
    scale = (squares * squares.T).sqrt()
    return torch.where(scale > 0, covariance / scale.clamp(min=1e-300), 0.0)


def _correlations(x: Tensor, columns: Sequence[int]) -> Tensor:
    matrix = _correlation_matrix(x, columns)
    return matrix[tuple(torch.triu_indices(len(columns), len(columns), 1))]


def _rms_correlation(x: Tensor, columns: Sequence[int]) -> Tensor:
    return _correlations(x, columns).square().mean().sqrt()


def _neighbour_correlation(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Pool the covariances of neighbouring entries about their means, side by side and one above the other."""
    residual = (x - x.nanmean(0)).nan_to_num(0.0)
    images = residual.reshape(len(x), *shape)
    found = []
    for one, other in ((images[..., :-1], images[..., 1:]), (images[..., :-1, :], images[..., 1:, :])):
        scale = (one.square().sum() * other.square().sum()).sqrt()
        found.append((one * other).sum() / scale if scale > 0 else torch.zeros((), dtype=torch.float64))
    return torch.stack(found)


def apply_statistics(statistics: Mapping[str, Statistic], x: Tensor) -> dict[str, Tensor]:
    """Compute statistics of a data set, each as a vector, float64.

    Args:
        statistics: Functions of a data set.
        x: Data set, with shape (N, *event), NaN where missing.

    Raises:
        ValueError: If a statistic is not a number or a vector.
    """
    found = {}
    for name, function in statistics.items():
        value = torch.as_tensor(function(x)).detach().cpu().double()
        if value.dim() > 1:
            raise ValueError(
                f"statistic {name!r} must be a number or a vector, got shape {tuple(value.shape)}; flatten it"
            )
        found[name] = value.reshape(-1)
    return found
