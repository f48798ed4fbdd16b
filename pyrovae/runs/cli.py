"""What every script shares: one-line errors, exit codes, and signals that let a step finish."""

import argparse
import difflib
import inspect
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace
from jsonargparse.typing import restricted_number_type

from pyrovae.execution import NotRecordedWarning, Workers
from pyrovae.training import NonFiniteLossError, StoppedError

Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)], docstring="Whole number from 0 to 2**32 - 1")

_FORMAT_WARNING = warnings.formatwarning
_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help with the script's commands and the list of parts as they are written."""


def make_parser(**given: Any) -> ArgumentParser:
    """Make a parser that says what is wrong in one line; keyword arguments go to ArgumentParser."""
    return ArgumentParser(exit_on_error=False, allow_abbrev=False, formatter_class=HelpFormatter, **given)


def make_run_parser(**given: Any) -> ArgumentParser:
    """Make a parser with the flags of every script that takes a trained run."""
    parser = make_parser(**given)
    parser.add_argument("run", type=str, help="run folder of train.py")
    parser.add_argument("--seed", type=Seed, default=0, help="seed of the draws")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, ... (auto: cuda where there is one)")
    parser.add_argument("--data_dir", type=str | None, default=None, help="folder of MNIST, where it has moved")
    parser.add_argument("--trust_imports", type=list[str], default=[], help="modules that the run's files may import")
    return parser


class Stopper:
    """Asked after every step whether a signal has come; remembers which.

    Attributes:
        signal: The first signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self) -> bool:
        """True once a signal has come."""
        return self.signal is not None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; a second one stops at once."""
        if self.signal is not None:
            sys.exit(_EXIT_CODES[self.signal])
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int | None:
        """130 for Ctrl-C, 143 for SIGTERM, None while no signal has come."""
        return None if self.signal is None else _EXIT_CODES[self.signal]


@contextmanager
def finishing_steps() -> Iterator[Stopper]:
    """Let SIGINT and SIGTERM set a flag meanwhile, instead of ending the process."""
    stopper = Stopper()
    before = {number: signal.signal(number, stopper.on_signal) for number in _EXIT_CODES}
    try:
        yield stopper
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parse_flags(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Parse a command line.

    `--trust_imports a,b` is taken for the list that it means.

    Raises:
        ValueError: In one line, for anything wrong.
        SystemExit: For --help.
    """
    try:
        return parser.parse_args(_listed(argv, "--trust_imports"))
    except ArgumentError as error:
        raise ValueError(_plainly(" ".join(str(error).split()), parser)) from error


def names(value: str) -> list[str]:
    """The names in `a`, `a,b` or `[a, b]`."""
    return re.findall(r"[^\[\],\s\"']+", value)


def near(name: str, known: Iterable[str]) -> str:
    """Suggest the known names near to one that is not, or list them all."""
    known = sorted(known)
    likely = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(likely)}?" if likely else f"choose among {', '.join(known)}"


def _format_warning(message: Any, category: type[Warning], *where: Any) -> str:
    """One line for what is ours to say; where it was said helps with others' warnings alone."""
    if issubclass(category, NotRecordedWarning):
        return f"{Path(sys.argv[0]).name}: {message}\n"
    return _FORMAT_WARNING(message, category, *where)


def _fail(message: str) -> NoReturn:
    """Say in one line what is wrong; of several processes, that have not met yet, one says it for all."""
    rank, met = int(os.environ.get("RANK", "0")), Workers.current().size > 1
    if met or rank == 0:
        who = f" in process {rank}" if met and rank else ""
        print(f"{Path(sys.argv[0]).name}: error{who}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)


def _plainly(message: str, parser: ArgumentParser) -> str:
    """The parser's message in the words of the command line."""
    if match := re.search(r"unrecognized arguments: --([\w.]+)", message):
        flags = [action.dest for action in parser._actions if not action.dest.startswith("print_")]
        return f"--{match[1]}: no such flag; {near(match[1], flags)}; see --help"
    key, option, path = (
        re.search(pattern, message)
        for pattern in (r'Parser key "(\w+)"', r"Option '(\w+)' is not accepted", r"class_path[= ]'([\w.]+)'")
    )
    if key and option and path:
        module, _, name = path[1].rpartition(".")
        options = inspect.signature(getattr(sys.modules[module], name)).parameters
        own = [option for option, given in options.items() if given.default is not given.empty]
        choice = near(option[1], own) if own else "it has none"
        return f"--{key[1]}.{option[1]}: {name} has no such option; {choice}"
    if match := re.search(r'Parser key "(\w+)":.*arguments are required: (\w+)', message):
        return f"--{match[1]}.{match[2]}: is required; give it"
    literal = re.search(r'^Parser key "([\w.]+)": Expected a typing.Literal\[(.*?)\]. Got value: (\S+)$', message)
    if literal:
        return f"--{literal[1]}: {literal[3]} is no choice; {near(literal[3], names(literal[2]))}; see --help"
    union = re.search(
        r'^Parser key "([\w.]+)": Does not validate .*? Errors: - (.*?) - .* Given value: (\S+)$', message
    )
    if union:
        reason = re.sub(r"^Not of type \w+: ", "", union[2])
        reason = re.sub(r"^does not conform to restriction (.*)", rf"{union[3]} is out of range (\1)", reason)
        return f"--{union[1]}: {reason}; see --help"
    message = re.sub(r'Parser key "([\w.]+)":', r"--\1:", message)
    message = re.sub(r"<class '([\w.]+)'>", r"\1", message)
    message = re.sub(r"Type \S*Callable.*? expects a function or a callable class: ", "", message)
    message = re.sub(
        r"Not of type \w+: (.*?) does not conform to restriction (.*?)(?=$|;)", r"\1 is out of range (\2)", message
    )
    message = re.sub(r"\.? Got value: Namespace\(.*$", "", message)
    if "Sequence" in message:
        message += " (a list is written [200,200])"
    return f"{message}; see --help"


def _listed(argv: Sequence[str], flag: str) -> list[str]:
    out: list[str] = []
    for token in argv:
        if token.startswith(f"{flag}="):
            token = f"{flag}=[{', '.join(names(token.partition('=')[2]))}]"
        elif out and out[-1] == flag:
            token = f"[{', '.join(names(token))}]"
        out.append(token)
    return out


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script: what the reader can mend becomes one line on stderr and exit code 1, a signal 130 or 143."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(_EXIT_CODES[signal.SIGTERM]))
    warnings.formatwarning = _format_warning  # type: ignore[assignment]
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt:
        sys.exit(_EXIT_CODES[signal.SIGINT])
    except OSError as error:
        what = error.strerror or str(error)
        _fail(f"{error.filename}: {what}" if error.filename else what)
    except (ValueError, NonFiniteLossError, StoppedError) as error:
        _fail(str(error))
    except torch.OutOfMemoryError:
        _fail("the device's memory is full; lower --batch_size, or --chunk_size in evaluation, or use --device cpu")
