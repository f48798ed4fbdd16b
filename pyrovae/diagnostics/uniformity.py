"""Tests of uniform ranks and PIT values: simultaneous bands of their ECDF, and p-values of several tests together."""

import math
from functools import cache, lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.special import bdtr
from torch import Tensor

Shape = Literal["none", "too wide", "too narrow", "shifted up", "shifted down", "other"]

_CELLS = 100  # of [0, 1], for continuous values
_MOST_CELLS = 1000  # in which more ranks are joined
_NUM_SIMULATIONS = 5_000
_SEED = 20_220_328
_AT_ONCE = 2_000_000  # numbers simulated at once
_ROUNDING = 1e-9  # relative difference of statistics that are equal but for rounding, such as those of mirrored ranks
_LARGEST_P = 0.999  # of a combination
_CLEAR = 2.0  # z-score of a moment from which it names the shape


class EcdfBand(NamedTuple):
    """Simultaneous band of the ECDF of uniform ranks.

    Attributes:
        points: Points z_i in (0, 1), increasing, with shape (P,).
        lower: Lower ends of F_N(z_i) - z_i, with shape (P,).
        upper: Upper ends of F_N(z_i) - z_i, with shape (P,).
        gamma: Pointwise level of the band, such that it holds at all points at once with the level asked for.
    """

    points: Tensor
    lower: Tensor
    upper: Tensor
    gamma: float


class Uniformity(NamedTuple):
    """Test of uniformity by the ECDF.

    Attributes:
        p_value: p-value, between 0 and 1.
        points: Points z_i in (0, 1), with shape (P,).
        difference: F_N(z_i) - z_i of the values, with shape (P,).
        lower: Lower end of the simultaneous band of difference, with shape (P,).
        upper: Upper end of this band, with shape (P,).
        shape: Fault of the distribution that the values were ranked against, such as a guide's draws, if the test
            rejects: "too wide" (values crowd at 1/2), "too narrow" (at 0 and 1), "shifted up" (it lies too high, so
            that the values crowd at 0), "shifted down", or "other"; else "none".
        shift: z-score of the mean of the values; negative if the distribution lies too high.
        spread: z-score of their mean squared distance from 1/2; negative if the distribution is too wide.
        num_data: Number of values N.
        level: Probability of the band.
    """

    p_value: float
    points: Tensor
    difference: Tensor
    lower: Tensor
    upper: Tensor
    shape: Shape
    shift: float
    spread: float
    num_data: int
    level: float

    @property
    def rejects(self) -> bool:
        """Whether the ECDF leaves its band, which is whether the p-value is at most 1 - level."""
        return self.p_value <= 1 - self.level


def ecdf_band(num_data: int, num_ranks: int | None = None, *, level: float = 0.95) -> EcdfBand:
    """Compute a band that holds the whole ECDF of N uniform ranks 0, ..., R - 1 with a given probability.

    With R - 1 = L draws, a rank is at most i - 1 with probability z_i = i / (L + 1). Hence the number of such ranks is
    Binomial(N, z_i), and the band at z_i is that of a test of this number at the level gamma. gamma is the quantile at
    1 - level of the smallest pointwise p-value, min_i 2 min(F_i(c_i), 1 - F_i(c_i - 1)), over simulated counts c
    (Saeilynoja, Buerkner, Vehtari 2022, "Graphical test for discrete uniformity and its applications in
    goodness-of-fit evaluation and multiple sample comparison", https://doi.org/10.1007/s11222-022-10090-6). Its
    5,000 simulations have a fixed seed of their own.

    Args:
        num_data: Number of ranks N.
        num_ranks: Number of different ranks R, one more than the draws that they count; None for continuous values in
            [0, 1], whose ECDF is held at 0.01, ..., 0.99.
        level: Probability that the band holds at all points.

    Returns:
        The band of F_N(z) - z at each point; at 999 points if there are more than 1,000 ranks.

    Raises:
        ValueError: If N is below 1, R below 2, or level not between 0 and 1.

    Example:
        >>> band = ecdf_band(1000, 100)
        >>> len(band.points), round(band.upper.max().item(), 3), band.gamma < 0.05
        (99, 0.048, True)
    """
    _check_level(level)
    _check_counts(num_data, num_ranks)
    simulated = _simulated(num_data, num_ranks or _CELLS)
    allowed = math.floor((1 - level) * (len(simulated) + 1) + 1e-9) - 1
    gamma = float(simulated[allowed]) * (1 - _ROUNDING) if allowed >= 0 else 0.0
    table = _pointwise_tests(num_data, num_ranks or _CELLS)
    lower, upper = table.limits(gamma)
    low, high = (torch.from_numpy(end / num_data - table.points) for end in (lower, upper))
    return EcdfBand(torch.from_numpy(table.points.copy()), low, high, gamma)


