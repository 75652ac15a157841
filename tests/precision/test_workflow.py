"""Lowering as a step: ranges seen on data, targets that lack a type, the layer that fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.families.exports import exported
from tests.families.rows import texts
from tests.precision.graphs import BLOCK, block, computed_in, error, graph, run, types

from secateur.calibration.ranges import largest_magnitudes
from secateur.errors import BadInputError, ParityError
from secateur.graph_passes.precision.decisions import Precision
from secateur.graph_passes.precision.lower import lower_precision, precision_record
from secateur.graph_passes.precision.rounded import rounded_twin
from secateur.runtime.compare import TOLERANCES
from secateur.runtime.datatypes import check_types
from secateur.runtime.onnx_outline import read_outline
from secateur.runtime.targets import parse_target
from secateur.workflow.precision import (
    Lowering,
    dtype_of,
    explained,
    lower,
    rounded,
    runnable,
    suspects,
)
from secateur.workflow.selecting import Select, select_tokens

FP16 = Lowering("float16")

# The second product is beyond float16 for large inputs only; the third comes back.
CHAIN = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[batch, 4] x) => (float[batch, 4] y)
<float[4, 4] up = {UP}, float[4, 4] down = {DOWN}>
{
    a = MatMul(x, up)
    b = MatMul(a, up)
    c = MatMul(b, down)
    y = MatMul(c, down)
}
"""


def chain() -> ir.Model:
    eye = np.eye(4, dtype=np.float32)
    model = graph(CHAIN, UP=eye * 300, DOWN=eye / 300)
    for node, name in zip(model.graph, "abcy", strict=True):
        node.name = f"layers.{name}/MatMul"
    return model


def test_ranges_are_the_largest_magnitudes_over_all_batches() -> None:
    small, large = np.full((1, 4), 0.5, np.float32), np.full((2, 4), -2, np.float32)
    found = largest_magnitudes(chain(), [{"x": small}, {"x": large}, {"x": small}])
    assert found["x"] == 2
    assert found["a"] == 600
    assert found["b"] == 180_000
    assert found["y"] == pytest.approx(2)


def test_a_value_that_was_nan_has_no_range_that_fits() -> None:
    broken = np.full((1, 4), np.nan, np.float32)
    found = largest_magnitudes(chain(), [{"x": broken}, {"x": np.ones((1, 4), np.float32)}])
    assert np.isnan(found["a"])


def test_what_overflows_on_the_data_stays_in_float32_and_the_numbers_hold() -> None:
    data = {"x": np.ones((1, 4), np.float32)}
    made = lower(chain(), FP16, [data])
    assert types(made)["b"] == "FLOAT"
    assert types(made)["a"] == "FLOAT16" or precision_record(made)["float32"]
    assert error(run(made, data)["y"], run(chain(), data)["y"]) < TOLERANCES["float16"].value


def test_float32_is_the_model_itself() -> None:
    model, _ = block()
    assert lower(model, Lowering(), []) is model


def test_the_first_layer_that_overflows_is_named_with_what_to_exclude() -> None:
    observed = [{"x": np.full((1, 4), 1e-3, np.float32)}]
    seen_later = {"x": np.ones((1, 4), np.float32)}
    found = suspects(chain(), FP16, seen_later, batches=observed)
    assert found is not None
    assert found.first == "layers.b"
    assert found.exclude[0] == "layers.b"
    assert found.is_enough
    told = explained(ParityError("the model that would be shipped is not the reference"), found)
    assert "first bad layer layers.b" in str(told)
    assert "keep in float32 (precision: keep): layers.b" in str(told)


def test_what_is_suggested_is_enough() -> None:
    observed = [{"x": np.full((1, 4), 1e-3, np.float32)}]
    seen_later = {"x": np.ones((1, 4), np.float32)}
    found = suspects(chain(), FP16, seen_later, batches=observed)
    assert found is not None
    spoiled = rounded_twin(lower(chain(), FP16, observed))
    assert not np.isfinite(run(spoiled, seen_later)["y"]).all()
    better = rounded_twin(lower(chain(), Lowering("float16", found.exclude), observed))
    got = run(better, seen_later)["y"]
    assert error(got, run(chain(), seen_later)["y"]) < TOLERANCES["float16"].value


def test_a_model_within_its_bounds_has_no_suspects() -> None:
    data = {"x": np.ones((1, 4), np.float32)}
    assert suspects(chain(), FP16, data, batches=[data]) is None
    told = ParityError("another failure")
    assert explained(told, None) is told


def _saved(tmp_path: Path, dtype: ir.DataType) -> Path:
    model, _ = block()
    path = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(lower_precision(model, Precision(dtype))), path)
    return path


@pytest.mark.parametrize(
    ("target", "dtype", "named"),
    [
        ("rtx:sm75", ir.DataType.BFLOAT16, "sm75 has no bfloat16"),
        ("rtx:sm75,sm86", ir.DataType.BFLOAT16, "sm75 has no bfloat16"),
        ("onnxruntime", ir.DataType.BFLOAT16, "CPU does not compute in bfloat16"),
    ],
)
def test_a_target_without_the_type_is_refused_by_name(
    tmp_path: Path, target: str, dtype: ir.DataType, named: str
) -> None:
    outline = read_outline(_saved(tmp_path, dtype))
    with pytest.raises(BadInputError, match=named):
        check_types(outline, parse_target(target))


