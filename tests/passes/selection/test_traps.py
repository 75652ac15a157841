"""Traps on the way to a graph that every runtime takes; each has bitten somebody."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.passes.selection.models import Variant, build
from tests.passes.selection.reference import run
from tests.passes.selection.sizes import D
from tests.passes.selection.support import (
    amounts,
    assert_selects_like,
    check,
    expect,
    feeds,
    insert,
    selections,
    site,
)

from secateur.graph_passes.opset import raise_opset
from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.token_selection import InsertTokenSelection, insert_selections

RAGGED = (9, 4, 7)


def _ops_at(model: onnx.ModelProto, at: int) -> list[str]:
    return [
        node.op_type for node in model.graph.node if node.name.startswith(f"{site(at)}/selection/")
    ]


def test_a_broadcast_mask_is_gathered_at_its_source() -> None:
    model = insert(build(Variant(mask="pairs")), selections((0, 1), "keys", expose_kept=False))
    gathers = [n for n in model.graph.node if n.op_type in ("GatherND", "GatherElements")]
    assert [n.output[0] for n in gathers] == [f"{site(0)}.tokens", f"{site(1)}.tokens"]


def test_kept_rows_declare_their_shape() -> None:
    model = insert(build(Variant()), selections((0, 1)))
    declared = {v.name: v.type.tensor_type.shape.dim for v in model.graph.value_info}
    dims = [[d.dim_param or d.dim_value for d in declared[f"{site(i)}.tokens"]] for i in (0, 1)]
    assert dims == [["batch", f"{site(i)}.length", D] for i in (0, 1)]


def test_the_class_row_is_taken_before_all_queries_are_permuted() -> None:
    model = insert(build(Variant(scale="query")), selections((0,)))
    made = {output: node for node in model.graph.node for output in node.output}
    (taken,) = (
        node
        for node in model.graph.node
        if node.op_type == "GatherND"
        and node.output[0] != f"{site(0)}.tokens"
        and site(0) in node.name
    )
    assert made[taken.input[0]].op_type == "Reshape"


def test_axes_that_were_inserted_are_not_dropped_by_a_node() -> None:
    emit = Emitter(ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="g"))
    mask = emit.number(1.0, ir.DataType.FLOAT)
    row = emit.unsqueeze(mask, (1, 2))
    assert emit.squeeze(row, (1, 2)) is mask
    assert emit.squeeze(row, (1,)).producer() is not None


def test_a_value_that_two_nodes_read_is_gathered_once() -> None:
    model = insert(build(Variant(pool="mask")), selections((0, 1), expose_kept=False))
    sources = [tuple(n.input) for n in model.graph.node if n.op_type in ("GatherND", "Where")]
    assert len(sources) == len(set(sources))


def test_shapes_are_spelled_without_shape_arithmetic() -> None:
    model = insert(build(Variant(mask="additive")), selections((0,)))
    assert "Concat" not in _ops_at(model, 0)
    behind = [n for n in model.graph.node if n.op_type == "Shape" and "layer.2" in n.name]
    assert not behind


def test_allowzero_is_cleared_where_zero_copies() -> None:
    model = insert(build(Variant(sizes="shape")), selections((0,)))
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    copies = [
        node
        for node in model.graph.node
        if node.op_type == "Reshape" and 0 in constants.get(node.input[1], ())
    ]
    assert copies
    for node in copies:
        assert not any(a.name == "allowzero" and a.i for a in node.attribute)


def test_nodes_stand_in_order() -> None:
    model = insert(build(Variant(mask="causal", extra="rotary")), selections((0, 1)))
    known = {value.name for value in model.graph.input}
    known |= {value.name for value in model.graph.initializer}
    for node in model.graph.node:
        assert set(node.input) - {""} <= known, node.name
        known |= set(node.output)


def test_no_declared_shape_behind_the_cut_counts_the_old_tokens() -> None:
    model = insert(build(Variant()), selections((0,)))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    behind = next(n for n in model.graph.node if "layer.2" in n.name and n.op_type == "Softmax")
    info = {v.name: v for v in inferred.graph.value_info}[behind.output[0]]
    dims = [d.dim_param for d in info.type.tensor_type.shape.dim]
    assert "tokens" not in dims


@pytest.mark.parametrize("variant", [Variant(extra="positions", opset=17), Variant(key="merged")])
def test_files_without_inferred_shapes_select_alike(variant: Variant) -> None:
    bare = build(variant)
    del bare.graph.value_info[:]
    fed = feeds(variant, RAGGED)
    got = run(insert(bare, selections((0, 1))), fed | amounts((0, 1), (700, 600)))
    assert_selects_like(got, expect(variant, (0, 1), fed, permille=(700, 600)), (0, 1))


def test_batch_size_one_does_not_hide_stale_counts() -> None:
    check(Variant(key="merged"), (0, 1), (9,), permille=(700, 600))


def test_cut_behind_attention() -> None:
    model = insert(build(Variant(norm="pre")), selections((1,), cut="attention"))
    rows = next(n for n in model.graph.node if n.output[0] == f"{site(1)}.tokens")
    assert rows.input[0].startswith("add_")
    norms = [n for n in model.graph.node if n.op_type == "LayerNormalization"]
    assert any(n.input[0] == f"{site(1)}.tokens" for n in norms)


def test_dense_model_is_not_touched() -> None:
    dense = ir.from_proto(build())
    before = ir.to_proto(dense).SerializeToString()
    insert_selections(dense, selections((0, 1)))
    assert ir.to_proto(dense).SerializeToString() == before


def test_pass_says_whether_it_changed_something() -> None:
    model = ir.from_proto(build())
    assert not InsertTokenSelection(())(model).modified
    assert InsertTokenSelection(selections((0,)))(model).modified


def test_insertion_is_deterministic() -> None:
    texts = {
        ir.to_proto(insert_selections(ir.from_proto(build()), selections((0, 1))))
        .SerializeToString(deterministic=True)
        for _ in range(3)
    }  # fmt: skip
    assert len(texts) == 1


def test_few_nodes_per_site() -> None:
    dense = build(Variant(mask="additive", sizes="copy"))
    model = insert(dense, selections((0, 1), expose_kept=False))
    assert len(model.graph.node) - len(dense.graph.node) <= 2 * 36


def test_order_of_the_request_does_not_matter() -> None:
    one = insert(build(), selections((0, 1)))
    other = insert(build(), tuple(reversed(selections((0, 1)))))
    assert [n.name for n in one.graph.node] == [n.name for n in other.graph.node]


def test_raising_the_opset_moves_reduction_axes() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[b,n,4] x) => (float[b,n] y)'
    model = ir.from_onnx_text(text + " { y = ReduceMax<axes=[2], keepdims=0>(x) }")
    assert raise_opset(model, 18)
    assert not raise_opset(model, 18)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(run(proto, {"x": x})["y"], x.max(axis=2))
