"""Single ops run with torch equal ONNX Runtime, attributes and corner cases included."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

import secateur as sc
from secateur.errors import PreconditionError

F32, I64, BOOL = np.float32, np.int64, np.bool_
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(F32)


def ints(*values):
    return np.array(values, I64)


X = normal(2, 3, 6, 5)
# op, inputs (an array is a graph input, in a list it is a constant), attributes, opset
CASES = {
    "asymmetric_conv_pads": ("Conv", [X, [normal(4, 3, 3, 2)]], {"pads": [0, 1, 1, 0]}, 20),
    "same_upper": (
        "Conv",
        [X, [normal(4, 3, 3, 2)]],
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        20,
    ),
    "same_lower": ("Conv", [X, [normal(4, 3, 2, 2)]], {"auto_pad": "SAME_LOWER"}, 20),
    "grouped_dilated": ("Conv", [X, [normal(6, 1, 2, 2)]], {"group": 3, "dilations": [2, 1]}, 20),
    "conv_1d": ("Conv", [normal(2, 3, 7), [normal(4, 3, 3)], [normal(4)]], {}, 20),
    "transposed": (
        "ConvTranspose",
        [X, [normal(3, 4, 3, 3)], [normal(4)]],
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        20,
    ),
    "max_pool_asymmetric": (
        "MaxPool",
        [X],
        {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1], "strides": [2, 2]},
        20,
    ),
    "average_pool_counts_no_pads": (
        "AveragePool",
        [X],
        {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1]},
        20,
    ),
    "average_pool_counts_pads": (
        "AveragePool",
        [X],
        {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1], "count_include_pad": 1},
        20,
    ),
    "global_average": ("GlobalAveragePool", [X], {}, 20),
    "global_max": ("GlobalMaxPool", [X], {}, 20),
    "gemm_alpha": (
        "Gemm",
        [normal(3, 4), [normal(3, 5)], [normal(1, 5)]],
        {"alpha": 0.5, "beta": 2.0, "transA": 1},
        20,
    ),
    "softmax_opset_11": ("Softmax", [X], {"axis": 1}, 11),
    "softmax_middle": ("Softmax", [X], {"axis": 2}, 20),
    "log_softmax": ("LogSoftmax", [X], {"axis": 1}, 20),
    "reduce_axes_attribute": ("ReduceMean", [X], {"axes": [1, -1], "keepdims": 0}, 17),
    "reduce_everything": ("ReduceMax", [X], {"keepdims": 0}, 20),
    "reduce_nothing": ("ReduceSum", [X, [ints()]], {"noop_with_empty_axes": 1}, 20),
    "reduce_product": ("ReduceProd", [X, [ints(1, 3)]], {"keepdims": 0}, 20),
    "reduce_l2": ("ReduceL2", [X, [ints(-1)]], {}, 20),
    "log_sum_exp": ("ReduceLogSumExp", [X, [ints(2)]], {}, 20),
    "cumulative": ("CumSum", [X, [np.array(1, I64)]], {"exclusive": 1, "reverse": 1}, 20),
    "slice_backwards": ("Slice", [X, [ints(4)], [ints(-9)], [ints(2)], [ints(-2)]], {}, 20),
    "slice_opset_9": ("Slice", [X], {"starts": [1], "ends": [-1], "axes": [2]}, 9),
    "pad_axes": ("Pad", [X, [ints(1, -1)], [np.array(2.5, F32)], [ints(-2)]], {}, 20),
    "pad_reflect": ("Pad", [X, [ints(0, 0, 1, 2, 0, 0, 2, 1)]], {"mode": "reflect"}, 20),
    "pad_edge": ("Pad", [X, [ints(0, 0, 1, 2, 0, 0, 2, 1)]], {"mode": "edge"}, 20),
    "expand_both_ways": ("Expand", [normal(3, 1), [ints(2, 1, 4)]], {}, 20),
    "expand_to_less": ("Expand", [normal(2, 3), [ints(3)]], {}, 20),
    "tile": ("Tile", [X, [ints(1, 2, 1, 3)]], {}, 20),
    "flatten": ("Flatten", [X], {"axis": -2}, 20),
    "reshape_zero": ("Reshape", [X, [ints(0, -1, 5)]], {}, 20),
    "squeeze_all": ("Squeeze", [normal(1, 3, 1)], {}, 20),
    "unsqueeze": ("Unsqueeze", [X, [ints(-1, 0)]], {}, 20),
    "depth_to_space_dcr": ("DepthToSpace", [normal(1, 8, 2, 3)], {"blocksize": 2}, 20),
    "depth_to_space_crd": (
        "DepthToSpace",
        [normal(1, 8, 2, 3)],
        {"blocksize": 2, "mode": "CRD"},
        20,
    ),
    "space_to_depth": ("SpaceToDepth", [normal(1, 2, 4, 6)], {"blocksize": 2}, 20),
    "gather_from_the_end": ("Gather", [X, [ints(-1, 0)]], {"axis": 2}, 20),
    "gather_computed": ("Gather", [X, np.array([[-1, 0], [1, 2]])], {"axis": 1}, 20),
    "gather_scalar": ("Gather", [X, [np.array(-2, I64)]], {"axis": 3}, 20),
    "gather_elements": ("GatherElements", [normal(3, 4), np.array([[0, -1]])], {"axis": 1}, 20),
    "gather_nd": ("GatherND", [X, np.array([[0, 1], [1, -1]])], {}, 20),
    "gather_nd_batch": ("GatherND", [X, np.array([[[1]], [[2]]])], {"batch_dims": 1}, 20),
    "scatter_nd": ("ScatterND", [normal(4, 3), np.array([[1], [3]]), normal(2, 3)], {}, 20),
    "scatter_nd_add": (
        "ScatterND",
        [normal(4, 3), np.array([[1], [1]]), normal(2, 3)],
        {"reduction": "add"},
        20,
    ),
    "scatter_elements": (
        "ScatterElements",
        [normal(3, 4), np.array([[1, -1]]), normal(1, 2)],
        {"axis": 1},
        20,
    ),
    "scatter_elements_max": (
        "ScatterElements",
        [normal(3, 4), np.array([[1, 1]]), normal(1, 2)],
        {"axis": 1, "reduction": "max"},
        20,
    ),
    "one_hot": ("OneHot", [np.array([0, -1, 2]), [ints(4)], [np.array([0.5, 2.0], F32)]], {}, 20),
    "arg_min": ("ArgMin", [X], {"axis": 2, "keepdims": 0}, 20),
    "non_zero": ("NonZero", [(X > 0.3).astype(F32)], {}, 20),
    "upper_triangle": ("Trilu", [normal(2, 4, 4), [np.array(1, I64)]], {"upper": 1}, 20),
    "lower_triangle": ("Trilu", [normal(2, 4, 4)], {"upper": 0}, 20),
    "eye": ("EyeLike", [normal(3, 4)], {"k": 1}, 20),
    "clip_opset_9": ("Clip", [X], {"min": -0.5, "max": 0.25}, 9),
    "clip_one_side": ("Clip", [X, None, [np.array(0.1, F32)]], {}, 20),
    "clip_computed": ("Clip", [X, np.array(-0.2, F32)], {}, 20),
    "pow": ("Pow", [abs(X), [np.array(1.5, F32)]], {}, 20),
    "integer_division": ("Div", [ints(-7, 7, 9), ints(2, -2, 3)], {}, 20),
    "modulo": ("Mod", [ints(-7, 7), ints(3, -3)], {}, 20),
    "float_modulo": ("Mod", [X, [np.array(0.7, F32)]], {"fmod": 1}, 20),
    "maximum_of_three": ("Max", [X, normal(5), normal(6, 1)], {}, 20),
    "mean_of_two": ("Mean", [X, normal(5)], {}, 20),
    "is_inf": ("IsInf", [np.array([np.inf, -np.inf, 1], F32)], {"detect_negative": 0}, 20),
    "cast": ("Cast", [X], {"to": 7}, 20),
    "where": ("Where", [X > 0, X, normal(5)], {}, 20),
    "gelu_tanh": ("Gelu", [X], {"approximate": "tanh"}, 20),
    "hard_sigmoid": ("HardSigmoid", [X], {"alpha": 0.3, "beta": 0.4}, 20),
    "selu": ("Selu", [X], {}, 20),
    "celu": ("Celu", [X], {"alpha": 0.5}, 20),
    "elu": ("Elu", [X], {"alpha": 0.5}, 20),
    "prelu": ("PRelu", [X, [normal(3, 1, 1)]], {}, 20),
    "thresholded": ("ThresholdedRelu", [X], {"alpha": 0.3}, 20),
    "leaky": ("LeakyRelu", [X], {"alpha": 0.3}, 20),
    "dropout": ("Dropout", [X], {}, 20),
    "instance_norm": ("InstanceNormalization", [X, [normal(3)], [normal(3)]], {}, 20),
    "group_norm_18": (
        "GroupNormalization",
        [normal(2, 6, 4), [normal(3)], [normal(3)]],
        {"num_groups": 3},
        18,
    ),
    "group_norm_21": (
        "GroupNormalization",
        [normal(2, 6, 4), [normal(6)], [normal(6)]],
        {"num_groups": 3},
        21,
    ),
    "layer_norm_two_axes": ("LayerNormalization", [X, [normal(6, 5)]], {"axis": -2}, 20),
    "layer_norm_broadcast": ("LayerNormalization", [X, [normal(5)]], {"axis": -2}, 20),
    "rms_norm": ("RMSNormalization", [X, [normal(5)]], {"epsilon": 1e-3}, 23),
    "lrn": ("LRN", [X], {"size": 3, "alpha": 0.1}, 20),
    "lp_norm": ("LpNormalization", [X], {"axis": 1, "p": 1}, 20),
    "einsum": ("Einsum", [normal(2, 3), [normal(3, 4)]], {"equation": "bi, ij -> bj"}, 20),
    "resize_nearest": (
        "Resize",
        [X, None, [np.array([1, 1, 2, 2], F32)]],
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        20,
    ),
    "resize_linear": ("Resize", [X, None, None, [ints(2, 3, 9, 4)]], {"mode": "linear"}, 20),
    "resize_corners": (
        "Resize",
        [X, None, None, [ints(9, 4)]],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners", "axes": [2, 3]},
        20,
    ),
    "resize_cubic": ("Resize", [X, None, None, [ints(2, 3, 9, 8)]], {"mode": "cubic"}, 20),
    "attention_grouped": (
        "Attention",
        [normal(2, 5, 16), normal(2, 7, 8), normal(2, 7, 8), normal(2, 1, 5, 7)],
        {"q_num_heads": 4, "kv_num_heads": 2, "scale": 0.4},
        23,
    ),
    "attention_causal": (
        "Attention",
        [normal(2, 3, 5, 4), normal(2, 3, 5, 4), normal(2, 3, 5, 4)],
        {"is_causal": 1},
        23,
    ),
    "rotary": (
        "RotaryEmbedding",
        [normal(2, 3, 4, 8), normal(2, 4, 2), normal(2, 4, 2)],
        {"rotary_embedding_dim": 4},
        23,
    ),
    "rotary_interleaved": (
        "RotaryEmbedding",
        [normal(2, 4, 16), [normal(9, 4)], [normal(9, 4)], np.array([[3, 1, 0, 8], [1, 2, 3, 4]])],
        {"interleaved": 1, "num_heads": 2},
        23,
    ),
    "gru": (
        "GRU",
        [normal(4, 2, 3), [normal(1, 15, 3)], [normal(1, 15, 5)], [normal(1, 30)]],
        {"hidden_size": 5, "linear_before_reset": 1},
        20,
    ),
    "lstm_both_ways": (
        "LSTM",
        [normal(4, 2, 3), [normal(2, 20, 3)], [normal(2, 20, 5)], [normal(2, 40)]],
        {"hidden_size": 5, "direction": "bidirectional"},
        20,
    ),
}
SEVERAL = {"GRU": 2, "LSTM": 3}


def graph_of(op, inputs, attributes, opset):
    """A model of one node, and what to feed it."""
    values, constants, feeds = [], [], {}
    for slot, given in enumerate(inputs):
        if given is None:
            values.append(None)
            continue
        array = given[0] if isinstance(given, list) else given
        tensor = ir.tensor(array, name=f"x{slot}")
        value = ir.Value(name=f"x{slot}", shape=ir.Shape(array.shape))
        value.type = ir.TensorType(tensor.dtype)
        values.append(value)
        if isinstance(given, list):
            value.const_value = tensor
            constants.append(value)
        else:
            feeds[value.name] = array
    node = ir.node(op, values, attributes, num_outputs=SEVERAL.get(op, 1))
    for i, output in enumerate(node.outputs):
        output.name = f"y{i}"
    free = [value for value in values if value is not None and value.const_value is None]
    graph = ir.Graph(
        free, node.outputs, nodes=[node], initializers=constants, opset_imports={"": opset}
    )
    return ir.Model(graph, ir_version=10), feeds


def by_runtime(model, feeds):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, ["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.parametrize("name", CASES)
def test_an_op_equals_onnx_runtime(name):
    model, feeds = graph_of(*CASES[name])
    wanted = by_runtime(model, feeds)
    net = sc.to_torch(model)
    with torch.no_grad():
        found = net(**{key: torch.from_numpy(array) for key, array in feeds.items()})
    outputs = list(found.values()) if isinstance(found, dict) else [found]
    for got, want in zip(outputs, wanted, strict=True):
        assert got.numpy().dtype == want.dtype
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-5)


REFUSED = {
    "softcap": (
        "Attention",
        [normal(1, 2, 3, 4)] * 3,
        {"softcap": 5.0},
        23,
    ),
    "nearest": ("Resize", [X, None, None, [ints(2, 3, 9, 4)]], {"nearest_mode": "ceil"}, 20),
    "channels": ("Resize", [X, None, None, [ints(2, 6, 6, 5)]], {"mode": "linear"}, 20),
    "aspect": (
        "Resize",
        [X, None, None, [ints(2, 3, 9, 4)]],
        {"mode": "linear", "keep_aspect_ratio_policy": "not_larger"},
        20,
    ),
    "linear_before_reset": (
        "GRU",
        [normal(4, 2, 3), [normal(1, 15, 3)], [normal(1, 15, 5)]],
        {"hidden_size": 5},
        20,
    ),
    "reverse direction": (
        "LSTM",
        [normal(4, 2, 3), [normal(1, 20, 3)], [normal(1, 20, 5)]],
        {"hidden_size": 5, "direction": "reverse"},
        20,
    ),
    "last of equal": ("ArgMax", [X], {"select_last_index": 1}, 20),
    "dilations": ("AveragePool", [X], {"kernel_shape": [2, 2], "dilations": [2, 2]}, 20),
    "reduction": (
        "ScatterND",
        [normal(4, 3), np.array([[1], [3]]), normal(2, 3)],
        {"reduction": "max"},
        20,
    ),
    "output_shape": ("ConvTranspose", [X, [normal(3, 4, 3, 3)]], {"output_shape": [9, 9]}, 20),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_torch_cannot_do_is_refused_with_the_node_and_the_reason(reason):
    model, feeds = graph_of(*REFUSED[reason])
    next(iter(model.graph)).name = "the_node"
    net = sc.to_torch(model)
    if reason in {"channels", "aspect"}:
        reason = {"channels": "channel axis", "aspect": "aspect ratio"}[reason]
    with pytest.raises(PreconditionError, match=rf"(?s)the_node.*{reason}"):
        net(**{key: torch.from_numpy(array) for key, array in feeds.items()})


def test_equal_elements_of_top_k_come_first_to_last():
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[6] x, int64[1] k) => (float[K] v, int64[K] p) { v, p = TopK(x, k) }"""
    net = sc.to_torch(ir.from_onnx_text(text))
    found = net(torch.tensor([1.0, 2, 2, 1, 2, 2]), torch.tensor([3]))
    assert found["p"].tolist() == [1, 2, 4]


