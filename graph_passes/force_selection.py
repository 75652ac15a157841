"""The forced twin of a selecting model: kept tokens are an input, would-be choices outputs.

A rounding difference can flip a near-tie, and every later number with it. The twin keeps
the reference's tokens, so that scores, choices and values can be compared one by one.
"""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.selection.emit import Emitter, named
from secateur.graph_passes.token_selection import SITES_KEY

_BEHIND_ALL = int(np.iinfo(np.int64).max)


def force(model: ir.Model) -> ir.Model:
    """Return the forced twin of a model that selects tokens; the input stays as it is.

    Per site, ``<site>.score_bias`` becomes a real input, float32 (B, N) or (1, 1): 1e9 on
    tokens to keep, 0 elsewhere. Top-k, order and counts still hold. Outputs are added, both
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
        _open_bias(twin.graph, record["bias"])
        _expose(emit, record, values)
    twin.metadata_props[SITES_KEY] = json.dumps(records)
    twin.graph.sort()
    return twin


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    found = {str(value.name): value for value in graph.inputs}
    found |= {str(name): value for name, value in graph.initializers.items()}
    found |= {str(value.name): value for node in graph for value in node.outputs}
    return found


def _open_bias(graph: ir.Graph, name: str) -> None:
    """Take the default away, so that no backend treats the input as a constant."""
    value = graph.initializers.pop(name)
    value.const_value = None


def _expose(emit: Emitter, record: dict[str, object], values: dict[str, ir.Value]) -> None:
    """Add the score and the would-be indices of one site as outputs."""
    site, handles = str(record["site"]), record["values"]
    assert isinstance(handles, dict)
    score, length = values[handles["score"]], values[handles["length"]]
    valid = values[handles["valid"]] if handles["valid"] else None
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
