"""Copy a small graph into a model: a traced selector, between its signals and its score."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.axes import constant
from secateur.graph_passes.selection.emit import Emitter


def splice(emit: Emitter, selector: ir.Model, signals: Mapping[str, ir.Value]) -> ir.Value:
    """Copy the selector's nodes behind the signals and return its score.

    Args:
        emit: Where the nodes go; its prefix names them.
        selector: Inputs named after signals, one output ``score`` (B, N).
        signals: A value per input of the selector.

    Raises:
        BadInputError: a signal is missing, or the selector has not one output.
    """
    graph = selector.graph
    if len(graph.outputs) != 1:
        raise BadInputError(
            "a selector graph has one output, the score",
            got=", ".join(str(output.name) for output in graph.outputs) or "none",
            next_step="trace it with secateur.export.selector_graph.trace",
        )
    known: dict[ir.Value, ir.Value] = {}
    for value in graph.inputs:
        known[value] = _signal(emit, value, signals)
    for node in graph:
        if node.op_type == "Constant" and not node.domain:
            continue
        inputs = [None if v is None else _lookup(emit, v, known) for v in node.inputs]
        if node.op_type == "Identity" and not node.domain and inputs[0] is not None:
            known[node.outputs[0]] = inputs[0]
            continue
        copied = emit.copy(node, inputs)
        known.update(zip(node.outputs, copied.outputs, strict=True))
    score = _lookup(emit, graph.outputs[0], known)
    if graph.outputs[0].dtype not in (None, ir.DataType.FLOAT):
        score = emit.op("Cast", score, to=ir.DataType.FLOAT.value)
    return score


def required_signals(selector: ir.Model) -> tuple[str, ...]:
    """Return the names of the signals that a selector graph reads."""
    return tuple(str(value.name) for value in selector.graph.inputs)


def _signal(emit: Emitter, value: ir.Value, signals: Mapping[str, ir.Value]) -> ir.Value:
    name = str(value.name)
    if name not in signals:
        raise BadInputError(
            f"the selector reads the signal {name!r}, which this site cannot give",
            wanted="one of " + ", ".join(sorted(signals)),
            next_step="choose another selector",
        )
    given = signals[name]
    if value.dtype is None or given.dtype is None or value.dtype == given.dtype:
        return given
    return emit.op("Cast", given, to=value.dtype.value)


def _lookup(emit: Emitter, value: ir.Value, known: dict[ir.Value, ir.Value]) -> ir.Value:
    if value not in known:
        array = constant(value)
        if array is None:
            raise BadInputError(
                f"the selector graph reads {value.name!r}, which nothing makes",
                next_step="trace it again with secateur.export.selector_graph.trace",
            )
        known[value] = emit.constant(array)
    return known[value]


__all__ = ["required_signals", "splice"]
