"""Which types a GPU computes in, and what is said of a model that holds another one.

*Source: builds with TensorRT-RTX 1.7.1 for sm75 to sm121; for fp4 before sm120, which
TensorRT-RTX has no target for, NVIDIA's support matrix of TensorRT.*
"""

from __future__ import annotations

from collections.abc import Iterable

from secateur.errors import BadInputError, MissingDependencyError
from secateur.runtime import cuda_driver
from secateur.runtime.onnx_outline import ModelOutline
from secateur.runtime.targets import CAPABILITIES, Target

SINCE = {
    "bfloat16": 80,
    "int4": 80,
    "uint4": 80,
    "float8_e4m3fn": 89,
    "float8_e5m2": 89,
    "float4_e2m1": 100,
}
"""First compute capability with a type."""

WITHOUT_CPU_KERNELS = frozenset({"bfloat16", "float4_e2m1"})
"""Types that ONNX Runtime's CPU does not compute in."""

_OLDEST_DEFAULT = "sm80"


def check_types(outline: ModelOutline, target: Target) -> None:
    """Refuse a target that lacks a type of the model, naming the compute capability.

    TensorRT builds for the GPU of its own machine: that one counts, where there is one.

    Raises:
        BadInputError: bfloat16 or int4 before sm80, fp8 before sm89, fp4 before Blackwell; or
            a type that ONNX Runtime's CPU does not compute in.
    """
    if target.backend == "onnxruntime":
        _check_cpu(outline, target)
    elif target.backend == "rtx":
        refuse_types(outline, target.capabilities or (_OLDEST_DEFAULT,), where=f"target {target}")
    elif outline.dtypes & SINCE.keys():
        try:
            capability = cuda_driver.capability()
        except MissingDependencyError:
            return  # nothing is built here; the build itself says so
        refuse_types(outline, (capability,), where="the GPU of this machine")


def refuse_types(outline: ModelOutline, capabilities: Iterable[str], *, where: str) -> None:
    """Raise BadInputError for the first capability, as ``sm86``, that lacks a type of the model."""
    capabilities = tuple(capabilities)
    for dtype in sorted(outline.dtypes & SINCE.keys()):
        for capability in capabilities:
            if _number(capability) < SINCE[dtype]:
                able = [one for one in CAPABILITIES["rtx"] if _number(one) >= SINCE[dtype]]
                raise BadInputError(
                    f"{capability} has no {dtype}",
                    where=where,
                    got=f"a model with {dtype} tensors",
                    wanted=f"sm{SINCE[dtype]} or later (TensorRT-RTX: {', '.join(able)})",
                    next_step=f"leave {capability} out, or choose another precision",
                )


def _number(capability: str) -> int:
    return int(capability.removeprefix("sm"))


def _check_cpu(outline: ModelOutline, target: Target) -> None:
    """Of what the model holds; a value that is only cast to such a type and back does run."""
    held = {*outline.constants.values(), *(info.dtype for info in outline.inputs)}
    missing = sorted(held & WITHOUT_CPU_KERNELS)
    if missing:
        raise BadInputError(
            f"ONNX Runtime's CPU does not compute in {missing[0]}",
            where=f"target {target}",
            next_step="build for rtx or tensorrt, or take fp16",
        )


__all__ = ["SINCE", "WITHOUT_CPU_KERNELS", "check_types", "refuse_types"]
