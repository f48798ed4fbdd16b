"""Deletion of cells for studies of missing data."""

from typing import Any, Literal

import torch
from torch import Tensor

Mechanism = Literal["MCAR", "MAR", "MNAR"]
_SLOPE = 2.0  # of the log odds of a missing cell per standard deviation of its cause
_STEPS = 60  # of the bisection for the intercept


def ampute(x: Any, share: float, mechanism: Mechanism = "MCAR", *, seed: int = 0) -> Tensor:
    """Choose cells to delete from complete data.

    - MCAR, completely at random: exactly floor(share N D) cells, each set of cells equally likely.
    - MAR, at random: columns 1, 3, 5, ... (the first is 0) stay complete, and so do all if there is one. A cell of
      another column is missing with log odds a + 2 s, where s is the standardised mean of the row's standardised
      complete columns.
    - MNAR, not at random: a cell is missing with log odds a + 2 s, where s is its own standardised value.

    The intercept a makes the expected share of missing cells, over all cells, equal to `share`. (Rubin, "Inference and
    missing data", Biometrika 1976, https://doi.org/10.1093/biomet/63.3.581, for the mechanisms.)

    Args:
        x: Complete data, a tensor or an array with shape (N, D).
        share: Share of the cells to delete, between 0 and 1; for MAR, below the share of the columns with holes.
        mechanism: "MCAR", "MAR" or "MNAR".
        seed: Random seed.

    Returns:
        Whether each cell stays observed, with shape (N, D), bool.

    Raises:
        ValueError: If x is not complete, share is not possible, or the mechanism is unknown.
    """
    x = torch.as_tensor(x)
    if x.dim() != 2 or not bool(x.isfinite().all()):
        raise ValueError(f"x must be complete data of shape (N, D), got shape {tuple(x.shape)} or missing cells")
    if mechanism not in ("MCAR", "MAR", "MNAR"):
        raise ValueError(f"mechanism must be MCAR, MAR or MNAR, got {mechanism!r}")
    num_data, num_dims = x.shape
    holes = torch.ones(num_dims, dtype=torch.bool)
    if mechanism == "MAR":
        holes[1::2] = False
        if num_dims < 2:
            raise ValueError("MAR needs two columns or more, since one of them stays complete")
    most = holes.double().mean().item()
    if not 0 < share < most:
        raise ValueError(f"share must be between 0 and {most:g} for {mechanism}, got {share}")
    generator = torch.Generator().manual_seed(seed)
    if mechanism == "MCAR":
        mask = torch.ones(num_data * num_dims, dtype=torch.bool)
        mask[torch.randperm(len(mask), generator=generator)[: int(share * len(mask))]] = False
        return mask.view(num_data, num_dims)
    cause = _standardised(x.double())
    if mechanism == "MAR":
        cause = _standardised(cause[:, ~holes].mean(1, keepdim=True)).expand(-1, num_dims)
    log_odds = _SLOPE * cause
    log_odds = log_odds + _intercept(log_odds[:, holes], share / most)
    missing = (torch.rand(log_odds.shape, generator=generator, dtype=torch.float64) < log_odds.sigmoid()) & holes
    return ~missing


def _standardised(x: Tensor) -> Tensor:
    spread = x.std(0, correction=0)
    return (x - x.mean(0)) / torch.where(spread > 0, spread, 1.0)


def _intercept(log_odds: Tensor, share: float) -> float:
    """Find a with mean sigmoid(a + log_odds) = share by bisection."""
    bound = log_odds.abs().max().item() + 40
    low, high = -bound, bound
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if (log_odds + middle).sigmoid().mean().item() > share else (middle, high)
    return (low + high) / 2
