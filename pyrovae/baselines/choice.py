"""Choice of the baselines of a likelihood."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from pyro.distributions import constraints
from torch import Tensor

from pyrovae.baselines.columns import Family, IndependentColumns, family_of
from pyrovae.baselines.gaussian_mixture import GaussianMixture
from pyrovae.baselines.real import MultivariateNormal, MultivariateStudentT
from pyrovae.densities import Streamed
from pyrovae.likelihoods import (
    CategoricalLikelihood,
    Likelihood,
    NegativeBinomialLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
)

_MOST_COLUMNS = 200  # of a full covariance
_MOST_ROWS = 50_000  # of the fit of a full covariance
_MOST_PRODUCTS = 4_000_000  # of rows by columns by columns if cells are missing, but 1,000 rows are always used
_TOLERANCE = 1e-6  # nats per datum of a step of EM
_MOST_PARAMETERS = 8  # of a column's family with finitely many values, beyond which its histogram stands for it


class Baseline(Protocol):
    """Density without latents.

    Attributes:
        num_parameters: Number of parameters.
    """

    num_parameters: int

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute log p(x) in nats, with shape (N,), float64, of data with shape (N, D)."""
        ...


def fit_baselines(
    train: Tensor | Streamed,
    likelihood: Callable[..., Likelihood],
    *,
    resolution: Tensor | float | None = None,
    weights: Tensor | None = None,
    seed: int = 0,
) -> dict[str, Baseline]:
    """Fit the baselines that have the base measure of a likelihood, so that log p(x) is comparable.

    - "independent columns": the likelihood's own family (see `IndependentColumns`).
    - "histogram by column": for values 0..M of a family that has fewer parameters than values, such as a binomial.
      It alone stands for families with more than eight parameters a column.
    - "negative binomial by column": for counts without a total, under another likelihood of counts.
    - "normal, full covariance", "multivariate Student-t" and "Gaussian mixture": if all columns are real or positive
      densities, of which there are at most 200. Positive columns enter by their logarithms. The mixture needs complete
      rows, and is left out otherwise. The first 50,000 rows are used, or
      max(1,000, 4,000,000/D^2) if cells are missing and that is fewer.

    All ignore covariates.

    Args:
        train: Training data, with shape (N, D); NaN where missing. Grey values of a Bernoulli stand for their
            binarisations.
        likelihood: Maker of the likelihood from its network: a class, or `functools.partial` of one.
        resolution: Resolution of each column, with shape (D,) or a number, in the data's units, below which no scale
            falls; None for that of the columns of a `MixedLikelihood`, else for the floor of `floor_of`.
        weights: Case weights, with shape (N,), which are scaled to mean 1; None for equal ones.
        seed: Random seed of the mixture's starts.

    Returns:
        The fitted baselines by name, the first for the table first.

    Raises:
        ValueError: If train is empty, or a cell lies outside the support.

    Example:
        >>> from pyrovae import NormalLikelihood
        >>> x = torch.arange(24.0).view(12, 2).sin()
        >>> list(fit_baselines(x, NormalLikelihood))
        ['independent columns', 'normal, full covariance', 'multivariate Student-t', 'Gaussian mixture']
    """
    found: dict[str, Baseline] = {}
    if weights is not None:  # so that pseudo-counts mean the same for weights in any unit
        weights = weights / weights.double().mean()
    family = family_of(likelihood)
    num_levels = None if family is None or family.is_saturated else family.num_levels
    own = None
    if num_levels is None or family is None or family.num_parameters <= _MOST_PARAMETERS:
        own = IndependentColumns(train, likelihood, resolution=resolution, weights=weights)
        found["independent columns"] = own
    if num_levels is not None:
        levels = functools.partial(CategoricalLikelihood, num_classes=num_levels)
        found["histogram by column"] = IndependentColumns(train, levels, weights=weights)
    if family is not None and _is_open_count(family) and not _is_negative_binomial(likelihood):
        counts = IndependentColumns(train, NegativeBinomialLikelihood, weights=weights)
        found["negative binomial by column"] = counts
    if own is not None and all(_is_real(support) or _is_positive(support) for support in own.supports):
        found |= _multivariate(train, own, resolution, weights, seed)
    return found


def _multivariate(
    train: Tensor | Streamed,
    own: IndependentColumns,
    resolution: Tensor | float | None,
    weights: Tensor | None,
    seed: int,
) -> dict[str, Baseline]:
    x = train[:_MOST_ROWS].detach().cpu().double()
    if bool(x.isnan().any()):
        x = x[: max(1000, _MOST_PRODUCTS // x.shape[1] ** 2)]
    if x.shape[1] > _MOST_COLUMNS or bool(x.isnan().all(0).any()):
        return {}
    options: dict[str, Any] = {
        "resolution": resolution if own.resolution is None else own.resolution,
        "log": torch.tensor([_is_positive(support) for support in own.supports]),
        "weights": None if weights is None else weights[: len(x)],
    }
    found: dict[str, Baseline] = {
        "normal, full covariance": MultivariateNormal(x, **options, tolerance=_TOLERANCE),
        "multivariate Student-t": MultivariateStudentT(x, **options, tolerance=_TOLERANCE),
    }
    if not bool(x.isnan().any()):
        found["Gaussian mixture"] = GaussianMixture(x, seed=seed, **options)
    return found


def _is_real(support: Any) -> bool:
    return isinstance(support, type(constraints.real))


def _is_positive(support: Any) -> bool:
    half_line = isinstance(support, constraints.greater_than | constraints.greater_than_eq)
    return half_line and not support.is_discrete and bool(torch.as_tensor(support.lower_bound == 0).all())


def _is_open_count(family: Family) -> bool:
    """Return whether a family has the values 0, 1, 2, ... without an end."""
    support = family.support
    if family.is_vector or family.num_levels is not None or support is None or not support.is_discrete:
        return False
    return getattr(support, "lower_bound", None) == 0 and not hasattr(support, "upper_bound")


def _is_negative_binomial(likelihood: Callable[..., Likelihood]) -> bool:
    maker: Any = likelihood.func if isinstance(likelihood, functools.partial) else likelihood
    given = likelihood.keywords if isinstance(likelihood, functools.partial) else {}
    known = NegativeBinomialLikelihood, ZeroInflatedNegativeBinomialLikelihood
    return issubclass(maker, known) and isinstance(given.get("total_count", ""), str)
