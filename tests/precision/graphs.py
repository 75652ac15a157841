"""Graphs written by hand, and what both halves of every test need."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.graph_passes.precision.decisions import Precision
from secateur.graph_passes.precision.lower import lower_precision
from secateur.workflow.model_session import open_model

Arrays = dict[str, NDArray]

# The hidden layer of a mean-pooled block, with a mask as exporters write it.
BLOCK = """
<ir_version: 10, opset_import: ["" : 20]>
block (float[batch, n, 8] x, int64[batch, n] mask) => (float[batch, n, 8] y)
<float[8, 8] w = {WEIGHT}, float lowest = {-3.4e38}, float scale = {0.25}, float zero = {0.0}>
{
    b = Cast<to=9>(mask)
    axes = Constant<value_ints=[1]>()
    wide = Unsqueeze(b, axes)
    additive = Where(wide, zero, lowest)
    q = MatMul(x, w)
    t = Transpose<perm=[0, 2, 1]>(x)
    product = MatMul(q, t)
    scaled = Mul(product, scale)
    scores = Add(scaled, additive)
    p = Softmax<axis=-1>(scores)
    y = MatMul(p, q)
}
"""


def graph(text: str, **weights: NDArray) -> ir.Model:
    """A model from ONNX text; ``NAME`` in ``{NAME}`` gives way to the array of that name."""
    for name, array in weights.items():
        text = text.replace(f"{{{name}}}", "{" + ", ".join(map(repr, array.ravel().tolist())) + "}")
    return ir.from_onnx_text(text)


def block() -> tuple[ir.Model, Arrays]:
    """``BLOCK`` with weights, and a ragged batch."""
    rng = np.random.default_rng(0)
    model = graph(BLOCK, WEIGHT=rng.standard_normal((8, 8)).astype(np.float32))
    x = rng.standard_normal((2, 5, 8)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int64)
    return model, {"x": x, "mask": mask}


def lowered(model: ir.Model, precision: Precision | None = None) -> ir.Model:
    """Lower, and hold the result to the checker: both operands of every node have one type."""
    made = lower_precision(model, precision or Precision())
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    return made


def run(model: ir.Model, arrays: Arrays) -> Arrays:
    with open_model(model) as call:
        return call(arrays)


def types(model: ir.Model) -> dict[str, str]:
    """Type of every computed value, by name."""
    return {str(v.name): v.dtype.name for n in model.graph for v in n.outputs if v.dtype}


def computed_in(model: ir.Model, operator: str) -> list[str]:
    """Types that the nodes of an operator compute in, in graph order."""
    return [n.outputs[0].dtype.name for n in model.graph if n.op_type == operator]


def error(got: NDArray, wanted: NDArray) -> float:
    return float(np.abs(got.astype(np.float64) - wanted).max() / np.abs(wanted).max())
