"""Where tokens leave: behind a block, or at any value that a user can name."""

from __future__ import annotations

import difflib

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.names import module_path
from secateur.graph_passes.selection.flow import readers
from secateur.graph_passes.sites import Site


def cut_value(model: ir.Model, site: Site, at: str) -> ir.Value:
    """Return the value that a selection reduces.

    Args:
        model: The graph.
        site: The attention block that signals come from.
        at: ``block`` or ``attention`` of the site, the name of a value, or a module path,
            for what the module returns.

    Raises:
        BadInputError: the graph has no such value or module.
    """
    if at == "block":
        return site.block
    if at == "attention":
        return site.after_attention
    return value_at(model, at)


def value_at(model: ir.Model, at: str) -> ir.Value:
    """Return a value by name, or what the module of that path returns.

    Raises:
        BadInputError: the graph has no such value or module.
    """
    for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs)):
        if value.name == at:
            return value
    return returned_by(list(model.graph), at)


def returned_by(order: list[ir.Node], path: str) -> ir.Value:
    """Return the last value of a module that something outside it reads.

    Raises:
        BadInputError: none of the nodes is of that module.
    """
    paths = {node: module_path(node) for node in order}
    inside = [node for node, name in paths.items() if _is_under(name, path)]
    for node in reversed(inside):
        for value in node.outputs:
            users = [user for user, _ in readers(value)]
            outside = [user for user in users if not _is_under(paths.get(user, ""), path)]
            if outside or value.is_graph_output():
                return value
    known = sorted(set(paths.values()) - {""})
    close = difflib.get_close_matches(path, known, n=1)
    raise BadInputError(
        f"the graph has no value and no module {path!r} to cut at",
        wanted="block, attention, the name of a value, or a module path",
        next_step=f"did you mean {close[0]!r}?" if close else "",
    )


def _is_under(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.") or name.endswith(f".{path}")


__all__ = ["cut_value", "returned_by", "value_at"]
