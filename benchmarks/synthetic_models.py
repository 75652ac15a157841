"""Graphs of any size for the benchmarks: a decoder as torch exports LLaMA, and a residual CNN."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

Weights = Callable[[str, tuple[int, ...]], ir.TensorProtocol]
"""Makes the tensor of a weight from its name and shape; it need not be in memory."""

_SCOPES = "pkg.torch.onnx.name_scopes"
_OPSET = 20
_EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class Decoder:
    """Sizes of a decoder-only model with grouped queries and a gated FFN."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    ffn: int
    vocabulary: int
    dtype: ir.DataType = ir.DataType.FLOAT


class _Builder:
    """Appends nodes as the exporter does: named, with the module that made them."""

    def __init__(self, weights: Weights, dtype: ir.DataType) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": _OPSET}, name="synthetic")
        self.dtype = dtype
        self.scope = "model"
        self._weights = weights

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.graph.inputs.append(value)
        return value

    def op(self, op_type: str, *inputs: ir.Value, **attributes: float | list[int]) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        node.name = f"node_{op_type}_{len(self.graph)}"
        node.outputs[0].name = f"{op_type.lower()}_{len(self.graph)}"
        node.metadata_props[_SCOPES] = repr(["", self.scope, node.name])
        self.graph.append(node)
        return node.outputs[0]

    def weight(self, name: str, *shape: int) -> ir.Value:
        return self._constant(self._weights(f"{self.scope}.{name}", shape), f"{self.scope}.{name}")

    def ints(self, *numbers: int) -> ir.Value:
        name = "ints_" + "_".join(map(str, numbers))
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        return self._constant(ir.tensor(np.array(numbers, np.int64), name=name), name)

    def number(self, value: float) -> ir.Value:
        name = f"number_{value:.6g}"
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        return self._constant(ir.tensor(np.array(value, self.dtype.numpy()), name=name), name)

    def _constant(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        value = ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def model(self, output: ir.Value) -> ir.Model:
        output.type = ir.TensorType(self.dtype)
        self.graph.outputs.append(output)
        return ir.Model(self.graph, ir_version=10)


def decoder(sizes: Decoder, weights: Weights) -> ir.Model:
    """Build the model: about 60 nodes a layer, batch and tokens dynamic, no inner shapes."""
    build = _Builder(weights, sizes.dtype)
    tokens = build.input("input_ids", ir.DataType.INT64, ["batch", "tokens"])
    mask = build.input("mask", sizes.dtype, ["batch", 1, "tokens", "tokens"])
    rotary = [
        build.input(n, sizes.dtype, [1, 1, "tokens", sizes.head_width]) for n in ("cos", "sin")
    ]
    build.scope = "model.embed_tokens"
    x = build.op("Gather", build.weight("weight", sizes.vocabulary, sizes.width), tokens)
    for layer in range(sizes.layers):
        scope = f"model.layers.{layer}"
        h = _rms_norm(build, f"{scope}.input_layernorm", x, sizes.width)
        build.scope = f"{scope}.self_attn"
        x = build.op("Add", x, _attention(build, sizes, h, (mask, *rotary)))
        h = _rms_norm(build, f"{scope}.post_attention_layernorm", x, sizes.width)
        build.scope = f"{scope}.mlp"
        x = build.op("Add", x, _gated_ffn(build, sizes, h))
    x = _rms_norm(build, "model.norm", x, sizes.width)
    build.scope = "lm_head"
    logits = build.op("MatMul", x, build.weight("weight", sizes.width, sizes.vocabulary))
    logits.shape = ir.Shape(["batch", "tokens", sizes.vocabulary])
    return build.model(logits)


def _rms_norm(build: _Builder, scope: str, x: ir.Value, width: int) -> ir.Value:
    build.scope = scope
    square = build.op("Pow", x, build.number(2.0))
    mean = build.op("ReduceMean", square, build.ints(-1), keepdims=1)
    root = build.op("Sqrt", build.op("Add", mean, build.number(_EPSILON)))
    normal = build.op("Mul", x, build.op("Reciprocal", root))
    return build.op("Mul", build.weight("weight", width), normal)


def _attention(
    build: _Builder, sizes: Decoder, x: ir.Value, given: tuple[ir.Value, ir.Value, ir.Value]
) -> ir.Value:
    mask, cos, sin = given
    query = _projected(build, x, ("q_proj.weight", sizes.width, sizes.heads), sizes.head_width)
    key = _projected(build, x, ("k_proj.weight", sizes.width, sizes.kv_heads), sizes.head_width)
    value = _projected(build, x, ("v_proj.weight", sizes.width, sizes.kv_heads), sizes.head_width)
    query, key = (_rotated(build, item, cos, sin, sizes.head_width) for item in (query, key))
    key, value = (_repeated(build, sizes, item) for item in (key, value))
    scores = build.op("MatMul", query, build.op("Transpose", key, perm=[0, 1, 3, 2]))
    scaled = build.op("Mul", scores, build.number(1 / math.sqrt(sizes.head_width)))
    shares = build.op("Softmax", build.op("Add", scaled, mask), axis=-1)
    mixed = build.op("Transpose", build.op("MatMul", shares, value), perm=[0, 2, 1, 3])
    inner = sizes.heads * sizes.head_width
    flat = build.op("Reshape", mixed, build.ints(0, 0, inner))
    return build.op("MatMul", flat, build.weight("o_proj.weight", inner, sizes.width))


def _projected(
    build: _Builder, x: ir.Value, weight: tuple[str, int, int], head_width: int
) -> ir.Value:
    name, width, heads = weight
    flat = build.op("MatMul", x, build.weight(name, width, heads * head_width))
    apart = build.op("Reshape", flat, build.ints(0, 0, heads, head_width))
    return build.op("Transpose", apart, perm=[0, 2, 1, 3])


def _rotated(
    build: _Builder, x: ir.Value, cos: ir.Value, sin: ir.Value, head_width: int
) -> ir.Value:
    half = head_width // 2
    low = build.op("Slice", x, build.ints(0), build.ints(half), build.ints(3))
    high = build.op("Slice", x, build.ints(half), build.ints(head_width), build.ints(3))
    turned = build.op("Concat", build.op("Neg", high), low, axis=3)
    return build.op("Add", build.op("Mul", x, cos), build.op("Mul", turned, sin))


def _repeated(build: _Builder, sizes: Decoder, x: ir.Value) -> ir.Value:
    """Give each group of queries its key-value head."""
    times = sizes.heads // sizes.kv_heads
    apart = build.op("Unsqueeze", x, build.ints(2))
    wide = build.op("Expand", apart, build.ints(1, 1, times, 1, 1))
    return build.op("Reshape", wide, build.ints(0, sizes.heads, -1, sizes.head_width))


def _gated_ffn(build: _Builder, sizes: Decoder, x: ir.Value) -> ir.Value:
    gate = build.op("MatMul", x, build.weight("gate_proj.weight", sizes.width, sizes.ffn))
    up = build.op("MatMul", x, build.weight("up_proj.weight", sizes.width, sizes.ffn))
    inner = build.op("Mul", build.op("Mul", gate, build.op("Sigmoid", gate)), up)
    return build.op("MatMul", inner, build.weight("down_proj.weight", sizes.ffn, sizes.width))


def residual_cnn(blocks: int, weights: Weights, width: int = 64) -> ir.Model:
    """Build bottleneck blocks with their batch norms: 10 nodes each, batch dynamic."""
    build = _Builder(weights, ir.DataType.FLOAT)
    x = build.input("image", ir.DataType.FLOAT, ["batch", 3, 32, 32])
    x = _conv_norm(build, "stem", x, (3, width, 3))
    for block in range(blocks):
        scope = f"blocks.{block}"
        h = build.op("Relu", _conv_norm(build, f"{scope}.conv1", x, (width, width // 2, 1)))
        h = build.op("Relu", _conv_norm(build, f"{scope}.conv2", h, (width // 2, width // 2, 3)))
        h = _conv_norm(build, f"{scope}.conv3", h, (width // 2, width, 1))
        build.scope = scope
        x = build.op("Relu", build.op("Add", h, x))
    build.scope = "head"
    flat = build.op("Flatten", build.op("GlobalAveragePool", x), axis=1)
    logits = build.op("MatMul", flat, build.weight("weight", width, 10))
    logits.shape = ir.Shape(["batch", 10])
    return build.model(logits)


def _conv_norm(build: _Builder, scope: str, x: ir.Value, kernel: tuple[int, int, int]) -> ir.Value:
    channels_in, channels_out, extent = kernel
    build.scope = scope
    weight = build.weight("conv.weight", channels_out, channels_in, extent, extent)
    made = build.op("Conv", x, weight, pads=[extent // 2] * 4)
    names = ("weight", "bias", "running_mean", "running_var")
    return build.op(
        "BatchNormalization", made, *(build.weight(f"bn.{name}", channels_out) for name in names)
    )
