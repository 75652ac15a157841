"""Graphs that no pass may touch: circles, readers without makers, names given twice."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from secateur.errors import BadInputError
from secateur.export.onnx_file import from_onnx
from secateur.graph_passes.groups import analyse

_HEADER = '<ir_version: 10, opset_import: ["" : 20]>\n'
_CIRCLE = """
g (float[n, 4] x) => (float[n, 4] y) {
    a = Add(x, c)
    b = Relu(a)
    c = Tanh(b)
    y = Neg(c)
}
"""
_ITSELF = "g (float[n, 4] x) => (float[n, 4] y) { y = Add(x, y) }"
_MISSING = "g (float[n, 4] x) => (float[n, 4] y) { y = Add(x, nowhere) }"
_NO_MAKER = "g (float[n, 4] x) => (float[n, 4] y) { z = Relu(x) }"
_SORTED_LATER = """
g (float[n, 4] x) => (float[n, 4] y) {
    y = Neg(c)
    c = Tanh(x)
}
"""


def proto(text: str) -> onnx.ModelProto:
    return parser.parse_model(_HEADER + text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (_CIRCLE, "circle"),
        (_ITSELF, "circle"),
        (_MISSING, "'nowhere', which nothing makes"),
        (_NO_MAKER, "'y' is made by nothing"),
        (_SORTED_LATER, "'c', which a later node makes"),
    ],
    ids=["circle", "itself", "missing", "no maker", "out of order"],
)
def test_a_graph_that_contradicts_itself_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        analyse(ir.from_proto(proto(text)))


def test_the_nodes_of_a_circle_are_named() -> None:
    with pytest.raises(BadInputError) as refused:
        analyse(ir.from_proto(proto(_CIRCLE)))
    for op in ("Add", "Relu", "Tanh"):
        assert op in refused.value.got
    assert "Neg" not in refused.value.got


def test_a_circle_in_a_long_graph_is_found_without_recursion() -> None:
    chain = "\n".join(f"v{i} = Relu(v{i + 1})" for i in range(3000))
    text = f"g (float[n, 4] x) => (float[n, 4] v0) {{\n{chain}\nv3000 = Add(x, v0)\n}}"
    with pytest.raises(BadInputError, match="circle"):
        analyse(ir.from_proto(proto(text)))


@pytest.mark.parametrize(
    ("text", "says"),
    [(_CIRCLE, "circle"), (_ITSELF, "circle"), (_MISSING, "nowhere"), (_NO_MAKER, "'y' is made")],
)
def test_a_file_that_contradicts_itself_is_refused_with_its_name(text, says, tmp_path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(proto(text).SerializeToString())
    with pytest.raises(BadInputError, match=says) as refused:
        from_onnx(path)
    assert "broken.onnx" in refused.value.where


def test_a_file_with_nodes_out_of_order_is_sorted_in_memory(tmp_path) -> None:
    path = tmp_path / "unsorted.onnx"
    path.write_bytes(proto(_SORTED_LATER).SerializeToString())
    before = path.read_bytes()
    assert [node.op_type for node in analyse(from_onnx(path)).model.graph] == ["Tanh", "Neg"]
    assert path.read_bytes() == before


def test_a_name_given_twice_is_refused() -> None:
    model = ir.from_proto(proto("g (float[n, 4] x) => (float[n, 4] y) { a = Relu(x) y = Tanh(a) }"))
    model.graph.node(0).outputs[0].name = "y"
    with pytest.raises(BadInputError, match="contradicts itself") as refused:
        analyse(model)
    assert "two values are called 'y'" in refused.value.got
