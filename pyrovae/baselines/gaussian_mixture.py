"""Gaussian mixture whose number of components is chosen by BIC."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.baselines.scaling import Scaling

_SMALLEST_VARIANCE = 1e-3  # of a component, in units of the column's variance
_MOST_ROWS = 10_000  # of a fit; the first rows of more data are as good
_MOST_PRODUCTS = 5_000_000  # of rows by columns by columns, but 2,000 rows are always used
_PATIENCE = 2  # numbers of components without a better BIC, after which the search ends


class GaussianMixture:
    """Mixture of normals, with full or diagonal covariances and a number of components chosen by BIC, fitted by EM.

        log p(x) = log sum_k w_k N(x; mean_k, Sigma_k),  BIC = -2 sum_n log p(x_n) + P log N

    Each Sigma_k has diag(f^2) added in every step, as scikit-learn's `reg_covar`. f^2 is a thousandth of the column's
    variance, and at least the square of its resolution: with less, components shrink on values that occur often, and
    log p(x) measures the floor. The rows must be complete. BIC: Schwarz, "Estimating the dimension of a model", Annals
    of Statistics 1978, https://doi.org/10.1214/aos/1176344136.

    Attributes:
        num_components: Number K of components.
        covariance: Kind of covariances, "full" or "diagonal".
        bic: BIC of the chosen mixture.
        num_parameters: Number P of parameters.

    Args:
        train: Training data, with shape (N, D), without missing cells. Of more than 10,000 rows,
            or max(2,000, 5,000,000/D^2) if that is fewer, the first ones.
        resolution: Resolution of each column in the data's units, with shape (D,) or a number; None for the smallest
            gap of its values, but at most its standard deviation.
        log: Whether the logarithm of each column has this distribution, with shape (D,), bool; None for no column.
        weights: Case weights, with shape (N,); None for equal ones.
        max_components: Largest number of components that is tried.
        num_starts: Number of starts by k-means for each number of components.
        seed: Random seed of the starts.

    Raises:
        ValueError: If a cell is missing, or as `Scaling`.
    """

    def __init__(
        self,
        train: Tensor,
        *,
        resolution: Tensor | float | None = None,
        log: Tensor | None = None,
        weights: Tensor | None = None,
        max_components: int = 10,
        num_starts: int = 3,
        seed: int = 0,
    ) -> None:
        if bool(train.isnan().any()):
            raise ValueError("a Gaussian mixture needs complete rows, but cells are missing; use MultivariateNormal")
        if max_components < 1 or num_starts < 1:
            raise ValueError(f"max_components and num_starts must be at least 1, got {max_components} and {num_starts}")
        num_rows = min(_MOST_ROWS, max(2000, _MOST_PRODUCTS // train.shape[-1] ** 2))
        x = train[:num_rows].detach().cpu().double()
        self._scaling = Scaling(x, resolution, log)
        floor = self._scaling.floor.clamp(min=math.sqrt(_SMALLEST_VARIANCE))
        u, _, _ = self._scaling.to_units(x)
        w = torch.ones(len(u), dtype=torch.float64) if weights is None else weights[:num_rows].cpu().double()
        w = w * (len(u) / w.sum())
        self.bic = math.inf
        for covariance in ("full", "diagonal"):
            worse = 0
            best = math.inf
            for size in range(1, min(max_components, len(u)) + 1):
                mixture = max(
                    (_fit(u, w, _start(u, size, seed + start), covariance, floor) for start in range(num_starts)),
                    key=lambda fitted: fitted.log_p,
                )
                count = _num_parameters(size, u.shape[1], covariance)
                bic = -2 * mixture.log_p + count * math.log(len(u))
                worse = 0 if bic < best else worse + 1
                best = min(bic, best)
                if bic < self.bic:
                    self.bic, self._mixture, self.num_components = bic, mixture, size
                    self.covariance, self.num_parameters = covariance, count
                if worse == _PATIENCE:
                    break

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log density of each datum.

        Args:
            x: Data, with shape (N, D), without missing cells.

        Returns:
            The values log p(x) in nats, with shape (N,), float64, on the CPU.

        Raises:
            ValueError: If a cell is missing.
        """
        u, seen, jacobian = self._scaling.to_units(x)
        if not bool(seen.all()):
            raise ValueError("a Gaussian mixture needs complete rows, but cells are missing; use MultivariateNormal")
        return _joint(u, self._mixture).logsumexp(1) + jacobian


class _Mixture(NamedTuple):
    """Shares, with shape (K,), means, (K, D), factors of the covariances, and the sum of log p.

    The factors are Cholesky's, with shape (K, D, D), or standard deviations, with shape (K, D).
    """

    shares: Tensor
    means: Tensor
    factors: Tensor
    log_p: float


def _num_parameters(size: int, num_dims: int, covariance: str) -> int:
    per_component = num_dims + (num_dims * (num_dims + 1) // 2 if covariance == "full" else num_dims)
    return size * per_component + size - 1


def _start(u: Tensor, size: int, seed: int) -> Tensor:
    """Return the responsibilities of k-means, with shape (N, K)."""
    if size == 1:
        return torch.ones(len(u), 1, dtype=torch.float64)
    from sklearn.cluster import KMeans

    labels = KMeans(size, n_init=1, random_state=seed).fit_predict(u.numpy())
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), size).double()


def _fit(u: Tensor, w: Tensor, responsibilities: Tensor, covariance: str, floor: Tensor) -> _Mixture:
    before = -math.inf
    for _ in range(500):
        mixture = _maximise(u, w[:, None] * responsibilities, covariance, floor)
        joint = _joint(u, mixture)
        log_p = joint.logsumexp(1)
        total = float((w * log_p).sum())
        mixture = mixture._replace(log_p=total)
        if total - before < 1e-5 * len(u):
            break
        before, responsibilities = total, (joint - log_p[:, None]).exp()
    return mixture


def _maximise(u: Tensor, counts: Tensor, covariance: str, floor: Tensor) -> _Mixture:
    """Estimate all parameters from weighted responsibilities, with shape (N, K)."""
    sizes = counts.sum(0).clamp(min=1e-12)
    means = counts.mT @ u / sizes[:, None]
    if covariance == "diagonal":
        variances = torch.stack([counts[:, k] @ (u - means[k]).square() / sizes[k] for k in range(len(sizes))])
        factors = (variances + floor.square()).sqrt()
    else:
        found = [(counts[:, k : k + 1] * (u - means[k])).mT @ (u - means[k]) / sizes[k] for k in range(len(sizes))]
        factors = torch.linalg.cholesky(torch.stack(found) + floor.square().diag())
    return _Mixture(sizes / sizes.sum(), means, factors, -math.inf)


def _joint(u: Tensor, mixture: _Mixture) -> Tensor:
    """Return log w_k + log N(u; mean_k, Sigma_k), with shape (N, K)."""
    columns = []
    for share, mean, factor in zip(mixture.shares, mixture.means, mixture.factors, strict=True):
        if factor.dim() == 1:
            distance, log_det = ((u - mean) / factor).square().sum(1), factor.log().sum()
        else:
            solved = torch.linalg.solve_triangular(factor, (u - mean).mT, upper=False)
            distance, log_det = solved.square().sum(0), factor.diagonal().log().sum()
        norm = u.shape[1] * math.log(2 * math.pi) / 2
        columns.append(share.log() - distance / 2 - log_det - norm)
    return torch.stack(columns, 1)
