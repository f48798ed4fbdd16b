"""Parts as plain values: the path of a class and its arguments, from a command line or a file, checked and made.

A part is {class_path, init_args}. Its class is looked up by name (`registry`). An argument is a plain value (a number,
a text, true, false, null, a list or a map of these), or another part where the constructor declares one. Nothing else
is looked up, imported or called, whatever the values say.
"""

from collections.abc import Collection, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from jsonargparse import Namespace
from pyro.infer import ELBO
from torch import nn
from torch.optim import Optimizer

from pyrovae.objectives import KLWeight
from pyrovae.runs.options import FROM_DATA, KINDS_OF_KNOWN_OPTIONS, KNOWN_OPTIONS, Option, no_such_option, part_options
from pyrovae.runs.reading import parse_yaml
from pyrovae.runs.registry import OPTIONAL, describe, nested_class, part_class, part_path
from pyrovae.runs.words import converted, expected, fits, in_words, is_plain, shown

_PARTS = (nn.Module, ELBO, KLWeight, Optimizer)
_PLAIN = (bool, int, float, str, type(None))
_NEEDED = "expected a number, a text, true, false, null, or lists and maps of these"
_DEEPEST = 20  # maps and lists inside each other


def read_part(kind: str, value: Any, *, source: str = "", trusted: Collection[str] | None = None) -> Namespace | None:
    """Check a part and its arguments, look its class up, and fill in the default arguments.

    Args:
        kind: Key of `BASES`.
        value: Name of the class, or {class_path, init_args}; None for no part, if the kind is optional.
        source: File of the value, for messages; empty for a command line.
        trusted: Modules of the user that the value may name; None for all.

    Returns:
        Namespace of class_path, the full path, and init_args, whose parts are such namespaces too.

    Raises:
        ValueError: If there is no such part or argument, or an argument has another type.
    """
    if value is None and kind in OPTIONAL:
        return None
    where = _Where(f"{source}: {kind}" if source else f"--{kind}", source, trusted)
    path, arguments = _split(value, where)
    return _checked(part_class(kind, path, trusted=trusted, flag=where.flag), arguments, where, kind=kind)


def make_arguments(kind: str, part: Namespace) -> dict[str, Any]:
    """Make the keyword arguments of a part's class: its plain values, and its parts as objects.

    Args:
        kind: Key of `BASES`.
        part: Result of `read_part`.

    Raises:
        ValueError: If a part refuses its arguments.
    """
    return _made(part_class(kind, part.class_path), part, f"--{kind}", kind)


class Text(str):
    """Text of a command line, which is read as YAML where no type says more."""

    def loaded(self, flag: str) -> Any:
        """Read the text as YAML."""
        try:
            return parse_yaml(self)
        except ValueError as error:
            raise ValueError(
                f"{flag} {self}: expected a number, a text, true, false, null, or a list of these"
            ) from error


class _Where:
    """Place of a value, for messages.

    Attributes:
        flag: Flag, or file and key.
        source: File; empty for a command line.
        trusted: Modules of the user that the value may name; None for all.
    """

    def __init__(self, flag: str, source: str, trusted: Collection[str] | None) -> None:
        self.flag, self.source, self.trusted = flag, source, trusted

    def at(self, name: str) -> "_Where":
        """Return the place of an argument."""
        return _Where(f"{self.flag}.{name}", self.source, self.trusted)

    def wrong(self, value: Any, needed: str) -> ValueError:
        """Make the error of a value."""
        said = f"{self.flag} is {shown(value)}; {needed}" if self.source else f"{self.flag} {shown(value)}: {needed}"
        return ValueError(said)


