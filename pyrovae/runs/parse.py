"""Parsing of the training flags. Help, trust and --config come first, because parsing imports every named class."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from pyrovae.runs.flags import CALL_ONLY, TYPES, WITH_RESUME, training_parser
from pyrovae.runs.options import check_file_options, check_part_options, options_text, parts_text
from pyrovae.runs.parser import Parser, checked_argv, flags_and_values, parse_flags
from pyrovae.runs.registry import BASES, checked_config, full_part, part_class, part_path, read_yaml
from pyrovae.runs.words import expected, fits, names, shown


def parse_training(argv: Sequence[str], **given: Any) -> Namespace:
    """Parse the flags of `scripts/train.py`, after its --config file. Every part is checked before it is imported.

    Raises:
        ValueError: With one line that says what is wrong.
        SystemExit: For --help, --help_parts and --KIND.help.
    """
    print_help_on_parts(argv)
    parser = training_parser(**given)
    argv = checked_argv(parser, argv)
    trust = [name for value in _values_of(argv, "trust_imports") for name in names(value)]
    if _values_of(argv, "resume"):
        for name, _ in flags_and_values(argv):
            if name not in WITH_RESUME:
                raise ValueError(f"--{name}: a resumed run keeps its configuration; omit the flag")
    argv = _with_full_paths(argv)
    for file in _values_of(argv, "config"):
        _set_defaults(parser, read_yaml(Path(file)), source=file, trust_imports=trust)
    known = check_part_options(argv, {kind: parser.get_default(kind) for kind in BASES})
    return parse_flags(parser, [*argv, *known])


def parse_config(config: Any, *, source: str, trust_imports: Iterable[str]) -> Namespace:
    """Parse the content of a run's config.yaml as `parse_training` does.

    Raises:
        ValueError: With one line that says what is wrong; also if the file names a module that is not trusted.
    """
    parser = training_parser(prog=source)
    _set_defaults(parser, config, source=source, trust_imports=trust_imports)
    return parse_flags(parser, [])


def config_to_yaml(config: Namespace) -> bytes:
    """Write a resolved configuration as the text of config.yaml, without flags of a single call, such as --resume."""
    saved = {key: value for key, value in config.as_dict().items() if key not in CALL_ONLY}
    text = yaml.safe_dump(_builtin_values(saved), sort_keys=False, allow_unicode=True)
    return text.encode()


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


def _set_defaults(parser: Parser, config: Any, *, source: str, trust_imports: Iterable[str]) -> None:
    """Make the configuration in a file the parser's defaults."""
    keys = [key for key in TYPES if key not in CALL_ONLY]
    checked = checked_config(config, source=source, keys=keys, trust_imports=trust_imports)
    for key, value in checked.items():
        if key in BASES:
            check_file_options(key, value, source)
        elif not fits(TYPES[key], value):
            raise ValueError(f"{source}: {key} is {shown(value)}; {expected(TYPES[key], value)}")
    parser.set_defaults(checked)


def _values_of(argv: Sequence[str], flag: str) -> list[str]:
    return [value for name, value in flags_and_values(argv) if name == flag and value not in (None, "null")]


def _with_full_paths(argv: Sequence[str]) -> list[str]:
    """Write the name of every part as the full path of its class."""
    out: list[str] = []
    pending = None
    for token in argv:
        flag, equals, value = token.partition("=")
        kind = flag.removeprefix("--").removesuffix(".class_path")
        if pending:
            token, pending = _with_full_path(pending, token), None
        elif kind in BASES and flag.startswith("--"):
            if equals:
                token = f"--{kind}={_with_full_path(kind, value)}"
            else:
                token, pending = f"--{kind}", kind
        out.append(token)
    return out


def _with_full_path(kind: str, value: str) -> str:
    if value.startswith("{"):
        try:
            given = yaml.safe_load(value)
            return yaml.safe_dump(full_part(kind, given), default_flow_style=True, width=10**6).strip()
        except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"--{kind} {value}: expected a name, or class_path with init_args") from error
    return part_path(part_class(kind, value))


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