def test_a_shape_computed_of_another_input_follows_it():
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[B,N] x, float[M] y) => (float[A,C] z, int64[R] r) {
      n = Shape(x)
      two = Constant<value_ints = [2]>()
      half = Div(n, two)
      minus = Constant<value_ints = [-1]>()
      first = Constant<value_ints = [0]>()
      rows = Gather(half, first)
      target = Concat<axis = 0>(rows, minus)
      z = Reshape(y, target)
      start = Constant<value_int = 0>()
      step = Constant<value_int = 1>()
      limit = Squeeze(rows)
      r = Range(start, limit, step)
    }"""
    net = sc.to_torch(ir.from_onnx_text(text))
    for rows in (4, 6):
        found = net(torch.rand(rows, 3), torch.rand(12))
        assert tuple(found["z"].shape) == (rows // 2, 24 // rows)
        assert found["r"].tolist() == list(range(rows // 2))


def test_dropout_drops_in_training_only():
    model, _ = graph_of("Dropout", [X, [np.array(0.5, F32)]], {}, 20)
    net, ones = sc.to_torch(model), torch.ones(2, 3, 6, 5)
    assert net(ones).min() == 1
    assert net.train()(ones).min() == 0


def test_bfloat16_weights_stay_bfloat16():
    model, _ = graph_of("MatMul", [normal(2, 3), [normal(3, 4)]], {}, 20)
    value = model.graph.initializers["x1"]
    halves = value.const_value.numpy().astype(ir.DataType.BFLOAT16.numpy())
    value.const_value = ir.Tensor(halves, name="x1")
    (weight,) = sc.to_torch(model).parameters()
    assert weight.dtype == torch.bfloat16


def test_a_fully_masked_row_gives_no_nan_gradient():
    """As torch exports it: the NaN of such a row is replaced by 0 right behind the softmax."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[2,3] x, float[2,3] mask) => (float[2,3] y)
    <float[3] w = {1.0, 2.0, 3.0}, float zero = {0.0}> {
      scores = Mul(x, w)
      masked = Add(scores, mask)
      shares = Softmax(masked)
      empty = IsNaN(shares)
      y = Where(empty, zero, shares)
    }"""
    net = sc.to_torch(ir.from_onnx_text(text))
    mask = torch.tensor([[-torch.inf] * 3, [0.0, 0.0, -torch.inf]])
    found = net(torch.rand(2, 3), mask)
    assert found[0].tolist() == [0, 0, 0]
    found[:, 0].sum().backward()
    assert net.w.grad.isfinite().all()
    assert net.w.grad.abs().max() > 0
