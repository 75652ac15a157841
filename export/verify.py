"""The exported graph against the PyTorch model, at shapes that were not traced."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from secateur.errors import MissingDependencyError, ParityError
from secateur.export.dimension_names import Dynamic

BOUNDS = {"float64": 1e-8, "float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}
"""Largest allowed max|a-b| / max|b| per output dtype; everything else has to be equal."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class ShapeCheck:
    """One comparison: the sizes it ran at and the relative error of every output."""

    sizes: dict[str, int]
    errors: dict[str, float]


def other_sizes(
    traced: dict[str, int], ranges: Mapping[str, tuple[int, int | None]]
) -> tuple[dict[str, int], dict[str, int]]:
    """Choose two settings of the named dimensions that differ from the traced one.

    The first one is small (a batch of one), the second large; both stay in ``ranges``.
    """
    small, large = {}, {}
    for name, size in traced.items():
        low, high = ranges.get(name, (1, None))
        small[name] = max(1 if low <= 2 and size <= 4 else low, size // 2)
        grown = size + 3
        large[name] = grown if high is None else min(grown, high)
    return small, large


def resized(
    inputs: dict[str, Tensor], dynamic: Dynamic, sizes: dict[str, int]
) -> dict[str, Tensor]:
    """Repeat or cut the example inputs along their dynamic axes to the given sizes.

    A copy of a floating point slice is a little larger than the slice, and turned along its last
    axis, since equal or parallel tokens tie wherever a model ranks them by length or by angle,
    and which of a tie comes first is nobody's promise.
    """
    out = {}
    for name, tensor in inputs.items():
        turned = tensor
        for axis, dimension in dynamic.get(name, {}).items():
            places = torch.arange(sizes[dimension], device=tensor.device)
            turned = turned.index_select(axis, places % tensor.shape[axis])
            if turned.is_floating_point():
                copies = places.div(tensor.shape[axis], rounding_mode="floor")
                scale = (1 + copies / 64).to(turned.dtype)
                shape = (-1, *[1] * (turned.ndim - 1 - axis))
                turned = turned * scale.reshape(shape)
                if axis < turned.ndim - 1:
                    for copy in range(1, int(copies.amax()) + 1):
                        is_copy = (copies == copy).reshape(shape)
                        turned = torch.where(is_copy, turned.roll(copy, dims=-1), turned)
        out[name] = turned.contiguous()
    return out


def compare(
    net: nn.Module, model: ir.Model, inputs: dict[str, Tensor], sizes: dict[str, int]
) -> ShapeCheck:
    """Run both on ``inputs`` and compare every output.

    Raises:
        ParityError: an output differs in shape or by more than its bound, with the numbers.
        MissingDependencyError: onnxruntime is not installed.
    """
    with torch.no_grad():
        wanted = [_array(t) for t in flatten_outputs(net(**inputs)).values()]
    feeds = {value.name: _array(inputs[str(value.name)]) for value in model.graph.inputs}
    got = run(model, feeds)
    errors = {
        name: _error(name, array, want, sizes)
        for (name, array), want in zip(got.items(), wanted, strict=True)
    }
    return ShapeCheck(sizes, errors)


def run(model: ir.Model, feeds: Mapping[str | None, np.ndarray]) -> Arrays:
    """Run ``model`` in ONNX Runtime on the CPU with every graph optimisation off."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingDependencyError(
            "ONNX Runtime is needed to check an export",
            next_step="pip install 'secateur[cpu]'",
        ) from error
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.onnx.data")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def flatten_outputs(outputs: object) -> dict[str, Tensor]:
    """Name every tensor that a module returned.

    A single tensor is ``output``; mappings (and the output classes of transformers) give
    their keys, sequences their positions, nested ones joined by dots.
    """
    if isinstance(outputs, Tensor):
        return {"output": outputs}
    return dict(_named(outputs, ""))


def _named(outputs: object, prefix: str) -> list[tuple[str, Tensor]]:
    if isinstance(outputs, Tensor):
        return [(prefix, outputs)]
    if isinstance(outputs, Mapping):
        pairs = [(str(key), value) for key, value in outputs.items()]
    elif isinstance(outputs, tuple | list):
        pairs = [(f"output_{i}", value) for i, value in enumerate(outputs)]
    elif outputs is None:
        return []
    else:
        raise TypeError(f"the model returns {type(outputs).__name__}, which holds no tensors")
    return [
        found
        for name, value in pairs
        for found in _named(value, f"{prefix}.{name}" if prefix else name)
    ]


def _array(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.detach().cpu().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array


def _error(name: str, got: np.ndarray, want: np.ndarray, sizes: dict[str, int]) -> float:
    where = f"output {name!r} at " + ", ".join(f"{key}={size}" for key, size in sizes.items())
    if got.shape != want.shape:
        raise ParityError(
            "the exported graph gives another shape than PyTorch",
            where=where,
            got=str(list(got.shape)),
            wanted=str(list(want.shape)),
            next_step="a size was baked in while tracing: compute it from tensor shapes",
        )
    bound = BOUNDS.get(want.dtype.name, 0.0)
    a, b = got.astype(np.float64), want.astype(np.float64)
    scale = float(np.abs(b).max(initial=0.0))
    difference = float(np.abs(a - b).max(initial=0.0))
    error = difference / scale if scale else difference
    if not error <= bound:  # NaN fails too
        raise ParityError(
            "the exported graph differs from PyTorch",
            where=where,
            got=f"relative error {error:.3g} (largest difference {difference:.3g})",
            wanted=f"at most {bound:g} for {want.dtype.name}",
            next_step="compare layer by layer with `secateur parity --bisect`",
        )
    return error


__all__ = ["BOUNDS", "ShapeCheck", "compare", "flatten_outputs", "other_sizes", "resized", "run"]
