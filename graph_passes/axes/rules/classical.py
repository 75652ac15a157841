"""Ops of ai.onnx.ml that stand around a perceptron: what scales its table, what reads classes."""

from __future__ import annotations

from collections.abc import Iterator

from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    Fold,
    Frozen,
    Port,
    Relation,
    carried,
)
from secateur.graph_passes.axes.view import View

_LISTED = "numbers for each of its positions are attributes"
_PICKED = "it is read at computed positions"


@AXIS_RULES.register("ai.onnx.ml:Scaler", "ai.onnx.ml:Imputer")
def scaler(view: View) -> Iterator[Relation]:
    """(B, F) -> (B, F): features are scaled or filled by lists in attributes, so F is frozen."""
    rank = view.rank(0) or 0
    for axis in range(rank):
        yield carried(axis)
    if rank:
        yield Frozen(Port(0, rank - 1), _LISTED)


@AXIS_RULES.register("ai.onnx.ml:LabelEncoder")
def each(view: View) -> Iterator[Relation]:
    """(A, ...) -> (A, ...), element by element."""
    for axis in range(view.rank(0) or 0):
        yield carried(axis)


@AXIS_RULES.register("ai.onnx.ml:Normalizer")
def normalizer(view: View) -> Iterator[Relation]:
    """(B, F) -> (B, F) over the norm of F: zeros add nothing to a sum, nor to a largest one."""
    rank = view.rank(0) or 0
    for axis in range(rank):
        if axis == rank - 1:
            signed = view.string("norm", "MAX") == "MAX"  # of ONNX Runtime: the largest, not |.|
            yield Fold((Port(0, axis),), None if signed else 0.0)
        yield carried(axis)


@AXIS_RULES.register("ai.onnx.ml:ArrayFeatureExtractor")
def extract(view: View) -> Iterator[Relation]:
    """(..., F), positions (..., K) -> (..., K): F is read at positions, which stay."""
    rank = view.rank(0) or 0
    for axis in range(rank):
        if axis < rank - 1:
            yield carried(axis)
        else:
            yield Frozen(Port(0, axis), _PICKED)
    for axis in range(view.rank(1) or 0):
        yield Frozen(Port(1, axis), "it holds positions")
