"""Half precision as a step: observe ranges, lower, refuse what a target lacks, explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from secateur.calibration.ranges import largest_magnitudes
from secateur.errors import BadInputError, ParityError
from secateur.export.onnx_file import from_onnx, save
from secateur.graph_passes.force_selection import force
from secateur.graph_passes.names import module_path, node_name
from secateur.graph_passes.precision.decisions import Precision
from secateur.graph_passes.precision.lower import lower_precision
from secateur.graph_passes.precision.rounded import rounded_twin
from secateur.runtime.backend import Arrays
from secateur.runtime.compare import TOLERANCES
from secateur.runtime.onnx_outline import ModelOutline
from secateur.runtime.targets import Target
from secateur.workflow.bisect import BisectOptions, bisect
from secateur.workflow.golden import default_budgets, site_records

PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Types by the names that recipes use, as NumPy and the tables of tolerances spell them."""

_SINCE = {
    "bfloat16": 80,
    "int4": 80,
    "uint4": 80,
    "float8_e4m3fn": 89,
    "float8_e5m2": 89,
    "float4_e2m1": 120,
}
"""First compute capability with a type. Source: builds with TensorRT-RTX 1.7."""

_WITHOUT_CPU_KERNELS = frozenset({"bfloat16", "float4_e2m1"})
_OLDEST_DEFAULT = "sm80"
_MOST_EXCLUSIONS = 4


@dataclass(frozen=True, slots=True)
class Lowering:
    """The type that a model computes in, and what stays out of it.

    ``dtype`` is a value of ``PRECISIONS``; ``keep`` are patterns of modules or nodes.
    """

    dtype: str = "float32"
    keep: tuple[str, ...] = ()

    @property
    def is_half(self) -> bool:
        """Whether anything is to be done."""
        return self.dtype != "float32"


def lower(model: ir.Model, lowering: Lowering, batches: Sequence[Arrays]) -> ir.Model:
    """Return the model in the wanted precision; what overflows on the batches stays float32.

    Raises:
        BadInputError: ``keep`` fits nothing, or nothing can be lowered.
    """
    if not lowering.is_half:
        return model
    budgets = default_budgets(model)
    ranges = largest_magnitudes(model, [{**batch, **budgets} for batch in batches])
    dtype = ir.DataType[lowering.dtype.upper()]
    return lower_precision(model, Precision(dtype, lowering.keep, ranges))


def check_types(outline: ModelOutline, target: Target) -> None:
    """Refuse a target that lacks a type of the model, naming the compute capability.

    Raises:
        BadInputError: bfloat16 or int4 before sm80, fp8 before sm89, fp4 before sm120; or a type
            that ONNX Runtime's CPU does not compute in.
    """
    held = {*outline.constants.values(), *(info.dtype for info in outline.inputs)}
    missing = sorted(held & _WITHOUT_CPU_KERNELS)
    if target.backend == "onnxruntime" and missing:
        raise BadInputError(
            f"ONNX Runtime's CPU does not compute in {missing[0]}",
            where=f"target {target}",
            next_step="build for rtx or tensorrt, or take fp16",
        )
    if target.backend != "rtx":
        return  # TensorRT builds for the GPU of its own machine, which is not known here
    for dtype in sorted(held & set(_SINCE)):
        for capability in target.capabilities or (_OLDEST_DEFAULT,):
            if int(capability.removeprefix("sm")) < _SINCE[dtype]:
                raise BadInputError(
                    f"{capability} has no {dtype}",
                    where=f"target {target}",
                    got=f"a model with {dtype} tensors",
                    wanted=f"sm{_SINCE[dtype]} or later",
                    next_step=f"leave {capability} out, or choose another precision",
                )


def runnable(model: Path, lowering: Lowering) -> Path:
    """A file that ONNX Runtime can run for the model: itself, or its rounded float32 twin.

    The twin of ``model.onnx`` is ``model.rounded.onnx`` beside it.
    """
    if lowering.dtype not in _WITHOUT_CPU_KERNELS or not model.is_file():
        return model
    twin = model.with_suffix(".rounded.onnx")
    save(rounded_twin(from_onnx(model)), twin)
    return twin


@dataclass(frozen=True, slots=True)
class Suspects:
    """Which layers spoil a lowered model."""

    first: str
    """Module path (or node) of the first layer beyond its bound."""
    exclude: tuple[str, ...]
    """What to put into ``keep``."""
    is_enough: bool
    """Whether the model is within its bounds with that."""


def suspects(
    exact: ir.Model, lowering: Lowering, inputs: Arrays, *, batches: Sequence[Arrays]
) -> Suspects | None:
    """Find the first layer that half precision spoils, and what to keep in float32.

    Args:
        exact: the float32 model.
        lowering: how it was lowered.
        inputs: one batch by input name; of a selecting model those of its forced twin.
        batches: that the ranges were observed on.

    Returns:
        None where every layer is within the bound. Else modules are excluded one by one, as
        they are found, until nothing is beyond it or four of them are excluded.
    """
    reference, options = _forced(exact), BisectOptions(bound=TOLERANCES[lowering.dtype].value)
    layers = {v.name: module_path(n) or node_name(n) for n in reference.graph for v in n.outputs}
    first, exclude = "", list[str]()
    while True:
        tried = replace(lowering, keep=(*lowering.keep, *exclude))
        twin = rounded_twin(_forced(lower(exact, tried, batches)))
        report = bisect(reference, twin, inputs, options)
        bad = report.first_bad
        layer = "" if bad is None else layers[bad.value]
        if not layer or layer in exclude or len(exclude) == _MOST_EXCLUSIONS:
            break
        first = first or layer
        exclude.append(layer)
    return Suspects(first, tuple(exclude), is_enough=not layer) if exclude else None


def explained(error: ParityError, found: Suspects | None) -> ParityError:
    """The same failure, with the first bad layer and what to exclude."""
    if found is None:
        return error
    names = ", ".join(found.exclude)
    then = "with that it is within its bounds" if found.is_enough else "more may have to follow"
    return ParityError(
        error.what,
        where=f"first bad layer {found.first}; {error.where}".removesuffix("; "),
        got=error.got,
        wanted=error.wanted,
        next_step=f"keep in float32 (precision: keep): {names}; {then}",
    )


def _forced(model: ir.Model) -> ir.Model:
    return force(model) if site_records(model) else model


__all__ = [
    "PRECISIONS",
    "Lowering",
    "Suspects",
    "check_types",
    "explained",
    "lower",
    "runnable",
    "suspects",
]
