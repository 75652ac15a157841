"""An Expand that its readers repeat anyway goes; every other one stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.passes.selection.reference import run

from secateur.graph_passes.axes.visits import visits_of
from secateur.graph_passes.late_broadcast import broadcast_late

_HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'
_SHAPES = {"wide": ["B", 4, 1, "N"], "laid": ["4*B", 1, "N"], "back": ["B", 4, 1, "N"]}

# A mask that is expanded to the heads once, laid flat and back, and added to two scores.
_MASKED = """net (float[B, 4, N, N] a, float[B, 4, N, N] b, float[B, 1, 1, N] mask)
=> (float[B, 4, N, N] y, float[B, 4, N, N] z)
<int64[4] heads = {1, 4, 1, 1}, int64[2] line = {-1, 1}, int64[2] four = {4, 1}> {
    wide = Expand (mask, heads)
    batch = Shape <start = 0, end = 1> (mask)
    length = Shape <start = 3, end = 4> (mask)
    flat = Concat <axis = 0> (line, length)
    whole = Concat <axis = 0> (batch, four, length)
    laid = Reshape (wide, flat)
    back = Reshape (laid, whole)
    y = Add (a, back)
    z = Add (b, back)
}"""


def _model(body: str, shapes: dict[str, list[str | int]]) -> ir.Model:
    model = ir.from_onnx_text(_HEAD + body)
    for node in model.graph:
        for value in node.outputs:
            if value.name in shapes:
                value.shape = ir.Shape(shapes[value.name])
    return model


def _readers(model: ir.Model, name: str) -> list[str]:
    value = next(value for value in model.graph.inputs if value.name == name)
    return [node.op_type for node, _ in value.uses()]


def test_every_layer_reads_the_mask_itself() -> None:
    model = _model(_MASKED, _SHAPES)
    assert broadcast_late(model.graph, visits_of(model.graph))
    assert _readers(model, "mask").count("Add") == 2
    assert not broadcast_late(model.graph, visits_of(model.graph))


def test_the_numbers_stay() -> None:
    rng = np.random.default_rng(0)
    shapes = {"a": (2, 4, 5, 5), "b": (2, 4, 5, 5), "mask": (2, 1, 1, 5)}
    fed = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    model = _model(_MASKED, _SHAPES)
    want = run(ir.to_proto(model), fed)
    broadcast_late(model.graph, visits_of(model.graph))
    got = run(ir.to_proto(model), fed)
    np.testing.assert_array_equal(got["y"], want["y"])
    np.testing.assert_array_equal(got["z"], want["z"])


_STAY = {
    "an output": "(float[1, N] x) => (float[4, N] wide) <int64[2] s = {4, 1}>"
    " { wide = Expand (x, s) }",
    "nobody else has the axis": "(float[1, N] x, float[1, N] a) => (float[4, N] y)"
    " <int64[2] s = {4, 1}> { wide = Expand (x, s) y = Add (wide, a) }",
    "a reader that does not broadcast": "(float[1, N] x) => (float[N, 4] y)"
    " <int64[2] s = {4, 1}> { wide = Expand (x, s) y = Transpose (wide) }",
    "one of two readers": "(float[1, N] x, float[4, N] a) => (float[4, N] y, float[4, N] z)"
    " <int64[2] s = {4, 1}> { wide = Expand (x, s) y = Add (wide, a) z = Neg (wide) }",
    "an Expand that asks for the axis itself": "(float[1, N] x, float[4, N] a) =>"
    " (float[4, N] y) <int64[2] s = {4, 1}>"
    " { wide = Expand (x, s) more = Expand (wide, s) y = Add (more, a) }",
}


@pytest.mark.parametrize("why", _STAY)
def test_what_is_needed_stays(why: str) -> None:
    model = _model(f"net {_STAY[why]}", {"wide": [4, "N"], "more": [4, "N"]})
    before = [node.op_type for node in model.graph]
    assert not broadcast_late(model.graph, visits_of(model.graph))
    assert [node.op_type for node in model.graph] == before


def test_a_size_that_only_the_run_knows_stays() -> None:
    model = _model(
        "net (float[1, N] x, float[B, N] a, int64[2] s) => (float[B, N] y)"
        " { wide = Expand (x, s) y = Add (wide, a) }",
        {"wide": ["B", "N"]},
    )
    assert not broadcast_late(model.graph, visits_of(model.graph))


def test_of_two_that_justify_each_other_one_stays() -> None:
    model = _model(
        "net (float[1, N] x, float[1, N] a) => (float[4, N] y) <int64[2] s = {4, 1}>"
        " { wide = Expand (x, s) more = Expand (a, s) y = Add (wide, more) }",
        {"wide": [4, "N"], "more": [4, "N"]},
    )
    broadcast_late(model.graph, visits_of(model.graph))
    assert [node.op_type for node in model.graph] == ["Expand", "Add"]
