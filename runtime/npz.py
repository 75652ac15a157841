"""Reads .npz files that somebody else may have written: arrays only, never pickles."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from secateur.errors import BadInputError
from secateur.runtime.backend import Array


def read_npz(path: Path, *, what: str) -> dict[str, Array]:
    """Every array of the file by name; BadInputError, saying what it was to be."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise _unreadable(path, what, error) from error
    except (AttributeError, TypeError) as error:  # a single array, without a name
        raise _unreadable(path, what, error) from error


def _unreadable(path: Path, what: str, error: Exception) -> BadInputError:
    return BadInputError(
        f"the {what} cannot be read",
        where=str(path),
        got=f"{type(error).__name__}: {error}",
        wanted="an .npz of named arrays, as numpy.savez writes it",
    )


__all__ = ["read_npz"]
