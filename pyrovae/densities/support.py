"""The support of distributions: check that observed values lie inside."""

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

from pyrovae.densities.arguments import num_data, plain
from pyrovae.densities.masks import entry_mask, entry_of, in_support, mask_of, support_of
from pyrovae.densities.modules import evaluating
from pyrovae.densities.rng import isolated_rng
from pyrovae.densities.traces import Program, replay_draws, sample_sites
from pyrovae.densities.vectorized import VectorizedProgram

# Constraints of torch in words, given their bounds.
_WORDS = {
    "Boolean": "0 or 1",
    "IntegerGreaterThan": "whole numbers, at least {}",
    "IntegerInterval": "whole numbers from {} to {}",
    "GreaterThan": "numbers above {}",
    "GreaterThanEq": "numbers, at least {}",
    "Interval": "numbers from {} to {}",
    "Real": "finite numbers",
    "MultiplesOf": "multiples of {}",
    "ZeroOrPositive": "0 or positive numbers",
    "UnitIntervalWithEnds": "numbers from 0 to 1",
    "WholeNumbers": "whole numbers, at least {}",
    "WholeNumbersTo": "whole numbers from {} to {}",
}


class SupportError(ValueError):
    """A datum lies outside the support.

    Attributes:
        datum: Index of the first such datum in the full data set.
        entry: Index of its first such entry, if the entries of a datum are independent; else None.
    """

    def __init__(self, message: str, datum: int, entry: int | None = None) -> None:
        super().__init__(message)
        self.datum, self.entry = datum, entry


def check_support(model: Program, *args: Any, guide: Program | None = None, first: int = 0, **kwargs: Any) -> None:
    """Check that the observed values lie in the support of the distributions that the model gives them.

    The model runs once, and the random state is restored. A support that depends on the latents, and hence differs
    between data, is not checked.

    Args:
        model: Pyro program p(z) p(x|z).
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        guide: Pyro program q(z|x), with the model's arguments; None for the model alone.
        first: Index of the first datum in the full data set, for error messages.
        **kwargs: Keyword arguments of both programs.

    Raises:
        SupportError: If an observed value lies outside. The message names the site and the first such datum.
    """
    whole = isinstance(model, VectorizedProgram) and model.data_dim is None
    size, (args, kwargs) = -1 if whole else num_data(args, kwargs), plain(args, kwargs)
    programs, observing = (model,) if guide is None else (model, guide), model
    with evaluating(*programs), isolated_rng(), pyro.validation_enabled(False):
        if guide is not None:
            observing = replay_draws(model, poutine.trace(guide).get_trace(*args, **kwargs))
        trace = poutine.trace(observing).get_trace(*args, **kwargs)
    for name, site in sample_sites(trace).items():
        if site["is_observed"]:
            _check_site(name, site, size, first)


def _check_site(name: str, site: Mapping[str, Any], size: int, number: int) -> None:
    fn, value = site["fn"], site["value"]
    entry, mask, support = entry_of(fn), mask_of(fn, site["mask"]), support_of(fn)
    if support is None or mask is False or _varies(support):
        return
    inside = in_support(fn, value, mask, support)
    if value.is_floating_point():
        finite = torch.isfinite(value)
        finite = finite.flatten(inside.dim()).all(-1) if finite.dim() > inside.dim() else finite
        inside = inside & (finite | ~entry_mask(mask, entry, inside))
    if bool(inside.all()):
        return
    outside = (~inside).nonzero()
    first = outside[0].tolist()
    worst = value[tuple(first)]
    axis = _data_axis(site, size)
    datum = number + first.pop(axis)
    column = first[0] if len(first) == 1 else None
    where = f"datum {datum}" + ("" if column is None else f", entry {column}")
    shown = f"{worst.item():g}" if worst.dim() == 0 else f"{worst.tolist()}"
    family = type(entry).__name__
    if column is not None and hasattr(support, "entries"):  # the columns have supports of their own
        support, family = support.entries[column], f"{family} in that column"
    hint = "give data in the support, or use another likelihood"
    if bool(worst.isnan().any()):
        hint = "if values are missing, pass mask=, true where x is observed, or use poutine.mask in a program of yours"
    elif support is constraints.boolean and bool(((value >= 0) & (value <= 1)).all()):
        hint = (
            "these are grey values, so binarise them (--binarize dynamic or static), or use a density, "
            "ContinuousBernoulliLikelihood"
        )
    # A support may say what to do about a value (`hint(value)`, None for nothing).
    hint = getattr(support, "hint", lambda worst: None)(worst) or hint
    raise SupportError(
        f"site {name!r}: {len(outside):,} of {inside.numel():,} values lie outside the support of "
        f"{family}, {_in_words(support)}; the first is {shown} at {where}; {hint}",
        datum,
        column,
    )


def _varies(support: Any) -> bool:
    """Return whether the bounds of a support differ between entries."""
    bounds = [bound for bound in vars(support).values() if isinstance(bound, Tensor) and bound.numel() > 1]
    return any(bool((bound != bound.flatten()[0]).any()) for bound in bounds)


def _data_axis(site: Mapping[str, Any], size: int) -> int:
    """Find the axis of the data in a site's batch: that of a plate of this size, else the last; 0 without a batch."""
    rank = len(site["fn"].batch_shape)
    dims = [frame.dim for frame in site["cond_indep_stack"] if frame.vectorized and frame.size in (-1, size)]
    return max(0, rank + (dims[0] if dims else -1))


def _in_words(support: Any) -> str:
    """Describe a constraint in words, or by its name, with its bounds, which are equal for all data."""
    bounds = [v.flatten()[0].item() if isinstance(v, Tensor) else v for v in vars(support).values()]
    numbers = [f"{bound:g}" for bound in bounds if isinstance(bound, int | float) and not isinstance(bound, bool)]
    name = type(support).__name__.strip("_")
    words = _WORDS.get(name, f"{name}({', '.join(numbers)})")
    return words.format(*numbers) if words.count("{}") <= len(numbers) else name
