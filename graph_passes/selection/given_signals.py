"""Signals that no site has: values that the graph makes elsewhere, or that a user hands in."""

from __future__ import annotations

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.selection.context import Context
from secateur.graph_passes.selection.cut_points import returned_by

_NEW_INPUT = "input:"


def given_signal(context: Context, name: str) -> ir.Value:
    """Return what ``context.given`` names: a value of the graph, or a new input of it.

    ``input:512`` and ``input:5x37`` make an input ``<site>.<signal>``, (B, 512) and (B, 5, 37).

    Raises:
        BadInputError: no such value, or one that is made behind the cut that reads it.
    """
    wanted = context.given[name]
    if wanted.startswith(_NEW_INPUT):
        return _new_input(context, name, wanted.removeprefix(_NEW_INPUT))
    graph = context.emit.graph
    found = [value for value in (*graph.inputs, *_made(context)) if value.name == wanted]
    try:
        found = found or [returned_by(context.regions.order, wanted)]
    except BadInputError as error:
        raise BadInputError(
            f"the graph has no value {wanted!r} to take the signal {name!r} from",
            where=f"site {context.cut.site!r}",
            next_step="name an input, an output or a module of the graph, or input:<width> for a "
            "new input",
        ) from error
    producer = found[0].producer()
    behind = 0 if producer is None else context.regions.of.get(producer, 0)
    if behind > len(context.versions.kept):
        raise BadInputError(
            f"the signal {name!r} is made behind the cut that reads it",
            where=f"site {context.cut.site!r}, value {wanted!r}",
            next_step="name a value in front of the cut",
        )
    return found[0]


def _made(context: Context) -> list[ir.Value]:
    return [value for node in context.regions.order for value in node.outputs]


def _new_input(context: Context, name: str, sizes: str) -> ir.Value:
    """(B, ...) float32 with the sizes that stand behind ``input:``, such as 512 or 5x37."""
    dims = sizes.split("x")
    if not all(dim.isdigit() and int(dim) for dim in dims):
        raise BadInputError(
            f"a new input for the signal {name!r} needs its width",
            got=f"{_NEW_INPUT}{sizes}",
            wanted=f"{_NEW_INPUT}<number>, such as {_NEW_INPUT}512, or {_NEW_INPUT}5x37",
        )
    value = ir.Value(
        name=f"{context.cut.site}.{name}",
        shape=ir.Shape(["batch", *map(int, dims)]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    context.emit.graph.inputs.append(value)
    return value


__all__ = ["given_signal"]
