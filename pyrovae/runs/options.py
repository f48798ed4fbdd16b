"""Options of parts: their types, checks of the values given on a command line or in a file, and help."""

import collections.abc
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from jsonargparse.typing import PositiveInt
from torch import Tensor

from pyrovae.runs.flags import TYPES
from pyrovae.runs.parser import flags_and_values
from pyrovae.runs.reading import parse_yaml
from pyrovae.runs.registry import BASES, OPTIONAL, known_parts, part_class
from pyrovae.runs.words import (
    choices_of,
    closest,
    either,
    expected,
    fits,
    in_words,
    is_plain,
    near,
    row,
    shown,
    without_null,
)

# The first lines of Pyro's docstrings do not tell its objectives apart.
_PYRO_SUMMARIES = {
    "Trace_ELBO": "ELBO from draws of the guide: L = sum_n E_q[log p(x_n, z) - log q(z|x_n)], in nats.",
    "TraceMeanField_ELBO": "ELBO with KL(q(z|x_n), p(z)) in closed form if Pyro knows it, in nats.",
    "TraceEnum_ELBO": "ELBO that sums over discrete latents, in nats.",
}
# Pyro annotates no argument of its objectives.
_PYRO_TYPES = {"num_particles": PositiveInt}
_PYRO_LINES = {
    "num_particles": "Number of draws K per datum",
    "max_plate_nesting": "Largest number of nested plates; inf to count them",
    "vectorize_particles": "Whether to draw all particles at once",
    "strict_enumeration_warning": "Whether a latent must be enumerated",
}
# Options of Pyro's objectives and torch's optimizers that do nothing here, or that no run can use.
_USELESS_OPTIONS = (
    "max_iarange_nesting",
    "ignore_jit_warnings",
    "jit_options",
    "retain_graph",
    "tail_adaptive_beta",
    "differentiable",
    "last_epoch",
)
# Required options that the script takes from the data and the other flags (`resolve`). Until then they hold FROM_DATA.
KNOWN_OPTIONS = (
    *("num_data", "num_labelled", "latent_dim", "total_count", "num_classes", "num_bins", "num_levels", "resolution"),
    *("T_max", "max_lr"),
)
KINDS_OF_KNOWN_OPTIONS = ("likelihood", "elbo", "lr_schedule")
FROM_DATA = -1
_PYTHON_VALUES = {"None": None, "True": True, "False": False}


class Option(NamedTuple):
    """An option of a part.

    Attributes:
        type: Type of the value; Any if unknown.
        default: Default value; `inspect.Parameter.empty` if the option is required.
        help: Description, in one line.
    """

    type: Any
    default: Any
    help: str

    @property
    def required(self) -> bool:
        """Whether the option has no default."""
        return self.default is inspect.Parameter.empty


