"""Versions of the packages that produced a file."""

import platform
from importlib import metadata

_PACKAGES = ("pyrovae", "torch", "torchvision", "pyro-ppl", "numpy", "arviz", "xarray", "safetensors", "jsonargparse")


def installed_version(package: str) -> str:
    """Return the version of a package; "unknown" if it is not installed, as pyrovae run from its source tree."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def all_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on, by name."""
    return {"python": platform.python_version(), **{name: installed_version(name) for name in _PACKAGES}}
