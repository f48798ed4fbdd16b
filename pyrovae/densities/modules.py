"""Per-datum log densities of Pyro programs, ours or the reader's own.

A program signs a contract: every sample site lies inside one plate over the data at dim -1. Particles take dim -2.
Everything here follows from the traces alone; nothing asks what a prior or a likelihood is.
"""

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
    """Switch the modules among the programs to evaluation mode (no dropout) without gradients, and back at the end."""
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
    """List the torch modules a program is: itself, or the object whose bound method it is, under any handlers."""
    program = unwrap(program)
    while isinstance(program, partial):
        program = unwrap(program.func)
    owner = getattr(program, "__self__", program)
    return [owner] if isinstance(owner, nn.Module) else []


def modules_of(program: Program) -> list[nn.Module]:
    """List the torch modules a program can reach: what it is, closes over, is bound to, or names among its globals."""
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
