"""Reads of files that may come from a stranger: regular files alone, and YAML of plain values."""

import io
import os
import re
import reprlib
import stat
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

FILE_LIMIT = 64 * 2**20  # bytes of a file that is read as a whole
_MOST_DIGITS = 100  # of a whole number
_LONGEST_VALUE = 4096  # letters of a text
_DEEPEST = 30  # nesting
_TYPES = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISLNK: "a link",
}


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


def read_bytes(path: Path, limit: int = FILE_LIMIT) -> bytes:
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
            problem = f"the key {_twice(node)} is there twice"
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


def _twice(node: yaml.MappingNode) -> str:
    """Return the most frequent key, in a few letters."""
    return reprlib.repr(Counter(key.value for key, _ in node.value).most_common(1)[0][0])


_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null")}
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _PlainLoader.construct_yaml_float)
