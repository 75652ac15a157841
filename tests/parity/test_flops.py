"""FLOPs on observed shapes equal what the definition of each op says."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.parity import tiny
from torch.utils.flop_counter import FlopCounterMode

from secateur.errors import BadInputError
from secateur.graph_passes.flops import count, observed, per_row
from secateur.workflow.flops import count_flops

# name: node, inputs as "name: shape", FLOPs by hand
CASES = {
    "matmul": ("MatMul(a, b)", {"a": (2, 3, 4, 5), "b": (5, 6)}, 2 * 2 * 3 * 4 * 5 * 6),
    "matmul_vector": ("MatMul(a, b)", {"a": (4, 5), "b": (5,)}, 2 * 4 * 5),
    "gemm": ("Gemm(a, b)", {"a": (4, 5), "b": (5, 6)}, 2 * 4 * 5 * 6),
    "gemm_transposed": ("Gemm <transA=1> (a, b)", {"a": (5, 4), "b": (5, 6)}, 2 * 4 * 5 * 6),
    "conv_groups": (
        "Conv <group=2, pads=[1,1,1,1]> (a, b)",
        {"a": (1, 4, 7, 7), "b": (6, 2, 3, 3)},
        2 * 6 * 7 * 7 * 2 * 9,
    ),
    "conv_transpose": (
        "ConvTranspose (a, b)",
        {"a": (1, 4, 5, 5), "b": (4, 3, 2, 2)},
        2 * 4 * 5 * 5 * 3 * 4,
    ),
    "einsum": (
        'Einsum <equation="bij,bjk->bik"> (a, b)',
        {"a": (2, 3, 4), "b": (2, 4, 5)},
        2 * 2 * 3 * 4 * 5,
    ),
    "attention_4d": (
        "Attention (a, b, c)",
        {"a": (2, 3, 4, 8), "b": (2, 3, 6, 8), "c": (2, 3, 6, 10)},
        2 * 2 * 3 * 4 * 6 * (8 + 10),
    ),
    "attention_grouped_3d": (
        "Attention <q_num_heads=4, kv_num_heads=2> (a, b, c)",
        {"a": (2, 5, 32), "b": (2, 7, 16), "c": (2, 7, 16)},
        2 * 2 * 4 * 5 * 7 * (8 + 8),
    ),
    "microsoft_attention": (
        "com.microsoft.Attention <num_heads=2> (a, b, c)",
        {"a": (2, 5, 8), "b": (8, 24), "c": (24,)},
        2 * 2 * 5 * 8 * 24 + 2 * 2 * 5 * 5 * 16,
    ),
    "microsoft_multi_head": (
        "com.microsoft.MultiHeadAttention <num_heads=2> (a, b, c)",
        {"a": (2, 5, 8), "b": (2, 7, 8), "c": (2, 7, 8)},
        2 * 2 * 5 * 7 * 16,
    ),
}


def graph(node: str, inputs: dict[str, tuple[int, ...]], *, dynamic: bool = True) -> ir.Model:
    sizes = {
        n: ",".join(f"{n}{i}" if dynamic else str(d) for i, d in enumerate(s))
        for n, s in inputs.items()
    }
    arguments = ", ".join(f"float[{size}] {name}" for name, size in sizes.items())
    opset = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft": 1]>'
    return ir.from_onnx_text(f"{opset} g ({arguments}) => (float[y0] y) {{ [n] y = {node} }}")


def untyped(model: ir.Model) -> ir.Model:
    model.graph.outputs[0].shape = None
    return model


@pytest.mark.parametrize("name", CASES)
def test_flops_equal_the_definition(name: str) -> None:
    node, shapes, want = CASES[name]
    arrays = {k: np.ones(s, np.float32) for k, s in shapes.items()}
    result = count_flops(untyped(graph(node, shapes)), arrays)
    assert result.by_node == {"n": want}
    assert result.total == want


@pytest.mark.parametrize("tokens", [5, 12])
def test_flops_of_an_export_equal_torchs_own_count(tokens: int) -> None:
    net, model = tiny.bert(fused=False), tiny.exported(fused=False)
    batch = {name: torch.from_numpy(x[:, :tokens]) for name, x in tiny.BATCH.items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(**batch)
    result = count_flops(model, {name: x.numpy() for name, x in batch.items()})
    assert result.total == counter.get_total_flops()
    assert sum(v for path, v in result.by_module.items() if path.startswith("layers.1")) == (
        result.total // 3
    )


def test_the_counted_model_is_left_alone() -> None:
    model = graph("MatMul(a, b)", {"a": (2, 3), "b": (3, 4)})
    before = ir.to_onnx_text(model)
    assert len(observed(model).graph.outputs) == 4
    assert ir.to_onnx_text(model) == before


def test_a_weight_costs_two_flops_a_number_and_row() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n,3] a) => (float[n,4] y) '
        "<float[3,4] w = {1,1,1,1,1,1,1,1,1,1,1,1}> { y = MatMul(a, w) }"
    )
    assert per_row(model) == {"w": 24}


def test_a_missing_shape_is_named() -> None:
    with pytest.raises(BadInputError, match="'a' was not observed"):
        count(graph("MatMul(a, b)", {"a": (2, 3), "b": (3, 4)}), {"b": (3, 4), "y": (2, 4)})


def test_an_ellipsis_is_refused() -> None:
    model = graph('Einsum <equation="...i,ij->...j"> (a, b)', {"a": (2, 3), "b": (3, 4)})
    with pytest.raises(BadInputError, match="ellipsis"):
        count(model, {"a": (2, 3), "b": (3, 4), "y": (2, 4)})


def test_functions_are_refused() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20, "own": 1]> g (float[n] a) => (float[n] y) '
        '{ y = own.f(a) } <opset_import: ["" : 20], domain: "own"> f (x) => (z) { z = Neg(x) }'
    )
    with pytest.raises(BadInputError, match="functions"):
        observed(model)
