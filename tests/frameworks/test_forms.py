"""What a file can look like: old and new opsets, half precision, data beside it, subgraphs."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from tests.frameworks.halving import (
    HALF_BOUND,
    assert_equal_to_masked,
    halve,
)
from tests.laws.small_models import MLP, network

from secateur.export.onnx_file import from_onnx, save

_WEIGHTS = {"w1": (4, 12), "b1": (12,), "w2": (12, 3)}


def _table() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)}


def _images(dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(dtype)}


def _mlp() -> onnx.ModelProto:
    return ir.to_proto(network(MLP, _WEIGHTS))


def _opened(proto: onnx.ModelProto, folder: Path) -> ir.Model:
    onnx.save(proto, folder / "given.onnx")
    return from_onnx(folder / "given.onnx")


# --- where the weights are --------------------------------------------------------------------


def test_weights_in_several_files_are_cut(tmp_path: Path) -> None:
    proto = _mlp()
    onnx.save(proto, tmp_path / "given.onnx", save_as_external_data=True,
              all_tensors_to_one_file=False, size_threshold=0)  # fmt: skip
    names = {path.name for path in tmp_path.iterdir()}
    assert {"w1", "w2", "b1"} <= names, "one file a weight"
    halved = halve(from_onnx(tmp_path / "given.onnx"))
    assert halved.sizes == {"channels": [12]}
    assert_equal_to_masked(halved, _table())
    save(halved.small, tmp_path / "small.onnx")
    assert {path.name for path in tmp_path.iterdir()} >= names, "the given files are still there"


def test_weights_as_constant_nodes_are_cut(tmp_path: Path) -> None:
    proto = _mlp()
    for tensor in list(proto.graph.initializer):
        node = helper.make_node("Constant", [], [tensor.name], value=tensor)
        proto.graph.node.insert(0, node)
        proto.graph.initializer.remove(tensor)
    halved = halve(_opened(proto, tmp_path))
    assert halved.sizes == {"channels": [12]}
    assert_equal_to_masked(halved, _table())


def test_weights_that_are_also_inputs_are_cut_as_before_ir_version_4(tmp_path: Path) -> None:
    proto = ir.to_proto(network(MLP, _WEIGHTS, opset=11))
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims)
        )
    onnx.checker.check_model(proto)
    halved = halve(_opened(proto, tmp_path))
    assert halved.sizes == {"channels": [12]}
    assert_equal_to_masked(halved, _table())


def test_a_file_in_half_precision_stays_in_half_precision(tmp_path: Path) -> None:
    weights = {name: np.random.default_rng(0).normal(size=shape).astype(np.float16)
               for name, shape in _WEIGHTS.items()}  # fmt: skip
    halved = halve(network(MLP.replace("float[", "float16["), {}, weights))
    kinds = {value.dtype for value in halved.small.graph.initializers.values()}
    assert kinds == {ir.DataType.FLOAT16}
    assert_equal_to_masked(halved, {"x": _table()["x"].astype(np.float16)}, HALF_BOUND)


def test_shapes_that_the_file_lacks_are_inferred(tmp_path: Path) -> None:
    text = """
    net (float[batch, 3, 8, 8] x) => (float[batch, n] y) {
        a = Conv(x, w1, b1)
        b = Relu(a)
        c = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)
        d = Flatten(c)
        y = MatMul(d, w2)
    }
    """
    model = network(text, {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (72, 5)})
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    halved = halve(_opened(proto, tmp_path))
    assert halved.sizes == {"channels": [8]}
    assert_equal_to_masked(halved, _images())


def test_a_network_with_every_dimension_dynamic_is_cut(tmp_path: Path) -> None:
    text = """
    net (float[b, c, h, w] x) => (float[b, o, i, j] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        b = Relu(a)
        c2 = Conv <group = 8, strides = [2, 2]> (b, w2)
        s = GlobalAveragePool(c2)
        g = Conv(s, w3)
        h2 = Sigmoid(g)
        m = Mul(c2, h2)
        y = Conv(m, w4)
    }
    """
    weights = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "w3": (8, 8, 1, 1),
               "w4": (5, 8, 1, 1)}  # fmt: skip
    halved = halve(_opened(ir.to_proto(network(text, weights)), tmp_path))
    assert halved.sizes == {"channels": [8]}
    assert_equal_to_masked(halved, _images())


# --- functions and subgraphs ------------------------------------------------------------------


def test_a_function_that_calls_a_function_is_cut(tmp_path: Path) -> None:
    text = """
    whole (float[batch, 4] x) => (float[batch, 3] y) {
        a = MatMul(x, w1)
        b = local.gated(a)
        y = MatMul(b, w2)
    }
    <domain: "local", opset_import: ["" : 20, "local" : 1]>
    gated (u) => (v) { s = local.squashed(u)
        v = Mul(u, s) }
    <domain: "local", opset_import: ["" : 20]>
    squashed (p) => (q) { q = Sigmoid(p) }
    """
    halved = halve(_opened(ir.to_proto(network(text, {"w1": (4, 12), "w2": (12, 3)})), tmp_path))
    assert halved.sizes == {"channels": [12]}
    assert_equal_to_masked(halved, _table())


_IF = """
net (float[batch, 4] x, bool flag) => (float[batch, 3] y) {
    a = MatMul(x, w1)
    b = If (flag) <
        then_branch = yes () => (t) { t = Relu(a) },
        else_branch = no () => (f) { f = Neg(a) }
    >
    c = MatMul(x, w3)
    d = Relu(c)
    e = MatMul(d, w4)
    g = MatMul(b, w2)
    y = Add(e, g)
}
"""
_LOOP = """
net (float[batch, 4] x) => (float[batch, 3] y) {
    a = MatMul(x, w1)
    b = Loop (trips, on, a) <
        body = turn (int64 i, bool go, float[batch, 12] s) => (bool on2, float[batch, 12] t)
            { on2 = Identity(go)
              t = Tanh(s) }
    >
    c = MatMul(x, w3)
    d = Relu(c)
    e = MatMul(d, w4)
    g = MatMul(b, w2)
    y = Add(e, g)
}
"""
_SCAN = """
net (float[5, 4] x) => (float[5, 3] y) {
    a = MatMul(x, w1)
    last, b = Scan <num_scan_inputs = 1,
        body = turn (float[12] s, float[12] r) => (float[12] s2, float[12] t)
            { s2 = Add(s, r)
              t = Tanh(s2) }> (start, a)
    c = MatMul(x, w3)
    d = Relu(c)
    e = MatMul(d, w4)
    g = MatMul(b, w2)
    y = Add(e, g)
}
"""
_BRANCHED = {"w1": (4, 12), "w2": (12, 3), "w3": (4, 10), "w4": (10, 3)}


@pytest.mark.parametrize(
    ("op", "text", "constants", "feeds"),
    [
        ("If", _IF, {}, {"flag": np.array(True)}),
        ("Loop", _LOOP, {"trips": np.array(2), "on": np.array(True)}, {}),
        ("Scan", _SCAN, {"start": np.zeros(12, np.float32)}, {}),
    ],
    ids=["If", "Loop", "Scan"],
)
def test_what_a_subgraph_touches_stays_and_the_rest_goes(op, text, constants, feeds) -> None:
    halved = halve(network(text, _BRANCHED, constants))
    assert halved.sizes == {"channels": [10]}, "what stands beside the subgraph"
    (reason,) = {
        halved.refusals[g.name]
        for g in halved.analysis.groups
        if any(use.initialiser == "w1" and use.axis == 1 for use in g.weights)
    }
    assert op in reason
    assert_equal_to_masked(halved, {**_table(), **feeds})


# --- opsets -----------------------------------------------------------------------------------

_CLASSIC = """
net (float[batch, 3, 8, 8] x) => (float[batch, 5] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    n = BatchNormalization <epsilon = 0.001> (a, scale, shift, mean, variance)
    b = Relu(n)
    dropped = Dropout(b)
    c = Conv <pads = [1, 1, 1, 1], group = 8> (dropped, w2)
    skip = Add(c, b)
    u = UPSAMPLE(skip)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (u)
    e = Conv(p, w3)
    f = LeakyRelu <alpha = 0.1> (e)
    g = GlobalAveragePool(f)
    h = SQUEEZE
    k = Gemm <transB = 1> (h, w4, b4)
    y = Softmax <axis = 1> (k)
}
"""
_CLASSIC_WEIGHTS = {"w1": (8, 3, 3, 3), "b1": (8,), "scale": (8,), "shift": (8,), "mean": (8,),
                    "w2": (8, 1, 3, 3), "w3": (12, 8, 3, 3), "w4": (5, 12), "b4": (5,)}  # fmt: skip


def _classic(opset: int) -> ir.Model:
    between = "" if opset >= 13 else "roi"
    upsample = f'Resize <mode = "nearest"> (skip, {between}, scales)'
    squeeze = "Squeeze (g, axes)" if opset >= 13 else "Squeeze <axes = [2, 3]> (g)"
    text = _CLASSIC.replace("UPSAMPLE(skip)", upsample).replace("SQUEEZE", squeeze)
    constants: dict[str, np.ndarray] = {
        "variance": np.linspace(0.5, 1.5, 8, dtype=np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    if opset >= 13:
        constants["axes"] = np.array([2, 3])
    else:
        constants["roi"] = np.zeros(0, np.float32)
    return network(text, _CLASSIC_WEIGHTS, constants, opset)


@pytest.mark.parametrize("opset", range(13, 25))
def test_a_convolutional_network_of_any_opset_is_cut(opset: int) -> None:
    halved = halve(_classic(opset))
    assert halved.sizes == {"channels": [8, 12]}
    assert_equal_to_masked(halved, _images())


@pytest.mark.parametrize("opset", [11, 12])
def test_a_convolutional_network_of_an_old_opset_is_cut(opset: int, tmp_path: Path) -> None:
    proto = ir.to_proto(_classic(opset))
    proto.ir_version = 6
    onnx.checker.check_model(proto)
    halved = halve(_opened(proto, tmp_path))
    assert halved.sizes == {"channels": [8, 12]}
    assert_equal_to_masked(halved, _images())


_TRANSFORMER = """
net (float[batch, tokens, 8] x) => (float[batch, tokens, 8] y) {
    q0 = MatMul(x, wq)
    k0 = MatMul(x, wk)
    v0 = MatMul(x, wv)
    q1 = Reshape(q0, heads)
    k1 = Reshape(k0, heads)
    v1 = Reshape(v0, heads)
    q = Transpose <perm = [0, 2, 1, 3]> (q1)
    k = Transpose <perm = [0, 2, 3, 1]> (k1)
    v = Transpose <perm = [0, 2, 1, 3]> (v1)
    s = MatMul(q, k)
    p = Softmax <axis = AXIS> (s)
    o = MatMul(p, v)
    t = Transpose <perm = [0, 2, 1, 3]> (o)
    m = Reshape(t, merged)
    a = MatMul(m, wo)
    r = Add(a, x)
    mean = REDUCE
    c = Sub(r, mean)
    u = MatMul(c, w1)
    ga, gb = SPLIT
    g = Sigmoid(ga)
    h = Mul(g, gb)
    d = MatMul(h, w2)
    y = Add(d, r)
}
"""
_TRANSFORMER_WEIGHTS = {"wq": (8, 12), "wk": (8, 12), "wv": (8, 12), "wo": (12, 8), "w1": (8, 20),
                        "w2": (10, 8)}  # fmt: skip


@pytest.mark.parametrize("opset", range(11, 25))
def test_a_transformer_of_any_opset_is_cut(opset: int) -> None:
    constants = {"heads": np.array([0, 0, 4, 3]), "merged": np.array([0, 0, 12])}
    split = "Split <axis = 2, split = [10, 10]> (u)"
    if opset >= 13:
        constants["parts"] = np.array([10, 10])
        split = "Split <axis = 2> (u, parts)"
    reduce = "ReduceMean <axes = [2]> (r)"
    if opset >= 18:
        constants["last"] = np.array([2])
        reduce = "ReduceMean (r, last)"
    text = _TRANSFORMER.replace("AXIS", "3" if opset < 13 else "-1")
    text = text.replace("SPLIT", split).replace("REDUCE", reduce)
    model = network(text, _TRANSFORMER_WEIGHTS, constants, opset)
    halved = halve(model)
    assert halved.sizes["heads"] == [4]
    assert sorted(itertools.chain(*halved.sizes.values())) == [3, 3, 4, 10]
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32)}
    assert_equal_to_masked(halved, feeds)


OLD_OPS = {
    "Upsample, opset 9": (9, "b = Upsample(a, scales)", {"scales": [1.0, 1.0, 2.0, 2.0]}),
    "Resize, opset 10": (10, "b = Resize(a, scales)", {"scales": [1.0, 1.0, 2.0, 2.0]}),
    "Pad with an attribute, opset 10": (10, "b = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (a)", {}),
    "Slice with attributes, opset 9": (
        9, "b = Slice <axes = [2, 3], starts = [1, 0], ends = [5, 4]> (a)", {}),
    "Clip with attributes, opset 10": (10, "b = Clip <max = 6.0, min = 0.0> (a)", {}),
    "Dropout with a ratio, opset 11": (11, "b, mask = Dropout <ratio = 0.3> (a)", {}),
    "Unsqueeze and Squeeze with attributes, opset 11": (
        11, "c = Unsqueeze <axes = [0]> (a)\n b = Squeeze <axes = [0]> (c)", {}),
    "flattening Softmax, opset 11": (11, "b = Softmax <axis = 2> (a)", {}),
    "ReduceSum with an attribute, opset 11": (
        11, "c = ReduceSum <axes = [2, 3]> (a)\n b = Mul(a, c)", {}),
    "Scatter of constants beside it, opset 10": (
        10, "c = GlobalMaxPool(a)\n b = Mul(a, c)", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD_OPS)
def test_channels_go_through_an_op_as_it_was_spelled(name: str, tmp_path: Path) -> None:
    opset, nodes, constants = OLD_OPS[name]
    text = f"""
    net (float[batch, 3, 8, 8] x) => (float[batch, 4, h, w] y) {{
        a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        {nodes}
        y = Conv(b, w2)
    }}
    """
    arrays = {k: np.array(v, np.float32) for k, v in constants.items()}
    proto = ir.to_proto(network(text, {"w1": (6, 3, 3, 3), "w2": (4, 6, 1, 1)}, arrays, opset))
    halved = halve(_opened(proto, tmp_path))
    assert halved.sizes == {"channels": [6]}
    assert_equal_to_masked(halved, _images())


def test_a_softmax_that_flattens_its_axes_lets_none_of_them_go_inexactly() -> None:
    """Before opset 13, axis 1 means that channels and space are normalised together."""
    text = """
    net (float[batch, 3, 8, 8] x) => (float[batch, 4, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        b = Softmax <axis = 1> (a)
        y = Conv(b, w2)
    }
    """
    halved = halve(network(text, {"w1": (6, 3, 3, 3), "w2": (4, 6, 1, 1)}, opset=11))
    assert halved.sizes == {"channels": [6]}, "-inf is neutral for all that are normalised"
    assert_equal_to_masked(halved, _images())
