"""Mixtures of the distributions of single entries at weighted draws of the latents: means, medians, modes."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyrovae.densities import Site, entry_of
from pyrovae.evidence.posterior import per_datum

CENTRES = ("mean", "median", "mode")

_MOST_LEVELS = 1024  # of a distribution whose levels are counted one by one
_DRAWS = 4000  # least number of draws for the median of a distribution without a distribution function
_RANGE = (0.05, 0.5, 0.95)  # quantiles of draws: where the search for a median begins, and its value without a cdf
_PRECISION = 1e-6  # of a median, relative to the 90 % range


class EntryMixtures:
    """Mixtures p(x_d | x_obs) = sum_k w_k p_d(x_d | z_k) of the entries of n data, in groups of columns.

    The columns of a `ByColumn` form groups of one distribution each, other distributions one group.

    Args:
        sites: The site of the entries at some draws each, in the order of the weights.
        weight: Self-normalised weights, with shape (K, n), float64.
    """

    def __init__(self, sites: Sequence[Site], weight: Tensor) -> None:
        weights = weight.split([site.layout.num_particles for site in sites])
        first = entry_of(sites[0].fn)
        self.groups: list[EntryGroup]
        if hasattr(first, "parts") and hasattr(first, "places"):
            parts = [list(entry_of(site.fn).parts) for site in sites]
            self.groups = [
                EntryGroup(sites, [each[index] for each in parts], weights, places.cpu(), places.shape)
                for index, places in enumerate(first.places)
            ]
        else:
            shape = sites[0].fn.event_shape
            places = torch.arange(sites[0].event_shape.numel())
            self.groups = [EntryGroup(sites, [entry_of(site.fn) for site in sites], weights, places, shape)]
        self.num_columns = sum(len(group.places) for group in self.groups)

    def centres(self, wanted: str | Sequence[str]) -> list[str]:
        """Choose the centre of each column: "mean", "median" or "mode".

        Args:
            wanted: A word for all columns that have such a centre, the others having their natural one; "auto" for the
                natural centre of each; or one word per column.

        Raises:
            ValueError: If a word is unknown, their number is not D, or a column lacks the centre that it is given.
        """
        words = [wanted] * self.num_columns if isinstance(wanted, str) else list(wanted)
        if len(words) != self.num_columns or not set(words) <= {"auto", *CENTRES}:
            raise ValueError(
                f'centre must be "auto", "mean", "median" or "mode", or one of them for each of the {self.num_columns} '
                f"columns, got {wanted!r}"
            )
        for group in self.groups:
            for place in group.places.tolist():
                if words[place] not in group.centres and words[place] != "auto" and not isinstance(wanted, str):
                    raise ValueError(
                        f"column {place} ({group.kind}) has no {words[place]}; use {' or '.join(group.centres)}"
                    )
                words[place] = words[place] if words[place] in group.centres else group.centres[0]
        return words


class EntryGroup:
    """Mixtures of the entries of some columns that have one distribution.

    Args:
        sites: The site of the entries at some draws each.
        parts: Distribution of the entries at each of them.
        weights: Self-normalised weights of each of them, with shape (k, n), float64.
        places: Columns, with shape (C,).
        event_shape: Event shape of the entries, of C numbers together with further plates.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        parts: Sequence[Any],
        weights: Sequence[Tensor],
        places: Tensor,
        event_shape: torch.Size,
    ) -> None:
        self.sites, self.parts, self.weights = sites, parts, weights
        self.places, self.event_shape = places, event_shape
        self.entry = entry_of(parts[0])
        self.kind = type(self.entry).__name__

    @cached_property
    def centres(self) -> list[str]:
        """Centres that the columns have, the natural one first.

        A category has a mode alone, levels with an order have all three, a number has no mode. A distribution states
        its natural centre by an attribute `natural_centre`; otherwise it is the mode of a category and of a binary
        column, else the mean.
        """
        if self._is_categorical and self.entry.logits.shape[-1] > 2:
            return ["mode"]
        levelled = self._is_categorical or isinstance(self.entry, torch.distributions.Bernoulli)
        natural = getattr(self.entry, "natural_centre", "mode" if levelled else "mean")
        others = ["mean", "median"] + (["mode"] if self._levels is not None else [])
        return [natural, *(word for word in others if word != natural)]

    def mean(self) -> tuple[Tensor, Tensor]:
        """Compute the means sum_k w_k E[x | z_k] and their Monte Carlo standard errors, each with shape (n, C).

        The error of self-normalised weights is sqrt(sum_k w_k^2 (E[x | z_k] - mean)^2) (Owen 2013, "Monte Carlo theory,
        methods and examples", https://artowen.su.domains/mc/, equation 9.9). Both are NaN or infinite if a draw with a
        weight has no finite mean.
        """
        try:
            means = torch.cat([self._per_datum(site, part.mean).double() for site, part in self._pairs()])
        except (NotImplementedError, AttributeError):
            nothing = torch.full((self.weights[0].shape[1], len(self.places)), torch.nan, dtype=torch.float64)
            return nothing, nothing
        weight = torch.cat(list(self.weights)).unsqueeze(-1)
        means = torch.where(weight == 0, 0.0, means)
        mean = (weight * means).sum(0)
        return mean, (weight * (means - mean)).square().sum(0).sqrt()

    def mode(self) -> tuple[Tensor, Tensor]:
        """Find the levels of the largest probability sum_k w_k P(x | z_k), and this probability, both (n, C)."""
        assert self._levels is not None
        probability, level = self._level_probabilities.max(0)
        return self._levels.to(level.device)[level], probability

    def median(self) -> tuple[Tensor, Tensor, Tensor]:
        """Find the medians, the smallest x with sum_k w_k P(X <= x | z_k) >= 1/2, each part with shape (n, C), float64.

        They come from the probabilities of levels, or from the distribution function by bisection, to 1e-6 of the 90 %
        range. Without either they are the weighted medians of at least 4,000 draws.

        Returns:
            Medians; their Monte Carlo standard errors where there are a density and a distribution function, NaN
            elsewhere; and the probabilities of medians that have one, such as levels and counts, NaN elsewhere.
        """
        nothing = torch.full((self.weights[0].shape[1], len(self.places)), torch.nan, dtype=torch.float64)
        if self._levels is not None:
            reached = self._level_probabilities.cumsum(0) >= 0.5 - 1e-9
            level = reached.int().argmax(0)
            probability = self._level_probabilities.gather(0, level.unsqueeze(0)).squeeze(0)
            return self._levels.to(level.device)[level], nothing.to(probability), probability.double()
        low, _, high = self._quantiles_of_draws(1)
        try:
            value = self._by_bisection(low, high)
            spread = self._spread_at(value)
        except (NotImplementedError, AttributeError):  # no distribution function
            _, value, _ = self._quantiles_of_draws(-(-_DRAWS // sum(map(len, self.weights))))
            spread = nothing.to(value)
        mass = self._expect(lambda site, part: self._at(site, part.log_prob, value).exp())
        atoms = torch.as_tensor(getattr(self._support, "atoms", ())).to(value)
        has_mass = torch.isin(value, atoms) | bool(getattr(self._support, "is_discrete", False))
        return value, torch.where(has_mass, torch.nan, spread / mass), mass.where(has_mass, torch.nan)

    def _spread_at(self, x: Tensor) -> Tensor:
        """Compute the Monte Carlo standard error of the distribution function at the medians x, with shape (n, C).

        Divided by the density it is that of the median (Serfling 1980, "Approximation theorems of mathematical
        statistics", section 2.3.3), here with self-normalised weights.
        """
        reached = torch.cat(
            [self._per_datum(site, self._at(site, part.cdf, x)).double() for site, part in self._pairs()]
        )
        weight = torch.cat(list(self.weights)).unsqueeze(-1)
        return (weight * torch.where(weight == 0, 0.0, reached - 0.5)).square().sum(0).sqrt()

    def _pairs(self) -> Any:
        return zip(self.sites, self.parts, strict=True)

    def _per_datum(self, site: Site, tensor: Tensor) -> Tensor:
        return per_datum(site, tensor, self.event_shape)

    def _expect(self, function: Callable[[Site, Any], Tensor]) -> Tensor:
        """Sum w_k f(p_k), with shape (n, C), for a function of the distributions of the entries."""
        total: Tensor | float = 0.0
        for (site, part), weight in zip(self._pairs(), self.weights, strict=True):
            value = self._per_datum(site, function(site, part)).double()
            total = total + (weight.unsqueeze(-1) * torch.where(weight.unsqueeze(-1) == 0, 0.0, value)).sum(0)
        assert isinstance(total, Tensor)
        return total

    @property
    def _is_categorical(self) -> bool:
        return isinstance(self.entry, torch.distributions.Categorical)

    @cached_property
    def _support(self) -> Any:
        try:
            return self.entry.support
        except (AttributeError, NotImplementedError):
            return None

    @cached_property
    def _levels(self) -> Tensor | None:
        """Levels of a distribution with few whole numbers in its support, float64; None for others."""
        support = self._support
        if support is torch.distributions.constraints.boolean:
            return torch.tensor([0.0, 1.0], dtype=torch.float64)
        low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
        if support is None or not support.is_discrete or not isinstance(low, int) or not isinstance(high, int):
            return None
        few = self._is_categorical or high - low < _MOST_LEVELS
        return torch.arange(low, high + 1, dtype=torch.float64) if few else None

    @cached_property
    def _level_probabilities(self) -> Tensor:
        """Probabilities of the levels, with shape (L, n, C)."""
        assert self._levels is not None
        return torch.stack([self._mass(level) for level in self._levels.tolist()])

    def _mass(self, x: float) -> Tensor:
        """Compute sum_k w_k P(X = x | z_k) of a value x that has a probability, with shape (n, C)."""
        return self._expect(lambda site, part: part.log_prob(site.raw_value.new_full((), x)).exp())

    def _distribution_function(self, x: Tensor) -> Tensor:
        """Compute sum_k w_k P(X <= x | z_k), with shape (n, C), for x of this shape."""
        return self._expect(lambda site, part: self._at(site, part.cdf, x))

    def _at(self, site: Site, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Call a function of a distribution of the entries at x, with shape (n, C), for all draws of a site."""
        further = site.event_shape[: len(site.event_shape) - len(site.fn.event_shape)]
        value = x.to(site.raw_value).reshape(1, len(x), *further, *self.event_shape)
        value = value.expand(site.layout.num_particles, *value.shape[1:])
        return function(site.layout.to_site(value, site.plate_sizes))

    def _quantiles_of_draws(self, repeats: int) -> Tensor:
        """Draw from the distributions, and find the weighted quantiles 5 %, 50 % and 95 %, with shape (3, n, C)."""
        drawn = torch.cat(
            [self._per_datum(site, part.sample()) for _ in range(repeats) for site, part in self._drawn_pairs()]
        ).double()
        weight = torch.cat(list(self.weights)).repeat(repeats, 1).unsqueeze(-1) / repeats
        drawn, order = drawn.sort(0)
        share = weight.expand_as(drawn).gather(0, order).cumsum(0)
        rows = torch.stack([(share >= level * share[-1]).int().argmax(0) for level in _RANGE])
        return drawn.gather(0, rows)

    def _drawn_pairs(self) -> Any:
        """Expand the distributions to all draws, so that each has one of its own."""
        for site, part in self._pairs():
            shape = torch.broadcast_shapes(part.batch_shape, self._batch_shape(site))
            yield site, part.expand(shape) if part.batch_shape != shape else part

    def _batch_shape(self, site: Site) -> torch.Size:
        batch = site.fn.batch_shape
        return torch.Size((*batch, *self.event_shape))

    def _by_bisection(self, low: Tensor, high: Tensor) -> Tensor:
        """Find the medians by the distribution function; low and high are about the quantiles of 5 % and 95 %."""
        support, step = self._support, None
        bound = torch.as_tensor(getattr(support, "lower_bound", -torch.inf)).to(low)
        if getattr(support, "is_discrete", False):
            step = getattr(support, "resolution", 1.0)
        least = (low.abs().maximum(high.abs()) * _PRECISION).clamp(min=1e-30)
        width = (high - low).maximum(least if step is None else least + step)
        end = width * _PRECISION if step is None else torch.full_like(width, step / 4)
        for _ in range(64):
            above, below = self._distribution_function(low) >= 0.5, self._distribution_function(high) < 0.5
            if not bool((above | below).any()):
                break
            low = torch.where(above, (low - width).maximum(bound), low)
            high, width = torch.where(below, high + width, high), 2 * width
        for _ in range(100):
            if not bool((high - low > end).any()):
                break
            middle = (low + high) / 2
            reached = self._distribution_function(middle) >= 0.5
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
        value = (low + high) / 2 if step is None else (high / step - 0.125).round() * step
        for atom in getattr(support, "atoms", ()):
            at_most = self._distribution_function(torch.full_like(value, atom))
            mass = self._mass(atom)
            value = torch.where((at_most >= 0.5) & (at_most - mass < 0.5), atom, value)
        return value
