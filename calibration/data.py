"""Batches of input arrays from what users have: .npz files, loader scripts, Python lists."""

from __future__ import annotations

import runpy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.errors import BadInputError

Batch: TypeAlias = dict[str, NDArray[Any]]
Source: TypeAlias = str | Path | Iterable[Mapping[str, Any]]


def batches(source: Source, size: int = 8) -> Iterator[Batch]:
    """Yield batches one at a time; nothing is held but the file that is being read.

    Args:
        source: an .npz (arrays by input name, samples along the first axis), a folder of
            .npz files (one batch each, in the order of their names), ``script.py:function``
            as Polygraphy's loader scripts (``load_data`` if no function is named), or an
            iterable of dictionaries, each of which is a batch.
        size: samples of a batch that is cut from one .npz.

    Raises:
        BadInputError: nothing to read, arrays that do not fit together, NaN, or objects.
    """
    empty = True
    for index, batch in enumerate(_raw(source, size)):
        empty = False
        yield _checked(batch, f"{_named(source)}, batch {index}")
    if empty:
        raise BadInputError("the data holds no batch", where=_named(source))


def _raw(source: Source, size: int) -> Iterator[Mapping[str, Any]]:
    if not isinstance(source, (str, Path)):
        yield from source
    elif ".py" in str(source) and not str(source).endswith(".npz"):
        yield from _from_script(str(source))
    elif Path(source).is_dir():
        for path in sorted(Path(source).glob("*.npz")):
            yield _read(path)
    else:
        yield from _slices(_read(Path(source)), size)


def _named(source: Source) -> str:
    return str(source) if isinstance(source, (str, Path)) else "data"


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError) as error:
        raise BadInputError(
            "the data cannot be read",
            where=str(path),
            got=str(error).splitlines()[0],
            wanted="an .npz file written by numpy.savez, without Python objects",
        ) from error


def _slices(arrays: Mapping[str, NDArray[Any]], size: int) -> Iterator[Batch]:
    counts = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(counts) > 1:
        raise BadInputError(
            "the arrays hold different numbers of samples",
            got=", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items()),
        )
    for start in range(0, max(counts, default=0), size):
        yield {name: array[start : start + size] for name, array in arrays.items()}


def _from_script(spec: str) -> Iterator[Mapping[str, Any]]:
    path, _, function = spec.partition(":")
    if not Path(path).is_file():
        raise BadInputError("the loader script does not exist", where=path)
    names = runpy.run_path(path)
    if not callable(names.get(function or "load_data")):
        raise BadInputError(
            f"the loader script has no function {function or 'load_data'!r}",
            where=path,
            wanted="a function without arguments that yields dictionaries of arrays",
        )
    yield from names[function or "load_data"]()


def _checked(batch: Mapping[str, Any], where: str) -> Batch:
    if not isinstance(batch, Mapping) or not batch:
        raise BadInputError(
            "a batch is a dictionary of arrays by input name", where=where, got=type(batch).__name__
        )
    arrays = {str(name): np.asarray(array) for name, array in batch.items()}
    for name, array in arrays.items():
        if array.dtype == object:
            raise BadInputError("an array holds Python objects", where=f"{where}, input {name!r}")
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise BadInputError("an array holds NaN", where=f"{where}, input {name!r}")
    return arrays


__all__ = ["Batch", "Source", "batches"]
