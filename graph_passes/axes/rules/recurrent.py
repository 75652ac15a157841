"""Recurrent layers: the input width and the hidden units can go, time and directions stay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import onnx_ir as ir

from secateur.graph_passes.axes.axis_map import AxisMap
from secateur.graph_passes.axes.expression import Keep, indices
from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    REWRITES,
    Blocks,
    Fold,
    Fresh,
    Frozen,
    Port,
    Relation,
    Same,
    sees_bodies,
)
from secateur.graph_passes.axes.view import View

_STEPS = "a step of the recurrence needs the one before it"
_BODY = "the graph inside the Scan reads or makes it"
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_W, _R, _B, _PEEPHOLES = 1, 2, 3, 7
_LETTERS = {0: "TNI", 1: "D.I", 2: "D.H", 3: "D.", 4: "N", 5: "DNH", 6: "DNH", 7: "D.",
            ~0: "TDNH", ~1: "DNH", ~2: "DNH"}  # fmt: skip
"""The axes of every input and output by letter; a dot is a product of gates and H."""


@AXIS_RULES.register("RNN", "GRU", "LSTM")
def recurrent(view: View) -> Iterator[Relation]:
    """X (T, N, I), W (D, G*H, I), R (D, G*H, H), B (D, 2*G*H) -> Y (T, D, N, H), last (D, N, H).

    G gates. R sums over the hidden units of the step before, so H folds in R with the
    neutral element 0. Time T and directions D stay frozen, and so does all of a node with
    the batch first (``layout`` 1), which no runtime of ours runs.
    """
    if view.integer("layout", 0):
        return
    ports = _ports(view)
    for letter in "TNDHI":
        yield Same(tuple(ports[letter]))
    yield Frozen(ports["T"][0], _STEPS)
    yield Frozen(ports["D"][0], "the directions are an attribute")
    yield Fold(tuple(ports["I"]), neutral=0.0)
    yield Fold((Port(_R, 2),), neutral=0.0)
    gates = _GATES[view.node.op_type]
    for slot, blocks in {_W: gates, _R: gates, _B: 2 * gates, _PEEPHOLES: 3}.items():
        if view.has(slot):
            inner = ((Port(_R, 2),),)
            yield Blocks((Port(slot, 1),), blocks, inner, fixed_blocks="a unit has all its gates")


def _ports(view: View) -> dict[str, list[Port]]:
    """Ports by letter, inputs before outputs."""
    found: dict[str, list[Port]] = defaultdict(list)
    for slot, letters in _LETTERS.items():
        if slot >= 0:
            there = view.has(slot)
        else:
            there = ~slot < len(view.node.outputs) and bool(view.node.outputs[~slot].name)
        if there:
            for axis, letter in enumerate(letters):
                found[letter].append(Port(slot, axis))
    return found


@REWRITES.register("RNN", "GRU", "LSTM")
def hidden_size(node: ir.Node, axes: AxisMap, keep: Keep) -> None:
    """Spell the number of hidden units again."""
    kept = len(indices(axes.expr(node, Port(_R, 2)), keep))
    node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", kept)


@AXIS_RULES.register("Scan")
@sees_bodies
def scan(view: View) -> Iterator[Relation]:
    """States (...), X (..., T, ...) -> states (...), Y (..., T, ...): a step of X makes one of Y.

    All stay frozen. Where some run backwards and others do not, T is no axis of the outputs.
    """
    along = _scanned(view)
    ways = {
        way
        for name in ("scan_input_directions", "scan_output_directions")
        for way in view.attribute_ints(name) or (0,)
    }
    if len(ways) == 1 and along:
        yield Same(along)
    yield from (Frozen(port, _STEPS) for port in along if port.slot >= 0)
    for slot in range(len(view)):
        for axis in range(view.rank(slot) or 0):
            if Port(slot, axis) not in along:
                yield Frozen(Port(slot, axis), _BODY)
    for i in range(len(view.node.outputs)):
        for axis in range(len(view.shape(~i) or ())):
            if len(ways) > 1 or Port(~i, axis) not in along:
                yield Fresh(Port(~i, axis))
                yield Frozen(Port(~i, axis), _BODY)


def _scanned(view: View) -> tuple[Port, ...]:
    """Return the axes of a Scan that its steps go along, those of inputs first."""
    n_scanned = view.integer("num_scan_inputs", 0)
    n_states = len(view) - n_scanned
    found = []
    for name, slots in (
        ("scan_input_axes", range(n_states, len(view))),
        ("scan_output_axes", range(n_states, len(view.node.outputs))),
    ):
        axes = view.attribute_ints(name) or (0,) * len(slots)
        for axis, slot in zip(axes, slots, strict=True):
            slot_or_output = slot if name == "scan_input_axes" else ~slot
            rank = len(view.shape(slot_or_output) or ())
            if rank:
                found.append(Port(slot_or_output, axis % rank))
    return tuple(found)


__all__ = ["hidden_size", "recurrent", "scan"]
