"""Reads of files that may come from a stranger: regular files alone, with a limit on their size, and plain values.

A value's kind is a `Kind`; a dict of kinds by key (a key that ends in "?" may be missing, further keys are ignored); a
list with the kind of every entry; or a tuple with the kinds of the entries of a tuple.
"""

import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae.data import FILE_LIMIT as LIMIT
from pyrovae.data import check_size as check_size
from pyrovae.data import open_regular as open_regular
from pyrovae.data import parse_yaml as parse_yaml
from pyrovae.data import read_bytes as read_bytes
from pyrovae.data import what_is as what_is

CONFIG_LIMIT = 2**15  # bytes of a configuration
_MOST_STRUCTURES = 3_000_000  # lists and mappings in JSON: 64 MiB of metrics have 2 million
_MOST_DIGITS = 100  # of a whole number
_LONGEST_TEXT = 10_000  # letters of a text in JSON
_STRUCTURES: dict[type, str] = {dict: "keys and values", list: "a list", tuple: "a tuple"}


def read_json(path: Path, limit: int = LIMIT) -> Any:
    """Read JSON.

    Args:
        path: Path of the file.
        limit: Maximum size in bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not JSON of finite numbers, has a key twice, or as for `read_bytes`.
    """
    content = read_bytes(path, limit)
    try:
        return parse_json(content.decode())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); restore it from a copy") from error


def parse_json(text: str, *, finite: bool = True) -> Any:
    """Parse JSON.

    Args:
        text: Text.
        finite: Whether NaN and infinities are refused.

    Raises:
        ValueError: If the text is not JSON, has a key twice, a number of too many digits, is nested too deeply, or has
            so many lists and mappings that they would fill the memory.
    """
    if text.count("[") + text.count("{") > _MOST_STRUCTURES:
        raise ValueError(f"it has more than {_MOST_STRUCTURES:,} lists and mappings")
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_finite if finite else None,
            parse_constant=_finite if finite else None,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {_twice(key for key, _ in pairs)} is there twice")
    return found


def _twice(keys: Iterable[str]) -> str:
    """Return the most frequent key, in a few letters."""
    return _brief(Counter(keys).most_common(1)[0][0])


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a whole number has {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values: mappings, lists, texts, numbers, true, false and null.

    Aliases, tags, keys that are there twice, numbers such as 010 and 1:30, and texts beyond 4,096 letters are refused.

    Raises:
        ValueError: If the file does not exist, is no such YAML, or is larger than 32 KiB.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file, such as {path / 'config.yaml'}")
    try:
        content = read_bytes(path, CONFIG_LIMIT)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; give the path of a config.yaml") from error
    try:
        return parse_yaml(content.decode())
    except ValueError as error:
        raise ValueError(f"{path} is no YAML file of plain values: {error}; correct it") from error


@dataclass(frozen=True)
class Kind:
    """Kind of a plain value.

    Attributes:
        words: The kind in words, after "must be".
        fits: Function that says whether a value is of this kind.
    """

    words: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Each:
    """Mapping with any keys, whose values are all of one kind."""

    kind: Any


@dataclass(frozen=True)
class OrNull:
    """A kind, or null."""

    kind: Any


def one_of(*values: Any) -> Kind:
    """Return the kind of these values."""
    return Kind(f"one of {', '.join(map(repr, values))}", lambda value: type(value) is str and value in values)


def whole(least: int, largest: int = 2**53) -> Kind:
    """Return the kind of whole numbers from `least` to `largest`."""
    return Kind(
        f"a whole number from {least:,} to {largest:,}", lambda value: type(value) is int and least <= value <= largest
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT and value.isprintable()


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NUMBER = Kind("a finite number", lambda value: type(value) in (int, float) and math.isfinite(value))
REAL = Kind("a number", lambda value: type(value) in (int, float))
TEXT = Kind(f"a text of at most {_LONGEST_TEXT:,} letters, without control characters", _is_text)
SUM = Kind(
    "a SHA-256 of 64 letters", lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value))
)
TENSOR = Kind("a tensor", lambda value: isinstance(value, Tensor))
BYTES = Kind("a tensor of bytes", lambda value: isinstance(value, Tensor) and value.dtype is torch.uint8)
ANY = Kind("a value", lambda value: True)


def check_kind(value: Any, kind: Any, source: Path, advice: str) -> None:
    """Check that a value, read from a file, is of a kind.

    Args:
        value: Value.
        kind: Its kind, see the top of this module.
        source: Path of the file, for the message.
        advice: What to do about a misfit, for the message.

    Raises:
        ValueError: With the key of the first misfit.
    """
    if (misfit := _misfit(value, kind, "")) is not None:
        raise ValueError(f"{source} does not have the expected structure: {misfit}; {advice}")


def _misfit(value: Any, kind: Any, where: str) -> str | None:
    """Describe the first entry that is not of its kind; None if all are."""
    if isinstance(kind, OrNull):
        return None if value is None else _misfit(value, kind.kind, where)
    if isinstance(kind, Kind):
        return None if kind.fits(value) else f"{_place(where)} must be {kind.words}, got {_brief(value)}"
    structure: type = dict if isinstance(kind, Each) else type(kind)
    if not isinstance(value, structure):
        return f"{_place(where)} must be {_STRUCTURES[structure]}, got {_brief(value)}"
    entries: Any = value
    if isinstance(kind, tuple) and len(kind) != len(entries):
        return f"{_place(where)} must have {len(kind)} entries, got {len(entries)}"
    if isinstance(kind, dict):
        for key in kind:
            if not key.endswith("?") and key not in entries:
                return f"{_place(where)} has no key {key!r}"
    found = (_misfit(entry, each, f"{where}.{str(key)[:40]}") for key, entry, each in _entries(entries, kind))
    return next((misfit for misfit in found if misfit), None)


def _entries(value: Any, kind: Any) -> Iterator[tuple[Any, Any, Any]]:
    """List the entries of a mapping, list or tuple with their keys and kinds."""
    if isinstance(kind, Each):
        yield from ((key, entry, kind.kind) for key, entry in value.items())
    elif isinstance(kind, dict):
        plain = {key.removesuffix("?"): each for key, each in kind.items()}
        yield from ((key, value[key], each) for key, each in plain.items() if key in value)
    elif isinstance(kind, list):
        yield from ((index, entry, kind[0]) for index, entry in enumerate(value))
    else:
        yield from zip(range(len(value)), value, kind, strict=True)


def _place(where: str) -> str:
    return repr(where[1:]) if where else "it"


def _brief(value: Any) -> str:
    """Write a value in a few letters."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} with shape {tuple(value.shape)}"
    return reprlib.repr(value)
