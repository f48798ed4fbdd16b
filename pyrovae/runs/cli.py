"""Exit codes, one-line errors and signal handling of the scripts."""

import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from jsonargparse import set_parsing_settings

from pyrovae.execution import NotRecordedWarning, Workers
from pyrovae.training import NonFiniteLossError, StoppedError

_FORMAT_WARNING = warnings.formatwarning
_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


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


def _exit_with_error(message: str) -> NoReturn:
    """Print a one-line error and exit with code 1. Until the processes have joined, only rank 0 prints."""
    rank, joined = int(os.environ.get("RANK", "0")), Workers.current().size > 1
    if joined or rank == 0:
        who = f" in process {rank}" if joined and rank else ""
        print(f"{Path(sys.argv[0]).name}: error{who}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script and exit.

    An error that the user can fix is printed as one line on stderr, and the exit code is 1; after a signal it is 130 or
    143.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(_EXIT_CODES[signal.SIGTERM]))
    # No parser of ours declares a class or Any; were there one, jsonargparse would make and import nothing for it.
    set_parsing_settings(instantiate_subclass_spec_in_any=False, import_path_denylist=["*"])
    warnings.formatwarning = _format_warning  # type: ignore[assignment]  # Python's hook, of fewer options
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt:
        sys.exit(_EXIT_CODES[signal.SIGINT])
    except OSError as error:
        reason = error.strerror or str(error)
        _exit_with_error(f"{error.filename}: {reason}" if error.filename else reason)
    except (ValueError, NonFiniteLossError, StoppedError) as error:
        _exit_with_error(str(error))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        where = "the device" if isinstance(error, torch.OutOfMemoryError) else "this machine"
        _exit_with_error(
            f"{where} is out of memory; lower the numbers of data, draws, or latents computed at once, such as "
            "--batch_size, --num_samples or --chunk_size"
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not available, or that a tensor is too large for its size to be counted."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(re.search(r"alloc_cpu|calculation overflowed", str(error)))
