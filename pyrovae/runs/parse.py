"""Parsing of the training flags: those of parts by `specs`, the others by jsonargparse."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from pyrovae.likelihoods import MixedLikelihood
from pyrovae.runs.flags import CALL_ONLY, FLAGS, TYPES, WITH_RESUME, training_parser
from pyrovae.runs.options import check_part_options, options_text, part_options, parts_text
from pyrovae.runs.parser import Parser, checked_argv, flags_and_values, parse_flags, with_name_lists
from pyrovae.runs.reading import read_yaml
from pyrovae.runs.registry import BASES, OPTIONAL, part_class
from pyrovae.runs.specs import Text, read_part
from pyrovae.runs.table_data import is_table, take_column_flags
from pyrovae.runs.words import converted, expected, fits, names, near, shown

# Flags beside --config that choose other training rows, of which the numbers of a table's columns then are.
_SPLITTING = {"data", "split_seed", "folds", "fold", "group", "split", "na_values"}


def parse_training(argv: Sequence[str], **given: Any) -> Namespace:
    """Parse the flags of `scripts/train.py`, after its --config file.

    Raises:
        ValueError: With one line that says what is wrong.
        SystemExit: For --help, --help_parts and --KIND.help.
    """
    print_help_on_parts(argv)
    parser = training_parser(**given)
    argv, changes = take_column_flags(with_name_lists(argv))
    argv = checked_argv(parser, argv)
    trust = [name for value in _values_of(argv, "trust_imports") for name in names(value)]
    if _values_of(argv, "resume"):
        for name, _ in flags_and_values(argv):
            if name not in WITH_RESUME:
                raise ValueError(f"--{name}: a resumed run keeps its configuration; omit the flag")
    parts = _default_parts()
    for file in _values_of(argv, "config"):
        parts |= _set_defaults(parser, _beside(Path(file), read_yaml(Path(file))), source=file, trust_imports=trust)
    check_part_options(argv, parts)
    of_parts, others = _without_parts(argv)
    for kind, name, value in of_parts:
        parts[kind] = _changed(kind, parts[kind], name, value)
    joined = _joined(parse_flags(parser, others), parts)
    joined.column_changes = changes
    others_given = {name for name, _ in flags_and_values(argv)} & _SPLITTING
    joined.new_numbers = bool(_values_of(argv, "config")) and bool(others_given)
    return joined


def parse_config(config: Any, *, source: str, trust_imports: Iterable[str]) -> Namespace:
    """Parse the content of a run's config.yaml as `parse_training` does.

    Raises:
        ValueError: With one line that says what is wrong; also if the file names a module that is not trusted.
    """
    parser = training_parser(prog=source)
    parts = _default_parts() | _set_defaults(parser, config, source=source, trust_imports=trust_imports)
    return _joined(parse_flags(parser, []), parts)


def config_to_yaml(config: Namespace) -> bytes:
    """Write a resolved configuration as the text of config.yaml, without flags of a single call, such as --resume."""
    saved = {key: value for key, value in config.as_dict().items() if key in TYPES and key not in CALL_ONLY}
    text = yaml.safe_dump(_builtin_values(saved), sort_keys=False, allow_unicode=True)
    return text.encode()


def _beside(file: Path, config: Any) -> Any:
    """Return a configuration whose columns, if in a relative path, lie beside its file."""
    if isinstance(config, Mapping) and isinstance(config.get("columns"), str):
        return {**config, "columns": str(file.resolve().parent / config["columns"])}
    return config


def print_help_on_parts(argv: Sequence[str]) -> None:
    """Print what --help_parts and --KIND.help ask for, and exit; return if neither is given.

    Raises:
        ValueError: If there is no such kind or part.
    """
    for name, given in flags_and_values(argv):
        value = None if given == "null" else given
        kind, _, option = name.partition(".")
        if name == "help_parts" or (kind in BASES and option == "help"):
            print(options_text(kind, value) if option and value else parts_text(kind if option else value))
            sys.exit(0)


def _default_parts() -> dict[str, Any]:
    """Return the part of each kind that a run has without flags; None where it has none."""
    return {flag.name: _spec(flag.default) for flag in FLAGS if flag.name in BASES}


def _spec(part: Any) -> Any:
    """Write a part, given by its name or with its arguments, as class_path and init_args."""
    if isinstance(part, str):
        part = {"class_path": part}
    return None if part is None else {"class_path": part["class_path"], "init_args": part.get("init_args") or {}}


def _joined(flags: Namespace, parts: Mapping[str, Any]) -> Namespace:
    """Read the parts, and join them and the flags in the order of the keys of config.yaml."""
    read = {
        kind: read_part(kind, _of_columns(part) if kind == "likelihood" and is_table(flags.data) else part)
        for kind, part in parts.items()
    }
    return Namespace(**{flag.name: read[flag.name] if flag.name in read else flags[flag.name] for flag in FLAGS})


def _of_columns(likelihood: Any) -> Any:
    """Give the likelihood of a table the arguments that a column's own one has, where none are written."""
    if likelihood is None:
        return None
    defaults = MixedLikelihood.defaults_for(part_class("likelihood", likelihood["class_path"]))
    return {**likelihood, "init_args": {**defaults, **likelihood["init_args"]}}


