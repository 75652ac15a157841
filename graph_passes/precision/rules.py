"""Which operators may compute in half precision, and what half precision can hold.

An operator that no table names stays in float32: nobody has said that it may be rounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from secateur.graph_passes.opset import opset_of

COMPUTES = frozenset(
    {
        *("MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose"),
        *("Attention", "MultiHeadAttention"),
    }
)
"""What costs time: sums of products, which hardware adds up in float32 whatever the operands."""

MOVES = frozenset(
    {
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"),
        *("Identity", "Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile"),
        *("Transpose", "Trilu", "Unsqueeze", "ScatterElements", "ScatterND", "Dropout"),
    }
)
"""What only moves values."""

FOLLOWS = MOVES | frozenset(
    {
        *("Abs", "Add", "AveragePool", "BatchNormalization", "Celu", "Clip", "Div", "Elu", "Erf"),
        *("FastGelu", "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish"),
        *("LeakyRelu", "Max", "MaxPool", "Min", "Mish", "Mul", "Neg", "PRelu", "QuickGelu"),
        *("Relu", "RotaryEmbedding", "Selu", "Sigmoid", "Softplus", "Softsign", "Sub", "Sum"),
        *("Swish", "Tanh", "ThresholdedRelu", "Where"),
        *("Cast", "ConstantOfShape", "QuantizeLinear", "DequantizeLinear", "Resize"),
    }
)
"""What computes in the type of its operands: half only where all of them are."""

ROUNDS = frozenset(
    {
        *("Softmax", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
        *("GroupNormalization", "InstanceNormalization", "LpNormalization"),
    }
)
"""What computes in float32 and gives a result that is small enough to be rounded."""

SOFTMAXES = frozenset({"Softmax", "LogSoftmax"})
SINES = frozenset({"Sin", "Cos"})

TENSORS = {"Attention": 3, "MultiHeadAttention": 4}
"""Operands of an attention before its mask."""

ALWAYS_FLOAT32_SLOTS = {"Resize": frozenset({1, 2})}
"""Operands whose type the operator fixes: regions and scales of a Resize."""

_STANDARD = frozenset({"", "ai.onnx"})


@dataclass(frozen=True, slots=True)
class Holds:
    """What a type can hold: the largest finite number and the smallest normal one."""

    largest: float
    smallest_normal: float


HOLDS = {
    ir.DataType.FLOAT16: Holds(65504.0, 2.0**-14),
    ir.DataType.BFLOAT16: Holds(float.fromhex("0x1.FEp127"), 2.0**-126),
}

SHORT = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
_TENSOR = {ir.DataType.FLOAT16: "tensor(float16)", ir.DataType.BFLOAT16: "tensor(bfloat16)"}


def is_float(value: ir.Value | None) -> bool:
    """Tell whether a value is float32, which is what can be lowered."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def lowered_slots(node: ir.Node) -> list[int]:
    """Return the inputs of a node that change type when it is lowered."""
    fixed = ALWAYS_FLOAT32_SLOTS.get(node.op_type, frozenset())
    return [i for i, v in enumerate(node.inputs) if is_float(v) and i not in fixed]


def permitted(model: ir.Model, node: ir.Node, dtype: ir.DataType) -> bool:
    """Tell whether the operator set lets a node have this type wherever it is float32 now."""
    if node.domain not in _STANDARD:
        return True  # our own tables name the few of other domains
    schema = onnx.defs.get_schema(node.op_type, opset_of(model), "")
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    wanted = _TENSOR[dtype]
    sides = [(schema.inputs, i) for i in lowered_slots(node)]
    sides += [(schema.outputs, i) for i, v in enumerate(node.outputs) if is_float(v)]
    for formal, i in sides:
        kind = formal[min(i, len(formal) - 1)].type_str
        if wanted not in allowed.get(kind, (kind,)):
            return False
    return True


__all__ = [
    "ALWAYS_FLOAT32_SLOTS",
    "COMPUTES",
    "FOLLOWS",
    "HOLDS",
    "MOVES",
    "ROUNDS",
    "SHORT",
    "SINES",
    "SOFTMAXES",
    "TENSORS",
    "Holds",
    "is_float",
    "lowered_slots",
    "permitted",
]
