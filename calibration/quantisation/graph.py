"""Explicit Q/DQ around the products of a graph, pruned and selecting graphs included."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.quantisation.histogram import Histogram
from secateur.calibration.quantisation.insertion import round_activation, round_weight
from secateur.calibration.quantisation.ranges import RANGES
from secateur.calibration.quantisation.rotation import rotate
from secateur.calibration.quantisation.scheme import Scheme
from secateur.calibration.quantisation.weights import FP8_MAX, Layout, block_of, store
from secateur.calibration.statistics.gathering import How, gather
from secateur.calibration.statistics.gram import Gram
from secateur.calibration.statistics.places import Place, all_places
from secateur.calibration.statistics.token_scaling import TokenScaling
from secateur.errors import BadInputError
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.names import node_name
from secateur.graph_passes.opset import raise_opset

Batch = Mapping[str, NDArray[Any]]

METADATA_KEY = "secateur.quantised"
_OPS = frozenset({"MatMul", "Gemm", "Conv"})
_OPSET = 21
"""INT4 and blocks of scales."""
_IR_VERSION = 10
_INT8_STEPS = 127


@dataclass(frozen=True, slots=True)
class Left:
    """A product that keeps its precision, and why."""

    layer: str
    reason: str


def quantise(
    model: ir.Model,
    scheme: Scheme,
    data: Iterable[Batch] = (),
    *,
    keep: Sequence[str] = (),
) -> ir.Model:
    """Return a model whose products read rounded weights and, but for int4, rounded inputs.

    Everything else stays as it is: what selects tokens, attention itself, norms, additions. The
    ranges come from real tokens only, behind a selection from those that it kept.

    Args:
        model: stays as it is; float32 where its products are.
        scheme: what is rounded to what.
        data: batches for ranges and GPTQ; read once.
        keep: patterns of weights' names that are not rounded (``*layer.0*``).

    Raises:
        BadInputError: a pattern that fits no weight, nothing left to round, or data that cannot
            be used.
        PreconditionError: a model whose residual stream cannot be rotated, where that is asked.
    """
    model = rotate(model) if scheme.rotate else model
    analysis = analyse(model)
    copy = analysis.model
    chosen, left = choose(all_places(analysis), scheme, keep, model)
    if not chosen:
        raise BadInputError(
            "nothing in the model can be quantised",
            got="; ".join(f"{one.layer}: {one.reason}" for one in left[:3]) or "no products",
        )
    raise_opset(copy, _OPSET)
    copy.ir_version = max(copy.ir_version, _IR_VERSION)
    tops, hessians = _measure(copy, chosen, scheme, data)
    for place in chosen:
        shape, axis = place.weight_value.shape, place.weight_axis
        assert shape is not None
        layout = Layout(tuple(shape.numpy()), axis)
        stored = store(place.matrix(), layout, scheme, hessians.get(place.node))
        if scheme.rounds_activations:
            scale = tops[place.value] / (_INT8_STEPS if scheme.kind == "int8" else FP8_MAX)
            round_activation(copy, place, scale, scheme.kind)
        round_weight(copy, place, stored)
    copy.metadata_props[METADATA_KEY] = json.dumps(
        {
            **asdict(scheme),
            "layers": [place.parameter for place in chosen],
            "left": [asdict(one) for one in left],
        }
    )
    return copy


def choose(
    places: Sequence[Place], scheme: Scheme, keep: Sequence[str], model: ir.Model
) -> tuple[list[Place], list[Left]]:
    """Which products are rounded, and why the others are not.

    Raises:
        BadInputError: a pattern that fits no weight.
    """
    for pattern in keep:
        if not any(fnmatchcase(place.parameter, pattern) for place in places):
            raise BadInputError(
                f"{pattern!r} is the name of no weight that is multiplied",
                wanted="one of: " + ", ".join(place.parameter for place in places),
            )
    prefixes = _selecting(model)
    chosen, left = [], []
    for place in places:
        reason = _reason(place, scheme, keep, prefixes)
        if reason:
            left.append(Left(place.parameter, reason))
        else:
            chosen.append(place)
    return chosen, left


def _reason(place: Place, scheme: Scheme, keep: Sequence[str], selecting: tuple[str, ...]) -> str:
    """Why a product keeps its precision, or ""."""
    tensor = constant_tensor(place.weight_value)
    assert tensor is not None
    if node_name(place.node).startswith(selecting) and selecting:
        return "it is a part of the token selection"
    if any(fnmatchcase(place.parameter, pattern) for pattern in keep):
        return "it was asked to be kept"
    if place.node.op_type not in _OPS or (len(tensor.shape) != 2 and not place.kernel):
        return f"a {place.node.op_type} of {len(tensor.shape)} axes"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"its weight is {tensor.dtype.name}"
    n_inputs = int(tensor.shape.numpy()[place.weight_axis])
    return _in_blocks(n_inputs, scheme, is_kernel=bool(place.kernel))


def _in_blocks(n_inputs: int, scheme: Scheme, *, is_kernel: bool) -> str:
    """Why a weight makes no blocks, or "" where it does or need not."""
    if scheme.kind != "int4" or (not is_kernel and block_of(n_inputs, scheme.block)):
        return ""
    return "int4 is for matrices" if is_kernel else f"{n_inputs} inputs make no blocks of 16"


def _selecting(model: ir.Model) -> tuple[str, ...]:
    """How the names of nodes begin that a token selection brought."""
    records = json.loads(model.metadata_props.get("secateur.sites", "[]"))
    return tuple(
        f"{record['site']}/{kind}/" for record in records for kind in ("selection", "forced")
    )


def _measure(
    model: ir.Model, chosen: Sequence[Place], scheme: Scheme, data: Iterable[Batch]
) -> tuple[dict[str, float], dict[ir.Node, NDArray[np.float64]]]:
    """Largest value of each activation, and the Hessian of each product, in one pass each."""
    if not scheme.needs_data:
        return {}, {}
    batches = list(data) if scheme.rounds_activations and scheme.weights == "gptq" else data
    tops, hessians = {}, {}
    if scheme.rounds_activations:
        first = {place.value: place for place in reversed(chosen)}
        found = {value: Histogram() for value in first}
        gather(model, [(first[value], found[value]) for value in first], batches)
        tops = {value: RANGES[scheme.ranges](one) or 1.0 for value, one in found.items()}
    if scheme.weights == "gptq":
        sums = {place.node: Gram() for place in chosen}
        scaling = TokenScaling(model, chosen, scheme.tokens)
        pairs = [(place, sums[place.node]) for place in chosen]
        gather(model, pairs, batches, How(patches=True, scaling=scaling))
        hessians = {node: one.hessian for node, one in sums.items()}
    return tops, hessians


__all__ = ["METADATA_KEY", "Left", "choose", "quantise"]
