"""Relevance walked back from the answer: filters that carried none of it can go.

Source: Yeom et al., Pruning by Explaining, Pattern Recognition 2021, arXiv:1912.08881,
section 3; the z-plus rules as in seulkiyeom/LRP_pruning: biases are left out, ReLU passes.
``relevance_samples``: Hatefi et al., Pruning By Explaining Revisited, arXiv:2408.12568, section 3.
Sums are shared out by the positive parts of what they add, which the rules leave open.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.relevance_walk import relevance_at
from secateur.calibration.units import sum_of_units
from secateur.errors import PreconditionError
from secateur.graph_passes.axes import leaves
from secateur.graph_passes.groups import Group

Array: TypeAlias = NDArray[np.float64]

_TINY = 1e-9
_KEY = "relevance"


@CRITERIA.register("relevance")
def relevance(group: Group, context: Context) -> Scores:
    """Relevance for the answer that arrives at the unit, summed over all layers that make it.

    The answer of each sample is its class in the array ``labels``, in the order of the data, or,
    without one, the class that the model itself gives. Rank with scope ``global``, as published.

    Raises:
        BadInputError: no data, or labels that do not fit it.
        PreconditionError: a step that the z-plus rules have no rule for, or no class scores.
    """
    return _summed(group, context, by_sample=False)


@CRITERIA.register("relevance_samples")
def relevance_samples(group: Group, context: Context) -> Scores:
    """Size of the relevance that arrives at the unit, sample by sample, summed: the follow-up's.

    Ten samples a class are enough there; rank with scope ``global`` and normalise ``none``, which
    takes the lowest of all layers, as published, but for the best unit of each.

    Raises:
        BadInputError: no data, or labels that do not fit it.
        PreconditionError: as ``relevance``.
    """
    return _summed(group, context, by_sample=True)


def _summed(group: Group, context: Context, *, by_sample: bool) -> Scores:
    key = f"{_KEY} {by_sample}"
    if key not in context.gathered:
        labels, makers = context.arrays.get("labels"), _makers(context)
        context.gathered[key] = relevance_at(
            context.analysis.model, makers, context.data, labels, by_sample=by_sample
        )
    total, sums = np.zeros(group.size), context.gathered[key]
    for name, axis in _makers_of(group, context):
        expr = context.analysis.axes.of(_value(context, name))[axis]
        total = total + sum_of_units(sums[name, axis], expr, group.atom)
    return total


def _makers(context: Context) -> list[tuple[str, int]]:
    return [one for group in context.groups for one in _makers_of(group, context)]


def _makers_of(group: Group, context: Context) -> list[tuple[str, int]]:
    """Outputs of the products with weights that make the units, with the axis of the units."""
    axes, found = context.analysis.axes, []
    for use in group.weights:
        value = use.node.outputs[0]
        if use.node.op_type not in {"Conv", "Gemm", "MatMul"} or len(use.shape) < 2:
            continue
        found += [
            (str(value.name), axis)
            for axis, expr in enumerate(axes.of(value))
            if group.atom in leaves(expr)
        ]
    if not found:
        raise PreconditionError("no product with a weight makes these units", where=group.name)
    return list(dict.fromkeys(found))


def _value(context: Context, name: str) -> ir.Value:
    nodes = context.analysis.model.graph
    return next(v for node in nodes for v in node.outputs if v.name == name)


def linear(inputs: Array, weight: NDArray[Any], relevance: Array) -> Array:
    """Pass (B, out) relevance through positive (out, in) weights to (B, in) inputs."""
    positive = np.maximum(np.asarray(weight, dtype=np.float64), 0)
    share = relevance / (inputs @ positive.T + _TINY)
    result: Array = inputs * (share @ positive)
    return result


def convolution(inputs: Array, weight: NDArray[Any], relevance: Array) -> Array:
    """Pass (B, C_out, h, w) relevance through a same-padded, unit-stride convolution.

    Args:
        inputs: (B, C_in, h, w), not negative.
        weight: (C_out, C_in, k, k), k odd.
        relevance: of the outputs.
    """
    positive = np.maximum(np.asarray(weight, dtype=np.float64), 0)
    share = relevance / (_correlate(inputs, positive) + _TINY)
    flipped = positive[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    result: Array = inputs * _correlate(share, flipped)
    return result


def max_pooling(inputs: Array, size: int, relevance: Array) -> Array:
    """Route (B, C, h/size, w/size) relevance to the winner of each window."""
    batch, channels, height, width = inputs.shape
    shape = (batch, channels, height // size, size, width // size, size)
    windows = inputs.reshape(shape).transpose(0, 1, 2, 4, 3, 5).reshape(*relevance.shape, -1)
    routed = np.zeros(windows.shape)
    winner = windows.argmax(axis=-1)[..., None]
    value = np.take_along_axis(windows, winner, axis=-1)
    np.put_along_axis(routed, winner, value * relevance[..., None] / (value + _TINY), axis=-1)
    back = routed.reshape(*relevance.shape, size, size).transpose(0, 1, 2, 4, 3, 5)
    return back.reshape(inputs.shape)


def filter_scores(relevance: Array) -> Array:
    """Sum (B, C, h, w) relevance at a convolution's output by filter, (C,)."""
    result: Array = relevance.sum(axis=(0, 2, 3))
    return result


def _correlate(x: Array, weight: Array) -> Array:
    """Convolution of deep learning: (B, I, h, w) and (O, I, k, k) -> (B, O, h, w)."""
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    windows = sliding_window_view(padded, (k, k), axis=(2, 3))
    result: Array = np.einsum("bihwkl,oikl->bohw", windows, weight)
    return result


__all__ = [
    "convolution",
    "filter_scores",
    "linear",
    "max_pooling",
    "relevance",
    "relevance_samples",
]
