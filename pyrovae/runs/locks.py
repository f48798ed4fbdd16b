"""Locks of the files and folders that a process writes, and removal of those that dead processes left.

The kernel holds a lock (`flock`) and releases it when its process ends, in whatever way. On systems and file systems
without such locks nothing is locked, and nothing is removed.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module, to the type checker


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder inside the context.

    Raises:
        ValueError: If another process has locked it.
    """
    try:
        handle = _lock(folder)
    except BlockingIOError as error:
        raise ValueError(f"{folder}: another process is writing this run; wait for its end, or stop it") from error
    try:
        yield
    finally:
        _release(handle)


def is_locked(path: Path) -> bool:
    """Return whether another process has locked a file or folder."""
    try:
        _release(_lock(path))
    except BlockingIOError:
        return True
    return False


@contextmanager
def unfinished(make: Callable[[], Path]) -> Iterator[Path]:
    """Make a temporary file or folder, and hold its lock inside the context, so that `sweep` leaves it alone.

    Args:
        make: Function that makes it under a new name and returns its path.
    """
    path, handle = _make_locked(make)
    try:
        yield path
    finally:
        _release(handle)
        remove(path)  # unless renamed into its place


def sweep(folder: Path, prefix: str, ours: str, content: str = ".*") -> None:
    """Remove the temporary files and folders that killed processes left in a folder, not those of live processes.

    Args:
        folder: Folder to look in.
        prefix: Beginning of their names.
        ours: Regular expression of the rest of their names. What has other names is the user's and stays.
        content: Regular expression of the names inside such a folder. A folder that holds anything else stays.
    """
    for path in folder.glob(f"{prefix}*"):
        with suppress(OSError):  # such as BlockingIOError, if its process lives
            if re.fullmatch(ours, path.name.removeprefix(prefix)) is None:
                continue
            inside = path.iterdir() if path.is_dir() and not path.is_symlink() else ()
            if not all(re.fullmatch(content, each.name) for each in inside):
                continue
            handle = _lock(path)
            if handle is not None:
                remove(path)
                _release(handle)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its files, if it exists and may be removed."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _make_locked(make: Callable[[], Path]) -> tuple[Path, int | None]:
    while True:
        path = make()
        with suppress(BlockingIOError, FileNotFoundError):  # swept by another process before it was locked
            handle = _lock(path)
            if handle is None or os.path.samestat(os.fstat(handle), path.stat()):
                return path, handle
            _release(handle)


def _lock(path: Path) -> int | None:
    """Lock a file or folder; return the open file that holds the lock, or None if there are no locks.

    Raises:
        BlockingIOError: If another open file holds the lock.
        OSError: If the path cannot be opened.
    """
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    return handle


def _release(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)
