"""Files: hashes, paths that stay inside a folder, and replacement in one step."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath

from secateur.errors import BadInputError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_plain(name: str) -> bool:
    """Whether a name, in either system's notation, is relative and never steps out."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if not name or posix.is_absolute() or windows.drive or windows.root:
        return False
    return ".." not in posix.parts and ".." not in windows.parts and "\0" not in name


def inside(folder: Path, name: str, *, where: str) -> Path:
    """``folder / name`` if that stays in the folder, links followed; else BadInputError."""
    path = folder / name
    if not is_plain(name) or not path.resolve().is_relative_to(folder.resolve()):
        raise BadInputError(
            "a path points outside its folder",
            where=where,
            got=repr(name),
            wanted=f"a relative path below {folder}",
            next_step="do not use this file unless you trust its origin; then repack it",
        )
    return path


def sync(path: Path) -> None:
    """Make a file or a folder and everything in it reach the disk."""
    if path.is_dir():
        for child in sorted(path.iterdir()):
            sync(child)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def partial_path(path: Path) -> Path:
    """A new hidden path beside ``path`` for this process's unfinished work on it."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def previous_path(path: Path) -> Path:
    """Where the old folder waits while it is replaced without an exchange."""
    return path.with_name(f".{path.name}.previous")


def remove_stale_partials(path: Path) -> None:
    """Remove unfinished work on ``path`` that dead processes left."""
    for stale in sorted(path.parent.glob(f".{path.name}.*.partial")):
        owner = stale.name.removesuffix(".partial").rpartition(".")[2].partition("-")[0]
        if owner.isdigit() and not _is_alive(int(owner)):
            remove(stale)


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace(new: Path, path: Path) -> None:
    """Put ``new`` in the place of ``path``: at any moment one of the two is whole.

    A file is replaced by rename. So is a folder that does not exist yet; one that does is
    exchanged in one step, or, on a file system without exchange, moved aside first:
    ``restore_previous`` puts it back if the process dies between the two moves.
    """
    if not path.is_dir():
        new.replace(path)
    elif exchange(new, path):
        remove(new)
    else:
        path.rename(previous_path(path))
        new.rename(path)
        remove(previous_path(path))
    _sync_folder(path.parent)


def restore_previous(path: Path) -> None:
    """Undo a replacement in two moves that was killed after the first one."""
    previous = previous_path(path)
    if previous.is_dir() and not path.exists():
        previous.rename(path)


def exchange(left: Path, right: Path) -> bool:
    """Exchange two paths in one step (Linux renameat2); False where that is not to be had."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    a, b = os.fsencode(left), os.fsencode(right)
    if library.renameat2(_AT_FDCWD, a, _AT_FDCWD, b, _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(right))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


__all__ = [
    "exchange",
    "inside",
    "is_plain",
    "partial_path",
    "previous_path",
    "remove",
    "remove_stale_partials",
    "replace",
    "restore_previous",
    "sha256_of",
    "sync",
]
