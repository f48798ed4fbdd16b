"""Baseline of independent columns in a likelihood's own family."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pyrovae.baselines.cells import Cells, cells_of, inside, level_counts, num_levels, smoothed, without_holes
from pyrovae.baselines.newton import minimise
from pyrovae.densities import Streamed, domain_of, entry_of, entry_support, isolated_rng
from pyrovae.likelihoods import Likelihood, MixedLikelihood, Moments

_WORDS = ("global", "dimension", "network")
_CHUNK = 4096  # rows whose log p is computed at once
_MOST_EXAMPLES = 10_000  # rows from which units and initial values are computed
_RESTARTS = 1
_COLUMNS = 64  # fitted at once


class IndependentColumns:
    """Independent columns in a likelihood's own family, fitted by maximum likelihood.

        log p(x) = sum_d log p(x_d; theta_d),  theta_d = argmax sum_n log p(x_nd; theta_d)

    The family is that of the likelihood whose network gives constants. So every learned parameter ("global",
    "dimension" or "network") is a constant of the column, fixed ones are as given, and bounds and floors are the
    likelihood's. A `MixedLikelihood` has the family of each column's part. Missing cells do not enter.

    Estimates that would give probability 0 to values that may occur are smoothed. A family that has a parameter for
    each of L levels (Bernoulli, categorical, ordered) has the probabilities (n_l + 1)/(N + L) of Laplace's rule. Point
    masses beside a density have them too. Counts that are always 0 have half a count more. Grey training values of a
    Bernoulli count as g ones and 1 - g zeros. All other estimates are those of maximum likelihood.

    A distribution of the whole vector, such as a multinomial, is fitted as a whole to the first 10,000 rows, with half
    a count more in each class.

    Attributes:
        num_parameters: Number of parameters.
        supports: Support of each column, with length D; None where it is unknown.
        resolution: Resolution of each column, with shape (D,), as given or as the columns of a `MixedLikelihood` have
            it; None if the floors of `floor_of` are used.

    Args:
        train: Training data, with shape (N, D); NaN where missing. Of more than 20 million cells, the first rows.
        likelihood: Maker of the likelihood from its network: a class, or `functools.partial` of one.
        resolution: Smallest scale of each column, with shape (D,) or a number, in the data's units; None for the
            resolution of each column of a `MixedLikelihood`, else for the floor that a `Blueprint` gives the model
            (`floor_of`; 0 for probabilities, which need none).
        weights: Case weights, with shape (N,); None for equal ones.

    Raises:
        ValueError: If train is empty, or a cell lies outside the support.

    Example:
        >>> from pyrovae import NormalLikelihood
        >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0], [8.0, torch.nan], [9.0, 35.0]])
        >>> IndependentColumns(x, NormalLikelihood).log_prob(torch.tensor([[2.0, 20.0], [2.0, torch.nan]]))
        tensor([-6.0041, -2.5984], dtype=torch.float64)
    """

    def __init__(
        self,
        train: Tensor | Streamed,
        likelihood: Callable[..., Likelihood],
        *,
        resolution: Tensor | float | None = None,
        weights: Tensor | None = None,
    ) -> None:
        if train.dim() != 2 or 0 in train.shape:
            raise ValueError(f"train must have shape (N, D) with N, D >= 1, got {tuple(train.shape)}")
        if weights is not None and weights.shape != (len(train),):
            raise ValueError(f"weights must have shape ({len(train)},), got {tuple(weights.shape)}")
        self.num_dims = train.shape[1]
        self._parts: list[tuple[list[int], Any]] = []
        with pyro.validation_enabled(False), isolated_rng():
            groups = _groups(likelihood, self.num_dims, resolution)
            for group in groups:
                self._parts += _fit(group, train, weights)
        self.resolution = _joined(groups, self.num_dims)
        self.num_parameters = sum(part.num_parameters for _, part in self._parts)
        self.supports: list[Any] = [None] * self.num_dims
        for places, part in self._parts:
            for place in places:
                self.supports[place] = part.support

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log probability or log density of the observed cells of each datum.

        Args:
            x: Data, with shape (N, D); NaN where missing.

        Returns:
            The values log p(x) in nats, with shape (N,), float64, on the CPU; 0 if no cell is observed, -inf outside
            the support.
        """
        if x.dim() != 2 or x.shape[1] != self.num_dims:
            raise ValueError(f"x must have shape (N, {self.num_dims}), got {tuple(x.shape)}")
        with pyro.validation_enabled(False):
            return torch.cat([self._log_prob(part.detach().cpu()) for part in x.split(_CHUNK)])

    def _log_prob(self, x: Tensor) -> Tensor:
        return torch.stack([part.log_prob(x[:, places]) for places, part in self._parts]).sum(0)


