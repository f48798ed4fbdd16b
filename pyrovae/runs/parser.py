"""Parsers of the scripts' flags: help on one screen, and errors in one line."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from pyrovae.runs.words import (
    VALUES,
    Seed,
    closest,
    either,
    expected,
    fits,
    in_words,
    is_list,
    is_plain,
    names,
    row,
    shown,
    texts,
    without_null,
)

_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")  # the values beginning with a dash that argparse accepts
_SEE = "see --help"


class Flag(NamedTuple):
    """A flag of a script.

    Attributes:
        group: Heading in the help.
        name: Name, without dashes.
        type: Type of the value.
        default: Value if the flag is not given.
        help: One line. If the default is None it ends in "(default: ...)", which says what happens then.
        may_be_empty: Whether the value, a list or a text, may be empty.
    """

    group: str
    name: str
    type: Any
    default: Any
    help: str
    may_be_empty: bool = False


class Parser(ArgumentParser):
    """Parser that remembers its flags' types, and says them in words.

    Attributes:
        flags: Flags and positional arguments by name, in their order.
        positional: Names of the positional arguments.
        required: Names of the required flags.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.flags: dict[str, Flag] = {}
        self.positional: list[str] = []
        self.required: list[str] = []
        super().__init__(*args, **kwargs)

    def add_argument(self, *args: Any, group: str = "flags", may_be_empty: bool = False, **kwargs: Any) -> Any:
        """Add an argument to a group of the help. The rest is as for `Flag` and for jsonargparse."""
        if "type" in kwargs and isinstance(self, Parser):  # jsonargparse copies this method into its class of groups
            name = args[0].removeprefix("--")
            default, text = kwargs.get("default"), kwargs.get("help") or ""
            self.flags[name] = Flag(group, name, kwargs["type"], default, text, may_be_empty)
            if name == args[0]:
                self.positional.append(name)
            elif kwargs.get("required"):
                self.required.append(name)
        return super().add_argument(*args, **kwargs)

    def format_help(self, formatter: Any = None) -> str:
        """Write the help: one line per flag, in groups."""
        usage = [*map(str.upper, self.positional), *(f"--{name} VALUE" for name in self.required)]
        lines = [f"usage: {' '.join([self.prog, *usage])} [--FLAG VALUE ...]", "", (self.description or "").strip()]
        width = max((len(name) for name in self.flags), default=0) + 5
        for group in dict.fromkeys(flag.group for flag in self.flags.values()):
            lines += ["", f"{group}:"]
            for flag in self.flags.values():
                if flag.group == group:
                    name = flag.name.upper() if flag.name in self.positional else f"--{flag.name}"
                    lines.append(row(name, self._described(flag), width))
        return "\n".join([*lines, *(["", self.epilog] if self.epilog else [])]) + "\n"

    def _described(self, flag: Flag) -> str:
        text, _, default = flag.help.partition(" (default: ")
        words = _said(flag.type).removeprefix("a ") or ("or null" if without_null(flag.type) != flag.type else "")
        details = [words] if words else []
        if default or flag.default is not None:
            details.append(f"default: {default.removesuffix(')') or shown(flag.default)}")
        elif flag.name in self.required:
            details.append("required")
        return text + (f" ({'; '.join(details)})" if details else "")


def make_parser(**given: Any) -> Parser:
    """Make a parser that raises on errors; keyword arguments go to ArgumentParser."""
    return Parser(exit_on_error=False, allow_abbrev=False, parser_mode=VALUES, **given)


def make_run_parser(**given: Any) -> Parser:
    """Make a parser with the flags of every script that reads a trained run."""
    parser = make_parser(**given)
    parser.add_argument("run", type=str, help="run folder of train.py")
    parser.add_argument("--seed", type=Seed, default=0, help="seed of the draws")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, ...; auto is cuda if available")
    parser.add_argument("--data_dir", type=str | None, default=None, help="folder of MNIST (default: as in training)")
    parser.add_argument(
        "--trust_imports", type=list[str], default=[], help="modules that the run's files may import", may_be_empty=True
    )
    return parser


def parse_flags(parser: Parser, argv: Sequence[str]) -> Namespace:
    """Parse a command line.

    `--trust_imports a,b` is read as the list [a,b].

    Raises:
        ValueError: With one line that names the flag, its value and what it needs.
        SystemExit: For --help.
    """
    argv = checked_argv(parser, argv)
    try:
        parsed = parser.parse_args(argv)
    except ArgumentError as error:
        raise ValueError(_reworded(" ".join(str(error).split()), parser, argv)) from error
    for flag in (flag for flag in parser.flags.values() if flag.name in parsed):
        _check_entries(flag, parsed[flag.name], positional=flag.name in parser.positional)
    return parsed


def _check_entries(flag: Flag, value: Any, *, positional: bool) -> None:
    """Check that a text or a list is not empty, and that no entry of a list is given twice."""
    name = flag.name.upper() if positional else f"--{flag.name}"
    if positional and "" in (value if isinstance(value, list) else [value]):
        raise ValueError(f"{name} is an empty text; expected {needs(flag)}; {_SEE}")
    if not isinstance(value, list) or not any(is_list(kind) for kind in (flag.type, *get_args(flag.type))):
        return
    if not flag.may_be_empty and not value:
        raise ValueError(f"{name} []: the list is empty; give at least one value; {_SEE}")
    for entry in value:
        if value.count(entry) > 1:
            raise ValueError(f"{name} {shown(value)}: {shown(entry)} is given twice; give each value once")


