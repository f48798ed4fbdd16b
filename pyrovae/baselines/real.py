"""Multivariate normal and Student-t for real columns, with missing cells."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from pyrovae.baselines.scaling import Scaling, floored

_SMALLEST_DF, _LARGEST_DF = 0.5, 1000.0
_CHUNK = 4_000_000  # numbers of matrices, one per row, in memory at once


class MultivariateNormal:
    """Normal with a full covariance, fitted by maximum likelihood, with missing cells by EM.

        log p(x) = log N(x_obs; mean_obs, Sigma_obs)

    Sigma is at least diag(f^2) as a matrix, with the floor f of each column: its resolution, and a thousandth of its
    spread. EM: Little and Rubin, "Statistical analysis with missing data", section 11.2
    (https://doi.org/10.1002/9781119482260).

    Attributes:
        num_parameters: Number of parameters, D + D (D + 1)/2.

    Args:
        train: Training data, with shape (N, D); NaN where missing, at random.
        resolution: Resolution of each column in the data's units, with shape (D,) or a number; None for the smallest
            gap of its values, but at most its standard deviation.
        log: Whether the logarithm of each column is normal, with shape (D,), bool; None for no column.
        weights: Case weights, with shape (N,); None for equal ones.
        max_steps: Largest number of steps of EM.
        tolerance: Smallest gain of the mean of log p in nats, for which EM goes on.

    Raises:
        ValueError: As `Scaling`.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
        >>> MultivariateNormal(x).log_prob(torch.tensor([[1.0, 1.0], [1.0, torch.nan]]))
        tensor([-1.8379, -0.9189], dtype=torch.float64)
    """

    _start_df = math.inf  # which EM keeps

    def __init__(
        self,
        train: Tensor,
        *,
        resolution: Tensor | float | None = None,
        log: Tensor | None = None,
        weights: Tensor | None = None,
        max_steps: int = 1000,
        tolerance: float = 1e-8,
    ) -> None:
        x = train.detach().cpu().double()
        self._scaling = Scaling(x, resolution, log)
        u, seen, _ = self._scaling.to_units(x)
        some = seen.any(1)
        u, rows = u[some], _Rows.of(seen[some])
        w = torch.ones(len(u), dtype=torch.float64) if weights is None else weights.detach().cpu().double()[some]
        w = w / w.sum()
        estimate = _Estimate(torch.zeros_like(u[0]), torch.eye(u.shape[1], dtype=torch.float64), self._start_df)
        before = -math.inf
        for _ in range(max_steps):
            estimate, log_p = _em_step(estimate, u, rows, w, self._scaling.floor)
            if log_p - before < tolerance:
                break
            before = log_p
        self._estimate = estimate
        num_dims = self._scaling.num_dims
        self.num_parameters = num_dims * (num_dims + 3) // 2 + (self._start_df < math.inf)

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log density of the observed cells of each datum.

        Args:
            x: Data, with shape (N, D); NaN where missing.

        Returns:
            The values log p(x) in nats, with shape (N,), float64, on the CPU; 0 if no cell is observed.
        """
        u, seen, jacobian = self._scaling.to_units(x)
        rows = _Rows.of(seen)
        solved = _solve(self._estimate, rows)
        return _log_p(_distance(solved, rows, u, self._estimate.mean), solved, rows, self._estimate.df) + jacobian


class MultivariateStudentT(MultivariateNormal):
    """Multivariate Student-t with a full scatter matrix, fitted by maximum likelihood, with missing cells by ECME.

        log p(x) = log t(x_obs; mean_obs, Sigma_obs, df)

    Sigma has the floor of `MultivariateNormal`. df lies between 0.5 and 1000. ECME: Liu and Rubin, "ML estimation of
    the t distribution using EM and its extensions, ECM and ECME", Statistica Sinica 1995
    (https://www3.stat.sinica.edu.tw/statistica/j5n1/j5n12/j5n12.htm).

    Attributes:
        num_parameters: Number of parameters, D + D (D + 1)/2 + 1.

    Args:
        train: Training data, with shape (N, D); NaN where missing, at random.
        resolution: Resolution of each column in the data's units, with shape (D,) or a number; None for the smallest
            gap of its values, but at most its standard deviation.
        log: Whether the logarithm of each column has this distribution, with shape (D,), bool; None for no column.
        weights: Case weights, with shape (N,); None for equal ones.
        max_steps: Largest number of steps of ECME.
        tolerance: Smallest gain of the mean of log p in nats, for which ECME goes on.

    Raises:
        ValueError: As `Scaling`.
    """

    _start_df = 10.0

    @property
    def df(self) -> float:
        """Degrees of freedom."""
        return self._estimate.df


class _Estimate(NamedTuple):
    """Mean, with shape (D,), scatter matrix, with shape (D, D), and degrees of freedom, infinite for a normal."""

    mean: Tensor
    scatter: Tensor
    df: float


class _Rows(NamedTuple):
    """Patterns of observed cells, with shape (M, D), bool, and the pattern of each row, with shape (N,)."""

    patterns: Tensor
    pattern: Tensor

    @classmethod
    def of(cls, seen: Tensor) -> _Rows:
        patterns, pattern = seen.unique(dim=0, return_inverse=True)
        return cls(patterns, pattern)

    def times(self, matrices: Tensor, d: Tensor) -> Tensor:
        """Multiply each row of d, with shape (N, D), by the matrix of its pattern, of shape (M, D, D)."""
        if len(matrices) == 1:
            return d @ matrices[0].mT
        out, size = torch.empty_like(d), max(1, _CHUNK // d.shape[1] ** 2)
        for start in range(0, len(d), size):
            part = slice(start, start + size)
            out[part] = (matrices[self.pattern[part]] @ d[part].unsqueeze(-1)).squeeze(-1)
        return out


class _Solved(NamedTuple):
    """Inverse scatter of the observed cells of each pattern, 0 elsewhere, with shape (M, D, D), and its log det."""

    inverse: Tensor
    log_det: Tensor


def _solve(estimate: _Estimate, rows: _Rows) -> _Solved:
    both = rows.patterns.unsqueeze(-1) & rows.patterns.unsqueeze(-2)
    eye = torch.eye(len(estimate.mean), dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.where(both, estimate.scatter, eye))
    inverse = torch.where(both, torch.cholesky_inverse(factor), 0.0)
    return _Solved(inverse, 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1))


def _distance(solved: _Solved, rows: _Rows, u: Tensor, mean: Tensor) -> Tensor:
    d = torch.where(rows.patterns[rows.pattern], u - mean, 0.0)
    return (d * rows.times(solved.inverse, d)).sum(1)


def _log_p(distance: Tensor, solved: _Solved, rows: _Rows, df: float) -> Tensor:
    """Return the log density of each row, with shape (N,), from its squared Mahalanobis distance."""
    size = rows.patterns.sum(1).double()[rows.pattern]
    log_det = solved.log_det[rows.pattern]
    if math.isinf(df):
        return -(distance + log_det + size * math.log(2 * math.pi)) / 2
    half = torch.tensor(df / 2, dtype=torch.float64)
    norm = torch.lgamma(half + size / 2) - torch.lgamma(half) - (size * math.log(df * math.pi) + log_det) / 2
    return norm - (half + size / 2) * torch.log1p(distance / df)


def _em_step(estimate: _Estimate, u: Tensor, rows: _Rows, w: Tensor, floor: Tensor) -> tuple[_Estimate, float]:
    """Take a step, df first. Return the new estimate, and the mean log density under the old one with the new df."""
    mean, scatter, df = estimate
    solved = _solve(estimate, rows)
    seen = rows.patterns[rows.pattern]
    d = torch.where(seen, u - mean, 0.0)
    pulled = rows.times(solved.inverse, d)
    distance = (d * pulled).sum(1)
    gain = torch.ones_like(w)
    if not math.isinf(df):
        df = _best_df(distance, solved, rows, w)
        gain = (df + seen.sum(1)) / (df + distance)
    log_p = float((w * _log_p(distance, solved, rows, df)).sum())
    completed = mean + torch.where(seen, d, pulled @ scatter)  # missing cells given the observed ones
    new_mean = ((w * gain)[:, None] * completed).sum(0) / (w * gain).sum()
    deviation = completed - new_mean
    new_scatter = ((w * gain)[:, None] * deviation).mT @ deviation
    share = torch.zeros(len(rows.patterns), dtype=torch.float64).index_add_(0, rows.pattern, w)
    size = max(1, _CHUNK // len(scatter) ** 2)
    for part in (~rows.patterns.all(1)).nonzero().squeeze(1).split(size):  # conditional covariances of missing cells
        missing = ~rows.patterns[part].unsqueeze(-1) & ~rows.patterns[part].unsqueeze(-2)
        given = scatter - scatter @ solved.inverse[part] @ scatter
        new_scatter = new_scatter + (share[part, None, None] * torch.where(missing, given, 0.0)).sum(0)
    return _Estimate(new_mean, floored((new_scatter + new_scatter.mT) / 2, floor), df), log_p


def _best_df(distance: Tensor, solved: _Solved, rows: _Rows, w: Tensor) -> float:
    found = minimize_scalar(
        lambda log_df: -float((w * _log_p(distance, solved, rows, math.exp(log_df))).sum()),
        bounds=(math.log(_SMALLEST_DF), math.log(_LARGEST_DF)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return math.exp(float(found.x))