def part_options(kind: str, part: type) -> dict[str, Option] | None:
    """Read the options of a part from its signature: all arguments but the first ones, which the script gives.

    Args:
        kind: Key of `BASES`; empty for a part that is an argument of another, which gets no arguments from the script.
        part: Class of the part.

    Returns:
        Options by name; None if the part accepts arbitrary keyword arguments.
    """
    hints = (TYPES[kind], *get_args(TYPES[kind])) if kind else ()
    callables = [hint for hint in hints if get_origin(hint) is collections.abc.Callable]
    num_given = len(get_args(callables[0])[0]) if callables else 0
    parameters = list(inspect.signature(part).parameters.values())[num_given:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    types, lines = _type_hints(part), _argument_lines(part)
    if part.__module__.startswith("pyro."):
        types, lines = _PYRO_TYPES | types, _PYRO_LINES | lines
    return {
        parameter.name: Option(
            _without_tensors(types.get(parameter.name, _type_of_default(parameter.default))),
            parameter.default,
            _first_sentence(lines.get(parameter.name, "")),
        )
        for parameter in parameters
        if parameter.kind is not parameter.VAR_POSITIONAL
    }


def check_part_options(argv: Sequence[str], parts: Mapping[str, Any]) -> None:
    """Check the options of parts on a command line, in their order.

    Args:
        argv: Command line.
        parts: Part of each kind before the command line is read, with `class_path` and `init_args`, or None.

    Raises:
        ValueError: If an option precedes its part, the part does not have it, or its value is of another type.
    """
    for kind in BASES:
        tokens = [(name.removeprefix(kind), value) for name, value in flags_and_values(argv) if _kind(name) == kind]
        chosen = [_class_of(kind, value) if name in ("", ".class_path") else None for name, value in tokens]
        part = None if parts[kind] is None else part_class(kind, parts[kind]["class_path"])
        for index, (name, value) in enumerate(tokens):
            if name in ("", ".class_path"):
                part = chosen[index]
            else:
                option = name.removeprefix(".").removeprefix("init_args.")
                _check_option(kind, part, option, value, [found for found in chosen[index:] if found])


def parts_text(kind: str | None) -> str:
    """List the parts of a kind with one line each; of all kinds if it is None.

    Raises:
        ValueError: If there is no such kind.
    """
    if kind is not None and kind not in BASES:
        raise ValueError(f"--help_parts {kind}: no such kind of parts; {near(kind, BASES)}")
    lines = []
    for each in BASES if kind is None else [kind]:
        lines.append(f"--{each}:")
        lines += [row(name, _summary(part), 39) for name, part in known_parts(each).items()]
        lines.append("")
    return "\n".join([*lines, f"--{kind or 'KIND'}.help NAME lists the options of a part."])


def options_text(kind: str, name: str) -> str:
    """List the options of a part with one line each.

    Raises:
        ValueError: If there is no such part.
    """
    part = part_class(kind, name)
    lines = [textwrap.fill(f"--{kind} {part.__name__}: {_summary(part)}", 120, subsequent_indent="  "), ""]
    options = part_options(kind, part)
    hidden = _USELESS_OPTIONS if part.__module__.startswith(("pyro.", "torch.")) else ()
    for option, (hint, default, text) in (options or {}).items():
        if option not in hidden:
            follows = option in KNOWN_OPTIONS and kind in KINDS_OF_KNOWN_OPTIONS
            lines.append(row(f"--{kind}.{option}", _described(hint, default, text, follows), len(kind) + 32))
    return "\n".join(lines if options else [*lines, "  It has no options." if options == {} else "  See its code."])


def _described(hint: Any, default: Any, text: str, follows: bool) -> str:
    """Describe an option: its text, its type in words unless the text explains every choice, and its default.

    A required option may follow from the data and the other flags.
    """
    choices = choices_of(hint)
    if choices and all(f'"{choice}"' in text for choice in choices):
        text, words = text.replace('"', ""), "or null" if without_null(hint) != hint else ""
    else:
        words = in_words(hint).replace("a value", "")
    details = [words] if words else []
    required = "default: from the data and the flags" if follows else "required"
    details.append(required if default is inspect.Parameter.empty else f"default: {shown(default)}")
    return f"{f'{text} ' if text else ''}({'; '.join(details)})"


def _check_option(kind: str, part: type | None, option: str, value: str | None, later: Sequence[type]) -> None:
    flag, name = f"--{kind}.{option}", option.partition(".")[0]
    if part is None and not later:
        owners = _owners(kind, name)
        example = f"as in --{kind} {owners[0]} {flag} {value}" if owners else f"--help_parts {kind} lists them"
        raise ValueError(f"{flag}: no {kind} is chosen; give one first, {example}")
    options = part_options(kind, part) if part else {}
    if option == "init_args" and not str(value).startswith("{"):
        raise ValueError(f"{flag} {value}: expected {{NAME: VALUE}}; or give each option as --{kind}.NAME VALUE")
    if options is None or option == "init_args":
        return
    if name not in options:
        for other in later:
            if name in (part_options(kind, other) or ()):
                raise ValueError(f"{flag} precedes --{kind} {other.__name__}; give the part first, then its options")
        raise ValueError(f"{flag}: {no_such_option(kind, part or later[0], name, options)}")
    hint, see = options[name].type, f"see --{kind}.help {part.__name__ if part else ''}"
    if value is None:
        raise ValueError(f"{flag} needs a value: {in_words(hint)}; {see}")
    if name != option and is_plain(hint):
        raise ValueError(f"{flag}: --{kind}.{name} has no options; give its value alone, as in --{kind}.{name} VALUE")
    if name == option and is_plain(hint) and not fits(hint, value):
        raise ValueError(f"{flag} {value}: {expected(hint, value)}; {see}")


def no_such_option(kind: str, part: type, name: str, options: Mapping[str, Option]) -> str:
    """Say that a part does not have an option, and which one may be meant."""
    likely, owners = closest(name.replace("-", "_"), options), _owners(kind, name)
    if likely:
        hint = f"did you mean {either(likely)}?"
    elif owners:
        hint = f"{either(owners)} has it, to be named first with --{kind}"
    elif name in TYPES:
        hint = f"use --{name}"
    else:
        hint = f"choose {either(options)}" if options else "it has none"
    return f"{part.__name__} has no such option; {hint}"


def _owners(kind: str, option: str) -> list[str]:
    known = known_parts(kind) if kind else {}
    return [name for name, part in known.items() if option in (part_options(kind, part) or ())]


def _kind(name: str) -> str:
    return name.partition(".")[0]


def _class_of(kind: str, value: str | None) -> type | None:
    """Return the class of a part that a flag names."""
    if value == "null" and kind in OPTIONAL:
        return None
    path = str(value)
    if path.startswith("{"):
        try:
            path = parse_yaml(path)["class_path"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"--{kind} {value}: expected a name, or class_path with init_args") from error
        if not isinstance(path, str):
            raise ValueError(f"--{kind} {value}: expected a name, or class_path with init_args")
    return part_class(kind, path)


def _summary(part: type) -> str:
    lines = (inspect.getdoc(part) or "").strip().splitlines()
    pyro_summaries = _PYRO_SUMMARIES if part.__module__.startswith("pyro.") else {}
    return pyro_summaries.get(part.__name__, _without_markup("".join(lines[:1])))


def _type_hints(part: type) -> dict[str, Any]:
    try:
        # Some modules of torch import the names of collections.abc for a type checker alone.
        return get_type_hints(part.__init__, localns=vars(collections.abc))  # type: ignore[misc]  # of the class itself
    except (NameError, TypeError):  # annotations that only a type checker resolves
        return {}


def _type_of_default(default: Any) -> Any:
    """Guess the type of an argument without annotation: a number may be any number."""
    if isinstance(default, bool):
        return bool
    return float if isinstance(default, int | float) else Any


def _without_tensors(hint: Any) -> Any:
    """Remove tensors from the alternatives of a type, and read an iterable as a list, as a file or a flag gives it."""
    arguments = tuple(map(_without_tensors, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(argument for argument in arguments if argument is not Tensor)]  # noqa: UP007  # of types in a tuple
    if get_origin(hint) is collections.abc.Iterable:
        return list.__class_getitem__(arguments)
    return tuple.__class_getitem__(arguments) if get_origin(hint) is tuple else hint


def _first_sentence(text: str) -> str:
    """Return the first sentence without markup of reStructuredText, and with values as the command line takes them."""
    text = re.split(r"\.(?= |$)| \(default:", _without_markup(text))[0]
    return re.sub(r"\b(?:None|True|False)\b", lambda match: shown(_PYTHON_VALUES[match[0]]), text)


def _without_markup(text: str) -> str:
    text = re.sub(r":\w+:`~?([^`<]*?)(?: *<[^>]*>)?`", r"\1", text)  # :math:`x`, :class:`~a.B`
    return re.sub(r"``([^`]*)``|`([^`<]*?)(?: *<[^>]*>)?`_+", r"\1\2", text)


def _argument_lines(part: type) -> dict[str, str]:
    """Read the descriptions of arguments from a docstring in Google's style."""
    lines: dict[str, str] = {}
    name, indent = "", 0
    for line in (inspect.getdoc(part) or "").partition("Args:\n")[2].splitlines():
        depth = len(line) - len(line.lstrip())
        if not line.strip() or depth == 0:
            break
        match = re.match(r" +\*{0,2}(\w+)(?: \(.*?\))? ?:(?: +(.*))?$", line)
        if match and depth <= (indent or depth):
            name, indent = match[1], depth
            lines[name] = match[2] or ""
        elif name:
            lines[name] = f"{lines[name]} {line.strip()}".lstrip()
    return lines
