"""Base class of whole models, with a unique name in Pyro's parameter store."""

import itertools
import weakref
from collections import Counter
from copy import copy, deepcopy
from typing import Any, Self

import pyro
from pyro.nn.module import PyroModule
from torch import Tensor, nn


class ProgramPair(nn.Module):
    """Base class of whole models, pairs of the Pyro programs `model` and `guide`.

    Pyro's parameter store identifies modules by name, and of two modules with equal names it trains only the first.
    Hence every pair in a process has a unique name. The store keeps a module's parameters alive. They leave it once the
    pair and its programs are unreachable, and the name is free again. Parameters that a program makes by `pyro.param`
    stay in the store.

    Args:
        name: Name in Pyro's parameter store; None for a name that is not taken.

    Raises:
        ValueError: If another pair or parameters in the store have this name.
    """

    model: PyroModule
    guide: PyroModule

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.name = _claim_name(name)
        _hold_name(self.name, self)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _PROGRAMS and isinstance(value, PyroModule):
            _hold_name(self.name, value._pyro_context)  # shared by all parts, of which one may outlive the program

    def __copy__(self) -> Self:
        """Copy the pair alone: the copy has the same name and the same programs."""
        twin = type(self).__new__(type(self))
        twin.__dict__ = self.__dict__.copy()
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the pair under a new name, so that Pyro trains the copy as well."""
        twin = copy(self)
        memo[id(self)] = twin
        twin.__dict__ = deepcopy(self.__dict__, memo)
        twin._rename()
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle the pair under a new name, since Pyro would take the values of another pair of its name."""
        super().__setstate__(state)
        self._rename()

    def _rename(self) -> None:
        """Give the pair and its programs, which no other pair may share, a name that is not taken."""
        self.name = _claim_name(None)
        _hold_name(self.name, self)
        for part in _PROGRAMS:
            program = getattr(self, part)
            program._pyro_set_supermodule(f"{self.name}.{part}", program._pyro_context)
            _hold_name(self.name, program._pyro_context)


_PROGRAMS = ("model", "guide")
_num_holders: Counter[str] = Counter()  # objects alive that need a name: pairs and their programs
_unheld: set[str] = set()  # names without holders, whose parameters another store of a scope may still have


def _claim_name(name: str | None) -> str:
    """Return a name that is not taken: the given one, or the first free one of vae, vae_2, ... if it is None."""
    for unheld in list(_unheld):
        _remove_parameters(unheld)
    _unheld.clear()
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
    return name


def _is_taken(name: str) -> bool:
    return name in _num_holders or any(key.startswith(f"{name}.") for key in pyro.get_param_store())


def _hold_name(name: str, holder: Any) -> None:
    """Keep a name taken as long as an object lives."""
    _num_holders[name] += 1
    weakref.finalize(holder, _let_go, name).atexit = False


def _let_go(name: str) -> None:
    """Free a name, and remove its parameters from the store, if no object needs it any more."""
    _num_holders[name] -= 1
    if not _num_holders[name]:
        del _num_holders[name]
        _unheld.add(name)
        _remove_parameters(name)


def _remove_parameters(name: str) -> None:
    """Remove the parameters of the modules of a pair from Pyro's store.

    The garbage collector may call this at any moment, so that a loop over the store must not see its dicts change.
    """
    store = pyro.get_param_store()
    starts = tuple(f"{name}.{part}{mark}" for part in _PROGRAMS for mark in (".", "$$$"))
    gone = {key: value for key, value in store._params.items() if key.startswith(starts) and _of_module(value)}
    if gone:
        store._params = {key: value for key, value in store._params.items() if key not in gone}
        store._constraints = {key: value for key, value in store._constraints.items() if key not in gone}
        for value in gone.values():
            store._param_to_name.pop(value, None)


def _of_module(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter)  # `pyro.param` makes plain tensors
