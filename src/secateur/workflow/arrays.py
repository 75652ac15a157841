"""Arrays and budgets as a command line gives them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import BadInputError
from secateur.runtime.backend import Array, Arrays
from secateur.runtime.files import partial_path
from secateur.runtime.signature import TensorInfo


def parse_keep(settings: Sequence[str]) -> dict[str, float]:
    """Read ``encoder.layer.1=0.5`` (a share) and ``encoder.layer.1=64`` (a count).

    Raises:
        BadInputError: a setting that is neither.
    """
    keep: dict[str, float] = {}
    for setting in settings:
        site, _, amount = setting.rpartition("=")
        try:
            keep[site] = int(amount) if amount.isdigit() else float(amount)
        except ValueError:
            site = ""
        if not site:
            raise BadInputError(
                "a budget is written SITE=AMOUNT",
                got=repr(setting),
                wanted="encoder.layer.1=0.5 for a share, encoder.layer.1=64 for a count",
            )
    return keep


def with_declared_types(arrays: Arrays, inputs: Iterable[TensorInfo]) -> dict[str, Array]:
    """Arrays that came without a type (JSON lists) in the type that the model declares."""
    types = {info.name: info.dtype for info in inputs}
    return {n: a.astype(types[n]) if n in types else np.asarray(a) for n, a in arrays.items()}


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write an .npz in one step."""
    buffer = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez(buffer, **named)
    save_bytes(path, buffer.getvalue())


def save_text(path: Path, text: str) -> None:
    """Write UTF-8 text in one step."""
    save_bytes(path, text.encode())


def save_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step: either the old one or the whole new one is there."""
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise BadInputError("cannot write the file", where=str(path), got=str(error)) from error
    finally:
        partial.unlink(missing_ok=True)


__all__ = ["parse_keep", "save_arrays", "save_bytes", "save_text", "with_declared_types"]
