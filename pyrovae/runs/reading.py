"""Reads of files that may come from a stranger: regular files alone, with a limit on their size, and plain values.

A value's kind is a `Kind`; a dict of kinds by key (a key that ends in "?" may be missing, further keys are ignored); a
list with the kind of every entry; or a tuple with the kinds of the entries of a tuple.
"""

import io
import json
import math
import os
import re
import reprlib
import stat
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

LIMIT = 64 * 2**20  # bytes of a file that is read as a whole
CONFIG_LIMIT = 2**15  # bytes of a configuration
_MOST_STRUCTURES = 3_000_000  # lists and mappings in JSON: 64 MiB of metrics have 2 million
_MOST_DIGITS = 100  # of a whole number
_LONGEST_TEXT = 10_000  # letters of a text in JSON
_LONGEST_VALUE = 4096  # letters of a text in a configuration
_DEEPEST = 30  # nesting of a configuration
_TYPES = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISLNK: "a link",
}

_STRUCTURES: dict[type, str] = {dict: "keys and values", list: "a list", tuple: "a tuple"}


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading. Anything else is refused without waiting for it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, a named pipe, a socket or a device.
    """
    _check_regular(path, path.stat())
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(path, os.fstat(handle))  # it may have been replaced
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def what_is(path: Path) -> str:
    """Say what a path is that is no regular file; a link is not followed."""
    return _what(path.lstat().st_mode)


def _what(mode: int) -> str:
    return next((words for test, words in _TYPES.items() if test(mode)), "no regular file")


def _check_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(
            f"{path} is {_what(found.st_mode)}, but must be a regular file; restore it from a copy, or give another"
        )


def check_size(path: Path, limit: int) -> None:
    """Check that a file is regular and not larger than a limit in bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is larger, or not regular.
    """
    found = path.stat()
    _check_regular(path, found)
    if found.st_size > limit:
        raise ValueError(
            f"{path} has {found.st_size:,} bytes, but such a file has at most {limit:,}; restore it from a copy"
        )


def read_bytes(path: Path, limit: int = LIMIT) -> bytes:
    """Read a whole file.

    Args:
        path: Path of the file.
        limit: Maximum size in bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no regular file, or larger than the limit.
    """
    check_size(path, limit)
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:  # some files of the system have no size
        raise ValueError(f"{path} has more than {limit:,} bytes; restore it from a copy")
    return content


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


def parse_yaml(text: str) -> Any:
    """Parse YAML of plain values, as `read_yaml`.

    Raises:
        ValueError: If the text is no such YAML.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)  # a safe loader
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        problem = " ".join(str(error).replace('"<unicode string>", ', "").split())
        raise ValueError(problem) from error


class _PlainLoader(yaml.SafeLoader):
    """Loader of plain values, without what makes a small file large or its meaning doubtful."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        where = event.start_mark
        if getattr(event, "tag", None) is not None:  # it would make another value of the text
            raise yaml.MarkedYAMLError(problem=f"the tag {event.tag[:80]!r} is refused", problem_mark=where)
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are refused; write the value again", problem_mark=where)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=where)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and len(node.value) > _LONGEST_VALUE:
            raise yaml.MarkedYAMLError(problem=f"a text has {len(node.value):,} letters", problem_mark=where)
        if node is not None and node.tag not in _PLAIN_TAGS:
            raise yaml.MarkedYAMLError(problem=f"the tag {node.tag[:80]!r} is refused", problem_mark=where)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            problem = f"the key {_twice(key.value for key, _ in node.value)} is there twice"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return found

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _MOST_DIGITS:
            problem = f"a whole number has {len(node.value):,} digits"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        self._check_decimal(node)
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        self._check_decimal(node)
        return super().construct_yaml_float(node)

    def _check_decimal(self, node: yaml.ScalarNode) -> None:
        """Refuse numbers that mean less or more than they seem to: 010 is 8 in YAML, 1:30 is 90."""
        if re.match(r"[-+]?0[\dxb]", node.value) or re.search("[:_]", node.value):
            problem = f"the number {node.value[:40]} is not decimal, or has zeros at its start; write it in digits"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null")}
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _PlainLoader.construct_yaml_float)


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