def check_uniform(values: Tensor, num_ranks: int | None = None, *, level: float = 0.95) -> Uniformity:
    """Test whether ranks or PIT values are uniform, and name the shape of their departure.

    The statistic is the smallest pointwise p-value of the ECDF (`ecdf_band`), and the p-value its position s among S
    simulated ones, (1 + s) / (S + 1). Beyond all simulated ones the p-value is Bonferroni's bound, the number of points
    times the statistic, if that is smaller. The false alarms at the level 0.05 are 4 to 6 % for 200 ranks
    of 19 draws, 1,000 of 99 and 1,000 of 999; for continuous bands and ranks divided by L they would be 5 to 100 %.

    The shape is that of the larger of two moments of the difference D(z) = F_N(z) - z in standard errors: the shift,
    mean u - 1/2 = - int D, and the spread, mean (u - 1/2)^2 - 1/12 = - 2 int (z - 1/2) D.

    Args:
        values: Ranks 0, ..., R - 1, or continuous values in [0, 1], with shape (N,). The values must be independent.
        num_ranks: Number of different ranks R, one more than the draws that they count; None for continuous values.
        level: Probability of the band; the test rejects for p-values of at most 1 - level.

    Raises:
        ValueError: If there are no values, or some are NaN or outside their range.

    Example:
        >>> u = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
        >>> check_uniform(u).shape, check_uniform(0.25 + u / 2).shape, check_uniform(u**2).shape
        ('none', 'too wide', 'shifted up')
    """
    band = ecdf_band(_checked(values, num_ranks), num_ranks, level=level)
    u, size = values.detach().cpu().double().numpy(), len(values)
    ranks = np.floor(u * _CELLS).clip(max=_CELLS - 1) if num_ranks is None else u
    table, simulated = _pointwise_tests(size, num_ranks or _CELLS), _simulated(size, num_ranks or _CELLS)
    counts = table.counts(ranks.astype(np.int64)[None])[0]
    position = int(np.searchsorted(simulated, table.p_values(counts).min() / (1 - _ROUNDING), side="right"))
    p_value = (1 + position) / (len(simulated) + 1)
    if not position:
        p_value = min(p_value, len(counts) * float(table.exact_p_values(counts).min()))
    shift, spread = _moments(u if num_ranks is None else (u + 0.5) / num_ranks, num_ranks)
    return Uniformity(
        p_value,
        band.points,
        torch.from_numpy(counts / size - table.points),
        band.lower,
        band.upper,
        _shape(shift, spread) if p_value <= 1 - level else "none",
        shift,
        spread,
        size,
        level,
    )


