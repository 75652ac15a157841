"""``sc.lower``, as a user of Python calls it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.precision.graphs import block, computed_in, error, run, types
from tests.surface import small

import secateur as sc
from secateur.errors import BadInputError
from secateur.graph_passes.names import node_name
from secateur.graph_passes.precision.lower import precision_record
from secateur.runtime.compare import TOLERANCES
from secateur.workflow.golden import default_budgets


def test_half_precision_is_one_call_and_the_input_stays() -> None:
    model, arrays = block()
    made = sc.lower(model)
    assert computed_in(made, "MatMul") == ["FLOAT16"] * 3
    assert "FLOAT16" not in types(model).values()
    found = error(run(made, arrays)["y"], run(model, arrays)["y"])
    assert 0 < found < TOLERANCES["float16"].value


def test_modules_to_keep_stay_in_float32() -> None:
    model, _ = block()
    first = next(node_name(node) for node in model.graph if node.op_type == "MatMul")
    made = sc.lower(model, "bf16", keep=[first])
    assert computed_in(made, "MatMul") == ["FLOAT", "BFLOAT16", "BFLOAT16"]


def test_what_overflows_on_the_data_stays_in_float32() -> None:
    model, arrays = block()
    large = {**arrays, "x": 200 * arrays["x"]}
    assert computed_in(sc.lower(model, data=[large]), "MatMul")[1] == "FLOAT"
    assert computed_in(sc.lower(model, data=[arrays]), "MatMul")[1] == "FLOAT16"


def test_fp32_is_the_model_itself() -> None:
    model, _ = block()
    assert sc.lower(model, "fp32") is model


def test_another_precision_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadInputError, match="fp32, fp16, bf16"):
        sc.lower(block()[0], "int8")  # type: ignore[arg-type]


def test_a_model_is_lowered_once() -> None:
    with pytest.raises(BadInputError, match="lowered already"):
        sc.lower(sc.lower(block()[0]), "bf16")


def test_a_selection_of_the_models_own_is_made_and_scored_in_float32() -> None:
    net, inputs, dynamic = small.own_selection()
    model = sc.from_torch(net, inputs, dynamic)
    made = sc.lower(model, data=[{name: value.numpy() for name, value in inputs.items()}])
    record = precision_record(made)
    assert record["nodes"] > 0
    assert record["float32"]["token selection"] > 0
    ranked = {n.inputs[0].dtype for n in made.graph if n.op_type == "TopK"}
    assert ranked == {ir.DataType.FLOAT, ir.DataType.INT64}, "scores, and positions in order"
    fed = {"images": inputs["images"].numpy(), **default_budgets(made)}
    wanted = net(**inputs).detach().numpy()
    got = next(a for a in run(made, fed).values() if a.shape == wanted.shape)
    assert error(got.astype(np.float32), wanted) < TOLERANCES["float16"].value
