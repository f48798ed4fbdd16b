"""Log weights of a block of data, and their summaries."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.stats import (
    LogMarginal,
    Rounding,
    Rung,
    component_shares,
    pareto_smoothed_log_weights,
    summarize_log_weights,
    summarize_rungs,
)


class WeightBlock(NamedTuple):
    """Log weights of a block of data.

    Attributes:
        rows: Rows of the block among the data.
        log_w: Log weights in nats, with shape (K, n).
        component: Index of the proposal's component that made each draw, with shape (K,).
        names: Names of the components.
        proposal: Name of the proposal.
        fault: Why some data have no weights: their columns of log_w are NaN. Empty if all have.
        unsettled: Whether the proposal knows that it misses a part of the posterior, with shape (n,); None without a
            check.
        rounding: Rounding of the log weights; None for the epsilon of their dtype.
        from_prior: Whether the datum has no observed entry, so that log p(x) = 0 and all draws are from the prior, with
            shape (n,); None if every datum has one.
    """

    rows: slice
    log_w: Tensor
    component: Tensor
    names: tuple[str, ...]
    proposal: str
    fault: str = ""
    unsettled: Tensor | None = None
    rounding: Rounding | None = None
    from_prior: Tensor | None = None

    def summarize(self, function: Callable[[Tensor], Any]) -> Any:
        """Apply a function from log weights to a tuple of tensors of shape (n,), NaN for data without weights."""
        return summarize_known(self.log_w, function) if self.fault else function(self.log_w)

    def summary(self, pareto_smoothed: bool = False) -> LogMarginal:
        """Summarise the weights; khat is infinite for data with a part of the posterior that the proposal misses.

        Args:
            pareto_smoothed: Whether to smooth the largest weights first.
        """

        def of(log_w: Tensor) -> LogMarginal:
            log_w = pareto_smoothed_log_weights(log_w) if pareto_smoothed else log_w
            return summarize_log_weights(log_w, self.component, self.rounding)

        summary: LogMarginal = self.summarize(of)
        if self.unsettled is not None:
            summary = summary._replace(
                khat=torch.where(self.unsettled.to(summary.khat.device), torch.inf, summary.khat)
            )
        # Equal weights, whose sum and its logarithm may round.
        return LogMarginal(*map(self._exact, summary, (0.0, 0.0, float(len(self.log_w)), -torch.inf)))

    @property
    def served(self) -> Tensor:
        """Index of the component with the largest share of each datum's weight, with shape (n,)."""
        log_w = torch.where(self.log_w.isnan().any(0), 0.0, self.log_w)
        served = component_shares(log_w, self.component, len(self.names)).argmax(0)
        return self._exact(served, self.names.index("prior")) if "prior" in self.names else served

    def _exact(self, value: Tensor, known: float) -> Tensor:
        """Replace the value, with shape (n,), of data without an observed entry."""
        return value if self.from_prior is None else torch.where(self.from_prior.to(value.device), known, value)

    def rungs(self) -> list[Rung]:
        """Compute the ladder, estimates from the first 1, 10, 100, ... and all log weights."""
        found: list[Rung] = self.summarize(lambda log_w: summarize_rungs(log_w, self.component, self.rounding))
        return [Rung(rung[0], *(self._exact(value, 0.0) for value in rung[1:])) for rung in found]


def summarize_known(log_w: Tensor, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function from log weights, with shape (K, n), to a tuple of tensors of shape (n,); data with NaN get NaN.

    Args:
        log_w: Log weights in nats; NaN for data without weights.
        function: Function of log weights without NaN.
    """
    bad = log_w.isnan().any(0)
    return _nan_where(bad, function(torch.where(bad, 0.0, log_w)))


def tell_faults(faults: list[str], value: Tensor) -> None:
    """Warn that some data got NaN, and why.

    Args:
        faults: Why data of each block have no weights; empty if all have.
        value: Estimates, with shape (N,).

    Raises:
        ValueError: If all data got NaN.
    """
    told = [fault for fault in faults if fault]
    if told and bool(value.isnan().all()):
        raise ValueError(told[0])
    if told:
        rows = value.isnan().nonzero().flatten().tolist()
        shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        warnings.warn(
            f"{len(rows):,} of {len(value):,} data get NaN, the others their value (rows {shown}): {told[0]}",
            stacklevel=3,
        )


def _nan_where(bad: Tensor, summary: Any) -> Any:
    """Set the entries of bad data in a summary, a tuple or list of tensors and numbers, to NaN."""
    if isinstance(summary, Tensor):
        return torch.where(bad, torch.nan, summary)
    if isinstance(summary, list):
        return [_nan_where(bad, each) for each in summary]
    if isinstance(summary, tuple):
        return type(summary)(*(_nan_where(bad, each) for each in summary))  # a named tuple
    return summary