def randomised_pit(lower: Tensor, upper: Tensor, *, seed: int = 0) -> Tensor:
    """Draw randomised PIT values, u = F(x-) + v (F(x) - F(x-)) with v uniform on [0, 1].

    They are uniform if x has the distribution function F, also if it is discrete (Dunn and Smyth 1996, "Randomized
    quantile residuals", https://doi.org/10.1080/10618600.1996.10474708).

    Args:
        lower: F(x-), the probability of values below x, with any shape.
        upper: F(x), the probability of values up to x, with the same shape.
        seed: Random seed; the global random state is not used.

    Returns:
        The values in [0, 1], float64, on the CPU.

    Raises:
        ValueError: If the shapes differ, or 0 <= lower <= upper <= 1 fails by more than rounding.
    """
    low, high = lower.detach().cpu().double(), upper.detach().cpu().double()
    if low.shape != high.shape:
        raise ValueError(f"lower and upper need the same shape, got {tuple(low.shape)} and {tuple(high.shape)}")
    slack = 1e-5
    if not bool(((low >= -slack) & (low <= high + slack) & (high <= 1 + slack)).all()):
        raise ValueError("a PIT needs 0 <= lower <= upper <= 1 for each value; give F(x-) and F(x) of one distribution")
    v = torch.rand(low.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (low + v * (high - low)).clamp(0, 1)


def holm(p_values: Tensor) -> Tensor:
    """Adjust p-values of M tests so that rejecting those of at most alpha errs with probability alpha at most.

    The i-th smallest of M p-values is multiplied by M - i + 1, and raised to those before it (Holm 1979, "A simple
    sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2)). The tests may depend on
    each other. The smallest adjusted p-value is a p-value of all hypotheses together.

    Args:
        p_values: p-values, with shape (M,).

    Raises:
        ValueError: If a p-value does not lie between 0 and 1, or there are none.
    """
    p = _checked_p_values(p_values)
    order = p.argsort()
    steps = torch.arange(len(p), 0, -1, dtype=torch.float64)
    adjusted = (p[order] * steps).cummax(0).values.clamp(max=1)
    return torch.empty_like(p).scatter(0, order, adjusted)


def cauchy_combination(p_values: Tensor) -> float:
    """Combine p-values of dependent tests to one, p = 1/2 - arctan(T) / pi with T = mean tan((1/2 - p_m) pi).

    For small p it is nearly exact for any correlation of the tests (Liu and Xie 2020, "Cauchy combination test",
    https://doi.org/10.1080/01621459.2018.1554485). It has more power than Holm's if many tests depart a little.
    p-values above 0.999 count as 0.999, so that a single one of 1, which discrete tests give, does not hide all others.

    Args:
        p_values: p-values, with shape (M,).

    Raises:
        ValueError: As `holm`.
    """
    p = _checked_p_values(p_values).clamp(min=1e-300, max=_LARGEST_P)
    statistic = (1 / (math.pi * p).tan()).mean().item()
    return math.atan2(1.0, statistic) / math.pi


class _PointwiseTests:
    """Binomial tests of the numbers of N uniform ranks in the first cells.

    Args:
        num_data: Number of ranks N.
        num_ranks: Number of different ranks R; each is a cell, unless there are more than 1,000.

    Attributes:
        points: Probabilities of the first 1, ..., C - 1 cells, with shape (C - 1,).
        cell: Cell of each rank, with shape (R,).
    """

    def __init__(self, num_data: int, num_ranks: int) -> None:
        self.num_data, cells = num_data, min(num_ranks, _MOST_CELLS)
        self.cell = np.arange(num_ranks) * cells // num_ranks
        self.probabilities = np.bincount(self.cell, minlength=cells) / num_ranks
        self.points = np.searchsorted(self.cell, np.arange(1, cells)) / num_ranks
        # Counts further than 9 standard deviations from their mean have p-values below 1e-16.
        reach = math.ceil(9 * math.sqrt(num_data) / 2) + 10
        self.width = min(2 * reach + 1, num_data + 1)
        first = np.maximum(np.floor(num_data * self.points).astype(np.int64) - reach, 0)
        self.first = np.minimum(first, num_data + 1 - self.width)
        self.table = self._two_sided(self.first[:, None] + np.arange(self.width), self.points[:, None])

    def counts(self, ranks: np.ndarray) -> np.ndarray:
        """Count the ranks, with shape (S, N), in the first cells, with shape (S, C - 1)."""
        cells = len(self.probabilities)
        cell = self.cell[ranks] + cells * np.arange(len(ranks))[:, None]
        return np.bincount(cell.ravel(), minlength=len(ranks) * cells).reshape(-1, cells).cumsum(1)[:, :-1]

    def p_values(self, counts: np.ndarray) -> np.ndarray:
        """Look up two-sided p-values of numbers, with shape (..., C - 1)."""
        place = (counts - self.first).clip(0, self.width - 1)
        return self.table[np.arange(len(self.points)), place]

    def exact_p_values(self, counts: np.ndarray) -> np.ndarray:
        """Compute two-sided p-values of numbers, with shape (C - 1,), also far from their means."""
        return self._two_sided(counts, self.points)

    def limits(self, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        """Find the smallest and the largest number at each point whose p-value is at least gamma."""
        inside = self.table >= gamma
        return self.first + inside.argmax(1), self.first + self.width - 1 - inside[:, ::-1].argmax(1)

    def _two_sided(self, counts: np.ndarray, points: np.ndarray) -> np.ndarray:
        below = bdtr(counts, self.num_data, points)
        # P(at least c) is that of at most N - c failures, without the cancellation of 1 - F(c - 1).
        above = bdtr(self.num_data - counts, self.num_data, 1 - points)
        return np.minimum(2 * np.minimum(below, above), 1.0)


@lru_cache(maxsize=8)
def _pointwise_tests(num_data: int, num_ranks: int) -> _PointwiseTests:
    return _PointwiseTests(num_data, num_ranks)


@cache
def _simulated(num_data: int, num_ranks: int) -> np.ndarray:
    """Simulate the smallest pointwise p-value of N uniform ranks, in increasing order."""
    rng, table = np.random.default_rng(_SEED), _pointwise_tests(num_data, num_ranks)
    cells = len(table.probabilities)
    at_once = max(1, _AT_ONCE // max(num_data, cells))
    found = []
    for start in range(0, _NUM_SIMULATIONS, at_once):
        size = min(at_once, _NUM_SIMULATIONS - start)
        if num_data <= 10 * cells:
            counts = table.counts(rng.integers(num_ranks, size=(size, num_data)))
        else:
            counts = rng.multinomial(num_data, table.probabilities, size=size).cumsum(1)[:, :-1]
        found.append(table.p_values(counts).min(1))
    return np.sort(np.concatenate(found))


def _check_counts(num_data: int, num_ranks: int | None) -> None:
    if num_data < 1:
        raise ValueError(f"num_data must be at least 1, got {num_data}; give the number of values")
    if num_ranks is not None and num_ranks < 2:
        raise ValueError(f"num_ranks must be at least 2, one more than the number of draws, got {num_ranks}")


def _moments(u: np.ndarray, num_ranks: int | None) -> tuple[float, float]:
    """Return the z-scores of the mean of u, and of its mean squared distance from 1/2."""
    steps = 0.0 if num_ranks is None else 1 / num_ranks**2
    variance = (1 - steps) / 12  # of a uniform on R equidistant points, or on [0, 1]
    fourth = (1 - steps) * (3 - 7 * steps) / 240
    size = len(u)
    shift = (u.mean() - 0.5) * math.sqrt(size / variance)
    square = ((u - 0.5) ** 2).mean() - variance
    scatter = fourth - variance**2
    return float(shift), float(square * math.sqrt(size / scatter)) if scatter > 1e-12 else 0.0


def _shape(shift: float, spread: float) -> Shape:
    """Name the fault of the distribution that the values were ranked against."""
    if max(abs(shift), abs(spread)) < _CLEAR:
        return "other"
    if abs(shift) > abs(spread):
        return "shifted up" if shift < 0 else "shifted down"
    return "too wide" if spread < 0 else "too narrow"


def _checked(values: Tensor, num_ranks: int | None) -> int:
    """Check the values of a test, and return their number."""
    if values.dim() != 1 or not len(values):
        raise ValueError(f"the test needs values of shape (N,), at least one, got {tuple(values.shape)}")
    highest = 1 if num_ranks is None else num_ranks - 1
    if not bool(((values >= 0) & (values <= highest)).all()):
        what = "PIT values" if num_ranks is None else f"ranks among {num_ranks - 1} draws"
        raise ValueError(f"{what} lie between 0 and {highest}, but some do not, or are NaN; look at how they are made")
    return len(values)


def _checked_p_values(p_values: Tensor) -> Tensor:
    p = torch.as_tensor(p_values).detach().cpu().double()
    if p.dim() != 1 or not len(p) or not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(f"p-values need shape (M,) and lie between 0 and 1, got {p.tolist()}; check each test first")
    return p


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}; give 0.95, for example")
