"""A type that a GPU lacks is refused by name of the GPU, before anything is built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from secateur.errors import BadInputError
from secateur.runtime.backend import EngineSpec
from secateur.runtime.backends.tensorrt import TensorRt
from secateur.runtime.bundle_writer import new_bundle
from secateur.runtime.datatypes import check_types, refuse_types
from secateur.runtime.onnx_outline import read_outline
from secateur.runtime.targets import parse_target

TYPES = {
    "bfloat16": TensorProto.BFLOAT16,
    "int4": TensorProto.INT4,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float4_e2m1": TensorProto.FLOAT4E2M1,
}
"""By the name that messages use."""


def saved(path: Path, dtype: int, *, cast: bool = False) -> Path:
    """A weight of the type, dequantised (bf16: cast), added to the input.

    ``cast`` leaves the weight out: a value is only quantised to the type (bf16: cast) and back.
    """
    nodes, held = [], []
    bfloat = dtype == TensorProto.BFLOAT16
    if cast and bfloat:
        nodes.append(helper.make_node("Cast", ["x"], ["w"], to=dtype))
    elif cast:
        nodes.append(helper.make_node("QuantizeLinear", ["x", "s"], ["w"], output_dtype=dtype))
    else:
        held.append(helper.make_tensor("w", dtype, [4], [1, 0, 1, 0]))
    if bfloat:
        nodes.append(helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT))
    else:
        held.append(helper.make_tensor("s", TensorProto.FLOAT, [], [0.5]))
        nodes.append(helper.make_node("DequantizeLinear", ["w", "s"], ["v"]))
    nodes.append(helper.make_node("Add", ["x", "v"], ["y"]))
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    opsets = [helper.make_opsetid("", 23)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=11), path)
    return path


@pytest.mark.parametrize("cast", [False, True], ids=["weight", "activation"])
@pytest.mark.parametrize(
    ("dtype", "target", "sm"),
    [
        ("bfloat16", "rtx:sm75", "sm75"),
        ("int4", "rtx:sm75,sm86", "sm75"),
        ("float8_e4m3fn", "rtx:sm86,sm89", "sm86"),
        ("float8_e4m3fn", "rtx", "sm80"),
        ("float4_e2m1", "rtx:sm89", "sm89"),
    ],
)
def test_a_type_that_a_target_lacks_is_refused_by_name(
    tmp_path: Path, dtype: str, target: str, sm: str, cast: bool
) -> None:
    outline = read_outline(saved(tmp_path / "model.onnx", TYPES[dtype], cast=cast))
    with pytest.raises(BadInputError, match=f"{sm} has no {dtype}"):
        check_types(outline, parse_target(target))


@pytest.mark.parametrize(
    ("dtype", "target"),
    [
        ("bfloat16", "rtx"),
        ("int4", "rtx:sm80,sm120"),
        ("float8_e4m3fn", "rtx:sm89,sm120"),
        ("float4_e2m1", "rtx:sm120,sm121"),
    ],
)
def test_a_type_that_a_target_has_is_taken(tmp_path: Path, dtype: str, target: str) -> None:
    check_types(read_outline(saved(tmp_path / "m.onnx", TYPES[dtype])), parse_target(target))


def test_the_gpu_that_tensorrt_builds_on_is_named(tmp_path: Path) -> None:
    outline = read_outline(saved(tmp_path / "model.onnx", TYPES["float8_e4m3fn"]))
    with pytest.raises(BadInputError, match="sm87 has no float8_e4m3fn") as caught:
        refuse_types(outline, ("sm87",), where="the GPU of this machine")
    assert "sm89 or later" in str(caught.value)
    refuse_types(outline, ("sm101",), where="the GPU of this machine")


def test_the_backend_refuses_before_its_builder_starts(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.onnx", TYPES["float8_e4m3fn"])
    with pytest.raises(BadInputError, match="sm86 has no float8_e4m3fn"):
        TensorRt("rtx").build(path, EngineSpec(compute_capabilities=("sm86",)))


def test_a_build_on_the_device_names_the_capability_and_leaves_the_bundle_whole(
    tmp_path: Path,
) -> None:
    model = saved(tmp_path / "model.onnx", TYPES["float8_e4m3fn"])
    bundle = tmp_path / "bundle"
    with new_bundle(bundle) as draft:
        draft.place_model("model.onnx", model)
    before = {f: f.read_bytes() for f in bundle.rglob("*") if f.is_file()}
    command = [sys.executable, "-m", "secateur.runtime", "build", str(bundle), "--target"]
    done = subprocess.run(
        [*command, "rtx:sm86,sm120"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == BadInputError.exit_code
    assert "sm86 has no float8_e4m3fn" in done.stderr
    assert "leave sm86 out" in done.stderr
    assert {f: f.read_bytes() for f in bundle.rglob("*") if f.is_file()} == before
