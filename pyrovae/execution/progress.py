"""Progress of long computations on stderr: a bar on a terminal, lines in a log."""

import sys
from types import TracebackType
from typing import Self

from tqdm import tqdm

_NUM_LINES = 10
_PLURALS = {"datum": "data"}


class Progress:
    """Progress on stderr, as a context: a bar on a terminal; elsewhere, such as in a log, short lines.

    In a log, `note` writes its line. Without notes, a line follows each tenth of the total.

    Args:
        total: Number of units of the whole.
        unit: Name of a unit, in the singular.
        title: Name of the computation; "" for none.
        initial: Number of units already done.
        shown: Whether to show progress.
        noted: Whether `note` writes the lines of a log, rather than `update`.
    """

    def __init__(
        self, total: int, unit: str, title: str = "", *, initial: int = 0, shown: bool = True, noted: bool = False
    ) -> None:
        self.total, self.units, self.title = total, _PLURALS.get(unit, f"{unit}s"), title
        self.done, self.noted = initial, noted
        terminal = shown and sys.stderr is not None and sys.stderr.isatty()
        self.lines = shown and not terminal and sys.stderr is not None
        self._bar = None
        if terminal:
            self._bar = tqdm(total=total, initial=initial, unit=unit, desc=title or None, dynamic_ncols=True)

    def update(self, count: int = 1) -> None:
        """Count units that were done."""
        before = self.done * _NUM_LINES // max(1, self.total)
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        if not self.noted and self.done * _NUM_LINES // max(1, self.total) > before:
            self._write(f"{self.done:,} of {self.total:,} {self.units}")

    def note(self, text: str, *, at: str) -> None:
        """Show a text beside the bar; in a log, write it on a line after the place, `at`."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        self._write(f"{at}: {text}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _write(self, text: str) -> None:
        if self.lines:
            print(f"{self.title}: {text}" if self.title else text, file=sys.stderr, flush=True)
