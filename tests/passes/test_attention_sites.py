"""Attention blocks are found by structure, named by module, and cut at the residual stream."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from tests.passes.selection.models import DH, D, H, Variant, write

from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.attention import find_sites
from secateur.graph_passes.axes import analyse_axes
from secateur.graph_passes.sites import Site, attention_of, site_named
from secateur.graph_passes.stream_sites import site_at

FORMS = {
    "plain": Variant(),
    "old opset": Variant(opset=17, mask="legacy"),
    "masked scores": Variant(mask="where"),
    "scale behind": Variant(scale="after"),
    "scale on both": Variant(scale="both", key="merged", guard=True),
    "keys at once": Variant(key="direct"),
    "rotary": Variant(extra="rotary"),
    "fused": Variant(form="fused", opset=23),
    "microsoft": Variant(form="microsoft"),
    "pre-norm": Variant(norm="pre"),
    "pre-norm, tokens returned": Variant(norm="pre", pool="tokens"),
    "no mask, fixed tokens": Variant(mask="none", tokens=8),
}


def _sites(variant: Variant) -> tuple[tuple[Site, ...], dict[str, str]]:
    model, names = write(variant)
    inferred = onnx.shape_inference.infer_shapes(model)
    return find_sites(ir.from_proto(inferred)), names


@pytest.mark.parametrize("name", FORMS)
def test_every_block_is_found_once(name: str) -> None:
    sites, _ = _sites(FORMS[name])
    assert [site.name for site in sites] == [f"encoder.layer.{i}" for i in range(3)]
    there = [attention_of(site) for site in sites]
    assert {(one.heads, one.key_heads, one.head_dim) for one in there} == {(H, H, DH)}


@pytest.mark.parametrize("name", FORMS)
def test_block_cut_is_what_the_next_block_reads(name: str) -> None:
    sites, names = _sites(FORMS[name])
    assert [site.block.name for site in sites] == [names[f"hidden.{i}"] for i in range(3)]


@pytest.mark.parametrize(("norm", "op"), [("pre", "Add"), ("post", "LayerNormalization")])
def test_attention_cut_is_the_residual_behind_attention(norm: str, op: str) -> None:
    sites, _ = _sites(Variant(norm=norm))
    for site in sites:
        producer = site.after_attention.producer()
        assert producer is not None
        assert producer.op_type == op
        assert site.after_attention is not site.block
        assert site.cut("attention") is site.after_attention


@pytest.mark.parametrize("key", ["late", "direct", "merged"])
def test_keys_are_those_before_the_scale(key: str) -> None:
    sites, names = _sites(Variant(key=key, scale="both"))
    model, _ = write(Variant(key=key, scale="both"))
    producers = {node.output[0]: node for node in model.graph.node}
    for i, site in enumerate(sites):
        raw, found = names[f"keys.{i}"], str(attention_of(site).key.name)
        assert found == raw or producers[found].input[0] == raw


def test_site_is_found_by_the_end_of_its_name() -> None:
    sites, _ = _sites(Variant())
    assert site_named(sites, "layer.1").node is sites[1].node
    assert site_named(sites, "layer.1").name == "layer.1"


def test_ambiguous_end_of_a_name_is_refused() -> None:
    from dataclasses import replace

    sites, _ = _sites(Variant())
    pair = (replace(sites[0], name="a.layer.1"), replace(sites[1], name="b.layer.1"))
    with pytest.raises(BadInputError, match=r"more than one site(.|\n)*a.layer.1, b.layer.1"):
        site_named(pair, "layer.1")


def test_unknown_name_lists_sites_and_suggests() -> None:
    sites, _ = _sites(Variant())
    with pytest.raises(BadInputError) as caught:
        site_named(sites, "encoder.layer.7")
    assert "encoder.layer.0, encoder.layer.1, encoder.layer.2" in caught.value.wanted
    assert "encoder.layer" in caught.value.next_step


def test_nodes_without_module_names_are_numbered() -> None:
    model, _ = write(Variant())
    for i, node in enumerate(model.graph.node):
        node.name = f"n{i}"
    sites = find_sites(ir.from_proto(onnx.shape_inference.infer_shapes(model)))
    assert [site.name for site in sites] == ["site0", "site1", "site2"]


def test_product_with_a_weight_is_no_attention() -> None:
    text = f"""<ir_version: 9, opset_import: ["" : 20]>
    gate (float[b,n,{D}] x) => (float[b,n,{D}] y) <float[{D},{D}] w = {{{",".join("1" * D * D)}}}>
    {{ s = MatMul(x, w) p = Softmax<axis=-1>(s) y = MatMul(p, w) }}"""
    with pytest.raises(BadInputError, match="no attention block"):
        find_sites(ir.from_onnx_text(text))


def test_error_without_attention_says_what_the_graph_is_made_of() -> None:
    text = '<ir_version: 9, opset_import: ["" : 20]> g (float[b,n] x) => (float[b,n] y)'
    with pytest.raises(BadInputError) as caught:
        find_sites(ir.from_onnx_text(text + " { a = Relu(x) y = Relu(a) }"))
    assert caught.value.got == "2 Relu"


LINEAR = """<ir_version: 10, opset_import: ["" : 20]>
linear (float[batch,16,4,4] x) => (float[batch,16,16] y)
<float[16,1,3,3] w = {%s}, int64[3] flat = {0, 16, -1}>
{
    grid = Conv<group = 16, pads = [1, 1, 1, 1]>(x, w)
    values = Reshape(grid, flat)
    keys = Relu(values)
    turned = Transpose<perm = [0, 2, 1]>(values)
    sums = MatMul(keys, turned)
    again = Conv<group = 16, pads = [1, 1, 1, 1]>(grid, w)
    queries = Reshape(again, flat)
    y = MatMul(sums, queries)
}"""


def test_attention_that_sums_over_a_grid_first_is_refused_with_the_grid_named() -> None:
    with pytest.raises(PreconditionError, match="they lie on a grid") as caught:
        find_sites(ir.from_onnx_text(LINEAR % ",".join("1" * 144)))
    assert "multiplies keys by values" in str(caught.value)
    assert "Conv" in str(caught.value.got)


def test_attention_that_sums_over_a_text_first_is_refused_for_that_alone() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    linear (float[batch,tokens,16] q, float[batch,tokens,16] k) => (float[batch,tokens,16] y)
    {
        turned = Transpose<perm = [0, 2, 1]>(k)
        sums = MatMul(turned, k)
        y = MatMul(q, sums)
    }"""
    with pytest.raises(PreconditionError, match="no token has a score") as caught:
        find_sites(ir.from_onnx_text(text))
    assert "grid" not in str(caught.value)


STREAM = """<ir_version: 10, opset_import: ["" : 20]>
stream (float[batch,tokens,16] x) => (float[batch,tokens,16] y)
{
    mixed = Relu(x)
    y = Relu(mixed)
}"""


def test_a_stream_is_a_site_without_attention() -> None:
    model = ir.from_onnx_text(STREAM)
    found = site_at(model, analyse_axes(model), "mixed")
    assert found.attention is None
    assert (found.width, found.block, found.cut("attention")) == (16, found.block, found.block)


def test_asking_a_stream_for_its_attention_names_the_site() -> None:
    model = ir.from_onnx_text(STREAM)
    found = site_at(model, analyse_axes(model), "mixed")
    with pytest.raises(BadInputError, match="there is no attention at this site") as caught:
        attention_of(found)
    assert caught.value.where == "site 'mixed'"
