"""The marker op of models that select tokens themselves, as one node of a custom domain."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir

DOMAIN = "secateur"
OP_TYPE = "SelectTokens"


def marker_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the entry that the marker op adds to torch's translation table."""
    import torch

    import secateur.models.select_tokens  # noqa: F401 - registers the op

    return {torch.ops.secateur.select_tokens.default: _select_tokens}


def _select_tokens(  # noqa: PLR0913, PLR0917 - the operator's own signature
    hidden: ir.Value, by: str, site: str, permille: int, protected: int, options: str
) -> ir.Value:
    from onnxscript.values import Op, Opset

    marker = Op(Opset(DOMAIN, 1), OP_TYPE, _schema())
    attributes = {"by": by, "site": site, "permille": permille, "protected": protected}
    marked: ir.Value = marker(hidden, **attributes, options=options)
    return marked


@functools.cache
def _schema() -> onnx.defs.OpSchema:
    """Describe the marker: an identity as far as shapes and types go."""
    schema = onnx.defs.OpSchema
    text, number = schema.AttrType.STRING, schema.AttrType.INT
    return schema(
        OP_TYPE,
        DOMAIN,
        1,
        doc="Tokens are selected here; secateur replaces the node before a backend sees it.",
        inputs=[schema.FormalParameter("hidden", "T")],
        outputs=[schema.FormalParameter("marked", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=[
            schema.Attribute("by", text),
            schema.Attribute("site", text),
            schema.Attribute("permille", number),
            schema.Attribute("protected", number),
            schema.Attribute("options", text),
        ],
    )


def markers(model: ir.Model) -> tuple[ir.Node, ...]:
    """Return the marker nodes in graph order."""
    return tuple(n for n in model.graph if n.domain == DOMAIN and n.op_type == OP_TYPE)


def without_markers(model: ir.Model) -> ir.Model:
    """Return a copy in which markers pass their input on; the model itself if it has none."""
    if not markers(model):
        return model
    plain = model.clone()
    for node in markers(plain):
        source, marked = node.inputs[0], node.outputs[0]
        if source is None:
            raise ValueError(f"marker {node.name!r} has no input")
        for use_node, slot in tuple(marked.uses()):
            use_node.replace_input_with(slot, source)
        for i, output in enumerate(plain.graph.outputs):
            if output is marked:
                identity = ir.node("Identity", [source])
                identity.outputs[0].name = marked.name
                identity.outputs[0].shape, identity.outputs[0].type = marked.shape, marked.type
                plain.graph.insert_after(node, identity)
                plain.graph.outputs[i] = identity.outputs[0]
        plain.graph.remove(node, safe=True)
    return plain


__all__ = ["DOMAIN", "OP_TYPE", "marker_translations", "markers", "without_markers"]
