"""Lower a model to half precision: a strongly typed graph that means the same everywhere.

*Source of the division between what is lowered and what is not: NVIDIA ModelOpt's AutoCast
names the same dangers (reductions, large constants, ranges seen on data); the decision by the
types of the operands, and what is said about token selection, are our own.*
"""

from __future__ import annotations

import fnmatch
import json
import logging
from collections import Counter
from typing import Any

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.names import module_path, node_name
from secateur.graph_passes.precision.casts import Rewriter
from secateur.graph_passes.precision.decisions import (
    ASKED,
    CONSTANT,
    NO_SUCH_TYPE,
    OVERFLOW,
    Decisions,
    Precision,
    decide,
)
from secateur.graph_passes.precision.rules import HOLDS, is_float
from secateur.graph_passes.prepare import prepare

logger = logging.getLogger(__name__)

PRECISION_KEY = "secateur.precision"
"""Metadata entry of a lowered model: JSON, see ``precision_record``."""

_TOLD = (OVERFLOW, CONSTANT, ASKED, NO_SUCH_TYPE)
"""Reasons of which the record names the nodes: those that depend on the model's own numbers."""


def lower_precision(model: ir.Model, precision: Precision) -> ir.Model:
    """Return a copy that computes in half precision where that is safe; the input stays.

    Inputs and outputs keep their types, and values their names: float32 results that other
    nodes take in half precision get a cast named ``<value>.float16``, and half ones that
    others take in float32 one named ``<value>.float32``.

    Raises:
        BadInputError: the model has been lowered, a pattern of ``keep`` fits nothing, or
            nothing of the model can be lowered.
    """
    if PRECISION_KEY in model.metadata_props:
        raise BadInputError(
            "the model has been lowered already",
            got=str(precision_record(model)["dtype"]),
            next_step="lower the float32 model it was made from",
        )
    if precision.dtype not in HOLDS:
        raise BadInputError(
            f"{precision.dtype.name.lower()} is no half precision",
            wanted="float16 or bfloat16",
        )
    copy = prepare(model)
    _spell_casts(copy.graph)
    _check_patterns(copy, precision)
    decisions = decide(copy, precision)
    if not any(decisions.is_half(node) for node in decisions.reasons):
        raise BadInputError(
            "nothing in the model can be lowered",
            got=", ".join(sorted(set(decisions.reasons.values()))) or "no float32 operator",
            next_step="leave the precision at float32",
        )
    record = _record(decisions, precision)
    Rewriter(copy, decisions, precision.dtype).run()
    copy.metadata_props[PRECISION_KEY] = json.dumps(record, sort_keys=True)
    logger.info("%d nodes compute in %s", record["nodes"], record["dtype"])
    return copy


def precision_record(model: ir.Model) -> dict[str, Any]:
    """What a lowered model says of itself: ``{"dtype": "float32"}`` for any other.

    ``nodes`` counts those in half precision, ``float32`` those that are not, by reason,
    ``kept`` lists (module, node, reason) where the model's own numbers or the user decided.
    """
    text = model.metadata_props.get(PRECISION_KEY)
    record: dict[str, Any] = json.loads(text) if text else {"dtype": "float32"}
    return record


def _spell_casts(graph: ir.Graph) -> None:
    """A CastLike whose type is known is a Cast."""
    for node in list(graph):
        if node.op_type == "CastLike" and not node.domain and is_float(node.inputs[1]):
            cast = ir.node("Cast", [node.inputs[0]], {"to": ir.DataType.FLOAT.value})
            cast.name, made, old = node.name, cast.outputs[0], node.outputs[0]
            made.name, made.shape, made.type = old.name, old.shape, old.type
            cast.metadata_props.update(node.metadata_props)
            graph.insert_before(node, cast)
            ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
            graph.remove(node, safe=True)


def _check_patterns(model: ir.Model, precision: Precision) -> None:
    """A pattern that fits nothing is a misspelt one."""
    names = {name for node in model.graph for name in (module_path(node), node_name(node)) if name}
    for pattern in precision.keep:
        if not fnmatch.filter(names, pattern):
            modules = sorted({module_path(node) for node in model.graph} - {""})
            raise BadInputError(
                f"no module or node fits {pattern!r}, which is to stay in float32",
                wanted="a module path, a node name, or a pattern of one",
                got=f"modules such as {', '.join(modules[:3])}" if modules else "",
            )


def _record(decisions: Decisions, precision: Precision) -> dict[str, Any]:
    reasons = Counter(reason for reason in decisions.reasons.values() if reason)
    kept = [
        {"module": module_path(node), "node": node_name(node), "reason": reason}
        for node, reason in decisions.reasons.items()
        if reason in _TOLD
    ]
    return {
        "dtype": precision.dtype.name.lower(),
        "nodes": sum(not reason for reason in decisions.reasons.values()),
        "float32": dict(sorted(reasons.items())),
        "kept": kept,
        "keep": list(precision.keep),
        "observed": bool(precision.ranges),
    }


__all__ = ["PRECISION_KEY", "lower_precision", "precision_record"]
