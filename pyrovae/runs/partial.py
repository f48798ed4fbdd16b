"""Stopped evaluations, kept in the user's cache: a run folder from elsewhere cannot bring one along.

Each lies in $XDG_CACHE_HOME/pyrovae/evaluations (~/.cache without the variable) under the SHA-256 of all that its
numbers depend on: weights, configuration, data, flags, versions, and the user's own modules.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from pyrovae.runs.files import read_state, sha256_of, write_state
from pyrovae.runs.reading import ANY, TENSOR, TEXT, Each, check_kind

STALE = 30 * 24 * 3600  # seconds after which a stopped evaluation is removed

_INSTALLED = ("pyrovae", "torch", "pyro", "builtins")  # their versions are known
_SUFFIX = ".safetensors"
_ESTIMATE = {
    "log_marginal": (TENSOR,) * 4,
    "draws": TENSOR,
    "served": TENSOR,
    "ladder": ANY,
    "components": ANY,
    "proposal": TEXT,
}
_BLOCK = {"elbo": TENSOR, "marginal": _ESTIMATE, "guide": _ESTIMATE}
_KIND = {"about": Each(ANY), "state": {"about": Each(ANY), "blocks": [_BLOCK]}}


class StoppedEvaluation:
    """Place of the state of an evaluation in the user's cache.

    If the cache cannot be written, or others can write there, the evaluation runs without it and says so on stderr.

    Args:
        about: All that the numbers depend on, as plain values.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        self.about = dict(about)
        key = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()
        folder = self._folder()
        self.path = None if folder is None else folder / f"{key}{_SUFFIX}"

    def _folder(self) -> Path | None:
        """Make the folder, and remove what is stale in it; None if it is not the user's own."""
        try:
            folder = cache_folder()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.stat()
            if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise PermissionError(f"{folder} belongs to another user, or others can write there")
            _sweep(folder)
            return folder
        except (OSError, RuntimeError) as error:
            _say(f"a stopped evaluation cannot be resumed: {error}; set XDG_CACHE_HOME to a folder of your own")
            return None

    def read(self) -> dict[str, Any] | None:
        """Return the state of the stopped evaluation; None if there is none. A damaged one is removed."""
        if self.path is None:
            return None
        try:
            found = read_state(self.path)
            check_kind(found, _KIND, self.path, "it is left out")
            if found["about"] != self.about:
                raise ValueError(f"{self.path} is of another evaluation")
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            _say(f"the stopped evaluation is left out: {error}")
            self.remove()
            return None
        return found["state"]

    def write(self, state: Mapping[str, Any]) -> None:
        """Save a state. If the cache is full, say so and save none any more."""
        if self.path is None:
            return
        try:
            write_state(self.path, {"about": self.about, "state": state})
        except OSError as error:
            _say(f"the evaluation goes on, but could not be resumed from here: {error}")
            self.path = None

    def remove(self) -> None:
        """Remove the state, once the evaluation is written or is to start anew."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Return the folder of stopped evaluations in the user's cache.

    Raises:
        RuntimeError: If the user has no home.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(given) if os.path.isabs(given) else Path.home() / ".cache"  # the standard ignores a relative path
    return root / "pyrovae" / "evaluations"


def own_sources(vae: nn.Module) -> dict[str, str]:
    """Return the SHA-256 of the files of the modules, by name, that define the model's parts outside of pyrovae."""
    sums = {}
    for name in sorted({type(part).__module__ for part in vae.modules()}):
        file = getattr(sys.modules.get(name), "__file__", None)
        if name.split(".")[0] not in _INSTALLED and file is not None and Path(file).is_file():
            sums[name] = sha256_of(Path(file))
    return sums


def _sweep(folder: Path) -> None:
    """Remove stopped evaluations, and unfinished files, that nothing has written to for 30 days."""
    for path in folder.iterdir():
        with suppress(OSError):  # another process may remove it at the same time
            if path.suffix == _SUFFIX and time.time() - path.lstat().st_mtime > STALE:
                path.unlink()


def _say(message: str) -> None:
    tqdm.write(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
