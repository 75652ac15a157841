"""FLOPs of a graph on shapes that were observed: products, convolutions, attention.

A multiplication and an addition count as two. Elementwise work is not counted: it is what
a runtime fuses away, and it would hide what a removal saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from secateur.errors import BadInputError
from secateur.registry import Registry

Shape = tuple[int, ...]
ShapeOf = Callable[[ir.Value], Shape]
_Rule = Callable[[ir.Node, ShapeOf], int]

FLOPS: Registry[_Rule] = Registry("FLOPs rule")

_SUFFIX = "/observed_shape"


def observed(model: ir.Model) -> ir.Model:
    """Copy a model with the shape of everything that counted nodes read or write as outputs.

    Given   y = MatMul(a, W)
    Result  y = MatMul(a, W), and the outputs ``a/observed_shape``, ``y/observed_shape``

    Nodes inside If, Loop and Scan are not counted.

    Raises:
        BadInputError: the model calls functions of its own, whose nodes would be missed.
    """
    if model.functions:
        raise BadInputError(
            "FLOPs are not counted through functions",
            got=", ".join(key[1] for key in model.functions),
            next_step="inline them first (onnx_ir.passes.common.InlinePass)",
        )
    copy = model.clone()
    for value in _observed_values(copy):
        name = f"{value.name}{_SUFFIX}"
        node = ir.node("Shape", [value], name=name)
        shape = node.outputs[0]
        shape.name, shape.dtype = name, ir.DataType.INT64
        shape.shape = ir.Shape([None if value.shape is None else len(value.shape)])
        copy.graph.append(node)
        copy.graph.outputs.append(shape)
    return copy


def shapes_from(outputs: Mapping[str, NDArray[Any]]) -> dict[str, Shape]:
    """Pick the observed shapes, by value name, from what a run of ``observed`` returned."""
    return {
        name.removesuffix(_SUFFIX): tuple(int(size) for size in sizes)
        for name, sizes in outputs.items()
        if name.endswith(_SUFFIX)
    }


def count(model: ir.Model, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Return FLOPs by node name, in graph order, for the nodes that have a rule.

    Args:
        model: the graph; every counted node needs a name of its own.
        shapes: of the run-time values, by name; those of initialisers are known.

    Raises:
        BadInputError: a shape is missing, or two counted nodes share a name.
    """

    def shape_of(value: ir.Value) -> Shape:
        known = _constant_shape(value)
        if known is not None:
            return known
        if (value.name or "") not in shapes:
            raise BadInputError(
                f"the shape of {value.name!r} was not observed",
                next_step="run the model that `observed` returns, and pass its shapes on",
            )
        return shapes[value.name or ""]

    found: dict[str, int] = {}
    for node in _counted(model):
        name = node.name or node.outputs[0].name or ""
        if name in found:
            raise BadInputError(
                f"two nodes are named {name!r}", next_step="give nodes unique names"
            )
        found[name] = FLOPS[_key(node)](node, shape_of)
    return found


def per_row(model: ir.Model) -> dict[str, int]:
    """FLOPs that each weight costs per row it is applied to (token, pixel), by initialiser.

    Static: twice the numbers in the weight, for weights of products and convolutions. A
    weight that several nodes read counts for each of them.
    """
    found: dict[str, int] = {}
    for node in _counted(model):
        for value in node.inputs[:2] if node.op_type != "Attention" else ():
            shape = None if value is None else _constant_shape(value)
            if value is not None and shape is not None and len(shape) > 1:
                name = value.name or ""
                found[name] = found.get(name, 0) + 2 * math.prod(shape)
    return found


def _key(node: ir.Node) -> str:
    domain = "" if node.domain in {"", "ai.onnx"} else f"{node.domain}::"
    return f"{domain}{node.op_type}"


def _counted(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if _key(node) in FLOPS]


def _observed_values(model: ir.Model) -> list[ir.Value]:
    """Run-time values next to counted nodes, each once, in graph order."""
    found: dict[str, ir.Value] = {}
    for node in _counted(model):
        for value in (*node.inputs, node.outputs[0]):
            if value is not None and value.name and _constant_shape(value) is None:
                found.setdefault(value.name, value)
    return list(found.values())


def _constant_shape(value: ir.Value) -> Shape | None:
    tensor = value.const_value
    return None if tensor is None else tuple(tensor.shape.numpy())


def _input(node: ir.Node, slot: int) -> ir.Value:
    value = node.inputs[slot] if slot < len(node.inputs) else None
    if value is None:
        raise BadInputError(f"{node.op_type} lacks input {slot}", where=node.name or "")
    return value


def _has(node: ir.Node, slot: int) -> bool:
    return slot < len(node.inputs) and node.inputs[slot] is not None


