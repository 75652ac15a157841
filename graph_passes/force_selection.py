"""The forced twin of a selecting model: kept tokens are an input, would-be choices outputs.

A rounding difference can flip a near-tie, and every later number with it. The twin keeps
the reference's tokens, so that scores, choices and values can be compared one by one.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.selection.budget import Amount, slots_in_use
from secateur.graph_passes.selection.emit import Emitter, named
from secateur.graph_passes.selection.flow import ancestors
from secateur.graph_passes.token_selection import SITES_KEY

_FORCED = 1e9
"""What the bias holds at tokens that are to be kept."""

Record = dict[str, Any]
Slots = tuple[ir.Value, ir.Value | None]
"""(1,) int64, K, and (B, K) bool, which slots hold a token; None where all do."""

_BEHIND_ALL = int(np.iinfo(np.int64).max)


def force(model: ir.Model) -> ir.Model:
    """Return the forced twin of a model that selects tokens; the input stays as it is.

    Per site, ``<site>.score_bias`` becomes a real input, float32 (B, N) or (1, 1): 1e9 on
    tokens to keep, 0 elsewhere. Top-k and order still hold, and counts of the budget; a method
    that decides its count keeps as many as are forced. Outputs are added, both
    taken before the bias: ``<site>.score`` float32 (B, N), +inf on protected tokens and
    -inf on padding, and ``<site>.index`` int64 (B, K), ascending positions among the tokens
    that reach the site, -1 in slots that hold no token.

    Raises:
        BadInputError: the model selects no tokens.
    """
    records = json.loads(model.metadata_props.get(SITES_KEY, "[]"))
    if not records:
        raise BadInputError(
            "the model selects no tokens, so there is nothing to force",
            next_step="insert selections first, or compare the model as it is",
        )
    twin = model.clone()
    values = _values(twin.graph)
    emit = Emitter(twin.graph, reserved="forced")
    for record in records:
        emit.prefix = f"{record['site']}/forced"
        bias = _open_bias(twin.graph, record["bias"])
        counts = record["values"].get("counts")
        slots = _slots(record, values) if counts is None else _own_slots(emit, values[counts])
        if counts is not None:
            _force_counts(emit, bias, values[counts], slots)
        _expose(emit, record, values[record["values"]["score"]], slots)
    twin.metadata_props[SITES_KEY] = json.dumps(records)
    twin.graph.sort()
    return twin


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    found = {str(value.name): value for value in graph.inputs}
    found |= {str(name): value for name, value in graph.initializers.items()}
    found |= {str(value.name): value for node in graph for value in node.outputs}
    return found


def _open_bias(graph: ir.Graph, name: str) -> ir.Value:
    """Take the default away, so that no backend treats the input as a constant."""
    value = graph.initializers.pop(name)
    value.const_value = None
    return value


def _slots(record: Record, values: dict[str, ir.Value]) -> Slots:
    handles = record["values"]
    return values[handles["length"]], values[handles["valid"]] if handles["valid"] else None


def _own_slots(emit: Emitter, counts: ir.Value) -> Slots:
    """What a method that decides its count would fill, were it not told otherwise."""
    length = emit.op("Max", emit.op("ReduceMax", counts, emit.ints(0), keepdims=0), emit.ints(1))
    return length, slots_in_use(emit, Amount(counts, length))


def _force_counts(emit: Emitter, bias: ir.Value, counts: ir.Value, slots: Slots) -> None:
    """A method that decides how many tokens stay is told that too: the forced ones, if any."""
    own = {node for value in slots if value is not None for node in _behind(value, counts)}
    readers = tuple((node, slot) for node, slot in counts.uses() if node not in own)
    is_forced = emit.op("Greater", bias, emit.number(_FORCED / 2, ir.DataType.FLOAT))
    ones = emit.op("Cast", is_forced, to=ir.DataType.INT64.value)
    forced = emit.op("ReduceSum", ones, emit.ints(1), keepdims=1)
    some = emit.op("Greater", forced, emit.ints(0))
    told = emit.op("Where", some, forced, counts)
    for node, slot in readers:
        node.replace_input_with(slot, told)


def _behind(value: ir.Value, source: ir.Value) -> list[ir.Node]:
    """Return the readers of ``source`` that ``value`` comes from."""
    return [node for node, _ in source.uses() if node in {value.producer(), *ancestors(value)}]


def _expose(emit: Emitter, record: Record, score: ir.Value, slots: Slots) -> None:
    """Add the score and the would-be indices of one site as outputs."""
    site, (length, valid) = str(record["site"]), slots
    index = emit.node("TopK", (score, length), {"axis": 1}, outputs=2)[1]
    if valid is not None:
        index = emit.op("Where", valid, index, emit.ints(_BEHIND_ALL))
    order = {"axis": 1, "largest": 0}
    index = emit.node("TopK", (index, length), dict(order), outputs=2)[0]
    if valid is not None:
        index = emit.op("Where", valid, index, emit.ints(-1))
    named(index, f"{site}.index")
    for value, dtype, columns in (
        (score, ir.DataType.FLOAT, f"{site}.candidates"),
        (index, ir.DataType.INT64, f"{site}.length"),
    ):
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(["batch", columns])
        emit.graph.outputs.append(value)
    record["score_output"], record["index_output"] = score.name, index.name


__all__ = ["force"]