class Family(NamedTuple):
    """Family of one cell of a likelihood that is no `MixedLikelihood`.

    Attributes:
        support: Support of a cell; None if it is unknown.
        num_levels: Number L of values 0..L-1, if the support is such.
        num_parameters: Number of parameters of a column.
        is_vector: Whether the distribution is one of the whole vector.
        is_saturated: Whether it has a parameter for each level, so that a histogram by column is its estimate.
    """

    support: Any
    num_levels: int | None
    num_parameters: int
    is_vector: bool
    is_saturated: bool


def family_of(likelihood: Callable[..., Likelihood]) -> Family | None:
    """Describe the family of a likelihood; None for a `MixedLikelihood`, which has several.

    Args:
        likelihood: Maker of the likelihood from its network: a class, or `functools.partial` of one.
    """
    maker, arguments = _class_and_arguments(likelihood)
    if issubclass(maker, MixedLikelihood):
        return None
    with pyro.validation_enabled(False), isolated_rng():
        return _family(_per_column(_Group(maker, arguments, [0], None)))


class _Group(NamedTuple):
    """Columns with one likelihood: its class, arguments, places among the D columns, and resolutions if known."""

    maker: Any
    arguments: dict[str, Any]
    places: list[int]
    resolution: Tensor | None

    def make(self, network: nn.Module, moments: Moments) -> Likelihood:
        """Make the likelihood in float64, with units."""
        part: Likelihood = self.maker(network, **self.arguments)
        part = part.double()
        part.set_units(moments)
        return part

    def num_outputs(self, num_dims: int) -> int:
        """Return the number of outputs of the network."""
        return int(self.maker.num_outputs(num_dims, **self.arguments))


def _groups(likelihood: Callable[..., Likelihood], num_dims: int, resolution: Tensor | float | None) -> list[_Group]:
    maker, arguments = _class_and_arguments(likelihood)
    given = None if resolution is None else torch.as_tensor(resolution).double().expand(num_dims)
    if not issubclass(maker, MixedLikelihood):
        return [_Group(maker, arguments, list(range(num_dims)), given)]
    groups = []
    for group in maker(_Constants(maker.num_outputs(num_dims, **arguments)), **arguments).groups:
        part, part_arguments = _class_and_arguments(group.maker)
        own = torch.tensor([column.resolution or 0.0 for column in group.columns], dtype=torch.float64)
        floor = own if given is None else given[group.places]
        groups.append(_Group(part, {**part_arguments, **group.arguments}, group.places, floor))
    if sorted(place for group in groups for place in group.places) != list(range(num_dims)):
        raise ValueError(f"train has {num_dims} columns, and the likelihood {sum(len(g.places) for g in groups)}")
    return groups


def _joined(groups: list[_Group], num_dims: int) -> Tensor | None:
    """Return the resolutions of all columns, with shape (D,); None if they are not known."""
    joined = torch.zeros(num_dims, dtype=torch.float64)
    for group in groups:
        if group.resolution is None:
            return None
        joined[group.places] = group.resolution
    return joined


