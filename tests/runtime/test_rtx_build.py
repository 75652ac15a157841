"""Real TensorRT-RTX builds without a GPU: what comes back, and what a refusal says."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from tests.passes.selection.models import Variant, write
from tests.passes.selection.support import insert, selections

from secateur.errors import BadInputError, BuildError, MissingDependencyError
from secateur.runtime.backend import BACKENDS, EngineSpec, ShapeRange
from secateur.runtime.backends.tensorrt import TensorRt, build_in_child

K = ShapeRange((1,), (600,), (1000,))
X = ShapeRange((1, 4, 8), (1, 8, 8), (4, 16, 8))
SPEC = EngineSpec(
    profiles={"x": X},
    shape_values={"encoder.layer.0.k": ShapeRange((1,), (4,), (16,))},
    compute_capabilities=("sm86", "sm89"),
)


def test_an_engine_comes_with_a_side_car_that_describes_it(selecting_path: Path) -> None:
    built = TensorRt("rtx").build_with_record(selecting_path, SPEC)
    record = built.record
    assert len(built.engine) > 10_000
    inputs = {info["name"]: info for info in record["inputs"]}
    assert set(inputs) == {"x", "encoder.layer.0.k"}, "the bias is a constant in the engine"
    assert inputs["x"]["shape"] == [-1, -1, 8]
    assert inputs["encoder.layer.0.k"]["is_shape_input"]
    assert record["outputs"][0]["dtype"] == "float32"
    assert record["profiles"]["x"] == [[1, 4, 8], [1, 8, 8], [4, 16, 8]]
    assert record["shape_values"]["encoder.layer.0.k"] == [[1], [4], [16]]
    assert record["compute_capabilities"] == ["sm86", "sm89"]
    assert record["versions"]["tensorrt"].startswith("1.")
    assert record["onnx_sha256"] == {
        "selecting.onnx": hashlib.sha256(selecting_path.read_bytes()).hexdigest()
    }
    assert record["engine_sha256"] == hashlib.sha256(built.engine).hexdigest()
    assert record["memory_bytes"]["activation"] > 0
    assert not [text for text in record["warnings"] if "cudaError" in text]


def test_a_mask_of_fixed_shape_that_decides_how_many_stay_holds_zeros_and_ones(
    tmp_path: Path,
) -> None:
    path = _save_fixed(tmp_path, "bool")
    spec = EngineSpec(compute_capabilities=("sm86",), shape_values={"encoder.layer.0.permille": K})
    record = TensorRt("rtx").build_with_record(path, spec).record
    assert {info["name"]: info["is_shape_input"] for info in record["inputs"]}["mask"]
    assert record["shape_values"]["mask"] == [[0] * 9, [1] * 9, [1] * 9]


def test_other_numbers_that_decide_a_shape_need_a_range(tmp_path: Path) -> None:
    path = _save_fixed(tmp_path, "legacy")
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["mask.more" if name == "mask" else name for name in node.input]
    zero = helper.make_tensor("mask.zero", TensorProto.INT64, [1], [0])
    model.graph.initializer.append(zero)
    model.graph.node.insert(0, helper.make_node("Add", ["mask", "mask.zero"], ["mask.more"]))
    onnx.save(model, path)
    spec = EngineSpec(compute_capabilities=("sm86",), shape_values={"encoder.layer.0.permille": K})
    with pytest.raises(BadInputError, match="decides a shape") as caught:
        TensorRt("rtx").build(path, spec)
    assert "dynamic batch" in str(caught.value)
    assert "shape_values={'mask': ShapeRange(min, opt, max)}" in str(caught.value)


def _save_fixed(folder: Path, mask: str) -> Path:
    """A text model of one sample of nine tokens, which drops tokens behind its first block."""
    path = folder / "fixed.onnx"
    model = insert(write(Variant(mask=mask, tokens=9, layers=2))[0], selections((0,)))
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "batch":
                dim.dim_value = 1
    onnx.save(model, path)
    return path


def test_external_data_is_built_in(external_path: Path) -> None:
    built = TensorRt("rtx").build_with_record(external_path, EngineSpec(profiles={"x": X}))
    assert set(built.record["onnx_sha256"]) == {"dense.onnx", "weights.data"}


def test_fp32_attention_is_built_from_parts(tmp_path: Path) -> None:
    path = _save_attention(tmp_path, shared=False)
    spec = EngineSpec(compute_capabilities=("sm86",))
    built = TensorRt("rtx").build_with_record(path, spec)
    assert built.record["decomposed_attentions"] == 1
    with pytest.raises(BuildError, match="dedicated kernel"):
        TensorRt("rtx").build(path, replace(spec, decomposable_attention=False))


def test_a_builder_that_crashes_is_a_build_error(tmp_path: Path) -> None:
    # Query and key being one tensor is what crashes the builder of version 1.7.
    path = _save_attention(tmp_path, shared=True)
    with pytest.raises(BuildError) as caught:
        TensorRt("rtx").build(path, EngineSpec(compute_capabilities=("sm86",)))
    assert "SIGSEGV" in caught.value.what
    assert "[info]" in caught.value.got, "the tail of its log"


def test_a_build_that_takes_too_long_is_stopped(selecting_path: Path) -> None:
    with pytest.raises(BuildError, match=r"longer than 0\.05 s"):
        TensorRt("rtx").build(selecting_path, replace(SPEC, timeout_s=0.05))


def test_every_error_of_the_parser_is_told_with_node_and_module(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    model = _graph(
        [
            helper.make_node("Fold", ["x"], ["a"], name="one", domain="acme"),
            helper.make_node("Unfold", ["a"], ["y"], name="two", domain="acme"),
        ],
        {"x": (TensorProto.FLOAT, [2, 4])},
    )
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'merger', 'fold']"
    onnx.save(model, path)
    with pytest.raises(BuildError, match="2 errors") as caught:
        TensorRt("rtx").build(path, EngineSpec(compute_capabilities=("sm86",)))
    assert "node 'one' (Fold) of module merger" in caught.value.where
    assert "node 'two' (Unfold)" in caught.value.where


@pytest.mark.parametrize("name", ["merge", ""])
def test_an_error_without_a_node_is_told_with_the_node_parsed_last(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.onnx"
    scatter = helper.make_node(
        "ScatterElements", ["r", "i", "x"], ["y"], reduction="add", name=name
    )
    inputs = {"x": (TensorProto.FLOAT, [2, 4]), "i": (TensorProto.INT64, [2, 4])}
    onnx.save(_graph([helper.make_node("Relu", ["x"], ["r"]), scatter], inputs), path)
    with pytest.raises(BuildError) as caught:
        TensorRt("rtx").build(path, EngineSpec(compute_capabilities=("sm86",)))
    assert f"node '{name or 'y'}' (ScatterElements): Unsupported" in caught.value.where


def test_an_inconsistent_profile_is_an_error_though_the_builder_only_warns(tmp_path: Path) -> None:
    # No site is recorded, so the checks before the build cannot know what k is.
    path = tmp_path / "model.onnx"
    onnx.save(
        _graph(
            [helper.make_node("TopK", ["x", "k"], ["y", "index"])],
            {"x": (TensorProto.FLOAT, [2, "n"]), "k": (TensorProto.INT64, [1])},
        ),
        path,
    )
    spec = EngineSpec(
        profiles={"x": ShapeRange((2, 4), (2, 8), (2, 9000))},
        shape_values={"k": ShapeRange((1,), (4,), (9000,))},
    )
    with pytest.raises(BuildError, match="not self-consistent"):
        TensorRt("rtx").build(path, spec)


def test_a_type_that_a_target_lacks_names_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(
        _graph(
            [helper.make_node("MatMul", ["x", "x"], ["y"], name="product")],
            {"x": (TensorProto.FLOAT, [4, 4])},
        ),
        path,
    )
    with pytest.raises(BuildError, match="sm75 has no fp32"):
        build_in_child("rtx", path, EngineSpec(compute_capabilities=("sm75",)))


def test_a_session_without_a_device_says_so(selecting_path: Path) -> None:
    backend = BACKENDS["rtx"]()
    with pytest.raises(MissingDependencyError, match="CUDA device"), backend.session(b"engine"):
        pass


def test_a_missing_file_is_refused_before_the_build(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        TensorRt("rtx").build(tmp_path / "none.onnx", SPEC)


def _graph(nodes: list, inputs: dict[str, tuple[int, list]]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, dtype, shape) for n, (dtype, shape) in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def _save_attention(folder: Path, *, shared: bool) -> Path:
    shape = (TensorProto.FLOAT, [1, 4, 16, 32])
    names = ["q", "q", "v"] if shared else ["q", "k", "v"]
    path = folder / "attention.onnx"
    node = helper.make_node("Attention", names, ["y"], name="attention")
    onnx.save(_graph([node], dict.fromkeys(names, shape)), path)
    return path