@FLOPS.register("MatMul", "MatMulInteger", "com.microsoft::FusedMatMul")
def _matmul(node: ir.Node, shape_of: ShapeOf) -> int:
    """(..., M, K) @ (..., K, N): 2 * numbers in the result * K."""
    inner = shape_of(_input(node, 0))[-2 if node.attributes.get_int("transA", 0) else -1]
    return 2 * math.prod(shape_of(node.outputs[0])) * inner


@FLOPS.register("QLinearMatMul")
def _quantised_matmul(node: ir.Node, shape_of: ShapeOf) -> int:
    return 2 * math.prod(shape_of(node.outputs[0])) * shape_of(_input(node, 0))[-1]


@FLOPS.register("Gemm", "com.microsoft::FusedGemm")
def _gemm(node: ir.Node, shape_of: ShapeOf) -> int:
    inner = shape_of(_input(node, 0))[0 if node.attributes.get_int("transA", 0) else 1]
    return 2 * math.prod(shape_of(node.outputs[0])) * inner


@FLOPS.register("Conv", "ConvInteger", "com.microsoft::FusedConv")
def _conv(node: ir.Node, shape_of: ShapeOf) -> int:
    """Weight (C_out, C_in / groups, *kernel): every result reads all but its first axis."""
    return 2 * math.prod(shape_of(node.outputs[0])) * math.prod(shape_of(_input(node, 1))[1:])


@FLOPS.register("QLinearConv")
def _quantised_conv(node: ir.Node, shape_of: ShapeOf) -> int:
    return 2 * math.prod(shape_of(node.outputs[0])) * math.prod(shape_of(_input(node, 3))[1:])


@FLOPS.register("ConvTranspose")
def _conv_transpose(node: ir.Node, shape_of: ShapeOf) -> int:
    """Weight (C_in, C_out / groups, *kernel): every input number reaches all but its first axis."""
    return 2 * math.prod(shape_of(_input(node, 0))) * math.prod(shape_of(_input(node, 1))[1:])


@FLOPS.register("Einsum")
def _einsum(node: ir.Node, shape_of: ShapeOf) -> int:
    """One multiply-add for every combination of indices, as written, without an ellipsis."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    if "." in equation:
        raise BadInputError("Einsum with an ellipsis is not counted", where=node.name or "")
    sizes: dict[str, int] = {}
    for slot, letters in enumerate(equation.split("->")[0].split(",")):
        sizes.update(zip(letters, shape_of(_input(node, slot)), strict=True))
    return 2 * math.prod(sizes.values())


@FLOPS.register("Attention")
def _attention(node: ir.Node, shape_of: ShapeOf) -> int:
    """Q (B, H, Nq, Dh) or (B, Nq, H * Dh), past keys in input 4: q k^T and the product with v."""
    query, key, value = (shape_of(_input(node, slot)) for slot in range(3))
    heads = query[1] if len(query) == 4 else node.attributes.get_int("q_num_heads", 1)
    key_heads = key[1] if len(key) == 4 else node.attributes.get_int("kv_num_heads", heads)
    value_width = value[-1] if len(value) == 4 else value[-1] // key_heads
    n_past = shape_of(_input(node, 4))[2] if _has(node, 4) else 0
    rows = query[0] * heads * query[-2] * (key[-2] + n_past)
    width = query[-1] if len(query) == 4 else query[-1] // heads
    return 2 * rows * (width + value_width)


@FLOPS.register("com.microsoft::Attention")
def _fused_projection_attention(node: ir.Node, shape_of: ShapeOf) -> int:
    """Input (B, N, D), weight (D, 3 * H * Dh): projection, q k^T, product with v."""
    batch, n_tokens, _ = shape_of(_input(node, 0))
    weight = shape_of(_input(node, 1))
    sizes = node.attributes.get_ints("qkv_hidden_sizes", (weight[1] // 3,) * 3)
    projection = 2 * batch * n_tokens * math.prod(weight)
    return projection + 2 * batch * n_tokens * n_tokens * (sizes[1] + sizes[2])


@FLOPS.register("com.microsoft::MultiHeadAttention")
def _multi_head(node: ir.Node, shape_of: ShapeOf) -> int:
    """Query (B, Nq, H * Dh); keys and values (B, Nk, H * Dh) or (B, H, Nk, Dh)."""
    query = shape_of(_input(node, 0))
    if len(query) != 3 or not _has(node, 1) or len(shape_of(_input(node, 1))) == 5:
        raise BadInputError("packed keys and values are not counted", where=node.name or "")
    key, value = shape_of(_input(node, 1)), shape_of(_input(node, 2))
    value_width = value[1] * value[3] if len(value) == 4 else value[2]
    return 2 * query[0] * query[1] * key[-2] * (query[2] + value_width)


__all__ = ["FLOPS", "count", "observed", "per_row", "shapes_from"]
