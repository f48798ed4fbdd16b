"""Parts of a model by the names of their classes."""

import difflib
import inspect
from types import ModuleType
from typing import Any

from pyrovae import encoders, likelihoods, nn, priors

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
