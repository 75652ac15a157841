"""What cannot be selected from is refused, naming the node; bad requests say what to do."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from tests.passes.selection.models import Variant, build
from tests.passes.selection.support import insert, selections, selector, site

from secateur.errors import BadInputError, PreconditionError, SecateurError
from secateur.graph_passes.axes import analyse_axes
from secateur.graph_passes.selection.budget import Budget
from secateur.graph_passes.selection.region import Cut, map_regions
from secateur.graph_passes.token_selection import Selection, insert_selections

REFUSED = {
    "one token is read per layer": (Variant(pool="argmax_flat"), "Gather"),
    "a convolution over tokens": (Variant(tokens=8, extra="window", sizes="copy"), "Conv"),
    "the last token is read": (Variant(pool="last"), "Gather"),
    "the number of tokens is data": (Variant(pool="divided"), "number of tokens"),
    "tokens are made a grid": (Variant(tokens=8, pool="flat"), "Reshape"),
    "a norm over tokens": (Variant(tokens=8, extra="normalised"), "LayerNormalization"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_the_node(name: str) -> None:
    variant, said = REFUSED[name]
    with pytest.raises(PreconditionError) as caught:
        insert(build(variant), selections((0,)))
    assert said in str(caught.value)
    assert site(0) in str(caught.value)
    assert caught.value.next_step


def test_refused_model_is_left_as_it_was() -> None:
    model = ir.from_proto(build(REFUSED["the last token is read"][0]))
    before = ir.to_proto(model).SerializeToString()
    with pytest.raises(PreconditionError):
        insert_selections(model, selections((0,)))
    assert ir.to_proto(model).SerializeToString() == before


def test_tokens_that_are_joined_one_by_one_are_refused() -> None:
    model = ir.from_onnx_text("""
    <ir_version: 10, opset_import: ["" : 20]>
    joined (float[batch, 1, 8] a, float[batch, 1, 8] b, float[batch, 2, 8] place)
        => (float[batch, 2, 8] y)
    {
        hidden = Concat<axis = 1>(a, b)
        y = Add(hidden, place)
    }
    """)
    hidden = model.graph[0].outputs[0]
    cut = Cut("layer.0", hidden, ((model.graph[1], 0),))
    with pytest.raises(PreconditionError, match="an axis of its own"):
        map_regions(model, analyse_axes(model), (cut,))


def test_tokens_that_are_gathered_by_computed_positions_are_refused() -> None:
    model = build(Variant(form="disentangled"))
    for node in model.graph.node:  # relative positions along the tokens instead of the table
        if node.op_type == "GatherElements":
            node.attribute[0].i = 1
    with pytest.raises(PreconditionError, match="read at computed positions"):
        insert(model, selections((0,)))


def test_what_stands_before_the_cut_is_not_refused() -> None:
    insert(build(Variant(tokens=8, extra="window", sizes="copy")), selections((2,)))


def test_op_without_a_rule_behind_the_cut_is_refused() -> None:
    model = build(Variant(layers=2))
    last = model.graph.node[-1]
    strange = helper.make_node("Blend", [last.input[0]], ["blended"], "blend", domain="my.ops")
    hidden = next(n for n in reversed(model.graph.node) if n.op_type == "LayerNormalization")
    strange.input[0] = hidden.output[0]
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            if name == hidden.output[0]:
                node.input[k] = "blended"
    model.graph.node.insert(list(model.graph.node).index(hidden) + 1, strange)
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    with pytest.raises(SecateurError, match="blend"):
        insert_selections(ir.from_proto(model), selections((0,)))


def test_more_protected_tokens_allow_more_reads() -> None:
    model = build(Variant())
    for item in model.graph.initializer:
        if item.name.startswith("c_int64__") and onnx.numpy_helper.to_array(item) == 0:
            break
    gather = next(
        n for n in model.graph.node if n.op_type == "Gather" and n.name.startswith("head")
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "second"))
    gather.input[1] = "second"
    with pytest.raises(PreconditionError, match="first 1 are protected"):
        insert(model, selections((0,)))
    insert(model, selections((0,), budget=Budget(protected=2)))


def test_sites_of_two_branches_are_refused() -> None:
    model = build(Variant(layers=1))
    twin = build(Variant(layers=1))
    graph = model.graph
    for node in twin.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = copy.name.replace("encoder.layer.0", "other.layer.0") + "/b"
        made = {o for n in twin.graph.node for o in n.output}
        copy.input[:] = [f"{name}_b" if name in made else name for name in node.input]
        copy.output[:] = [f"{name}_b" for name in node.output]
        graph.node.append(copy)
    graph.output.append(helper.make_tensor_value_info("y_b", TensorProto.FLOAT, ["batch", 5]))
    pair = (
        Selection("encoder.layer.0", selector("class_row")),
        Selection("other.layer.0", selector("class_row")),
    )
    with pytest.raises(PreconditionError, match="do not follow one another"):
        insert(model, pair)


def test_unknown_site_lists_the_sites() -> None:
    with pytest.raises(BadInputError) as caught:
        insert(build(), (Selection("encoder.layer.11", selector("class_row")),))
    assert "encoder.layer.0, encoder.layer.1, encoder.layer.2" in str(caught.value)


def test_model_without_attention() -> None:
    text = '<ir_version: 9, opset_import: ["" : 20]> g (float[b,n,4] x) => (float[b,n,4] y)'
    model = ir.from_onnx_text(text + " { y = Relu(x) }")
    with pytest.raises(BadInputError, match="no attention block"):
        insert_selections(model, selections((0,)))


def test_selecting_twice_is_refused() -> None:
    once = insert_selections(ir.from_proto(build()), selections((0,)))
    with pytest.raises(BadInputError, match="selects tokens already"):
        insert_selections(once, selections((1,)))


def test_unknown_signal_lists_the_signals() -> None:
    text = '<ir_version: 9, opset_import: ["" : 18]> s (float[b,n] entropy) => (float[b,n] score)'
    graph = ir.from_onnx_text(text + " { score = Relu(entropy) }")
    with pytest.raises(BadInputError, match="class_row"):
        insert(build(), (Selection(site(0), graph),))


def test_selector_without_a_score_is_refused() -> None:
    text = '<ir_version: 9, opset_import: ["" : 18]> s (float[b,n] class_row)'
    graph = ir.from_onnx_text(
        text + " => (float[b,n] a, float[b,n] c) { a = Relu(class_row) c = Abs(class_row) }"
    )
    with pytest.raises(BadInputError, match="output named score"):
        insert(build(), (Selection(site(0), graph),))


@pytest.mark.parametrize(
    "wrong", [{"default": 0}, {"default": 1001}, {"kind": "count", "default": 0}, {"protected": -1}]
)
def test_budget_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInputError):
        Budget(**wrong)


def test_causal_fused_attention_has_no_class_row() -> None:
    model = build(Variant(form="fused", opset=23, mask="none", tokens=8))
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.attribute.append(helper.make_attribute("is_causal", 1))
    with pytest.raises(PreconditionError, match="sees only itself"):
        insert(model, selections((0,)))
    insert(model, selections((0,), "keys"))


def test_old_opset_is_refused_with_a_next_step() -> None:
    model = ir.from_proto(build(Variant(opset=17)))
    model.opset_imports[""] = 11
    with pytest.raises(PreconditionError, match="opset 13 or later"):
        insert_selections(model, selections((0,)))
