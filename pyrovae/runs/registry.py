"""Registry of parts by name: priors, likelihoods, encoders, networks, programs, objectives, optimizers and the like.

A part is looked up by its exact name. A name on the command line may also be the import path of a user's class. Import
paths in a file are followed only if the user trusts their modules, because importing a module runs it.
"""

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro.infer
import pyro.optim
import torch
from pyro.infer import ELBO
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

import pyrovae.encoders
import pyrovae.likelihoods
import pyrovae.nn
import pyrovae.objectives
import pyrovae.priors
import pyrovae.programs
from pyrovae.runs.words import closest, either, near
from pyrovae.training import BurdaLR

BASES: dict[str, type] = {
    "prior": pyrovae.priors.Prior,
    "likelihood": pyrovae.likelihoods.Likelihood,
    "encoder": pyrovae.encoders.Encoder,
    "network": pyrovae.nn.Network,
    "program": nn.Module,
    "elbo": ELBO,
    "kl_weight": pyrovae.objectives.KLWeight,
    "optimizer": torch.optim.Optimizer,
    "lr_schedule": LRScheduler,
}

# Kinds that a configuration may leave out.
OPTIONAL = ("likelihood", "program", "kl_weight", "lr_schedule")

# Packages of the known parts; others of their classes and modules have no name in a configuration.
LIBRARIES = ("pyrovae", "torch", "pyro")
_LONGEST_NAME = 100  # in messages

_HOMES = {
    "prior": pyrovae.priors,
    "likelihood": pyrovae.likelihoods,
    "encoder": pyrovae.encoders,
    "network": pyrovae.nn,
    "program": pyrovae.programs,
    "elbo": pyro.infer,
    "kl_weight": pyrovae.objectives,
    "optimizer": torch.optim,
    "lr_schedule": torch.optim.lr_scheduler,
}
# Objectives of Pyro that have a differentiable loss and need no arguments.
_OBJECTIVES = ("Trace_ELBO", "TraceMeanField_ELBO", "TraceEnum_ELBO")
# The module's other classes are the programs of these.
_PROGRAMS = ("TwoLayerVAE", "MixtureVAE")
# Optimizers that need a closure, sparse gradients, or matrices alone, and schedules that need functions or schedules.
_SPECIAL = (
    *("LBFGS", "SparseAdam", "Muon"),
    *("LambdaLR", "MultiplicativeLR", "ChainedScheduler", "SequentialLR"),
    "MixedLikelihood",  # made from the columns of a table
)
_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?")
# What a number in place of a name most likely means.
_NUMBERS = {"kl_weight": "use --kl_weight Beta --kl_weight.beta {} for a constant weight"}
_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\s*\.\s*[^\W\d]\w*)+")


def known_parts(kind: str) -> dict[str, type]:
    """Return the classes of a kind ("prior", "likelihood", ...) that have a bare name."""
    base, home = BASES[kind], _HOMES[kind]
    if kind == "program":
        return {name: getattr(home, name) for name in _PROGRAMS}
    if kind == "elbo":
        return {name: getattr(home, name) for name in _OBJECTIVES} | _parts_in(pyrovae.objectives, base)
    parts = _parts_in(home, base)
    if kind == "lr_schedule":
        return {BurdaLR.__name__: BurdaLR, **parts}
    if kind == "network":
        decoders = _decoders(parts.values())
        return {name: part for name, part in parts.items() if part not in decoders}
    return parts


def _decoders(networks: Iterable[Any]) -> dict[type, type]:
    """Map the classes that serve the decoder alone to the classes that they mirror."""
    return {network.mirror(): network for network in networks if network.mirror() is not network}


def _parts_in(home: ModuleType, base: type) -> dict[str, type]:
    found = inspect.getmembers(home, lambda c: inspect.isclass(c) and issubclass(c, base))
    return {
        name: part
        for name, part in found
        if part is not base
        and not inspect.isabstract(part)
        and not name.startswith("_")
        and name not in _SPECIAL
        and f"{part.__module__}.".startswith(f"{home.__name__}.")  # a home is a module or a package
    }


def part_class(kind: str, name: str, *, trusted: Collection[str] | None = None, flag: str | None = None) -> type:
    """Find a part's class by its bare name or import path.

    A name among `known_parts` is looked up, with or without the packages that it lies in. Any other name is that of a
    class in a module of the user, which is imported.

    Args:
        kind: Key of `BASES`.
        name: Name among `known_parts`, or module.Class of a module that is installed or in the current directory.
        trusted: Modules that may be imported, as for names in a file; None for all, as for names on a command line.
        flag: Flag or key that names the part, for messages; None for that of the kind.

    Raises:
        ValueError: If there is no such class (the message suggests names), it does not derive from the kind's base, or
            its module is not trusted.
    """
    known, flag = known_parts(kind), flag or f"--{kind}"
    for decoder, encoder in _decoders(known.values()).items() if kind == "network" else ():
        if name in names_of(decoder):
            raise ValueError(f"{flag} {name}: {decoder.__name__} is a decoder; use {flag} {encoder.__name__}")
    found = _find_class(name, BASES[kind], known, trusted, flag, what=kind, listing=f"--help_parts {kind}")
    if found is BASES[kind] or inspect.isabstract(found):
        raise ValueError(
            f"{flag} {name}: {found.__name__} is abstract; use a subclass, which --help_parts {kind} lists"
        )
    return found


