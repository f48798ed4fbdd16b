"""The torch modules inside a program, and their evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from pyro.poutine.messenger import unwrap
from torch import nn

from pyrovae.densities.traces import Program


@contextmanager
def evaluating(*programs: Program) -> Iterator[None]:
    """Disable gradients and put the programs' modules into evaluation mode (no dropout), then restore their modes."""
    modules = [module for program in programs for module in modules_of(program)]
    was_training = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in was_training:
            module.training = mode


def module_of(program: Program) -> list[nn.Module]:
    """List the module that a program is or is a bound method of, under any handlers; empty if it is a function."""
    program = unwrap(program)
    while isinstance(program, partial):
        program = unwrap(program.func)
    owner = getattr(program, "__self__", program)
    return [owner] if isinstance(owner, nn.Module) else []


def modules_of(program: Program) -> list[nn.Module]:
    """List the torch modules that a program can reach: itself, its owner, closures, arguments and globals."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()

    def visit(thing: Any) -> None:
        if id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            found[id(thing)] = thing
        elif isinstance(thing, partial):
            for part in (unwrap(thing), thing.func, *thing.args, *thing.keywords.values()):
                visit(part)
        elif isinstance(thing, MethodType):
            owner = thing.__self__
            visit(owner)
            if not isinstance(owner, nn.Module):
                for value in getattr(owner, "__dict__", {}).values():
                    visit(value)
            visit(thing.__func__)
        elif isinstance(thing, FunctionType) and not thing.__module__.startswith(("torch", "pyro.")):
            for cell in thing.__closure__ or ():
                visit(cell.cell_contents)
            for name in thing.__code__.co_names:
                visit(thing.__globals__.get(name))
        elif isinstance(thing, list | tuple):
            for part in thing:
                visit(part)
        elif isinstance(thing, dict):
            for part in thing.values():
                visit(part)

    visit(program)
    return list(found.values())
