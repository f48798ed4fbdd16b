"""Parts of a model by the names of their classes, and the likelihoods of columns."""

import difflib
import inspect
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any

from pyrovae import encoders, likelihoods, nn, priors
from pyrovae.columns import DEFAULT_LIKELIHOODS, Columns
from pyrovae.likelihoods import LogNormalLikelihood, NormalLikelihood

# Likelihoods of columns by kind, beside those of `MixedLikelihood`: a scale that depends on z.
_PARTS: dict[str, Any] = {
    "real": partial(NormalLikelihood, scale="network"),
    "positive": partial(LogNormalLikelihood, scale="network"),
}
_HOMES: dict[str, ModuleType] = {"prior": priors, "likelihood": likelihoods, "encoder": encoders, "network": nn}


def part(kind: str, value: Any, default: Any) -> Any:
    """Return the maker of a part.

    Args:
        kind: "prior", "likelihood", "encoder" or "network".
        value: A maker, such as a class; the name of a class of the library; or None.
        default: Maker in place of None.

    Raises:
        ValueError: If there is no such class, or the value is no maker.
    """
    if value is None:
        return default
    home = _HOMES[kind]
    if isinstance(value, str):
        found = {name: getattr(home, name) for name in home.__all__ if inspect.isclass(getattr(home, name))}
        if value not in found:
            near = difflib.get_close_matches(value, found, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"give a class of {home.__name__}, or its name"
            raise ValueError(f"{kind} {value!r:.80} is unknown; {hint}")
        return found[value]
    if not callable(value):
        raise ValueError(
            f"{kind} must be a class, functools.partial of one, its name, or None, got {type(value).__name__}; for "
            f"arguments write {kind}=partial(SomeClass, ...)"
        )
    return value


def class_of(maker: Any) -> Any:
    """Return the class that a maker instantiates."""
    return maker.func if isinstance(maker, partial) else maker


def parts_of(likelihood: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the makers of likelihoods by kind or name of a column: those that the user gives, and ours."""
    return _PARTS | _given(likelihood)


def labelled(columns: Columns, likelihood: Any) -> Columns:
    """Write the likelihoods that the user gives into columns.

    Args:
        columns: The columns.
        likelihood: Likelihoods by kind or name of a column; others change nothing.

    Raises:
        ValueError: If a name is neither a column nor a kind.
    """
    given = _given(likelihood)
    for key in given:
        if key not in columns and key not in DEFAULT_LIKELIHOODS:
            raise ValueError(
                f"likelihood names {key!r:.80}, which is no column of X and no kind; use the name of a column, or one "
                f"of {', '.join(DEFAULT_LIKELIHOODS)}"
            )
    for column in columns.data:
        made = given.get(column.name) or (given.get(column.kind) if column.likelihood is None else None)
        if made is not None:
            columns = columns.replace(column.name, likelihood=class_of(made).__name__)
    return columns


def _given(likelihood: Any) -> dict[str, Any]:
    if not isinstance(likelihood, Mapping):
        return {}
    return {key: part("likelihood", value, _PARTS.get(key)) for key, value in likelihood.items()}
