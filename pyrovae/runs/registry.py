"""Parts by name: which priors, likelihoods, encoders, networks, objectives and optimizers a name or import path means.

Names typed on a command line may be import paths of the reader's own classes. Those that a file names are imported only
where the reader says so, since importing a module runs it.
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
import yaml
from pyro.infer import ELBO
from torch import nn

import pyrovae.encoders
import pyrovae.likelihoods
import pyrovae.nn
import pyrovae.objectives.bounds
import pyrovae.objectives.decompositions
import pyrovae.objectives.kl_weights
import pyrovae.objectives.weighted
import pyrovae.priors
import pyrovae.programs
from pyrovae.runs.cli import near

BASES: dict[str, type] = {
    "prior": pyrovae.priors.Prior,
    "likelihood": pyrovae.likelihoods.Likelihood,
    "encoder": pyrovae.encoders.Encoder,
    "network": pyrovae.nn.Network,
    "program": nn.Module,
    "elbo": ELBO,
    "kl_weight": pyrovae.objectives.kl_weights.KLWeight,
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
    "kl_weight": pyrovae.objectives.kl_weights,
    "optimizer": torch.optim,
}
# Those of Pyro's objectives that have a differentiable loss and need no arguments; ours stand beside them.
_OBJECTIVES = ("Trace_ELBO", "TraceMeanField_ELBO", "TraceEnum_ELBO")
# Whole models; what else stands beside them are their programs.
_PROGRAMS = ("TwoLayerVAE", "MixtureVAE")
# They take a closure, sparse gradients, or matrices alone.
_SPECIAL_OPTIMIZERS = ("LBFGS", "SparseAdam", "Muon")
_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\s*\.\s*[^\W\d]\w*)+")


def known_parts(kind: str) -> dict[str, type]:
    """The classes of a kind ("prior", "likelihood", ...) that go by their bare name."""
    base, home = BASES[kind], _HOMES[kind]
    if kind == "program":
        return {name: getattr(home, name) for name in _PROGRAMS}
    if kind == "elbo":
        ours: dict[str, type] = {"WeightedELBO": pyrovae.objectives.weighted.WeightedELBO}
        ours |= _parts_in(pyrovae.objectives.bounds, base) | _parts_in(pyrovae.objectives.decompositions, base)
        return {name: getattr(home, name) for name in _OBJECTIVES} | ours
    return _parts_in(home, base)


def _parts_in(home: ModuleType, base: type) -> dict[str, type]:
    found = inspect.getmembers(home, lambda c: inspect.isclass(c) and issubclass(c, base))
    return {
        name: part
        for name, part in found
        if part is not base
        and not inspect.isabstract(part)
        and not name.startswith("_")
        and name not in _SPECIAL_OPTIMIZERS
        and f"{part.__module__}.".startswith(f"{home.__name__}.")  # a home is a module or a folder of them
    }


def part_class(kind: str, name: str) -> type:
    """Find a part's class by its bare name, or by import path.

    Args:
        kind: A key of `BASES`.
        name: A name among `known_parts`, or module.Class; modules are looked for in the current directory too.

    Raises:
        ValueError: If there is no such class (with the near names), or it does not derive from the kind's base.
    """
    base, known = BASES[kind], known_parts(kind)
    if name in known:
        return known[name]
    if not _IMPORT_PATH.fullmatch(name):
        own = f"Or give the import path of your own subclass of {base.__name__}, module.Class"
        raise ValueError(f"--{kind} {name}: no such {kind}; {near(name, known)} {own}")
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
    if not (inspect.isclass(part) and issubclass(part, base) and part is not base):
        raise ValueError(
            f"--{kind} {name}: {class_name} is no subclass of {base.__module__}.{base.__name__}; derive it"
        )
    return part


def _import_own(name: str, where: str) -> ModuleType:
    """Import a reader's module, installed or in the current directory."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{where}: no module {error.name!r}, neither installed nor in this directory; go where it is, "
            "or correct the path"
        ) from error
    except Exception as error:
        raise ValueError(f"{where}: importing {name} fails: {describe(error)}; mend the module") from error
    finally:
        sys.path.remove(here)


def describe(error: BaseException) -> str:
    """What went wrong and where, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    first = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}: {first[0] if first else 'no message'}{place}"


def part_path(part: type) -> str:
    """The shortest import path of a part's class, which outlives a move of its module within its package."""
    steps = part.__module__.split(".")
    homes = [".".join(steps[:length]) for length in range(1, len(steps) + 1)]
    for home in homes:
        if getattr(sys.modules.get(home), part.__name__, None) is part:
            return f"{home}.{part.__name__}"
    raise ValueError(f"{part.__module__}.{part.__qualname__} is not found under its own name; define it at top level")


def checked_config(config: Any, *, source: str, keys: Iterable[str], trust_imports: Iterable[str]) -> dict[str, Any]:
    """Check a configuration that came from a file before anything that it names is imported.

    Args:
        config: What the file holds.
        source: The file, for messages.
        keys: The keys that a configuration may have.
        trust_imports: Modules, beside pyrovae, torch and Pyro, that the file may name.

    Returns:
        The configuration, each part as {"class_path": full path, "init_args": {...}}.

    Raises:
        ValueError: If it is no mapping, has an unknown key, names a module that is not trusted, or a part that is not.
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
                    f"{source} names {path}, and importing {module} would run its code; if you trust it, say "
                    f"--trust_imports {module}"
                )
    return {key: _checked_part(key, value, source) if key in BASES else value for key, value in config.items()}


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values.

    Raises:
        ValueError: If it is not there, or no YAML.
    """
    try:
        return yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; give the path of a config.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error


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
    part = part_class(kind, value["class_path"])
    return {"class_path": part_path(part), "init_args": dict(arguments)}


def _import_paths(value: Any) -> list[str]:
    """Everything in a part's configuration that could be taken for an import path, inside longer texts too."""
    if isinstance(value, str):
        return ["".join(match[0].split()) for match in _IMPORT_PATH.finditer(value)]
    if isinstance(value, Mapping):
        return [path for item in value.values() for path in _import_paths(item)]
    if isinstance(value, list | tuple):
        return [path for item in value for path in _import_paths(item)]
    return []
