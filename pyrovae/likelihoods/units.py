"""Units of the data: centre and spread of each column, in which likelihoods read the outputs of their network."""

import torch
from torch import Tensor, nn


class Units(nn.Module):
    """Centre and spread of each column. A location is centre + spread a, a learned scale spread v.

    A network then works with numbers near 1 for data in any unit. The parameters are mapped, not the data, so that the
    density needs no Jacobian: log p(c x) = log p(x) - log |c| for each entry.

    Args:
        centre: Centre, with shape (D,) or ().
        spread: Positive spread, with shape (D,) or ().
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, centre: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("spread", spread)

    @classmethod
    def none(cls) -> "Units":
        """Make units that change nothing: centre 0 and spread 1."""
        return cls(torch.zeros(()), torch.ones(()))

    @classmethod
    def of(cls, x: Tensor) -> "Units":
        """Make the units of data: mean and standard deviation of the observed entries of each column.

        A spread is at least the smallest gap between two values of the column, so that a column that is nearly always
        the same has no spread near 0. A constant column has the root mean square of the other spreads, or 1.

        Args:
            x: Data, with shape (N, D); NaN where missing.
        """
        seen = x.isfinite()
        count = seen.sum(0).clamp(min=1)
        centre = torch.where(seen, x.double(), 0).sum(0) / count
        spread = (torch.where(seen, x.double() - centre, 0).square().sum(0) / count).sqrt()
        spread = torch.maximum(spread, _smallest_gap(x).double())
        varies = spread > 0
        typical = spread[varies].square().mean().sqrt() if bool(varies.any()) else torch.ones(())
        return cls(centre.to(x), torch.where(varies, spread, typical.to(spread)).to(x))

    def location(self, a: Tensor) -> Tensor:
        """Map outputs of a network, with shape (..., D), to locations."""
        return self.centre + self.spread * a

    def scale(self, v: Tensor | float) -> Tensor:
        """Map scales relative to the spread, which broadcast against (..., D), to scales in the data's units."""
        return self.spread * v

    def inverse(self, location: Tensor) -> Tensor:
        """Map locations, with shape (..., D), to the outputs of a network."""
        return (location - self.centre) / self.spread


def _smallest_gap(x: Tensor) -> Tensor:
    """Return the smallest gap between distinct values of each column, with shape (D,); 0 if it is constant."""
    gaps = x.sort(0).values.diff(dim=0)  # NaN is last
    gaps = torch.where(gaps > 0, gaps, torch.inf)
    smallest = torch.cat([gaps, gaps.new_full((1, x.shape[1]), torch.inf)]).amin(0)
    return torch.where(smallest.isfinite(), smallest, 0)
