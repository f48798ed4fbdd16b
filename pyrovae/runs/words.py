"""Types, choices and values in words, for help and error messages."""

import difflib
import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, get_loader, set_loader
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, restricted_number_type
from torch import nn

from pyrovae.runs.reading import parse_yaml

Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)], docstring="Whole number from 0 to 2**32 - 1")
Decay = restricted_number_type("Decay", float, [(">=", 0), ("<", 1)], docstring="Number from 0 to below 1")

VALUES = "pyrovae"  # mode of jsonargparse's parsers


def _loaded(text: str) -> Any:
    """Read a text as jsonargparse does, if it is YAML of plain values."""
    parse_yaml(text)  # which refuses; only jsonargparse reads 1e3 as a number
    return get_loader("yaml")(text)


set_loader(VALUES, _loaded, (yaml.YAMLError, ValueError))

_WORDS: dict[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
    PositiveInt: "a whole number, at least 1",
    NonNegativeInt: "a whole number, at least 0",
    PositiveFloat: "a number above 0",
    NonNegativeFloat: "a number, at least 0",
    Seed: "a whole number from 0 to 4294967295",
    Decay: "a number from 0 to below 1",
}
_EXAMPLES = {str: "[a,b]", float: "[0.5,2]", Seed: "[0,1]"}


def in_words(hint: Any) -> str:
    """Describe the values of a type in words.

    Example:
        >>> in_words(PositiveInt | None)
        'a whole number, at least 1, or null'
        >>> in_words(list[int])
        'a list of whole numbers, as in [20,10]'
        >>> in_words(Literal["train", "validation", "test"])
        'train, validation or test'
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is Literal:
        return either(map(str, arguments))
    if origin in (Union, UnionType):
        words = [said for said in map(in_words, arguments) if said != "a value"] or ["a value"]
        return (", or " if any("," in said for said in words) else " or ").join(words)
    if origin in (list, Sequence):
        (entry,) = arguments
        choices = get_args(entry) if get_origin(entry) is Literal else ()
        example = f"[{','.join(map(str, choices[:2]))}]" if choices else _EXAMPLES.get(entry, "[20,10]")
        return f"a list of {_plural(in_words(entry))}, as in {example}"
    if origin is tuple:
        return f"a list of {len(arguments)} numbers, as in [{','.join(['0.5', '2', '3'][: len(arguments)])}]"
    if inspect.isclass(hint) and issubclass(hint, nn.Module):
        return "a network"
    return "a value"


def without_null(hint: Any) -> Any:
    """Remove null from the alternatives of a type."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    return Union[tuple(argument for argument in get_args(hint) if argument is not NoneType)]  # noqa: UP007  # of types in a tuple


def shown(value: Any) -> str:
    """Write a value as the command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return str(value.get("class_path", value)).rpartition(".")[2]
    return f"{value:g}" if isinstance(value, float) else str(value)


def row(name: str, text: str, width: int) -> str:
    """Write a line of help: a name and, from a column on, a text, which goes on below itself."""
    return textwrap.fill(
        f"{name:{width}}{text}".replace("default: ", "default:\N{NO-BREAK SPACE}"),
        120,
        initial_indent="  ",
        subsequent_indent=" " * (width + 2),
        break_long_words=False,
        break_on_hyphens=False,
    ).replace("\N{NO-BREAK SPACE}", " ")


def choices_of(hint: Any) -> list[str]:
    """List the choices of a type, or of its alternatives."""
    literals = [each for each in (hint, *get_args(hint)) if get_origin(each) is Literal]
    return [str(choice) for literal in literals for choice in get_args(literal)]


def either(choices: Iterable[str]) -> str:
    """Join choices by commas and "or"."""
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else last


def closest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names closest to a name, at most three."""
    known = sorted(known)
    return [name] if name in known else difflib.get_close_matches(name, known, n=3, cutoff=0.5)


def near(name: str, known: Iterable[str]) -> str:
    """Suggest the known names closest to a name; list all if none is close."""
    known = list(known)
    likely = closest(name, known)
    return f"did you mean {either(likely)}?" if likely else f"choose {either(sorted(known))}"


def names(value: str) -> list[str]:
    """Split `a`, `a,b` or `[a, b]` into names."""
    return re.findall(r"[^\[\],\s\"']+", value)


def texts(value: str) -> list[str]:
    """Split `a`, `a,b b` or `[a, "b b"]` at its commas into texts, which may have spaces."""
    inside = value.strip().removeprefix("[").removesuffix("]")
    return [entry for entry in (each.strip().strip("\"'") for each in inside.split(",")) if entry]


def fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a type: a text as on the command line, anything else as in a YAML file.

    The type is made of texts, numbers, choices and lists of these (`is_plain`).
    """
    try:
        converted(hint, value)
    except (ArgumentError, ValueError, OverflowError, RecursionError):
        return False
    return True


def converted(hint: Any, value: Any) -> Any:
    """Convert a value to a type, as `fits` checks it.

    Raises:
        ArgumentError: If the value does not fit.
        ValueError: If it is None, and the type has no null.
    """
    if value is None and without_null(hint) == hint and hint is not NoneType:  # jsonargparse takes it for no value
        raise ValueError(f"expected {in_words(hint)}, got null")
    if isinstance(value, str) and value.lstrip().startswith("!") and str not in (hint, *get_args(hint)):
        raise ValueError(f"expected {in_words(hint)}, got a tag")  # !!null 3 is null in YAML
    parser = ArgumentParser(exit_on_error=False, parser_mode=VALUES)
    parser.add_argument("--value", type=hint)
    if isinstance(value, str):
        return parser.parse_args([f"--value={value}"]).value
    return parser.parse_object({"value": value}).value


def expected(hint: Any, value: Any) -> str:
    """Describe the values of a type, with the choice closest to a wrong value, if any."""
    likely = difflib.get_close_matches(str(value), choices_of(hint), n=1)
    return f"expected {in_words(hint)}{f'; did you mean {likely[0]}?' if likely else ''}"


def is_list(hint: Any) -> bool:
    """Whether all values of a type are lists of any length."""
    return get_origin(hint) in (list, Sequence)


def _plural(said: str) -> str:
    return re.sub(r"^an? (whole number|number|text)", r"\1s", said)


def is_plain(hint: Any) -> bool:
    """Whether a type is made of texts, numbers, choices and lists of these."""
    if hint in _WORDS or get_origin(hint) is Literal:
        return True
    containers = (Union, UnionType, list, Sequence, tuple)
    return get_origin(hint) in containers and all(is_plain(argument) for argument in get_args(hint))