def nested_class(base: type, name: str, *, trusted: Collection[str] | None = None, flag: str) -> type:
    """Find the class of a part that is an argument of another part, by its bare name or import path.

    Args:
        base: Class that the constructor declares for this argument.
        name: Name among `known_parts` of any kind, or module.Class, as in `part_class`.
        trusted: Modules that may be imported; None for all.
        flag: Flag or key that names the part, for messages.

    Raises:
        ValueError: As `part_class`.
    """
    every = {
        part for kind in BASES for part in (*known_parts(kind).values(), *_decoders(known_parts("network").values()))
    }
    known = {part.__name__: part for part in every if issubclass(part, base)}
    return _find_class(name, base, known, trusted, flag, what="part", listing="--help_parts")


def names_of(part: type) -> set[str]:
    """Return the bare name of a class and its names within the packages that it lies in, such as pyrovae.Prior."""
    steps = part.__module__.split(".")
    homes = [".".join(steps[:length]) for length in range(1, len(steps) + 1)]
    there = [home for home in homes if getattr(sys.modules.get(home), part.__name__, None) is part]
    return {part.__name__, *(f"{home}.{part.__name__}" for home in there)}


def _find_class(
    name: str,
    base: type,
    known: Mapping[str, type],
    trusted: Collection[str] | None,
    flag: str,
    *,
    what: str,
    listing: str,
) -> type:
    """Look a class up by name among known ones, or import it from a module of the user."""
    for part in known.values():
        if name in names_of(part):
            return part
    module_name, _, class_name = name.rpartition(".")
    if name in names_of(base):
        return base
    if not _IMPORT_PATH.fullmatch(name):
        likely = closest(name, known)
        hint = f"{listing} lists them; write your own as module.Class"
        if likely:
            hint = f"did you mean {either(likely)}?"
        elif _NUMBER.fullmatch(name):
            hint = _NUMBERS.get(what, hint).format(name)
        raise ValueError(f"{flag} {_shortened(name)}: no such {what}; {hint}")
    if name.split(".", 1)[0] in LIBRARIES:
        likely = closest(class_name, known)
        hint = f"did you mean {either(likely)}?" if likely else f"{listing} lists them"
        raise ValueError(f"{flag} {_shortened(name)}: no such {what}; {hint}")
    if trusted is not None and not any(name.startswith(f"{module}.") for module in trusted):
        raise ValueError(
            f"{flag} {_shortened(name)}: importing {_shortened(module_name)} would run its code; if you trust it, use "
            f"--trust_imports {_shortened(module_name.split('.', 1)[0])}"
        )
    module = sys.modules.get(module_name) or _import_own(module_name, f"{flag} {name}")
    found = vars(module).get(class_name)
    if found is None:
        there = dict(inspect.getmembers(module, inspect.isclass))
        raise ValueError(f"{flag} {name}: {module_name} has no class {class_name}; {near(class_name, there)}")
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ValueError(
            f"{flag} {name}: {class_name} is no subclass of {part_path(base)}; derive it, or use a part that "
            f"{listing} lists"
        )
    if trusted is not None and not any(f"{found.__module__}.".startswith(f"{module}.") for module in trusted):
        raise ValueError(
            f"{flag} {name}: {class_name} is not defined in {module_name}, but in {found.__module__}; name it there"
        )
    return found


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."


def _import_own(name: str, where: str) -> ModuleType:
    """Import a user's module, installed or in the current directory."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{where}: module {error.name!r} is neither installed nor in this directory; change to its directory, or "
            "correct the path"
        ) from error
    except Exception as error:
        raise ValueError(f"{where}: importing {name} fails: {describe(error)}; correct the module") from error
    finally:
        sys.path.remove(here)


def describe(error: BaseException) -> str:
    """Describe an exception and its place in the code in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    first = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}: {first[0] if first else 'no message'}{place}"


def part_path(part: type) -> str:
    """Return the shortest import path of a class, which stays valid if its module moves within its package."""
    paths = sorted(names_of(part) - {part.__name__}, key=len)
    if not paths:
        raise ValueError(
            f"{part.__module__}.{part.__qualname__} is not found under its own name; define it at top level"
        )
    return paths[0]
