"""Exceptions and warnings about programs that run more slowly than requested."""

import traceback
import warnings
from contextlib import suppress
from pathlib import Path

import pyro
import torch

# Frames of these folders do not show the user's line.
_LIBRARIES = (*torch.__path__, *pyro.__path__, str(Path(__file__).parent))


class NotRecordedError(Exception):
    """A function cannot be recorded. The message is one line with the reason."""


class NotRecordedWarning(UserWarning):
    """A function runs eagerly, or its record is not compiled. The message gives the reason."""


def warn(message: str) -> None:
    """Warn that a function runs more slowly than requested."""
    warnings.warn(message, NotRecordedWarning, stacklevel=2)


def refuse(what: str, reason: object) -> None:
    """Warn that a function runs eagerly."""
    warn(f"{what} runs eagerly, since it cannot be recorded: {reason}")


def first_line(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def reason_not_recorded(error: Exception) -> str:
    """Explain in one line why tracing raised an error. Names the user's line if Python needed a tensor's value."""
    if "value out of a tracing tensor" not in str(error):
        return first_line(error)
    reason = "Python asks for the value of a tensor (.item(), bool(), an if)"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_LIBRARIES)]
    with suppress(IndexError):
        reason += f", in {Path(frames[-1].filename).name}, line {frames[-1].lineno}"
    return reason
