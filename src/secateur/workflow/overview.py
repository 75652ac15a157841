"""The groups of a model as a person asks about them: what, how large, why not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.axes import Atom, AxisMap, leaves
from secateur.graph_passes.axes.expression import show
from secateur.graph_passes.groups import Analysis, Group

_TENSOR_AXIS = re.compile(r"(?P<tensor>.+?)(?:\[(?P<axis>-?\d+)\])?")


def group_records(analysis: Analysis, flops: Mapping[str, int]) -> list[dict[str, Any]]:
    """Every group with its weights, sizes, parameters and FLOPs, as plain JSON types.

    Args:
        analysis: of the model.
        flops: of one forward pass by node name; a group carries those of every node that
            has its atom in an axis.
    """
    carried = _flops_by_atom(analysis, flops)
    return [_record(analysis, group, carried.get(group.atom, 0)) for group in analysis.groups]


def _record(analysis: Analysis, group: Group, flops: int) -> dict[str, Any]:
    weights = {(use.parameter, use.axis): list(use.shape) for use in group.weights}
    return {
        "group": group.name,
        "role": group.role,
        "layer": group.layer,
        "size": spell_size(analysis, group),
        "units": group.size if group.size >= 0 else None,
        "parameters": group.parameters,
        "flops": flops,
        "exact": group.exact,
        "removable": group.removable,
        "weights": [
            {"name": name, "axis": axis, "shape": shape} for (name, axis), shape in weights.items()
        ],
        "reasons": [{"text": r.text, "node": r.node} for r in group.frozen],
    }


def spell_size(analysis: Analysis, group: Group) -> str:
    """``12 x 64`` for heads and their width, else the number of units or its formula."""
    if group.role == "heads":
        widths = {g.size for g in analysis.by_role("head_width") if g.layer == group.layer}
        return f"{group.size} x {max(widths)}" if widths else str(group.size)
    return str(group.atom.size)


def _flops_by_atom(analysis: Analysis, flops: Mapping[str, int]) -> dict[Atom, int]:
    carried: dict[Atom, int] = {}
    for node in analysis.model.graph:
        if count := flops.get(node.name or "", 0):
            for atom in _atoms(node, analysis.axes):
                carried[atom] = carried.get(atom, 0) + count
    return carried


def _atoms(node: ir.Node, axes: AxisMap) -> set[Atom]:
    slots = [*range(len(node.inputs)), *(~i for i in range(len(node.outputs)))]
    known = (slot for slot in slots if axes.knows(node, slot))
    return {atom for slot in known for expr in axes.at(node, slot) for atom in leaves(expr)}


def why_not(analysis: Analysis, question: str) -> list[dict[str, Any]]:
    """Answer ``TENSOR[axis]``: what each axis consists of, and why it may not be cut.

    Args:
        analysis: of the model.
        question: a tensor (weight, parameter or value), with or without an axis.

    Raises:
        BadInputError: no such tensor or axis; the message names the nearest.
    """
    match = _TENSOR_AXIS.fullmatch(question)
    tensor = match["tensor"] if match else question
    exprs = _axes_of(analysis, tensor)
    wanted = range(len(exprs))
    if match and match["axis"] is not None:
        axis = int(match["axis"])
        if not -len(exprs) <= axis < len(exprs):
            raise BadInputError(
                f"{tensor!r} has no axis {axis}", wanted=f"an axis from 0 to {len(exprs) - 1}"
            )
        wanted = range(axis % len(exprs), axis % len(exprs) + 1)
    return [_answer(analysis, tensor, axis, exprs[axis]) for axis in wanted]


def _answer(analysis: Analysis, tensor: str, axis: int, expr: Any) -> dict[str, Any]:  # noqa: ANN401 (an axis expression)
    groups = {group.atom: group for group in analysis.groups}
    found = [(atom, groups.get(atom)) for atom in leaves(expr)]
    return {
        "axis": f"{tensor}[{axis}]",
        "expression": show(expr),
        "groups": [_verdict(atom, group) for atom, group in found],
    }


def _verdict(atom: Atom, group: Group | None) -> dict[str, Any]:
    reasons = [{"text": reason.text, "node": reason.node} for reason in atom.reasons]
    if group is not None and not group.exact and not reasons:
        text = "a norm or a mean is taken over it, so a cut changes the rest (inexact)"
        reasons.append({"text": text, "node": ""})
    if group is not None and not group.weights and not reasons:
        text = "no weight has this axis; it exists at run time only"
        reasons.append({"text": text, "node": ""})
    name = group.name if group is not None else f"an axis of size {atom.size}"
    can = group is not None and group.removable
    return {"group": name, "size": str(atom.size), "removable": can, "reasons": reasons}


def _axes_of(analysis: Analysis, tensor: str) -> tuple[Any, ...]:
    for read in analysis.axes.of_uses.values():
        if read.value.name == tensor:
            return tuple(read.exprs)
    for group in analysis.groups:
        for use in group.weights:
            if use.parameter == tensor:
                return analysis.axes.at(use.node, use.slot)
    values = {value.name: value for value in analysis.axes.values()}
    if tensor in values:
        return analysis.axes.of(values[tensor])
    raise _unknown_tensor(analysis, tensor, [str(name) for name in values])


def _unknown_tensor(analysis: Analysis, tensor: str, values: list[str]) -> BadInputError:
    import difflib

    weights = [use.parameter for group in analysis.groups for use in group.weights]
    close = difflib.get_close_matches(tensor, [*weights, *values], n=3, cutoff=0.3)
    return BadInputError(
        f"the model has no tensor {tensor!r}",
        wanted="a weight, a parameter or a value of the graph",
        next_step=f"did you mean {' or '.join(dict.fromkeys(close))}?" if close else "",
    )


__all__ = ["group_records", "spell_size", "why_not"]
