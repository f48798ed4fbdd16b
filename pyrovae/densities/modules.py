"""The torch modules inside a program, and their evaluation mode."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyrovae.densities.traces import MovedProgram, Program
from pyrovae.densities.vectorized import VectorizedProgram

_PLAIN = (bool, int, float, str)
# Libraries whose objects hold no module of a program.
_LIBRARIES = sys.stdlib_module_names | {"torch", "pyro", "numpy", "tqdm"}


@contextmanager
def evaluating(*programs: Program) -> Iterator[None]:
    """Disable gradients and put the programs' modules into evaluation mode (no dropout), then restore their modes.

    Modules that `modules_of` does not find get into evaluation mode when they run.
    """
    was_training: dict[nn.Module, bool] = {}

    def evaluate(module: nn.Module, _: Any = None) -> None:
        if module.training:
            was_training[module] = True
            module.training = False

    for program in programs:
        for module in modules_of(program):
            for part in module.modules():
                evaluate(part)
    watch = register_module_forward_pre_hook(evaluate)
    try:
        with torch.no_grad():
            yield
    finally:
        watch.remove()
        for module, mode in was_training.items():
            module.training = mode


def module_of(program: Program) -> list[nn.Module]:
    """List the module that a program is or is a bound method of, under any handlers; empty if it is a function."""
    program = _unwrap(program)
    owner = getattr(program, "__self__", program)
    return [owner] if isinstance(owner, nn.Module) else []


def modules_of(program: Program) -> list[nn.Module]:
    """List the torch modules that a program can reach: by itself, its owner, closures, globals, and their attributes.

    The list may lack modules that a program finds in another way, such as by a registry of an imported library.
    """
    return [thing for thing in reach(program) if isinstance(thing, nn.Module)]


def modules_and_settings_of(program: Program) -> tuple[list[nn.Module], list[Any]]:
    """List the modules that a program can reach, with their parts, and the numbers, texts and truth values of all."""
    parts: dict[int, nn.Module] = {}
    settings: list[Any] = []
    for thing in reach(program):
        if isinstance(thing, nn.Module):
            parts |= {id(part): part for part in thing.modules()}
        elif isinstance(thing, _PLAIN):
            settings.append(thing)
    for part in parts.values():
        settings += [value for name, value in vars(part).items() if type(value) in _PLAIN and name != "training"]
    return list(parts.values()), settings


def reach(program: Program) -> Iterator[Any]:
    """Iterate over the objects that a program can reach; of modules, not over their parts."""
    seen: set[int] = set()
    remaining: list[Any] = [program]
    while remaining:
        thing = remaining.pop()
        if isinstance(thing, _PLAIN):
            yield thing
        elif id(thing) not in seen:
            seen.add(id(thing))
            yield thing
            if not isinstance(thing, nn.Module):
                remaining.extend(reversed(list(_parts_of(thing))))


def holds_state(thing: Any) -> bool:
    """Return whether an object, which is no module, has attributes that a program may change."""
    if isinstance(thing, type | FunctionType | MethodType | partial | VectorizedProgram):
        return False
    return hasattr(thing, "__dict__") and type(thing).__module__.partition(".")[0] not in _LIBRARIES


def _unwrap(program: Program) -> Program:
    """Remove handlers, `functools.partial`, `VectorizedProgram` and `MovedProgram` from a program."""
    while True:
        if isinstance(program, VectorizedProgram | MovedProgram):
            program = program.program
        elif isinstance(program, partial):
            handled = len(program.args) >= 2 and isinstance(program.args[0], Messenger)
            program = program.args[1] if handled else program.func
        else:
            return program


def _parts_of(thing: Any) -> Iterable[Any]:
    """List the objects that a program, or an object it uses, refers to."""
    if isinstance(thing, VectorizedProgram):
        return [thing.program]
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, FunctionType):
        return [] if (thing.__module__ or "").startswith(("torch", "pyro.")) else _names_of(thing)
    if isinstance(thing, list | tuple | set | frozenset):
        return thing
    if isinstance(thing, dict):
        return thing.values()
    if isinstance(thing, type) or type(thing).__module__.partition(".")[0] in _LIBRARIES:
        return []
    slots = (getattr(thing, name, None) for kind in type(thing).__mro__ for name in _slots(kind))
    return [*getattr(thing, "__dict__", {}).values(), *slots]


def _names_of(function: FunctionType) -> list[Any]:
    """List the values of a function's closure, defaults and global names, those of functions inside it included."""
    codes, named = [function.__code__], [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    named += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    while codes:
        code = codes.pop()
        named += [function.__globals__.get(name) for name in code.co_names]
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return named


def _filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that has no value yet
        return False


def _slots(kind: type) -> tuple[str, ...]:
    slots = getattr(kind, "__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
