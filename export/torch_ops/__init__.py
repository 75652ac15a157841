"""What every ONNX op computes, in torch: one file per family, one entry per op.

An op without an entry is refused by name when a graph is turned into a module.
"""

from secateur.export.torch_ops import (
    activations,
    attention,
    contraction,
    convolution,
    elementwise,
    generators,
    indexing,
    layout,
    normalisation,
    pooling,
    recurrent,
    reduction,
    resampling,
)
from secateur.export.torch_ops.call import (
    DTYPES,
    TORCH_OPS,
    Attribute,
    Call,
    Integers,
    Step,
    Value,
    Weight,
    op_key,
)
from secateur.export.torch_ops.integers import INTEGER_OPS

__all__ = [
    "DTYPES",
    "INTEGER_OPS",
    "TORCH_OPS",
    "Attribute",
    "Call",
    "Integers",
    "Step",
    "Value",
    "Weight",
    "activations",
    "attention",
    "contraction",
    "convolution",
    "elementwise",
    "generators",
    "indexing",
    "layout",
    "normalisation",
    "op_key",
    "pooling",
    "recurrent",
    "reduction",
    "resampling",
]
