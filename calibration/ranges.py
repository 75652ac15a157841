"""How large the values inside a graph become on data: what half precision must be able to hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from secateur.calibration.activations import Batch
from secateur.export.marker_translation import without_markers
from secateur.export.onnx_file import save
from secateur.graph_passes.opset import SELECTION_OPSET, opset_of, raise_opset
from secateur.graph_passes.prepare import prepare
from secateur.runtime.backends.onnxruntime import OnnxRuntime

_SUFFIX = ".largest"


def largest_magnitudes(model: ir.Model, data: Iterable[Batch]) -> dict[str, float]:
    """Return the largest ``|x|`` of every float32 value, inputs included, over all batches.

    The graph itself takes the maximum, so that no value is kept. A value that was NaN has
    NaN; an empty one 0.

    Raises:
        BadInputError: a batch that does not fit the model.
    """
    copy = prepare(without_markers(model))
    if opset_of(copy) < SELECTION_OPSET:
        raise_opset(copy, SELECTION_OPSET)
    names = _measure(copy.graph)
    found = dict.fromkeys(names, 0.0)
    with TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(folder) / "measured.onnx"
        save(copy, path)
        with OnnxRuntime().session(path) as run:
            for batch in data:
                outputs = run(batch)
                for name in names:
                    seen = float(outputs[f"{name}{_SUFFIX}"])
                    found[name] = max(found[name], 0.0 if seen == -np.inf else seen)
                    if np.isnan(seen):
                        found[name] = np.nan
    return found


def _measure(graph: ir.Graph) -> list[str]:
    """Make the largest magnitude of every float32 value the only outputs of a graph."""
    inputs = [value for value in graph.inputs if value.const_value is None]
    values = [
        value
        for value in (*inputs, *(output for node in graph for output in node.outputs))
        if value.dtype == ir.DataType.FLOAT and value.name
    ]
    graph.outputs.clear()
    for value in values:
        magnitude = ir.node("Abs", [value], name=f"{value.name}/Abs")
        largest = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0})
        largest.name, output = f"{value.name}/ReduceMax", largest.outputs[0]
        magnitude.outputs[0].name = f"{value.name}.magnitude"
        output.name, output.shape = f"{value.name}{_SUFFIX}", ir.Shape([])
        output.type = ir.TensorType(ir.DataType.FLOAT)
        graph.extend([magnitude, largest])
        graph.outputs.append(output)
    return [str(value.name) for value in values]


__all__ = ["largest_magnitudes"]
