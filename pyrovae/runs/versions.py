"""Versions of the packages that produced a file."""

from importlib import metadata


def installed_version(package: str) -> str:
    """Return the version of a package; "unknown" if it is not installed, as pyrovae run from its source tree."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