def _set_defaults(parser: Parser, config: Any, *, source: str, trust_imports: Iterable[str]) -> dict[str, Any]:
    """Check the configuration in a file, make its plain values the parser's defaults, and return its parts."""
    keys = [key for key in TYPES if key not in CALL_ONLY]
    if not isinstance(config, Mapping):
        raise ValueError(f"{source} is no configuration: expected keys and values, got {type(config).__name__}")
    trusted, parts = tuple(trust_imports), {}
    for key, value in config.items():
        if key not in keys:
            raise ValueError(f"{source}: unknown key {shown(key)}; {near(str(key), keys)}")
        if key in BASES:
            read_part(key, value, source=source, trusted=trusted)
            parts[key] = _spec(value)
        elif value == "" or not fits(TYPES[key], value):
            raise ValueError(f"{source}: {key} is {shown(value) or repr(value)}; {expected(TYPES[key], value)}")
        else:
            parser.set_defaults({key: converted(TYPES[key], value)})
    return parts


def _without_parts(argv: Sequence[str]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Split a command line into the flags of parts, as kind, rest of the name and value, and the other tokens."""
    of_parts: list[tuple[str, str, str]] = []
    others: list[str] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        name, equals, value = token.removeprefix("--").partition("=")
        kind, _, rest = name.partition(".")
        if token.startswith("--") and kind in BASES:
            of_parts.append((kind, rest, value if equals else tokens.pop(0)))
        else:
            others.append(token)
    return of_parts, others


def _changed(kind: str, part: Any, name: str, value: str) -> Any:
    """Return a part after one of its flags.

    Args:
        kind: Key of `BASES`; empty for a part that is an argument of another.
        part: The part before, as class_path and init_args; None for none.
        name: What follows the kind in the flag, such as num_components.
        value: Value of the flag.
    """
    given = {} if part is None else dict(part["init_args"])
    if name in ("", "class_path"):
        if value == "null" and (not kind or kind in OPTIONAL):
            return None
        if value.startswith("{"):
            return _spec(Text(value).loaded(f"--{kind}"))
        options = part_options(kind, part_class(kind, value)) if kind else {}  # what the new class has too stays
        return {"class_path": value, "init_args": {k: v for k, v in given.items() if options is None or k in options}}
    first, _, rest = name.removeprefix("init_args").removeprefix(".").partition(".")
    if not first:
        given |= Text(value).loaded(f"--{kind}.{name}")
    elif rest:
        inside = given.get(first)
        if inside is None:
            raise ValueError(f"--{kind}.{name}: no {first} is chosen; give its class first, as in --{kind}.{first} MLP")
        given[first] = _changed("", _spec(str(inside) if isinstance(inside, Text) else inside), rest, value)
    else:
        given[first] = Text(value)
    return {"class_path": part["class_path"], "init_args": given}


def _values_of(argv: Sequence[str], flag: str) -> list[str]:
    return [value for name, value in flags_and_values(argv) if name == flag and value not in (None, "null")]


def _builtin_values(value: Any) -> Any:
    """Replace jsonargparse's namespaces and restricted numbers by plain Python values."""
    if isinstance(value, Mapping | Namespace):
        return {key: _builtin_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_builtin_values(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    for builtin in (int, float):  # jsonargparse's restricted numbers are subclasses
        if isinstance(value, builtin):
            return builtin(value)
    return str(value)
