"""What an engine's inputs are, and a check of arrays against them before anything runs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.errors import BadInputError
from secateur.runtime.backend import Array, Arrays


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, dtype ("int64") and shape of an input or output.

    An entry of ``shape`` is a size, or the name of a size that every tensor with that name
    shares; "" is a size without a name. An optional input has a default inside the engine.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    optional: bool = False

    def to_json(self) -> dict[str, Any]:
        """The JSON object that ``from_json`` reads."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "optional": self.optional,
        }

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> TensorInfo:
        """The tensor that ``to_json`` wrote."""
        return TensorInfo(
            str(record["name"]),
            str(record["dtype"]),
            tuple(record["shape"]),
            bool(record.get("optional", False)),
        )

    def describe(self) -> str:
        """Dtype and shape as a person writes them: ``int64[batch, tokens]``."""
        return f"{self.dtype}[{', '.join(str(size or '?') for size in self.shape)}]"


def check_inputs(arrays: Arrays, inputs: Iterable[TensorInfo]) -> dict[str, Array]:
    """The arrays, C-contiguous, if names, dtypes and shapes are what the engine takes.

    Raises BadInputError that names the input, what it got and what it takes. Nothing is
    cast: a silent int32 to int64 or float64 to float32 hides a bug in the caller.
    """
    verify_inputs(arrays, inputs)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def verify_inputs(arrays: Arrays, inputs: Iterable[TensorInfo]) -> None:
    """Raise BadInputError unless names, dtypes and shapes are what the engine takes."""
    known = {info.name: info for info in inputs}
    _check_names(arrays, known)
    sizes: dict[str, tuple[int, str]] = {}
    for name, array in arrays.items():
        _check_dtype(array, known[name])
        _check_shape(array, known[name], sizes)


def _check_names(arrays: Arrays, known: Mapping[str, TensorInfo]) -> None:
    listing = ", ".join(
        f"{info.name} {info.describe()}{' (optional)' if info.optional else ''}"
        for info in known.values()
    )
    for name in arrays:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise BadInputError(
                f"the engine has no input {name!r}",
                got=", ".join(arrays),
                wanted=listing,
                next_step=f"did you mean {close[0]!r}?" if close else f"leave {name!r} out",
            )
    missing = [name for name, info in known.items() if name not in arrays and not info.optional]
    if missing:
        raise BadInputError(
            f"input {missing[0]!r} is missing",
            got=", ".join(arrays) or "no inputs",
            wanted=listing,
            next_step="give every input that is not optional: " + ", ".join(missing),
        )


def _check_dtype(array: object, info: TensorInfo) -> None:
    if not isinstance(array, np.ndarray):
        raise BadInputError(
            f"input {info.name!r} is not a NumPy array",
            got=type(array).__name__,
            wanted=f"numpy.ndarray of {info.describe()}",
            next_step="numpy.asarray(value), or tensor.numpy() for a torch tensor on the CPU",
        )
    if array.dtype.name != info.dtype:
        raise BadInputError(
            f"input {info.name!r} has the wrong dtype",
            got=array.dtype.name,
            wanted=info.dtype,
            next_step=f"array.astype({info.dtype!r})",
        )


def _check_shape(array: Array, info: TensorInfo, sizes: dict[str, tuple[int, str]]) -> None:
    """Hold static axes to their size and axes of one name to one size, noted in ``sizes``."""
    wrong = _shape_error(array.shape, info, sizes)
    if wrong:
        raise BadInputError(
            f"input {info.name!r} has the wrong shape",
            where=wrong,
            got=str(list(array.shape)),
            wanted=info.describe(),
            next_step="reshape or pad the array; axes of one name have one size in all inputs",
        )


def _shape_error(
    shape: tuple[int, ...], info: TensorInfo, sizes: dict[str, tuple[int, str]]
) -> str:
    if len(shape) != len(info.shape):
        return f"{len(shape)} axes instead of {len(info.shape)}"
    for axis, (got, wanted) in enumerate(zip(shape, info.shape, strict=True)):
        if isinstance(wanted, int):
            if got != wanted:
                return f"axis {axis} has size {got}, the engine takes {wanted}"
        elif wanted:
            first, other = sizes.setdefault(wanted, (got, info.name))
            if got != first:
                return f"axis {axis} ({wanted}) has size {got}, in input {other!r} it has {first}"
    return ""


__all__ = ["TensorInfo", "check_inputs", "verify_inputs"]
