"""A lock between processes that a killed holder gives back."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_POLL_S = 0.2


@contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Generator[None]:
    """Hold the lock of a file, made if it is not there; ``on_wait`` is called once if it is held.

    The file stays: removing it would let two holders in. Raises OSError where the file cannot
    be made.
    """
    with path.open("a+b") as file:
        if not _try_lock(file):
            on_wait()
            while not _try_lock(file):
                time.sleep(_POLL_S)
        yield


@contextmanager
def locked_if_free(path: Path) -> Generator[bool]:
    """Hold the lock of a file if nobody else does; whether it is held."""
    with path.open("a+b") as file:
        yield _try_lock(file)


def _try_lock(file: IO[bytes]) -> bool:
    """Take the lock, which lasts until the file is closed, by this process or by its death."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


__all__ = ["locked", "locked_if_free"]
