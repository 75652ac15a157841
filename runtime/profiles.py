"""From ranges of dimensions to ranges of inputs: a person says ``tokens: 16..128..512`` once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from secateur.errors import BadInputError
from secateur.runtime.backend import EngineSpec, ShapeRange
from secateur.runtime.budgets import default_shape_values
from secateur.runtime.checks import check_profiles, naming_profile
from secateur.runtime.expressions import evaluate
from secateur.runtime.onnx_outline import ModelOutline
from secateur.runtime.signature import TensorInfo
from secateur.runtime.sites import sites_from_metadata
from secateur.runtime.targets import Target


def profiles_from_dimensions(
    inputs: Iterable[TensorInfo], ranges: Mapping[str, tuple[int, int, int]]
) -> dict[str, ShapeRange]:
    """Shape ranges of every dynamic input from (min, opt, max) of every named dimension.

    Raises BadInputError for a range out of order, and for a dimension without a range or a
    range without a dimension, naming the input.
    """
    for name, ends in ranges.items():
        if len(ends) != 3 or not 0 <= ends[0] <= ends[1] <= ends[2]:
            raise BadInputError(
                f"the range of dimension {name!r} is not ordered",
                got=str(tuple(ends)),
                wanted="(min, opt, max) with 0 <= min <= opt <= max",
            )
    given = tuple(info for info in inputs if not info.optional)
    named = {size for info in given for size in info.shape if isinstance(size, str)}
    for name in ranges:
        if not any(name in size for size in named):
            raise BadInputError(
                f"no input has a dimension {name!r}",
                got=", ".join(ranges),
                wanted="one of " + (", ".join(sorted(named)) or "none: every shape is static"),
            )
    return {
        info.name: _range_of(info, ranges)
        for info in given
        if any(isinstance(size, str) for size in info.shape)
    }


def complete_spec(outline: ModelOutline, spec: EngineSpec, target: Target) -> EngineSpec:
    """The specification with the target's capabilities and the sites' default budget ranges.

    Raises BadInputError for a dynamic input without a range.
    """
    sites = sites_from_metadata(outline.metadata)
    found = []
    for number, one in enumerate(spec.each()):
        with naming_profile(number, of=spec):
            check_profiles(outline, one)
            defaults = default_shape_values(outline, sites, one.profiles) if sites else {}
            found.append(replace(one, shape_values={**defaults, **one.shape_values}))
    capabilities = target.capabilities if target.backend == "rtx" else ()
    return replace(spec.with_each(found), compute_capabilities=capabilities)


def _range_of(info: TensorInfo, ranges: Mapping[str, tuple[int, int, int]]) -> ShapeRange:
    low, usual, high = (
        tuple(
            _size(info, size, {name: r[end] for name, r in ranges.items()}) for size in info.shape
        )
        for end in range(3)
    )
    return ShapeRange(low, usual, high)


def _size(info: TensorInfo, size: int | str, values: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    found = values.get(size, evaluate(size, values))
    if found is None:
        raise BadInputError(
            f"dimension {size!r} of input {info.name!r} has no range"
            if size
            else f"a dynamic dimension of input {info.name!r} has no name",
            got="ranges for " + (", ".join(values) or "nothing"),
            wanted=info.describe(),
            next_step="name it when exporting" if not size else f"add {size}: [min, opt, max]",
        )
    return found


__all__ = ["complete_spec", "profiles_from_dimensions"]
