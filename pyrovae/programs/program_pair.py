"""The pair of Pyro programs that a VAE is: `Model`, p(z) p(x|z), and `Guide`, q(z|x), and `VAE`, which holds both."""

import itertools
import weakref
from copy import copy, deepcopy
from typing import Any, Self

import pyro
from pyro.nn.module import PyroModule
from torch import nn


class ProgramPair(nn.Module):
    """Base of what holds two programs, `model` and `guide`, under a name of its own in Pyro's parameter store.

    Pyro's parameter store tells modules apart by name alone, and of two with one name it trains the first; so each pair
    in a process takes a name of its own.

    Args:
        name: Name in Pyro's parameter store; None for one not yet taken.

    Raises:
        ValueError: If the name is taken by another pair or by parameters in the store.
    """

    model: PyroModule
    guide: PyroModule

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.name = _claim_name(name, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy under a name of its own, so that the copy trains too."""
        twin = copy(self)
        memo[id(self)] = twin
        twin.__dict__ = deepcopy(self.__dict__, memo)
        twin.name = _claim_name(None, twin)
        for part in ("model", "guide"):
            program = getattr(twin, part)
            program._pyro_set_supermodule(f"{twin.name}.{part}", program._pyro_context)
        return twin


_named: "weakref.WeakValueDictionary[str, ProgramPair]" = weakref.WeakValueDictionary()


def _claim_name(name: str | None, owner: ProgramPair) -> str:
    if name is None:
        name = next(
            candidate
            for candidate in itertools.chain(["vae"], map("vae_{}".format, itertools.count(2)))
            if not _is_taken(candidate)
        )
    elif _is_taken(name):
        raise ValueError(
            f"the name {name!r} is taken by another VAE or by parameters in Pyro's store, and Pyro trains only the "
            "first; choose another name, or leave it out"
        )
    _named[name] = owner
    return name


def _is_taken(name: str) -> bool:
    return name in _named or any(key.startswith(f"{name}.") for key in pyro.get_param_store())