def _split(value: Any, where: _Where) -> tuple[str, dict[str, Any]]:
    """Split a part into the path of its class and its arguments."""
    if isinstance(value, str):
        value = {"class_path": value} if value else ""
    if isinstance(value, Namespace):
        value = {"class_path": value.get("class_path"), "init_args": dict(value.get("init_args") or {})}
    if not (isinstance(value, Mapping) and isinstance(value.get("class_path"), str) and value["class_path"]):
        raise ValueError(f"{where.flag} must be a name, or class_path with init_args, got {shown(value)}")
    for key in value:
        if key not in ("class_path", "init_args"):
            raise ValueError(f"{where.flag} has the key {key!r}; expected class_path and init_args alone")
    arguments = value.get("init_args") or {}
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise ValueError(f"{where.flag}: init_args must be names and values, got {shown(arguments)}")
    return value["class_path"], dict(arguments)


def _checked(part: type, arguments: Mapping[str, Any], where: _Where, *, kind: str = "") -> Namespace:
    """Check the arguments of a class, and fill in the defaults."""
    options = part_options(kind, part)
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if options is not None and name not in options:
            raise ValueError(f"{where.flag}.{name}: {no_such_option(kind, part, name, options)}")
        hint = Any if options is None else options[name].type
        found[name] = _value(hint, value, where.at(name))
    missing = []
    for name, option in (options or {}).items():
        if name in found:
            continue
        if not option.required:
            found[name] = _default(option)
        elif kind in KINDS_OF_KNOWN_OPTIONS and name in KNOWN_OPTIONS:
            found[name] = FROM_DATA
        else:
            missing.append(name)
    if missing:
        flags = missing if where.source else [f"{where.flag}.{name}" for name in missing]
        words = f", {in_words(options[missing[0]].type)}" if options and not missing[1:] else ""
        needed = f"{' and '.join(flags)}{words}; give {'them' if missing[1:] else 'it'}"
        raise ValueError(f"{where.flag} {part.__name__} needs {needed}")
    ordered = {name: found[name] for name in (options or found)}
    return Namespace(class_path=part_path(part), init_args=Namespace(**ordered))


def _default(option: Option) -> Any:
    """Return the default of an option as a file that states it gives it."""
    value = list(option.default) if isinstance(option.default, tuple) else option.default
    return converted(option.type, value) if is_plain(option.type) and fits(option.type, value) else value


def _value(hint: Any, value: Any, where: _Where) -> Any:
    """Check the value of an argument, and convert it to its type."""
    if isinstance(value, Text) and not is_plain(hint):
        value = value.loaded(where.flag)
    base = _part_of(hint)
    if base is not None and value is not None:
        path, arguments = _split(value, where)
        found = nested_class(base, path, trusted=where.trusted, flag=where.flag)
        return _checked(found, arguments, where)
    if is_plain(hint):
        if not fits(hint, value):
            raise where.wrong(value, expected(hint, value))
        return converted(hint, value)
    if not _is_data(value):
        raise where.wrong(value, _NEEDED)
    return value


def _part_of(hint: Any) -> type | None:
    """Return the class of parts among the alternatives of a type; None if there is none."""
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((each for each in alternatives if isinstance(each, type) and issubclass(each, _PARTS)), None)


def _is_data(value: Any, depth: int = 0) -> bool:
    """Return whether a value is plain, or made of lists and maps of plain values."""
    if depth > _DEEPEST:
        return False
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_data(each, depth + 1) for name, each in value.items())
    if isinstance(value, list | tuple):
        return all(_is_data(each, depth + 1) for each in value)
    return isinstance(value, _PLAIN)


def _made(part: type, spec: Namespace, flag: str, kind: str = "") -> dict[str, Any]:
    """Make the arguments of a class."""
    options, arguments = part_options(kind, part), {}
    for name, value in vars(spec.init_args).items():
        base = None if options is None else _part_of(options[name].type)
        if base is not None and value is not None:
            nested = nested_class(base, value.class_path, flag=f"{flag}.{name}")
            try:
                value = nested(**_made(nested, value, f"{flag}.{name}"))
            except Exception as error:
                raise ValueError(f"{flag}.{name} {nested.__name__} cannot be made: {describe(error)}") from error
        arguments[name] = value
    return arguments
