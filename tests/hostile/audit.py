"""Watch a process for what a file must never cause: a process, a socket, a file written outside of some folders."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

_PROCESSES = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")
_FILES = {"os.mkdir": [0], "os.rename": [0, 1], "os.link": [1], "os.symlink": [1], "os.truncate": [0]}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_active: list[tuple[list[Path], list[str]]] = []
_installed = False


def _written(event, args):
    """Paths that an event writes."""
    if event == "open":
        path, mode, flags = args
        writes = bool(flags & _WRITING) if isinstance(flags, int) else any(c in (mode or "") for c in "wax+")
        return [path] if writes and isinstance(path, str | bytes | os.PathLike) else []
    return [args[place] for place in _FILES.get(event, ())]


def _hook(event, args):
    for allowed, seen in _active:
        if event.startswith(_PROCESSES) or event in ("socket.__new__", "socket.connect", "os.fork"):
            seen.append(f"{event} {args!r}"[:200])
        for path in _written(event, args):
            whole = Path(os.path.abspath(os.fsdecode(path)))
            if not any(whole.is_relative_to(folder) for folder in allowed):
                seen.append(f"{event} {whole}")


@contextmanager
def watched(*allowed):
    """Collect the forbidden events inside; files in the allowed folders, and null devices, may be written."""
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    entry = ([*map(Path, allowed), Path(os.devnull)], [])
    _active.append(entry)
    try:
        yield entry[1]
    finally:
        _active.remove(entry)
