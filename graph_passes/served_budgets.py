"""How a server hands budgets to a selecting graph: fixed, with a default, or one per sample.

A server that batches concatenates the requests along the first axis, so that an int64 [1]
budget of the whole batch does not fit it: each request needs its own.
"""

from __future__ import annotations

import json
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.selection.emit import Emitter, named
from secateur.graph_passes.selection.flow import ancestors, descendants
from secateur.graph_passes.token_selection import SITES_KEY

Budgets: TypeAlias = Literal["fixed", "optional", "per-request"]
Record: TypeAlias = dict[str, Any]


def serve_budgets(model: ir.Model, budgets: Budgets, *, batch: str = "batch") -> ir.Model:
    """Return a copy for a server; every other input with a default keeps it for good.

    Args:
        model: The graph as shipped.
        budgets: ``fixed``: each budget is its default, and no input. ``optional``: an int64
            [1] input with its default as an initialiser. ``per-request``: an int64
            (batch, 1) input, where 0 stands for the default; each sample keeps what it
            would keep alone.
        batch: Name of the first axis of a budget per request.

    Raises:
        BadInputError: a budget per request at a site that keeps one number of tokens for
            the whole batch.
    """
    copy = model.clone()
    records: list[Record] = json.loads(copy.metadata_props.get(SITES_KEY, "[]"))
    for value in [value for value in copy.graph.inputs if value.is_initializer()]:
        copy.graph.inputs.remove(value)
    inputs = {str(value.name): value for value in copy.graph.inputs}
    for record in records:
        if record["budget"]["input"] not in inputs:
            continue
        value = inputs[record["budget"]["input"]]
        if budgets == "per-request":
            _per_sample(copy.graph, record, value, batch)
            continue
        value.const_value = ir.tensor(np.array([record["budget"]["default"]], np.int64))
        copy.graph.register_initializer(value)
        if budgets == "fixed":
            copy.graph.inputs.remove(value)
            record["budget"]["input"] = None
    if records:
        copy.metadata_props[SITES_KEY] = json.dumps(records)
    copy.graph.sort()
    return copy


def _per_sample(graph: ir.Graph, record: Record, budget: ir.Value, batch: str) -> None:
    """Let a (batch, 1) budget through: counts take it as it is, K the largest of them."""
    site = str(record["site"])
    made = {str(value.name): value for node in graph for value in node.outputs}
    counts = made.get(f"{site}.counts")
    if not record.get("per_sample") or counts is None:
        raise BadInputError(
            f"site {site!r} keeps one number of tokens for the whole batch",
            where=f"input {budget.name!r}",
            wanted="a model with a padding mask, whose samples keep numbers of their own",
            next_step="serve the budget as fixed, or as optional without batching",
        )
    length = made[str(record["values"]["length"])]
    reached = descendants(budget)
    widened = [node for node in ancestors(length) if node in reached]
    uses = tuple(budget.uses())
    emit = Emitter(graph, reserved="served")
    emit.prefix = f"{site}/served"
    budget.shape = ir.Shape([batch, 1])
    default = emit.ints(record["budget"]["default"])
    given = emit.op("Greater", budget, emit.ints(0))
    amount = emit.op("Where", given, budget, default)
    for node, slot in uses:
        node.replace_input_with(slot, amount)
    for node in (*widened, *(node for node in ancestors(counts) if node in reached)):
        for output in node.outputs:  # their recorded shapes are those of one budget for all
            output.shape = None
    if widened and counts.producer() not in widened:
        _reduce(emit, length)


def _reduce(emit: Emitter, length: ir.Value) -> None:
    """K as a share of the padded length came from the budget, so it is (batch, 1) now."""
    uses = tuple(length.uses())
    widest = emit.op("ReduceMax", length, emit.ints(0), keepdims=0)
    for node, slot in uses:
        node.replace_input_with(slot, widest)
    name = str(length.name)
    named(length, f"{name}/per_sample")
    named(widest, name)


__all__ = ["Budgets", "serve_budgets"]
