"""Files that ONNX Runtime's own tools write: fused transformers, quantised networks."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import transformers
from tests.frameworks.halving import Halved, assert_equal_to_masked, halve, ops, outputs_of
from tests.laws.small_models import network

from secateur.export.onnx_file import from_onnx, save
from secateur.export.torch_export import from_torch

_WORDS = {"input_ids": {0: "batch", 1: "tokens"}, "attention_mask": {0: "batch", 1: "tokens"}}


class _Bert(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
            intermediate_size=48, max_position_embeddings=32,
        )  # fmt: skip
        self.inner = transformers.BertModel(config, add_pooling_layer=False).eval()
        self.head = torch.nn.Linear(32, 5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))

    def forward(self, input_ids, attention_mask):
        return self.head(self.inner(input_ids, attention_mask).last_hidden_state)


@functools.cache
def _optimised() -> ir.Model:
    """A BERT after onnxruntime.transformers.optimizer, opened from its file."""
    from onnxruntime.transformers.optimizer import optimize_model

    torch.manual_seed(0)
    inputs = {
        "input_ids": torch.randint(0, 40, (2, 7)),
        "attention_mask": torch.ones(2, 7, dtype=torch.int64),
    }
    with tempfile.TemporaryDirectory() as folder:
        plain, fused = Path(folder) / "plain.onnx", Path(folder) / "fused.onnx"
        save(from_torch(_Bert(), inputs, _WORDS), plain)
        optimize_model(
            str(plain), model_type="bert", num_heads=4, hidden_size=32
        ).save_model_to_file(str(fused))
        return from_onnx(fused)


def _words() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.ones((2, 7), np.int64)
    return {"input_ids": rng.integers(0, 40, (2, 7)), "attention_mask": mask}


def test_the_optimiser_fuses_what_the_exporter_wrote() -> None:
    fused = {node.op_type for node in _optimised().graph if node.domain == "com.microsoft"}
    print(ops(_optimised()))  # noqa: T201
    assert fused & {"SkipLayerNormalization", "BiasGelu", "Gelu", "FastGelu"}


def test_heads_and_channels_of_an_optimised_bert_go() -> None:
    halved = halve(_optimised())
    assert halved.sizes["heads"] == [4]
    assert halved.sizes["ffn"] == [48]
    assert_equal_to_masked(halved, _words())


def test_the_width_of_an_optimised_bert_goes_renormalised() -> None:
    halved = halve(_optimised(), inexact=True)
    assert halved.sizes["residual"] == [32]
    assert_equal_to_masked(halved, _words())


# --- each fused op inside a network ---------------------------------------------------------

_STREAM = "net (float[batch, tokens, 8] x) => (float[batch, tokens, 8] y) {{ {} }}"


def _attending(nodes: str, weights: dict[str, tuple[int, ...]], constants=None) -> Halved:
    return halve(network(_STREAM.format(nodes), weights, constants, opset=20))


def _tokens(width: int = 8) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(3).normal(size=(2, 5, width)).astype(np.float32)}


def test_whole_heads_of_a_packed_attention_go() -> None:
    nodes = """
        a = com.microsoft.Attention <num_heads = 4> (x, qkv, bias)
        b = MatMul(a, out)
        y = Add(b, x)
    """
    halved = _attending(nodes, {"qkv": (8, 24), "bias": (24,), "out": (8, 8)})
    assert halved.sizes == {"heads": [4]}
    (node,) = [n for n in halved.small.graph if n.op_type == "Attention"]
    assert node.attributes["num_heads"].as_int() == 2
    assert_equal_to_masked(halved, _tokens())


def test_whole_heads_of_a_multi_head_attention_go() -> None:
    nodes = """
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        a = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v)
        b = MatMul(a, out)
        y = Add(b, x)
    """
    halved = _attending(nodes, {"wq": (8, 24), "wk": (8, 24), "wv": (8, 24), "out": (24, 8)})
    assert halved.sizes == {"heads": [4]}
    assert_equal_to_masked(halved, _tokens())


def test_whole_groups_of_a_grouped_attention_go() -> None:
    nodes = """
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        a, pk, pv = com.microsoft.GroupQueryAttention <num_heads = 8, kv_num_heads = 4>
            (q, k, v, , , last, total)
        b = MatMul(a, out)
        y = Add(b, x)
    """
    constants = {"last": np.array([4, 4], np.int32), "total": np.array(5, np.int32)}
    weights = {"wq": (8, 64), "wk": (8, 32), "wv": (8, 32), "out": (64, 8)}
    halved = _attending(nodes, weights, constants)
    assert halved.sizes == {"heads": [4]}
    (node,) = [n for n in halved.small.graph if n.op_type == "GroupQueryAttention"]
    assert [node.attributes[n].as_int() for n in ("num_heads", "kv_num_heads")] == [4, 2]
    assert_equal_to_masked(halved, _tokens())


def test_heads_go_through_a_rotation() -> None:
    nodes = """
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        r = com.microsoft.RotaryEmbedding <num_heads = 4, rotary_embedding_dim = 4>
            (q, first, table, table)
        s = com.microsoft.RotaryEmbedding <num_heads = 4, rotary_embedding_dim = 4>
            (k, first, table, table)
        a = com.microsoft.MultiHeadAttention <num_heads = 4> (r, s, v)
        b = MatMul(a, out)
        y = Add(b, x)
    """
    weights = {"wq": (8, 16), "wk": (8, 16), "wv": (8, 16), "out": (16, 8), "table": (9, 2)}
    halved = _attending(nodes, weights, {"first": np.array([0])})
    assert halved.sizes == {"heads": [4]}
    assert_equal_to_masked(halved, _tokens())


CHANNELS = {
    "BiasGelu": "b = com.microsoft.BiasGelu(a, bias)",
    "FastGelu": "b = com.microsoft.FastGelu(a, bias)",
    "Gelu": "b = com.microsoft.Gelu(a)",
    "QuickGelu": "b = com.microsoft.QuickGelu <alpha = 1.5> (a)",
    "FusedMatMul": "c = com.microsoft.FusedMatMul <alpha = 0.5> (a, square)\n b = Tanh(c)",
    "SkipLayerNormalization": "b = com.microsoft.SkipLayerNormalization(a, a, bias, bias)",
    "LayerNormalization": "b = LayerNormalization(a, bias, bias)",
}


@pytest.mark.parametrize("op", CHANNELS)
def test_channels_go_through_a_fused_op(op: str) -> None:
    nodes = f"a = MatMul(x, up)\n {CHANNELS[op]}\n y = MatMul(b, down)"
    weights = {"up": (8, 12), "bias": (12,), "down": (12, 8), "square": (12, 12)}
    used = {name: shape for name, shape in weights.items() if name in nodes}
    halved = halve(network(_STREAM.format(nodes), used), inexact="Normalization" in op)
    assert sum(map(len, halved.sizes.values())) == 1 + (op == "FusedMatMul")
    assert_equal_to_masked(halved, _tokens())


def test_the_width_of_fused_embeddings_goes_renormalised() -> None:
    text = """
    net (int32[batch, tokens] ids) => (float[batch, tokens, 3] y) {
        e, mask = com.microsoft.EmbedLayerNormalization(ids, , words, places, , scale, bias)
        y = MatMul(e, out)
    }
    """
    weights = {"words": (9, 8), "places": (12, 8), "scale": (8,), "bias": (8,), "out": (8, 3)}
    halved = halve(network(text, weights), inexact=True)
    assert [size for sizes in halved.sizes.values() for size in sizes] == [8]
    assert {"rows"} <= {g.role for g in halved.analysis.groups}
    ids = np.random.default_rng(0).integers(0, 9, (2, 5)).astype(np.int32)
    assert outputs_of(halved.small, {"ids": ids})[0].shape == (2, 5, 3)


# --- convolutions and whole numbers ---------------------------------------------------------

_IMAGE = "net (float[batch, 3, 6, 6] x) => (float[batch, 2, 6, 6] y) {{ {} }}"


def _image() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(3).normal(size=(2, 3, 6, 6)).astype(np.float32)}


def test_channels_of_fused_convolutions_go() -> None:
    nodes = """
        a = com.microsoft.FusedConv <activation = "Relu", kernel_shape = [3, 3],
            pads = [1, 1, 1, 1]>
            (x, w1, b1)
        b = com.microsoft.FusedConv <activation = "Relu", kernel_shape = [3, 3],
            pads = [1, 1, 1, 1], group = 8> (a, w2, b1, a)
        y = Conv(b, w3)
    """
    weights = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "w3": (2, 8, 1, 1)}
    halved = halve(network(_IMAGE.format(nodes), weights))
    assert halved.sizes == {"channels": [8]}
    assert_equal_to_masked(halved, _image())


def _quantised(**options: object) -> ir.Model:
    """A convolutional network after onnxruntime.quantization."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.quantize import quantize_dynamic

    text = """
    net (float[batch, 3, 6, 6] x) => (float[batch, 4] y) {
        a = Conv <pads = [1, 1, 1, 1]>
            (x, w1, b1)
        b = Relu(a)
        c = Conv(b, w2, b2)
        d = Relu(c)
        e = GlobalMaxPool(d)
        f = Flatten(e)
        y = MatMul(f, w3)
    }
    """
    weights = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (12, 8, 3, 3), "b2": (12,), "w3": (12, 4)}

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [_image() for _ in range(2)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "plain.onnx", Path(folder) / "small.onnx"
        model = network(text, weights)
        model.metadata_props.clear()
        onnx.save(ir.to_proto(model), plain)
        if options.pop("dynamic", False):
            # Without VNNI, ONNX Runtime's 8-bit products saturate in pairs of channels, so that
            # which channels stand side by side changes sums; weights of 7 bits leave room.
            quantize_dynamic(plain, small, reduce_range=True)
        else:
            form = QuantFormat[str(options.pop("form"))]
            quantize_static(plain, small, Reader(), quant_format=form, **options)
        return from_onnx(small)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_channels_of_a_quantised_network_go(form: str, per_channel: bool) -> None:
    model = _quantised(form=form, per_channel=per_channel)
    assert ops(model)["DequantizeLinear" if form == "QDQ" else "QLinearConv"]
    halved = halve(model)
    assert halved.sizes == {"channels": [8, 12]}
    assert_equal_to_masked(halved, _image(), 1e-5)


def test_channels_of_a_dynamically_quantised_network_go() -> None:
    model = _quantised(dynamic=True)
    assert ops(model)["ConvInteger"]
    halved = halve(model)
    assert halved.sizes == {"channels": [8, 12]}
    assert_equal_to_masked(halved, _image(), 1e-5)
