"""Units of the data: centre and spread of each column, in which likelihoods read the outputs of their network."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.columns import COMMON_SHARE, ODD_FACTOR


class Moments(NamedTuple):
    """Moments of the columns of training data, each with shape (D,).

    Attributes:
        mean: Means of the observed entries.
        spread: Standard deviations.
        log_mean: Means of log x over the positive entries; 0 for a column without one.
        log_spread: Standard deviations of log x over the positive entries.
        resolution: Smallest learned scale, the gap between two values of the column (see `floor_of`); 0 for none.
    """

    mean: Tensor
    spread: Tensor
    log_mean: Tensor
    log_spread: Tensor
    resolution: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Moments":
        """Compute the moments of data.

        A spread is at least the smallest gap between two values of the column, so that a column that is nearly always
        the same has no spread near 0. A constant column has the root mean square of the other spreads, or 1.

        Args:
            x: Data, with shape (N, D); NaN where missing.
        """
        mean, spread = _mean_and_spread(x)
        log_mean, log_spread = _mean_and_spread(torch.where(x > 0, x, torch.nan).log())
        return cls(mean, spread, log_mean, log_spread, floor_of(x, spread))


class Units(nn.Module):
    """Centre and spread of each column. A location is centre + spread a, a learned scale spread v.

    A network then works with numbers near 1 for data in any unit. The parameters are mapped, not the data, so that the
    density needs no Jacobian: log p(c x) = log p(x) - log |c| for each entry.

    Args:
        centre: Centre, with shape (D,) or ().
        spread: Positive spread, with shape (D,) or ().
        floor: Smallest learned scale f, with shape (D,) or (): a scale is sqrt((spread v)^2 + f^2). None for 0.
    """

    centre: Tensor
    spread: Tensor
    floor: Tensor

    def __init__(self, centre: Tensor, spread: Tensor, floor: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("spread", spread)
        self.register_buffer("floor", torch.zeros_like(spread) if floor is None else floor)

    @classmethod
    def none(cls) -> "Units":
        """Make units that change nothing: centre 0 and spread 1."""
        return cls(torch.zeros(()), torch.ones(()))

    def location(self, a: Tensor) -> Tensor:
        """Map outputs of a network, with shape (..., D), to locations."""
        return self.centre + self.spread * a

    def scale(self, v: Tensor) -> Tensor:
        """Map scales relative to the spread, which broadcast against (..., D), to scales in the data's units."""
        return torch.hypot(self.spread * v, self.floor)

    def inverse(self, location: Tensor) -> Tensor:
        """Map locations, with shape (..., D), to the outputs of a network."""
        return (location - self.centre) / self.spread


def floor_of(x: Tensor, spread: Tensor) -> Tensor:
    """Compute the smallest learned scale of each column, without which a density of repeated values has no maximum.

    It is the smallest gap between two values of the column, without a few odd values between repeated ones, but at most
    the standard deviation of the column, so that the best constant scale is allowed. A constant column has a thousandth
    of its spread. Numbers that are not rounded have gaps near 0.

    Args:
        x: Data, with shape (N, D); NaN where missing.
        spread: Spread of each column, with shape (D,).

    Returns:
        The scales in the data's units, with shape (D,), like spread.
    """
    gap, (_, deviation) = _resolution(x), _mean_and_deviation(x)
    return torch.where(gap > 0, torch.minimum(gap.double(), deviation), 1e-3 * spread.double()).to(spread)


def log_units(moments: Moments) -> Units:
    """Make the units of log x. The floor of a scale is the resolution relative to exp(mean of log x)."""
    return Units(moments.log_mean, moments.log_spread, moments.resolution * (-moments.log_mean).exp())


def log_of_mean(moments: Moments) -> Tensor:
    """Return the logarithms of the means, with shape (D,); 0 for a mean that is not positive."""
    return torch.where(moments.mean > 0, moments.mean, 1).log()


def without_holes(x: Tensor) -> Tensor:
    """Fill the missing entries of each column with its observed entries in turn; with 0 if it has none.

    Args:
        x: Data, with shape (N, D); NaN where missing.
    """
    missing = x.isnan()
    if not bool(missing.any()):
        return x
    filled = x.clone()
    for column, holes in zip(filled.unbind(1), missing.unbind(1), strict=True):
        seen = column[~holes]
        number = int(holes.sum())
        column[holes] = seen[torch.arange(number) % len(seen)] if len(seen) else x.new_zeros(number)
    return filled


def _mean_and_spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and spread of the finite entries of each column (see `Moments.of`)."""
    mean, deviation = _mean_and_deviation(x)
    spread = torch.maximum(deviation, _smallest_gap(torch.where(x.isfinite(), x, torch.nan)).double())
    varies = spread > 0
    typical = spread[varies].square().mean().sqrt() if bool(varies.any()) else spread.new_ones(())
    return mean.to(x), torch.where(varies, spread, typical).to(x)


def _mean_and_deviation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation of the finite entries of each column, float64."""
    seen = x.isfinite()
    count = seen.sum(0).clamp(min=1)
    mean = torch.where(seen, x.double(), 0).sum(0) / count
    return mean, (torch.where(seen, x.double() - mean, 0).square().sum(0) / count).sqrt()


def _smallest_gap(x: Tensor) -> Tensor:
    """Return the smallest gap between distinct values of each column, with shape (D,); 0 if it is constant."""
    smallest, _ = _gaps(x.sort(0).values)  # NaN is last
    return smallest


def _resolution(x: Tensor) -> Tensor:
    """Return the smallest gap of each column, with shape (D,), where odd values do not count; 0 if it is constant.

    These are single values, if nine tenths of the entries or more have values that occur more than once, and those are
    more than ten times as far apart (`pyrovae.data.moments.smallest_gap`).
    """
    ordered = x.sort(0).values
    smallest, count = _gaps(ordered)
    several = count > 2  # gaps, without which no value is odd
    if not bool(several.any()):
        return smallest
    ordered, old = ordered[:, several], smallest[several]
    tied = torch.cat([ordered.diff(dim=0) == 0, torch.zeros_like(ordered[:1], dtype=torch.bool)])
    common = tied | tied.roll(1, 0)
    few_are_odd = common.sum(0) >= COMMON_SHARE * ordered.isfinite().sum(0)
    of_common, count = _gaps(torch.where(common, ordered, -torch.inf).cummax(0).values)  # of the common values so far
    smallest[several] = torch.where(few_are_odd & (count > 1) & (of_common > ODD_FACTOR * old), of_common, old)
    return smallest


def _gaps(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest gap between distinct values of each sorted column, 0 if there is none, and their number."""
    gaps = ordered.diff(dim=0)
    gaps = torch.where(gaps > 0, gaps, torch.inf)
    smallest = torch.cat([gaps, gaps.new_full((1, ordered.shape[1]), torch.inf)]).amin(0)
    return torch.where(smallest.isfinite(), smallest, 0), gaps.isfinite().sum(0)
