"""Exit codes, one-line errors and signal handling of the scripts."""

import os
import re
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch
from jsonargparse import set_parsing_settings

from pyrovae.execution import NotRecordedWarning, Workers
from pyrovae.training import NonFiniteLossError, StoppedError

_FORMAT_WARNING = warnings.formatwarning
_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
# What allocators of torch, threads and extension modules say.
_MEMORY_ERROR = re.compile(r"alloc_cpu|calculation overflowed|bad_alloc|start new thread|return without exception set")
_OUT_OF_MEMORY = (
    "{} is out of memory; lower the numbers of data, draws, or latents computed at once, such as --batch_size, "
    "--num_samples or --chunk_size, or the sizes of the model"
)
_LONGEST_MESSAGE = 2000  # letters
_CLOSED_PIPE = 141  # as a shell reports the end by SIGPIPE


class Stopper:
    """Record of the first signal, which `fit` reads after every step.

    Attributes:
        signal: The first signal received, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self) -> bool:
        """Whether a signal was received."""
        return self.signal is not None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Record the signal; exit at once on a second one."""
        if self.signal is not None:
            sys.exit(_EXIT_CODES[self.signal])
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int | None:
        """130 after Ctrl-C, 143 after SIGTERM, None without a signal."""
        return None if self.signal is None else _EXIT_CODES[self.signal]


@contextmanager
def finishing_steps() -> Iterator[Stopper]:
    """Record SIGINT and SIGTERM inside the context, instead of ending the process."""
    stopper = Stopper()
    before = {number: signal.signal(number, stopper.on_signal) for number in _EXIT_CODES}
    try:
        yield stopper
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _format_warning(message: Any, category: type[Warning], *where: Any) -> str:
    """Format our own warnings as one line, and others with their place in the code."""
    if issubclass(category, NotRecordedWarning):
        return f"{Path(sys.argv[0]).name}: {message}\n"
    return _FORMAT_WARNING(message, category, *where)


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script and exit.

    An error that the user can fix is printed as one line on stderr, and the exit code is 1; after a signal it is 130 or
    143. If the reader of the output has closed the pipe, as head does, the script ends without a word, with code 141.
    """
    try:
        sys.exit(_exit_code_of(main))
    except SystemError as error:  # in place of one that an extension module had no memory for
        if not out_of_memory(error):
            raise
        sys.exit(_report(_OUT_OF_MEMORY.format("this machine")))
    finally:
        _discard_unwritable_output()


def _exit_code_of(main: Callable[[], int | None]) -> int:
    """Run the main function; print its error, if any, and return the exit code."""
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # takes over from scripts/startup.py
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.excepthook = sys.__excepthook__
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(_EXIT_CODES[signal.SIGTERM]))
        warnings.formatwarning = _format_warning  # type: ignore[assignment]  # Python's hook, of fewer options
        # No parser of ours declares a class or Any; were there one, jsonargparse would make nothing for it.
        set_parsing_settings(instantiate_subclass_spec_in_any=False)
        _check_encoding(sys.argv[1:])
        code = main() or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _EXIT_CODES[signal.SIGINT]
    except OSError as error:
        if isinstance(error, BrokenPipeError) and (_is_closed(sys.stdout) or _is_closed(sys.stderr)):
            return _CLOSED_PIPE
        reason = error.strerror or str(error)
        return _report(f"{error.filename}: {reason}" if error.filename else reason)
    except (ValueError, NonFiniteLossError, StoppedError) as error:
        return _report(str(error))
    except (MemoryError, RuntimeError, SystemError) as error:
        if not out_of_memory(error):
            raise
        return _report(
            _OUT_OF_MEMORY.format("the device" if isinstance(error, torch.OutOfMemoryError) else "this machine")
        )


def _report(message: str) -> int:
    """Print an error in one line and return exit code 1. Until the processes have joined, only rank 0 prints."""
    rank, joined = os.environ.get("RANK", "0"), Workers.current().size > 1
    if joined or rank == "0" or not rank.isdecimal():
        who = f" in process {rank}" if joined and rank != "0" else ""
        with suppress(BrokenPipeError):
            print(f"{Path(sys.argv[0]).name}: error{who}: {_one_line(message)}", file=sys.stderr)
    return 1


def _one_line(message: str) -> str:
    """Write a message in one line, without control characters of a file or a name, and without the middle if long."""
    said = " ".join(message.split())
    said = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in said)
    if len(said) <= _LONGEST_MESSAGE:
        return said
    return f"{said[: _LONGEST_MESSAGE // 2]} ... {said[-_LONGEST_MESSAGE // 2 :]}"


def _check_encoding(argv: Sequence[str]) -> None:
    """Check that every argument is valid UTF-8, as files of a run need it.

    Raises:
        ValueError: With the first argument that is not.
    """
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{argument!r} is no valid UTF-8; give a name in UTF-8") from error


def _is_closed(stream: TextIO | None) -> bool:
    """Return whether an output stream is a pipe whose reader has closed it."""
    if stream is None or not hasattr(select, "poll"):  # Windows
        return False
    with suppress(OSError, ValueError):  # a stream without a file
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return False


def _discard_unwritable_output() -> None:
    """Send output that cannot be written to the null device, since Python would complain of it at its exit."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        writable = not _is_closed(stream)
        if writable:
            try:
                stream.flush()
            except OSError:
                writable = False
        if not writable:
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not available, or that a tensor is too large for its size to be counted."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | SystemError) and bool(_MEMORY_ERROR.search(str(error)))
