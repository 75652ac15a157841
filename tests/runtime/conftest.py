"""Tiny models, written with onnx.helper, and the bundles that hold them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from secateur.runtime.backend import EngineSpec, ShapeRange
from secateur.runtime.bundle_writer import new_bundle
from secateur.runtime.compare import SelectionReference
from secateur.runtime.goldens import GoldenCase, goldens_to_bytes

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
    bias_shape = ["bias.rows", "bias.columns"]
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
def masked_path(tmp_path: Path) -> Path:
    """y = x * mask, two inputs that share both axes."""
    sizes = ["batch", "tokens"]
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, sizes) for n in ("x", "mask", "y")
    ]
    node = helper.make_node("Mul", ["x", "mask"], ["y"])
    path = tmp_path / "masked.onnx"
    onnx.save(_model(helper.make_graph([node], "masked", values[:2], values[2:])), path)
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
def spec() -> EngineSpec:
    """Profiles of ``x`` [batch, tokens, 8]; the budget's range follows from them."""
    return EngineSpec(profiles={"x": ShapeRange((1, 4, 8), (1, 8, 8), (4, 16, 8))})


@pytest.fixture
def bundle_path(tmp_path: Path, selecting_path: Path, spec: EngineSpec) -> Path:
    path = tmp_path / "bundle"
    with new_bundle(path) as draft:
        draft.place_model("model.onnx", selecting_path)
        draft.write("recipe.yaml", "name: test\n")
        draft.manifest = replace(draft.manifest, spec=spec)
        draft.add_onnxruntime(optimisation="disabled")
    return path


@pytest.fixture
def goldens(tokens: np.ndarray) -> tuple[GoldenCase, ...]:
    """Two batches answered by NumPy alone."""
    return tuple(_answer(tokens * scale, k) for scale, k in ((1.0, 2), (-1.0, 3)))


@pytest.fixture
def proven_path(
    tmp_path: Path,
    selecting_path: Path,
    forced_path: Path,
    dense_path: Path,
    goldens: tuple[GoldenCase, ...],
    spec: EngineSpec,
) -> Path:
    """A bundle with forced twin, dense model and goldens."""
    path = tmp_path / "proven"
    with new_bundle(path) as draft:
        draft.place_model("model.onnx", selecting_path)
        draft.place_model("model.forced.onnx", forced_path)
        draft.place_model("model.dense.onnx", dense_path)
        draft.write("goldens.npz", goldens_to_bytes(goldens))
        draft.manifest = replace(draft.manifest, spec=spec)
        draft.add_onnxruntime(optimisation="all")
    return path


def _answer(x: np.ndarray, k: int) -> GoldenCase:
    """Keep the k tokens with the largest first feature, in order, and project them."""
    score = x[:, :, 0]
    index = np.sort(np.argsort(-score, axis=1, kind="stable")[:, :k], axis=1)
    bias = np.zeros(score.shape, np.float32)
    np.put_along_axis(bias, index, 1e9, axis=1)
    kept = np.take_along_axis(x, index[:, :, None], axis=1)
    return GoldenCase(
        inputs={"x": x, "encoder.layer.0.k": np.array([k])},
        outputs={"y": kept @ _weights(8, 8)},
        forced={"encoder.layer.0.score_bias": bias},
        selections={
            "encoder.layer.0": SelectionReference(score, index, np.ones(score.shape, bool))
        },
        kept=index,
    )
