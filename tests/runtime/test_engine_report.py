"""What the inspector's JSON says of a model, in the model's own names."""

from __future__ import annotations

import json

import pytest

from secateur.errors import BadInputError
from secateur.runtime.engine_report import (
    attention_reports,
    read_layers,
    report_lines,
    selection_reports,
)
from secateur.runtime.onnx_outline import ModelOutline, NodeOutline

SITE = "encoder.layer.0"


def node(name: str, operator: str, inputs: str, output: str, module: str = "") -> NodeOutline:
    return NodeOutline(name, operator, tuple(inputs.split()), (output,), module)


def attention(number: int) -> list[NodeOutline]:
    """Product, scale, mask, softmax, product."""
    module, n = f"encoder.layer.{number}.attention", number
    return [
        node(f"qk_{n}", "MatMul", f"q{n} k{n}", f"s{n}", module),
        node(f"scale_{n}", "Mul", f"s{n} c", f"t{n}", module),
        node(f"mask_{n}", "Add", f"t{n} m", f"u{n}", module),
        node(f"softmax_{n}", "Softmax", f"u{n}", f"p{n}", module),
        node(f"pv_{n}", "MatMul", f"p{n} v{n}", f"y{n}", module),
    ]


OUTLINE = ModelOutline(
    (), (), (*attention(0), *attention(1), node("gate", "Softmax", "g", "h", "router")), {}, (),
    opset=20, metadata={},
)  # fmt: skip


def layer(name: str, kind: str, *nodes: str) -> dict[str, str]:
    told = "\x1e".join(f"[ONNX Layer: {one}]" for one in nodes)
    return {"Name": name, "LayerType": kind, "Metadata": told}


LAYERS = [
    layer("_gemm_mha_v2_0", "kgen", "qk_0", "scale_0", "mask_0", "softmax_0", "pv_0"),
    layer("qk", "gemm", "qk_1"),
    layer("sm", "kgen", "scale_1", "mask_1", "softmax_1"),
    layer("pv", "gemm", "pv_1"),
    layer("top", "topk", f"{SITE}/selection/TopK"),
    layer("rows", "gather", f"{SITE}/selection/GatherND", f"{SITE}/selection/Add"),
    layer("gate", "softmax", "gate"),
]
TEXT = json.dumps({"Layers": LAYERS, "I/O Tensors": []})


def test_a_fused_attention_is_told_from_one_in_parts():
    fused, parts = attention_reports(read_layers(TEXT), OUTLINE)
    assert (fused.module, fused.is_fused) == ("encoder.layer.0.attention", True)
    assert (parts.module, parts.is_fused) == ("encoder.layer.1.attention", False)
    assert [name.split()[0] for name in parts.layers] == ["qk", "sm", "pv"]


def test_a_softmax_that_is_no_attention_is_left_out():
    assert not any("router" in one.module for one in attention_reports(read_layers(TEXT), OUTLINE))


def test_an_attention_node_is_fused_where_one_layer_has_it():
    outline = ModelOutline(
        (), (), (node("sdpa", "Attention", "q k v", "y", "blocks.0.attn"),), {}, (),
        opset=23, metadata={},
    )  # fmt: skip
    text = json.dumps({"Layers": [layer("x", "kgen", "sdpa")]})
    (one,) = attention_reports(read_layers(text), outline)
    assert one.is_fused


def test_what_a_selection_cost_is_counted_by_kind():
    (one,) = selection_reports(read_layers(TEXT), [SITE])
    assert one.layers == {"topk": 1, "gather": 1}
    (none,) = selection_reports(read_layers(TEXT), ["encoder.layer.9"])
    assert none.layers == {}


def test_the_lines_name_modules():
    layers = read_layers(TEXT)
    lines = report_lines(attention_reports(layers, OUTLINE), selection_reports(layers, [SITE]))
    assert lines[0].startswith("encoder.layer.0.attention: attention fused, 1 layer: _gemm_mha")
    assert lines[1].startswith("encoder.layer.1.attention: attention NOT fused, 3 layers")
    assert lines[2] == f"{SITE}: selection runs in 1 gather, 1 topk"


@pytest.mark.parametrize("text", ["", "{}", '{"Layers": ["a name"]}', '{"Layers": [{}]}'])
def test_an_engine_without_details_is_said_to_have_none(text):
    with pytest.raises(BadInputError, match="does not tell its layers"):
        read_layers(text)


def test_without_a_device_the_command_says_so(bundle_path, capsys):
    from secateur.runtime.__main__ import main

    assert main(["build", str(bundle_path), "--target", "rtx:sm86"]) == 0
    assert main(["layers", str(bundle_path), "--target", "rtx:sm86"]) == 3
    assert "no CUDA device" in capsys.readouterr().err
