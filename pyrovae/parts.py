"""Parts by name: which priors, likelihoods, encoders, networks, objectives and optimizers a name or import path means.

Names typed on a command line may be import paths of the reader's own classes. Those that a file names are imported only
where the reader says so, since importing a module runs it.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyro.infer
import pyro.optim
import torch
import yaml
from pyro.infer import ELBO

import pyrovae.encoders
import pyrovae.likelihoods
import pyrovae.nn
import pyrovae.priors
from pyrovae.terminal import near

BASES: dict[str, type] = {
    "prior": pyrovae.priors.Prior,
    "likelihood": pyrovae.likelihoods.Likelihood,
    "encoder": pyrovae.encoders.Encoder,
    "network": pyrovae.nn.Network,
    "elbo": ELBO,
    "optimizer": torch.optim.Optimizer,
}

TRUSTED = ("pyrovae", "torch", "pyro")

_HOMES = {
    "prior": pyrovae.priors,
    "likelihood": pyrovae.likelihoods,
    "encoder": pyrovae.encoders,
    "network": pyrovae.nn,
    "elbo": pyro.infer,
    "optimizer": torch.optim,
}
# Those of Pyro's objectives that have a differentiable loss and need no arguments.
_OBJECTIVES = ("Trace_ELBO", "TraceMeanField_ELBO", "TraceEnum_ELBO")
# They take a closure, sparse gradients, or matrices alone.
_SPECIAL_OPTIMIZERS = ("LBFGS", "SparseAdam", "Muon")
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def known_parts(kind: str) -> dict[str, type]:
    """The classes of a kind ("prior", "likelihood", ...) that go by their bare name."""
    base, home = BASES[kind], _HOMES[kind]
    if kind == "elbo":
        return {name: getattr(home, name) for name in _OBJECTIVES}
    found = inspect.getmembers(home, lambda c: inspect.isclass(c) and issubclass(c, base))
    return {
        name: part
        for name, part in found
        if part is not base
        and not name.startswith("_")
        and name not in _SPECIAL_OPTIMIZERS
        and f"{part.__module__}.".startswith(f"{home.__name__}.")
    }


def part_class(kind: str, name: str) -> type:
    """Find a part's class by its bare name, or by import path.

    Args:
        kind: "prior", "likelihood", "encoder", "network", "elbo" or "optimizer".
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
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--{kind} {name}: no module {error.name!r}, neither installed nor in this directory; go where it is, "
            "or correct the path"
        ) from error
    except (SyntaxError, ImportError) as error:
        raise ValueError(f"--{kind} {name}: {module_name} cannot be imported: {error}; mend the module") from error
    part = getattr(module, class_name, None)
    if part is None:
        there = dict(inspect.getmembers(module, inspect.isclass))
        raise ValueError(f"--{kind} {name}: {module_name} has no class {class_name}; {near(class_name, there)}")
    if not (inspect.isclass(part) and issubclass(part, base) and part is not base):
        raise ValueError(
            f"--{kind} {name}: {class_name} is no subclass of {base.__module__}.{base.__name__}; derive it"
        )
    return part


def part_path(part: type) -> str:
    """The shortest import path of a part's class, which outlives a move of its module within its package."""
    steps = part.__module__.split(".")
    homes = [".".join(steps[:length]) for length in range(1, len(steps) + 1)]
    home = next(home for home in homes if getattr(sys.modules.get(home), part.__name__, None) is part)
    return f"{home}.{part.__name__}"


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
    if value is None:
        return None
    if isinstance(value, str):
        value = {"class_path": value}
    if not (isinstance(value, Mapping) and isinstance(value.get("class_path"), str)):
        raise ValueError(f"{source}: {kind} must be a name, or class_path with init_args, got {value!r}")
    part = part_class(kind, value["class_path"])
    return {"class_path": part_path(part), "init_args": dict(value.get("init_args") or {})}


def _import_paths(value: Any) -> list[str]:
    """Everything in a part's configuration that could be taken for an import path."""
    if isinstance(value, str):
        return [value] if _IMPORT_PATH.fullmatch(value) else []
    if isinstance(value, Mapping):
        return [path for item in value.values() for path in _import_paths(item)]
    if isinstance(value, list | tuple):
        return [path for item in value for path in _import_paths(item)]
    return []
