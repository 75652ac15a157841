"""Removal on the forms that a file can have: names, inputs, functions, external data."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx_ir as ir
from tests.laws.small_models import (
    MLP,
    MLP_WEIGHTS,
    TWIN_WEIGHTS,
    TWINS,
    cut,
    group_of,
    network,
    shapes,
)

from secateur.graph_passes.groups import analyse
from secateur.graph_passes.names import parameter_name
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove


def test_a_split_off_copy_keeps_the_name_of_its_parameter() -> None:
    model = network(TWINS, TWIN_WEIGHTS)
    recorded = {"shared": {"name": "layers.0.bias", "transpose": None}}
    model.metadata_props["secateur.parameters"] = json.dumps(recorded)
    smaller = cut(model, {("w3", 1): (1, 2, 3, 5)})
    copies = [name for name in shapes(smaller) if "shared" in name]
    assert [parameter_name(smaller, name) for name in copies] == ["layers.0.bias"] * 2


def test_weights_that_are_also_graph_inputs_are_cut() -> None:
    model = network(MLP, MLP_WEIGHTS)
    for value in model.graph.initializers.values():
        model.graph.inputs.append(value)
    analysis = analyse(model)
    smaller = remove(model, make_plan(analysis, {group_of(analysis, "w1", 1).name: (0, 2, 5)}))
    onnx.checker.check_model(ir.to_proto(smaller), full_check=True)
    assert shapes(smaller) == {"w1": (4, 3), "b1": (3,), "w2": (3, 3)}


def test_the_body_of_a_function_is_cut() -> None:
    text = """
    whole (float[batch, 4] x) => (float[batch, 3] y) {
        a = MatMul(x, w1)
        b = local.gated(a)
        y = MatMul(b, w2)
    }
    <domain: "local", opset_import: ["" : 20]>
    gated (u) => (v) {
        s = Sigmoid(u)
        v = Mul(u, s)
    }
    """
    model = network(text, {"w1": (4, 6), "w2": (6, 3)})
    assert model.functions
    smaller = cut(model, {("w1", 1): (0, 5)})
    assert shapes(smaller) == {"w1": (4, 2), "w2": (2, 3)}


def test_external_data_is_read_only_when_the_result_is_saved(tmp_path: Path) -> None:
    model = network(MLP, {"w1": (4, 600), "b1": (600,), "w2": (600, 3)})
    ir.save(model, tmp_path / "dense.onnx", external_data="dense.data")
    before = (tmp_path / "dense.data").read_bytes()
    loaded = ir.load(tmp_path / "dense.onnx")
    analysis = analyse(loaded)
    units = tuple(range(0, 600, 3))
    smaller = remove(loaded, make_plan(analysis, {group_of(analysis, "w1", 1).name: units}))
    ir.save(smaller, tmp_path / "small.onnx", external_data="small.data")
    assert (tmp_path / "dense.data").read_bytes() == before
    assert (tmp_path / "small.data").stat().st_size < len(before) / 2
    assert shapes(ir.load(tmp_path / "small.onnx"))["w2"] == (200, 3)


def test_a_log_softmax_over_cut_units_is_proven_too() -> None:
    text = MLP.replace("Relu(b)", "LogSoftmax <axis = -1> (b)")
    cut(network(text, MLP_WEIGHTS), {("w1", 1): (0, 2, 5)})
