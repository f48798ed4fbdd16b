"""Registry of parts: priors, likelihoods, encoders, networks, programs, objectives, KL weights, optimizers by name.

A name on the command line may be the import path of a user's class. Import paths in a file are followed only if the
user trusts their modules, because importing a module runs it.
"""

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro.infer
import pyro.optim
import torch
from pyro.infer import ELBO
from torch import nn

import pyrovae.encoders
import pyrovae.likelihoods
import pyrovae.nn
import pyrovae.objectives
import pyrovae.priors
import pyrovae.programs
from pyrovae.runs.reading import read_yaml as read_yaml
from pyrovae.runs.words import closest, either, near

BASES: dict[str, type] = {
    "prior": pyrovae.priors.Prior,
    "likelihood": pyrovae.likelihoods.Likelihood,
    "encoder": pyrovae.encoders.Encoder,
    "network": pyrovae.nn.Network,
    "program": nn.Module,
    "elbo": ELBO,
    "kl_weight": pyrovae.objectives.KLWeight,
    "optimizer": torch.optim.Optimizer,
}

# Kinds that a configuration may leave out.
OPTIONAL = ("likelihood", "program", "kl_weight")

TRUSTED = ("pyrovae", "torch", "pyro")

_HOMES = {
    "prior": pyrovae.priors,
    "likelihood": pyrovae.likelihoods,
    "encoder": pyrovae.encoders,
    "network": pyrovae.nn,
    "program": pyrovae.programs,
    "elbo": pyro.infer,
    "kl_weight": pyrovae.objectives,
    "optimizer": torch.optim,
}
# Objectives of Pyro that have a differentiable loss and need no arguments.
_OBJECTIVES = ("Trace_ELBO", "TraceMeanField_ELBO", "TraceEnum_ELBO")
# The module's other classes are the programs of these.
_PROGRAMS = ("TwoLayerVAE", "MixtureVAE")
# Optimizers that need a closure, sparse gradients, or matrices alone.
_SPECIAL_OPTIMIZERS = ("LBFGS", "SparseAdam", "Muon")
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
        and name not in _SPECIAL_OPTIMIZERS
        and f"{part.__module__}.".startswith(f"{home.__name__}.")  # a home is a module or a package
    }


def part_class(kind: str, name: str) -> type:
    """Find a part's class by its bare name or import path.

    Args:
        kind: Key of `BASES`.
        name: Name among `known_parts`, or module.Class of a module that is installed or in the current directory.

    Raises:
        ValueError: If there is no such class (the message suggests names), or it does not derive from the kind's base.
    """
    base, known = BASES[kind], known_parts(kind)
    if name in known:
        return known[name]
    for decoder, encoder in _decoders(known.values()).items() if kind == "network" else ():
        if name.rpartition(".")[2] == decoder.__name__ and (name == decoder.__name__ or name.startswith("pyrovae.")):
            raise ValueError(f"--{kind} {name}: {decoder.__name__} is a decoder; use --{kind} {encoder.__name__}")
    if not _IMPORT_PATH.fullmatch(name):
        likely = closest(name, known)
        hint = f"--help_parts {kind} lists them; write your own as module.Class"
        if likely:
            hint = f"did you mean {either(likely)}?"
        elif _NUMBER.fullmatch(name):
            hint = _NUMBERS.get(kind, hint).format(name)
        raise ValueError(f"--{kind} {name}: no such {kind}; {hint}")
    module_name, class_name = name.rsplit(".", 1)
    module = sys.modules.get(module_name)
    if module is None and name.split(".", 1)[0] in TRUSTED:
        raise ValueError(f"--{kind} {name}: no such {kind}; {near(class_name, known)}")
    if module is None:
        module = _import_own(module_name, f"--{kind} {name}")
    part = getattr(module, class_name, None)
    if part is None:
        there = dict(inspect.getmembers(module, inspect.isclass))
        raise ValueError(f"--{kind} {name}: {module_name} has no class {class_name}; {near(class_name, there)}")
    if not (inspect.isclass(part) and issubclass(part, base)):
        raise ValueError(
            f"--{kind} {name}: {class_name} is no subclass of {part_path(base)}; derive it, or use a part that "
            f"--help_parts {kind} lists"
        )
    if part is base or inspect.isabstract(part):
        raise ValueError(f"--{kind} {name}: {class_name} is abstract; use a subclass, which --help_parts {kind} lists")
    return part


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
    steps = part.__module__.split(".")
    homes = [".".join(steps[:length]) for length in range(1, len(steps) + 1)]
    for home in homes:
        if getattr(sys.modules.get(home), part.__name__, None) is part:
            return f"{home}.{part.__name__}"
    raise ValueError(f"{part.__module__}.{part.__qualname__} is not found under its own name; define it at top level")


def checked_config(config: Any, *, source: str, keys: Iterable[str], trust_imports: Iterable[str]) -> dict[str, Any]:
    """Check the configuration in a file before any module that it names is imported.

    Args:
        config: Content of the file.
        source: Path of the file, for messages.
        keys: Keys that a configuration may have.
        trust_imports: Modules besides pyrovae, torch and Pyro that the file may name.

    Returns:
        The configuration, each part as {"class_path": full path, "init_args": {...}}.

    Raises:
        ValueError: If it is no mapping, has an unknown key, names a module that is not trusted, or an unknown part.
    """
    keys = list(keys)
    if not isinstance(config, Mapping):
        raise ValueError(f"{source} is no configuration: expected keys and values, got {type(config).__name__}")
    for key in config:
        if key not in keys:
            raise ValueError(f"{source}: unknown key {key!r}; {near(str(key), keys)}")
    trusted = {*TRUSTED, *trust_imports}
    for kind in BASES:
        for path in _import_paths(config.get(kind)):
            if not any(path == module or path.startswith(f"{module}.") for module in trusted):
                module = path.split(".", 1)[0]
                raise ValueError(
                    f"{source} names {path}, and importing {module} would run its code; if you trust it, use "
                    f"--trust_imports {module}"
                )
    return {key: _checked_part(key, value, source) if key in BASES else value for key, value in config.items()}


def full_part(kind: str, part: Any) -> dict[str, Any]:
    """Return a part, given by its name or with `class_path` and `init_args`, with its full path and both keys."""
    if isinstance(part, str):
        part = {"class_path": part}
    return {
        "class_path": part_path(part_class(kind, part["class_path"])),
        "init_args": dict(part.get("init_args") or {}),
    }


def _checked_part(kind: str, value: Any, source: str) -> Any:
    if value is None and kind in OPTIONAL:
        return None
    if isinstance(value, str):
        value = {"class_path": value}
    if not (isinstance(value, Mapping) and isinstance(value.get("class_path"), str)):
        raise ValueError(f"{source}: {kind} must be a name, or class_path with init_args, got {value!r}")
    for key in value:
        if key not in ("class_path", "init_args"):
            raise ValueError(f"{source}: {kind} has the key {key!r}; expected class_path and init_args alone")
    arguments = value.get("init_args") or {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{source}: init_args of {kind} must be names and values, got {arguments!r}")
    return full_part(kind, value)


def _import_paths(value: Any) -> list[str]:
    """Find everything in a part's configuration that could be read as an import path, inside longer texts as well."""
    if isinstance(value, str):
        return ["".join(match[0].split()) for match in _IMPORT_PATH.finditer(value)]
    if isinstance(value, Mapping):
        return [path for item in value.values() for path in _import_paths(item)]
    if isinstance(value, list | tuple):
        return [path for item in value for path in _import_paths(item)]
    return []