def checked_argv(parser: Parser, argv: Sequence[str]) -> list[str]:
    """Check the names of the flags, and that each has a value. Write lists and negative values as argparse needs them.

    Raises:
        ValueError: If a flag does not exist, has no value or an option that it cannot have, or a list has spaces.
    """
    argv = _join_dashed_values(_with_lists(_with_switches(argv, parser), "--trust_imports"))
    for name, value in flags_and_values(argv):
        head = name.partition(".")[0].removesuffix("+")
        if head not in parser.flags:
            if head == "help":
                continue
            likely = [f"--{flag}" for flag in closest(head.replace("-", "_"), parser.flags)]
            raise ValueError(f"--{name}: no such flag; {f'did you mean {either(likely)}?; ' if likely else ''}{_SEE}")
        flag = parser.flags[head]
        if "." in name and is_plain(flag.type):
            raise ValueError(f"--{name}: --{head} has no options; give its value alone, as in --{head} VALUE; {_SEE}")
        if value is None and name == head:
            raise ValueError(f"--{name} needs a value: {needs(flag)}; {_SEE}")
        if value == "" and name == head and not flag.may_be_empty and is_plain(flag.type) and fits(flag.type, ""):
            raise ValueError(f"--{name} is an empty text; expected {needs(flag)}; {_SEE}")
        tagged = value is not None and name == head and is_plain(flag.type) and value.lstrip().startswith("!")
        if tagged and not fits(flag.type, value):
            raise ValueError(f"--{name} {value}: {expected(flag.type, value)}; {_SEE}")
        if value is not None and value.startswith("[") and not value.endswith("]"):
            raise ValueError(f"--{name} {value}: a list has no spaces and ends in a bracket, as in [20,10]")
    return argv


def _with_switches(argv: Sequence[str], parser: Parser) -> list[str]:
    """Give the value true to flags of true or false, if false by default, that have no value."""
    out: list[str] = []
    for index, token in enumerate(argv):
        flag = parser.flags.get(token.removeprefix("--")) if token.startswith("--") else None
        alone = argv[index + 1 : index + 2] == [] or argv[index + 1].startswith("--")
        is_switch = flag is not None and flag.type is bool and flag.default is False
        out.append(f"{token}=true" if is_switch and alone else token)
    return out


def flags_and_values(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Split a command line into flags, without dashes, and their values; None if a value is missing."""
    for index, token in enumerate(argv):
        name, equals, value = token[2:].partition("=")
        if token.startswith("--") and name:
            following = argv[index + 1 : index + 2]
            missing = not following or following[0].startswith("--")
            yield name, value if equals else None if missing else following[0]


def needs(flag: Flag) -> str:
    """Describe the values of a flag: its type in words, or its help if the type says little."""
    return _said(flag.type) or flag.help.partition(" (default")[0]


def _said(hint: Any) -> str:
    """Return a type in words, or an empty text if the words say little."""
    words = in_words(hint)
    return "" if words in ("null", *map(in_words, (Any, str, str | None))) else words


def _join_dashed_values(argv: Sequence[str]) -> list[str]:
    """Join flags with values that begin with a dash, such as -1e-3 and -.inf, which argparse takes for flags."""
    out: list[str] = []
    for token in argv:
        after_flag = bool(out) and out[-1].startswith("--") and "=" not in out[-1]
        if after_flag and re.match(r"-[^-]", token) and not _NEGATIVE.fullmatch(token):
            token = f"{out.pop()}={token}"
        out.append(token)
    return out


def _with_lists(argv: Sequence[str], flag: str) -> list[str]:
    """Write the values of a flag as lists."""
    out: list[str] = []
    for token in argv:
        if token.startswith(f"{flag}="):
            token = f"{flag}=[{', '.join(names(token.partition('=')[2]))}]"
        elif out and out[-1] == flag and not token.startswith("--"):
            token = f"[{', '.join(names(token))}]"
        out.append(token)
    return out


def with_name_lists(argv: Sequence[str]) -> list[str]:
    """Write the texts of --na_values as a list of texts, since -9 would be read as a number."""
    out: list[str] = []
    for token in argv:
        flag, equals, value = token.partition("=")
        if flag == "--na_values" and equals:
            token = f"{flag}={_list_of_texts(value)}"
        elif out and out[-1] == "--na_values" and not token.startswith("--"):
            token = f"{out.pop()}={_list_of_texts(token)}"
        out.append(token)
    return out


def _list_of_texts(value: str) -> str:
    return f"[{', '.join(json.dumps(text) for text in texts(value))}]"


def _reworded(message: str, parser: Parser, argv: Sequence[str]) -> str:
    """Rewrite an error of jsonargparse for the command line."""
    if match := re.search(r"unrecognized arguments: (\S+)", message):
        if match[1].startswith("-"):
            return f"{match[1]}: no such flag; flags begin with two dashes; {_SEE}"
        return f"{match[1]!r} follows no flag; give every value after its flag, as in --FLAG VALUE; {_SEE}"
    if match := re.search(r"arguments are required: ([\w, ]+)$", message):
        name = match[1].split(", ")[0]
        if name in parser.positional:
            return f"{name.upper()} is required: {parser.flags[name].help}; {_SEE}"
        return f"--{name} is required: {parser.flags[name].help}; {_SEE}"
    if (match := re.search(r'Parser key "(\w+)"', message)) and match[1] in parser.flags:
        flag = parser.flags[match[1]]
        values = [value for name, value in flags_and_values(argv) if name == flag.name]
        if values and in_words(flag.type) != "a value":
            return f"--{flag.name} {values[-1] or repr(values[-1])}: {expected(flag.type, values[-1])}; {_SEE}"
        if flag.name in parser.positional and (given := re.search(r"Got value: (.*)$", message)):
            return f"{flag.name.upper()} {given[1]}: {expected(flag.type, given[1])}; {_SEE}"
    return f"{message}; {_SEE}"