def _class_and_arguments(maker: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    part, arguments = (maker.func, dict(maker.keywords)) if isinstance(maker, functools.partial) else (maker, {})
    if not (isinstance(part, type) and issubclass(part, Likelihood)):
        raise ValueError(f"likelihood must be a class of likelihoods, or a partial of one, got {maker!r:.80}")
    return part, arguments


class _Constants(nn.Module):
    """Network whose outputs do not depend on its input."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.in_features = self.out_features = out_features
        self.theta = torch.zeros(1, out_features, dtype=torch.float64)

    def forward(self, _: Tensor) -> Tensor:
        return self.theta


def _fit(group: _Group, train: Tensor | Streamed, weights: Tensor | None) -> list[tuple[list[int], Any]]:
    """Fit one group of columns. Return the fits with the places of their columns."""
    per_column = _per_column(group)
    family = _family(per_column)
    if family.is_vector:
        return [(group.places, _Whole(group, train, weights))]
    support = family.support
    if family.is_saturated:
        assert family.num_levels is not None
        counts = level_counts(train, weights, group.places, family.num_levels)
        return [(group.places, _Levels(counts, support))]
    moments = _moments(group, train, support)
    cells = cells_of(train, weights, group.places, support)
    _check_support(train, group.places, support)
    cells = smoothed(cells, support)
    starts = _starts(per_column, train, moments, support)
    make = _OneByOne if family.num_parameters > per_column.num_outputs(1) else _Batched
    fits = []
    for columns in (cells.weights > 0).sum(0).argsort().split(_COLUMNS):  # with similar numbers of distinct values
        part = make(
            per_column,
            cells.of(columns),
            Moments(*(moment[columns] for moment in moments)),
            support,
            [start[columns] for start in starts],
        )
        fits.append(([group.places[c] for c in columns.tolist()], part))
    return fits


def _family(group: _Group) -> Family:
    probe = group.make(_Constants(group.num_outputs(1)), _no_units(1))
    fn = probe(torch.zeros(1, 1, dtype=torch.float64))
    support, is_vector = entry_support(domain_of(fn)), bool(entry_of(fn).event_shape)
    count = group.num_outputs(1) + sum(parameter.numel() for parameter in probe.parameters())
    levels = None if is_vector else num_levels(support)
    return Family(support, levels, count, is_vector, levels is not None and count >= levels - 1)


def _per_column(group: _Group) -> _Group:
    """Let the network give every learned parameter that is named by a word, so that it is a constant of the column."""
    takes = inspect.signature(group.maker).parameters
    words = {name: group.arguments.get(name, parameter.default) for name, parameter in takes.items()}
    words = {name: "network" for name, value in words.items() if isinstance(value, str) and value in _WORDS}
    spread = group._replace(arguments={**group.arguments, **words})
    try:
        spread.make(_Constants(spread.num_outputs(1)), _no_units(1))
    except (TypeError, ValueError):  # a class of a user's, whose word means something else
        return group
    return spread


def _no_units(num_dims: int) -> Moments:
    zeros, ones = torch.zeros(num_dims, dtype=torch.float64), torch.ones(num_dims, dtype=torch.float64)
    return Moments(zeros, ones, zeros, ones, zeros)


def _moments(group: _Group, train: Tensor | Streamed, support: Any) -> Moments:
    """Compute the moments of the columns, with their resolution."""
    x = train[:_MOST_EXAMPLES] if isinstance(train, Streamed) else train
    x = x[:, group.places].detach().cpu().double()
    moments = Moments.of(x)
    if group.resolution is not None:
        return moments._replace(resolution=group.resolution)
    if support is not None and support.is_discrete:
        return moments._replace(resolution=torch.zeros_like(moments.resolution))
    return moments


def _check_support(train: Tensor | Streamed, places: Sequence[int], support: Any) -> None:
    if support is None:
        return
    for chunk in train.split(_CHUNK):
        x = chunk[:, places].detach().cpu()  # in their own dtype, in which a grid is checked
        outside = ~(support.check(x) | x.isnan())
        if bool(outside.any()):
            raise ValueError(
                f"training data must lie in the support of the likelihood, got {x[outside][0].item():g}; check the "
                "likelihood"
            )


def _starts(group: _Group, train: Tensor | Streamed, moments: Moments, support: Any) -> list[Tensor]:
    """Return initial parameters, each with shape (C, P): those of the intercept-only fit, if any, and zeros."""
    num_columns, num_outputs = len(group.places), group.num_outputs(1)
    starts = [torch.zeros(num_columns, num_outputs, dtype=torch.float64)]
    x = without_holes(train[:_MOST_EXAMPLES][:, group.places].detach().cpu().double(), inside(support))
    try:
        part = group.make(_Constants(group.num_outputs(num_columns)), moments)
        bias = part.output_bias(x)
        starts.insert(0, bias.detach().double().view(num_outputs, num_columns).T.contiguous())
    except (ValueError, RuntimeError, TypeError):  # no intercept, or a class of a user's
        pass
    return starts


def _best(loss: Callable[[Tensor], Tensor], starts: list[Tensor]) -> Tensor:
    """Minimise from the best start of each column, and again from near the minimum, which leaves saddle points."""
    values = torch.stack([loss(start).nan_to_num(math.inf) for start in starts])
    best = values.argmin(0)
    theta = torch.stack(starts)[best, torch.arange(starts[0].shape[0])]
    theta = minimise(loss, theta)
    generator = torch.Generator().manual_seed(0)
    for _ in range(_RESTARTS if theta.shape[1] > 2 else 0):  # with two parameters there is one maximum
        noise = torch.randn(theta.shape, generator=generator, dtype=torch.float64)
        near = minimise(loss, torch.where(loss(theta + noise).isfinite().unsqueeze(-1), theta + noise, theta))
        theta = torch.where((loss(near) < loss(theta) - 1e-9).unsqueeze(-1), near, theta)
    return theta


class _Levels:
    """Probabilities of levels by Laplace's rule, from their counts with shape (L, C)."""

    def __init__(self, counts: Tensor, support: Any) -> None:
        self.support = support
        self.num_parameters = (counts.shape[0] - 1) * counts.shape[1]
        self._log_p = ((counts + 1) / (counts.sum(0) + counts.shape[0])).log()

    def log_prob(self, x: Tensor) -> Tensor:
        last = self._log_p.shape[0] - 1
        known = (x >= 0) & (x <= last) & (x == x.floor())
        log_p = self._log_p.gather(0, torch.where(known, x, 0).long())
        return torch.where(x.isnan(), 0.0, torch.where(known, log_p, -math.inf)).sum(1)


class _Batched:
    """Columns whose parameters are outputs of the network alone, as a batch of likelihoods of one column."""

    def __init__(self, group: _Group, cells: Cells, moments: Moments, support: Any, starts: list[Tensor]) -> None:
        self.support = support
        self._network = _Constants(group.num_outputs(1))
        self._part = group.make(self._network, Moments(*(moment.unsqueeze(-1) for moment in moments)))
        num_columns = cells.values.shape[1]
        self._z = torch.zeros(num_columns, 1, dtype=torch.float64)
        self.num_parameters = num_columns * group.num_outputs(1)
        self._theta = _best(functools.partial(self._loss, cells), starts)

    def _log_p(self, values: Tensor, theta: Tensor) -> Tensor:
        """Return log p of values, with shape (V, C)."""
        self._network.theta = theta
        log_p: Tensor = entry_of(self._part(self._z)).log_prob(values.unsqueeze(-1)).squeeze(-1)
        return log_p

    def _loss(self, cells: Cells, theta: Tensor) -> Tensor:
        log_p = torch.where(cells.weights > 0, self._log_p(cells.values, theta), 0.0)
        return -(cells.weights * log_p).sum(0) / cells.total

    def log_prob(self, x: Tensor) -> Tensor:
        return _observed(x, self.support, lambda values: self._log_p(values, self._theta)).sum(1)


class _OneByOne:
    """Columns of a likelihood with parameters of its own, each a likelihood of one column."""

    def __init__(self, group: _Group, cells: Cells, moments: Moments, support: Any, starts: list[Tensor]) -> None:
        self.support = support
        self._columns = []
        for c in range(cells.values.shape[1]):
            part = group.make(_Constants(group.num_outputs(1)), Moments(*(moment[c : c + 1] for moment in moments)))
            own = {name: parameter.detach() for name, parameter in part.named_parameters()}
            first = torch.cat([parameter.flatten() for parameter in own.values()])
            column = functools.partial(_log_p_of_column, part, own)
            loss = functools.partial(_loss_of_column, column, cells.of(torch.tensor([c])))
            theta = _best(loss, [torch.cat([start[c], first])[None] for start in starts])
            self._columns.append(functools.partial(column, theta=theta))
        self.num_parameters = len(self._columns) * (group.num_outputs(1) + len(first))

    def log_prob(self, x: Tensor) -> Tensor:
        return _observed(x, self.support, self._log_p).sum(1)

    def _log_p(self, values: Tensor) -> Tensor:
        return torch.cat([column(values[:, c : c + 1]) for c, column in enumerate(self._columns)], 1)


def _log_p_of_column(part: Likelihood, own: dict[str, Tensor], values: Tensor, theta: Tensor) -> Tensor:
    """Return log p of values of one column, with shape (V, 1), for all parameters in a vector, with shape (1, Q)."""
    part.network.theta = theta[:, : part.network.out_features]
    rest, given = theta[0, part.network.out_features :], {}
    for name, parameter in own.items():
        given[name], rest = rest[: parameter.numel()].view_as(parameter), rest[parameter.numel() :]
    fn = torch.func.functional_call(part, given, (torch.zeros(1, 1, dtype=torch.float64),))
    log_p: Tensor = entry_of(fn).log_prob(values)
    return log_p


def _loss_of_column(column: Callable[..., Tensor], cells: Cells, theta: Tensor) -> Tensor:
    log_p = torch.where(cells.weights > 0, column(cells.values, theta=theta), 0.0)
    return -(cells.weights * log_p).sum(0) / cells.total


class _Whole:
    """Distribution of the whole vector, such as a multinomial."""

    def __init__(self, group: _Group, train: Tensor | Streamed, weights: Tensor | None) -> None:
        x = train[:_MOST_EXAMPLES].detach().cpu().double()
        if bool(x.isnan().any()):
            raise ValueError(
                f"{group.maker.__name__} needs complete rows, but cells are missing; use another likelihood"
            )
        w = torch.ones(len(x), dtype=torch.float64) if weights is None else weights[: len(x)].detach().cpu().double()
        spread = _per_column(group)
        self._network = _Constants(spread.num_outputs(x.shape[1]))
        self._part = spread.make(self._network, Moments.of(x))
        self.support = None
        self.num_parameters = self._network.out_features
        fn = entry_of(self._part(torch.zeros(1, 1, dtype=torch.float64)))
        if isinstance(fn, torch.distributions.Multinomial):
            self._theta = ((w[:, None] * x).sum(0) + 0.5).log()[None]
            self.num_parameters -= 1
            return
        start = torch.zeros(1, self._network.out_features, dtype=torch.float64)
        self._theta = _best(lambda theta: -(w * self._log_p(x, theta)).sum()[None] / w.sum(), [start])

    def _log_p(self, x: Tensor, theta: Tensor) -> Tensor:
        self._network.theta = theta
        log_p: Tensor = entry_of(self._part(torch.zeros(1, 1, dtype=torch.float64))).log_prob(x)
        return log_p

    def log_prob(self, x: Tensor) -> Tensor:
        fn = entry_of(self._part(torch.zeros(1, 1, dtype=torch.float64)))
        valid = fn.support.check(x)
        log_p = self._log_p(torch.where(valid.unsqueeze(-1), x, 0).double(), self._theta)
        return torch.where(valid, log_p, -math.inf)


def _observed(x: Tensor, support: Any, log_p: Callable[[Tensor], Tensor]) -> Tensor:
    """Return log p of each cell, with shape (N, C): 0 for missing ones, -inf outside the support."""
    seen = ~x.isnan()
    valid = seen if support is None else support.check(x) & seen
    value = log_p(torch.where(valid, x.double(), inside(support)))
    return torch.where(valid, value, torch.where(seen, -math.inf, 0.0))
