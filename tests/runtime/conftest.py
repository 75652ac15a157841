"""Tiny models, written with onnx.helper, and the bundles that hold them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

SITE = {
    "site": "encoder.layer.0",
    "selector": "column",
    "budget": {"kind": "count", "input": "encoder.layer.0.k", "default": 4},
    "protected": 1,
    "score_output": "encoder.layer.0.score",
    "index_output": "encoder.layer.0.index",
    "kept_output": None,
    "bias": "encoder.layer.0.score_bias",
    "tokens": "tokens",
    "per_sample": False,
}


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def make_dense(width: int = 8) -> onnx.ModelProto:
    """y = relu(x @ w1) @ w2, batch and tokens dynamic."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["h"], name="up"),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "w2"], ["y"], name="down"),
        ],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "tokens", width])],
        [
            onnx.numpy_helper.from_array(_weights(width, 2 * width), "w1"),
            onnx.numpy_helper.from_array(_weights(2 * width, width), "w2"),
        ],
    )
    return _model(graph)


def make_selecting(*, forced: bool = False, width: int = 8) -> onnx.ModelProto:
    """Keep the k tokens with the largest first feature, in order, then multiply.

    The score bias is an optional input; in the forced twin it is a real one, and the scores
    and indices from before it are outputs.
    """
    site = "encoder.layer.0"
    initialisers = [
        onnx.numpy_helper.from_array(_weights(width, width), "w"),
        onnx.numpy_helper.from_array(np.array([0], np.int64), "zero"),
        onnx.numpy_helper.from_array(np.array([1], np.int64), "one"),
        onnx.numpy_helper.from_array(np.array([2], np.int64), "two"),
    ]
    bias_shape: list[int | str] = ["batch", "tokens"] if forced else ["bias_batch", "bias_tokens"]
    if not forced:
        initialisers.append(
            onnx.numpy_helper.from_array(np.zeros((1, 1), np.float32), f"{site}.score_bias")
        )
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "two"], ["first"]),
        helper.make_node("Squeeze", ["first", "two"], [f"{site}.score"]),
        helper.make_node("Add", [f"{site}.score", f"{site}.score_bias"], ["biased"]),
        helper.make_node("TopK", ["biased", f"{site}.k"], ["values", "unordered"], axis=1),
        *_ascending("unordered", "index", f"{site}.k"),
        helper.make_node("Unsqueeze", ["index", "two"], ["where"]),
        helper.make_node("GatherND", ["x", "where"], ["kept"], batch_dims=1),
        helper.make_node("MatMul", ["kept", "w"], ["y"], name="project"),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "kept", width])]
    if forced:
        nodes[4:4] = [
            helper.make_node("TopK", [f"{site}.score", f"{site}.k"], ["v", "raw"], axis=1),
            *_ascending("raw", f"{site}.index", f"{site}.k"),
        ]
        outputs += [
            helper.make_tensor_value_info(f"{site}.score", TensorProto.FLOAT, ["batch", "tokens"]),
            helper.make_tensor_value_info(f"{site}.index", TensorProto.INT64, ["batch", "kept"]),
        ]
    graph = helper.make_graph(
        nodes,
        "selecting",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", width]),
            helper.make_tensor_value_info(f"{site}.k", TensorProto.INT64, [1]),
            helper.make_tensor_value_info(f"{site}.score_bias", TensorProto.FLOAT, bias_shape),
        ],
        outputs,
        initialisers,
    )
    model = _model(graph)
    helper.set_model_props(model, {"secateur.sites": json.dumps([SITE])})
    return model


def _ascending(source: str, target: str, k: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node(
            "TopK", [source, k], [target, f"{target}/order"], axis=1, largest=0, sorted=1
        )
    ]


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


@pytest.fixture
def dense_path(tmp_path: Path) -> Path:
    path = tmp_path / "dense.onnx"
    onnx.save(make_dense(), path)
    return path


@pytest.fixture
def selecting_path(tmp_path: Path) -> Path:
    path = tmp_path / "selecting.onnx"
    onnx.save(make_selecting(), path)
    return path


@pytest.fixture
def forced_path(tmp_path: Path) -> Path:
    path = tmp_path / "forced.onnx"
    onnx.save(make_selecting(forced=True), path)
    return path


@pytest.fixture
def external_path(tmp_path: Path) -> Path:
    path = tmp_path / "outside" / "dense.onnx"
    path.parent.mkdir()
    onnx.save(
        make_dense(), path, save_as_external_data=True, location="weights.data", size_threshold=0
    )
    return path


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32)


@pytest.fixture
def bundle_path(tmp_path: Path, selecting_path: Path) -> Path:
    from secateur.runtime.bundle_writer import new_bundle

    path = tmp_path / "bundle"
    with new_bundle(path) as draft:
        draft.place_model("model.onnx", selecting_path)
        draft.write("recipe.yaml", "name: test\n")
        draft.add_onnxruntime(optimisation="disabled")
    return path