@pytest.mark.parametrize("target", ["rtx:sm86", "rtx", "tensorrt"])
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_a_target_with_the_type_is_taken(tmp_path: Path, target: str, dtype: ir.DataType) -> None:
    check_types(read_outline(_saved(tmp_path, dtype)), parse_target(target))


@pytest.mark.parametrize(("target", "sm"), [("rtx:sm86,sm89", "sm86"), ("rtx", "sm80")])
def test_fp8_is_refused_before_sm89(tmp_path: Path, target: str, sm: str) -> None:
    weight = ir.Value(
        name="quantised",
        shape=ir.Shape([2]),
        type=ir.TensorType(ir.DataType.FLOAT8E4M3FN),
        const_value=ir.tensor([1.0, 2.0], dtype=ir.DataType.FLOAT8E4M3FN),
    )
    model, _ = block()
    model.graph.register_initializer(weight)
    path = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(model), path)
    with pytest.raises(BadInputError, match=f"{sm} has no float8_e4m3fn"):
        check_types(read_outline(path), parse_target(target))
    check_types(read_outline(path), parse_target("rtx:sm89,sm120"))


def test_onnxruntime_runs_the_rounded_twin_of_a_bfloat16_model(tmp_path: Path) -> None:
    path = _saved(tmp_path, ir.DataType.BFLOAT16)
    assert dtype_of(path) == "bfloat16"
    model, arrays = block()
    with runnable(path) as twin:
        assert error(run(ir.load(twin), arrays)["y"], run(model, arrays)["y"]) < 0.1
    assert not twin.exists()


def test_onnxruntime_runs_a_float16_model_itself(tmp_path: Path) -> None:
    path = _saved(tmp_path, ir.DataType.FLOAT16)
    with runnable(path) as file:
        assert file == path


def test_a_failure_on_a_gpu_is_seen_without_one(tmp_path: Path) -> None:
    observed = [{"x": np.full((1, 4), 1e-3, np.float32)}]
    path = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(lower(chain(), FP16, observed)), path)
    large = {"x": np.ones((1, 4), np.float32)}
    assert np.isfinite(run(ir.load(path), large)["y"]).all(), "float16 in float32 registers"
    with rounded(path) as twin:
        assert not np.isfinite(run(ir.load(twin), large)["y"]).all()


# --- small random networks ------------------------------------------------------------------

SOME = [("minilm", "from_torch-20-sdpa")]
MANY = [
    (family, form)
    for family in ("bert", "roberta", "distilbert", "minilm", "vit", "deit", "clip")
    for form in ("from_torch-20-sdpa", "from_torch-23-sdpa", "legacy-17-eager")
    if (family, form) not in SOME
]
NETWORKS = [*SOME, *(pytest.param(*one, marks=pytest.mark.sweep) for one in MANY)]


@pytest.mark.parametrize(("family", "form"), NETWORKS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_network_stays_within_the_bounds_of_its_precision(
    family: str, form: str, dtype: str
) -> None:
    cell = exported(family, form)
    arrays = {name: tensor.numpy() for name, tensor in cell.family.batch().items()}
    made = lower(cell.model, Lowering(dtype), [arrays])
    wanted, got = run(cell.model, arrays), run(rounded_twin(made), arrays)
    for name in cell.family.outputs:
        assert error(got[name], wanted[name]) < TOLERANCES[dtype].value
    assert set(computed_in(made, "Softmax")) <= {"FLOAT"}
    assert set(computed_in(made, "LayerNormalization")) == {"FLOAT"}


def test_a_selection_scores_in_float32_and_moves_half_tokens() -> None:
    cell = exported("minilm", "from_torch-20-sdpa")
    arrays = {name: tensor.numpy() for name, tensor in texts().items()}
    site = "encoder.layer.0"
    selecting = select_tokens(cell.model, [Select(site, by="class_row", keep=0.6)])
    made = lower(selecting, FP16, [arrays])
    inside = [n for n in made.graph if (n.name or "").startswith(f"{site}/selection/")]
    halves = {n.op_type for n in inside for v in n.outputs if v.dtype == ir.DataType.FLOAT16}
    assert "GatherND" in halves, "tokens are gathered as they are"
    assert not halves & {"MatMul", "Softmax", "TopK", "Add", "Mul", "ReduceMean"}
    budget = {f"{site}.permille": np.array([600], np.int64)}
    wanted, got = run(selecting, arrays | budget), run(made, arrays | budget)
    np.testing.assert_array_equal(got[f"{site}.kept"], wanted[f"{site}.kept"])
    assert error(got["last_hidden_state"], wanted["last_hidden_state"]) < 2e-2


def test_a_wrong_rounding_would_be_seen() -> None:
    model = graph(BLOCK, WEIGHT=np.full((8, 8), 0.3, np.float32))
    arrays = block()[1]
    spoiled = lower(model, FP16, [arrays])
    spoiled.graph.initializers["w"].const_value = ir.tensor(
        np.full((8, 8), 0.31, np.float16), name="w"
    )
    assert error(run(spoiled, arrays)["y"], run(model, arrays)["y"]) > TOLERANCES["float16"].value
