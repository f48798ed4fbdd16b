"""Base class of whole models, with a unique name in Pyro's parameter store."""

import itertools
import weakref
from copy import copy, deepcopy
from typing import Any, Self

import pyro
from pyro.nn.module import PyroModule
from torch import nn


class ProgramPair(nn.Module):
    """Base class of whole models, pairs of the Pyro programs `model` and `guide`.

    Pyro's parameter store identifies modules by name, and of two modules with equal names it trains only the first.
    Hence every pair in a process has a unique name.

    Args:
        name: Name in Pyro's parameter store; None for a name that is not taken.

    Raises:
        ValueError: If another pair or parameters in the store have this name.
    """

    model: PyroModule
    guide: PyroModule

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.name = _claim_name(name, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the pair under a new name, so that Pyro trains the copy as well."""
        twin = copy(self)
        memo[id(self)] = twin
        twin.__dict__ = deepcopy(self.__dict__, memo)
        twin.name = _claim_name(None, twin)
        for part in ("model", "guide"):
            program = getattr(twin, part)
            program._pyro_set_supermodule(f"{twin.name}.{part}", program._pyro_context)
        return twin


_pair_of_name: "weakref.WeakValueDictionary[str, ProgramPair]" = weakref.WeakValueDictionary()


def _claim_name(name: str | None, owner: ProgramPair) -> str:
    """Register the owner under a name, or under the first free one of vae, vae_2, ... if it is None."""
    if name is None:
        name = next(
            candidate
            for candidate in itertools.chain(["vae"], map("vae_{}".format, itertools.count(2)))
            if not _is_taken(candidate)
        )
    elif _is_taken(name):
        raise ValueError(
            f"a VAE needs a unique name, but another VAE or parameters in Pyro's store have the name {name!r}; use "
            "another, or None"
        )
    _pair_of_name[name] = owner
    return name


def _is_taken(name: str) -> bool:
    return name in _pair_of_name or any(key.startswith(f"{name}.") for key in pyro.get_param_store())
