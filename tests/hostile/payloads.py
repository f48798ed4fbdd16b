"""Values in a configuration that would run code if a library made objects of them, and places to put them."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

# Code that a payload runs: it leaves a file, starts a process, or opens a socket.
CLASSES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "process": lambda mark: spec("subprocess.Popen", args=["touch", str(mark)]),
    "process through torch": lambda mark: spec("torch.utils.cpp_extension.subprocess.Popen", args=["touch", str(mark)]),
    "process through pyrovae": lambda mark: spec("pyrovae.runs.sweep.subprocess.Popen", args=["touch", str(mark)]),
    "file": lambda mark: spec("logging.FileHandler", filename=str(mark)),
    "folder through pyrovae": lambda mark: spec(
        "pyrovae.data.sources.tempfile.TemporaryDirectory", dir=str(mark.parent), prefix=mark.name
    ),
    "socket": lambda mark: spec("socket.socket"),
    "socket through asyncio": lambda mark: spec("http.client.socket.socket"),
    "own module": lambda mark: spec("hostile_module.Thing"),
}

# What is put into a file as text, which a second reading may turn into one of these.
WRITTEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "as it is": lambda payload: payload,
    "in a list": lambda payload: [payload],
    "in a map": lambda payload: {"a": payload},
    "as JSON": json.dumps,
    "as YAML": lambda payload: yaml.safe_dump(payload, default_flow_style=True, width=10**6).strip(),
}

FORMS = ("as it is", "as JSON", "as YAML")  # in which a library reads one as the whole value

# Keys of config.yaml, from the top.
PLACES: dict[str, tuple[str, ...]] = {
    "untyped option of an objective": ("elbo", "init_args", "jit_options"),
    "untyped option": ("elbo", "init_args", "retain_graph"),
    "option with another type": ("prior", "init_args", "latents"),
    "option of a number": ("optimizer", "init_args", "eps"),
    "option of a list": ("network", "init_args", "hidden"),
    "part": ("prior",),
    "class of a part": ("encoder", "class_path"),
    "whole program": ("program",),
    "optional part": ("kl_weight",),
    "flag of a text": ("device",),
    "flag of a number": ("epochs",),
    "unknown key": ("callbacks",),
}


def spec(path: str, **arguments: Any) -> dict[str, Any]:
    """A class and its arguments, as jsonargparse has them."""
    return {"class_path": path, "init_args": arguments}


def hostile(config: dict[str, Any], mark: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each payload, written in each way, at each place of a configuration."""
    for kind, make in CLASSES.items():
        for form, write in WRITTEN.items():
            for place, keys in PLACES.items():
                changed = copy.deepcopy(config)
                inner = changed
                for key in keys[:-1]:
                    inner = inner[key]
                inner[keys[-1]] = write(make(mark))
                yield f"{kind}, {form}, {place}", changed
        for place in ("prior", "network"):  # a part that the constructor declares, of another class
            changed = copy.deepcopy(config)
            changed["prior"] = spec("pyrovae.ConditionalNormalPrior", network=make(mark))
            changed["network"] = spec("pyrovae.MLP") if place == "prior" else make(mark)
            yield f"{kind}, as a network of {place}", changed
