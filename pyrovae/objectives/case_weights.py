"""Case weights: the term of each datum in an objective, times the weight of the datum.

    loss = sum_n w_n loss_n

For an importance-weighted bound, loss_n is minus the bound of datum n, so that the weight multiplies log mean_k w_k,
not the log weights. A datum of weight 2 counts as two equal rows, one of weight 0 as none.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.densities import Program

# Keyword of the weights among the arguments of a batch. No program has an argument of this name.
CASE_WEIGHTS = "case weights"

# Objectives of Pyro whose value and gradient are sums over the sites, each with its scale.
_SUMS_OVER_SITES = (Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO)


def sum_over_data(values: Tensor, weights: Tensor | None) -> Tensor:
    """Sum values over all dims, each datum times its weight. A datum of weight 0 may have any value.

    Args:
        values: Values with shape (..., N).
        weights: Case weights, with shape (N,); None for 1.

    Raises:
        ValueError: If the values are not per datum.
    """
    if weights is None:
        return values.sum()
    if values.shape[-1:] != weights.shape:
        raise ValueError(
            f"case weights need a term of the objective for each of {len(weights)} data, got {tuple(values.shape)}; "
            "write the programs with one plate over the data"
        )
    return (torch.where(weights > 0, values, 0.0) * weights.to(values.dtype)).sum()


def check_weighable(elbo: ELBO) -> None:
    """Check that an objective is a sum of terms per datum, which case weights can multiply.

    An objective of the user is one if its class has a method `weighted_loss(weights, model, guide, *args, **kwargs)`.

    Raises:
        ValueError: If it is not known to be one.
    """
    if type(elbo) in _SUMS_OVER_SITES:
        return
    for part in type(elbo).__mro__:
        if "weighted_loss" in vars(part):
            return
        if "differentiable_loss" in vars(part):  # an inherited weighted_loss is that of another objective
            break
    name = type(elbo).__name__
    reason = "gives no term per datum" if getattr(elbo, "sums_over_data", True) else "combines the data of a batch"
    raise ValueError(
        f"case weights multiply the term of each datum, but {name} {reason}; use an objective such as Trace_ELBO() or "
        "ImportanceWeightedELBO(), or give your class a method weighted_loss(weights, model, guide, *args)"
    )


class CaseWeighted:
    """Objective with case weights, which it takes from the arguments of a batch.

    Args:
        elbo: Objective that is a sum of terms per datum (`check_weighable`).
        plates: Names of the plates over the data, for the objectives of Pyro.
        dtype: Floating point type of the computation.

    Raises:
        ValueError: If the objective is no such sum.
    """

    def __init__(self, elbo: ELBO, plates: Collection[str], dtype: torch.dtype) -> None:
        check_weighable(elbo)
        self.elbo: Any = elbo
        self.plates, self.dtype = frozenset(plates), dtype

    def with_objective(self, elbo: Any) -> "CaseWeighted":
        """Return the same weights around another form of the objective, such as its recordable one."""
        other = object.__new__(CaseWeighted)
        vars(other).update({**vars(self), "elbo": elbo})
        return other

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the weighted loss of a batch, in nats, a scalar. The weights are the argument `CASE_WEIGHTS`."""
        weights = kwargs.pop(CASE_WEIGHTS).to(self.dtype)
        if hasattr(self.elbo, "weighted_loss"):
            return self.elbo.weighted_loss(weights, model, guide, *args, **kwargs)
        with weigh_cases(weights, self.plates):
            return self.elbo.differentiable_loss(model, guide, *args, **kwargs)

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Compute the weighted loss of a batch, in nats."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()


@contextmanager
def weigh_cases(weights: Tensor, plates: Collection[str]) -> Iterator[None]:
    """Multiply the log densities inside the plates over the data by the weights of the data.

    Args:
        weights: Case weights, with shape (N,).
        plates: Names of the plates over the data.
    """
    with _WeighCases(weights, frozenset(plates)):
        yield


class _WeighCases(Messenger):
    """Handler of `weigh_cases`."""

    def __init__(self, weights: Tensor, plates: frozenset[str]) -> None:
        super().__init__()
        self.weights, self.plates = weights, plates

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name in self.plates:
                msg["scale"] = msg["scale"] * self._of(frame)

    def _of(self, frame: Any) -> Tensor:
        """Return the weights along the dim of a plate, or that of the current datum of a loop."""
        if not frame.vectorized:
            return self.weights[(frame.counter - 1) % len(self.weights)]
        return self.weights.reshape(-1, *(1,) * (-frame.dim - 1))
