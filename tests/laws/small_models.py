"""Small networks spelled out in ONNX's text form, with random weights; and what to ask of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from secateur.graph_passes.groups import Analysis, Group, analyse
from secateur.graph_passes.masking import mask
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove

Shapes = Mapping[str, Sequence[int]]
_HEADER = '<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1, "local" : 1]>\n'

MLP = """
mlp (float[batch, 4] x) => (float[batch, 3] y) {
    a = MatMul(x, w1)
    b = Add(a, b1)
    c = Relu(b)
    y = MatMul(c, w2)
}
"""
MLP_WEIGHTS = {"w1": (4, 6), "b1": (6,), "w2": (6, 3)}

TWINS = """
twins (float[batch, 4] x) => (float[batch, 4] y) {
    a = MatMul(x, w1)
    b = Add(a, shared)
    c = Tanh(b)
    d = MatMul(c, w2)
    e = MatMul(d, w3)
    f = Add(e, shared)
    g = Tanh(f)
    y = MatMul(g, w4)
}
"""
TWIN_WEIGHTS = {"w1": (4, 6), "w2": (6, 4), "w3": (4, 6), "w4": (6, 4), "shared": (6,)}


def network(text: str, weights: Shapes, constants: Mapping[str, object] | None = None,
            opset: int = 20) -> ir.Model:  # fmt: skip
    """Parse ``g (inputs) => (outputs) { nodes }``; weights are drawn, constants are spelled."""
    proto = parser.parse_model(_HEADER.format(opset=opset) + text)
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        array = rng.standard_normal(tuple(shape)).astype(np.float32) * 0.5
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for name, value in (constants or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for number, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def digest(model: ir.Model) -> str:
    proto = ir.to_proto(model)
    for node in proto.graph.node:  # serialising names the tensors of Constant nodes
        for attribute in node.attribute:
            attribute.t.ClearField("name")
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def run(model: ir.Model, sizes: Mapping[str, int] | None = None) -> list[NDArray]:
    """Outputs of ONNX Runtime, optimisation off, on random inputs."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng, feeds = np.random.default_rng(1), {}
    for value in session.get_inputs():
        shape = [d if isinstance(d, int) else (sizes or {}).get(d, 3) for d in value.shape]
        if value.type == "tensor(int64)":
            feeds[value.name] = rng.integers(0, 4, shape)
        else:
            kind = np.float16 if value.type == "tensor(float16)" else np.float32
            feeds[value.name] = rng.standard_normal(shape).astype(kind)
    return list(session.run(None, feeds))


def group_of(analysis: Analysis, initialiser: str, axis: int, position: int = 0) -> Group:
    """The group of atom number ``position`` of a weight's axis."""
    found = [
        group
        for group in analysis.groups
        for use in group.weights
        if (use.initialiser, use.axis) == (initialiser, axis)
    ]
    return list(dict.fromkeys(found))[position]


def cut(model: ir.Model, keep: Mapping[tuple[str, int] | tuple[str, int, int], Sequence[int]],
        *, inexact: bool = False) -> ir.Model:  # fmt: skip
    """Keep units of groups named by a weight axis that contains them; check, and return the cut.

    The cut network is valid, equals the masked one to 1e-5, and the input is unchanged.
    """
    before = digest(model)
    analysis = analyse(model)
    named = {group_of(analysis, *where).name: tuple(units) for where, units in keep.items()}
    plan = make_plan(analysis, named, allow_inexact=inexact)
    smaller = remove(model, plan)
    onnx.checker.check_model(ir.to_proto(smaller), full_check=True)
    for got, wanted in zip(run(smaller), run(mask(model, plan)), strict=True):
        assert got.shape == wanted.shape
        tolerance = 1e-5 if wanted.dtype == np.float32 else 2e-3
        assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()
    assert digest(model) == before
    return smaller


def shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Shapes of all initialisers by name."""
    found = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        found[name] = tuple(tensor.shape.numpy())
    return found
