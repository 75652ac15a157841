"""What a router sent where: which experts each token took, and what each of them added."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.activations import TOKEN_WEIGHTS, observe
from secateur.calibration.units import units
from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.axes import Atom, Expr, leaves
from secateur.graph_passes.groups import Analysis, Group

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Layout:
    """How to read a value as (tokens, experts, width)."""

    value: str
    tokens: tuple[int, ...]
    """Its axes of tokens."""
    experts: int
    """Its axis of all experts, or of those that a token took."""
    width: tuple[int, ...]

    def read(self, array: NDArray[Any]) -> Array:
        """(tokens, experts, width), width 1 where the value has none."""
        moved = array.transpose(*self.tokens, self.experts, *self.width)
        return moved.reshape(-1, array.shape[self.experts], self._width(array)).astype(np.float64)

    def _width(self, array: NDArray[Any]) -> int:
        return int(np.prod([array.shape[axis] for axis in self.width], dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Routes:
    """Where in the graph a group of experts is routed."""

    chosen: str | None
    """Indices that the TopK gave, where what is added is by choice; None: it is by expert."""
    parts: tuple[Layout, ...]
    """What is multiplied and summed over the experts: outputs, and their weights."""
    before: str
    """The stream that the sum is added to."""
    units: tuple[int, ...]
    """Unit of the group that each expert belongs to: itself, or its group where a router first
    picks groups."""

    @property
    def values(self) -> tuple[str, ...]:
        """Everything that has to be looked at."""
        named = (*(part.value for part in self.parts), self.before)
        return named if self.chosen is None else (*named, self.chosen)


@dataclass(frozen=True, slots=True)
class Routed:
    """What one group of experts did with T tokens, k experts each."""

    before: Array
    """(T, D)"""
    added: Array
    """(T, k, D), the gate's weight in it."""
    units: NDArray[np.int64]
    """(T, k) unit that each expert belongs to."""
    counts: Array
    """(T,) how much each token counts."""


def find_routes(analysis: Analysis, group: Group) -> Routes:
    """Find the TopK that picks from a group's units, and the sum of what they add.

    Raises:
        PreconditionError: there is none.
    """
    axes = analysis.axes
    picks = [node for node in analysis.model.graph if _picks(node, analysis, group.atom)]
    if not picks:
        raise PreconditionError(
            "no TopK picks from these units, so that they are no experts",
            where=group.name,
            next_step="rank experts with this criterion, other units by wanda or flap",
        )
    pick = picks[-1]  # groups of experts are picked before experts are
    axis = pick.attributes.get_int("axis", -1) % len(axes.at(pick, 0))
    experts = axes.at(pick, 0)[axis]
    owners = tuple(units(experts, group.atom).tolist())
    tokens = {a for i, e in enumerate(axes.at(pick, 0)) if i != axis for a in leaves(e)}
    taken = leaves(axes.of(pick.outputs[1])[axis])
    choices: tuple[tuple[Atom, ...], ...] = (leaves(experts), taken)
    behind = _descendants(analysis.model, pick)
    for fold in axes.folds:
        if fold.node not in behind or fold.neutral != 0:
            continue
        for over in choices:
            ports = [p for p in fold.ports if p.slot >= 0]
            if any(leaves(axes.expr(fold.node, port)) != over for port in ports):
                continue
            parts = tuple(
                _layout(fold.node, port.slot, port.axis, axes.at(fold.node, port.slot), tokens)
                for port in ports
            )
            if any(part.width for part in parts):
                chosen = str(pick.outputs[1].name) if over == taken else None
                before = _stream(analysis.model, fold.node, pick)
                return Routes(chosen, parts, before, owners)
    raise PreconditionError(
        "what the experts add to the stream cannot be found",
        where=group.name,
        wanted="a sum over experts, or over those that a token took, behind the TopK",
    )


def _picks(node: ir.Node, analysis: Analysis, atom: Atom) -> bool:
    if node.op_type != "TopK" or not analysis.axes.knows(node, 0):
        return False
    exprs = analysis.axes.at(node, 0)
    return atom in leaves(exprs[node.attributes.get_int("axis", -1) % len(exprs)])


def _layout(
    node: ir.Node, slot: int, experts: int, exprs: tuple[Expr, ...], tokens: set[Atom]
) -> Layout:
    value = node.inputs[slot]
    assert value is not None
    others = [axis for axis in range(len(exprs)) if axis != experts]
    of_tokens = tuple(axis for axis in others if set(leaves(exprs[axis])) <= tokens)
    return Layout(
        str(value.name), of_tokens, experts, tuple(a for a in others if a not in of_tokens)
    )


def _stream(model: ir.Model, total: ir.Node, pick: ir.Node) -> str:
    """The value that the experts' sum is added to: the router reads it too."""
    behind, before = _descendants(model, total), _ancestors(pick)
    for node in model.graph:
        if node not in behind or node.op_type != "Add":
            continue
        for value in node.inputs:
            if value is not None and value.producer() not in behind and value in before:
                return str(value.name)
    raise PreconditionError(
        "what the experts add is added to no stream that the router reads", where=str(pick.name)
    )


def _descendants(model: ir.Model, start: ir.Node) -> set[ir.Node]:
    found = {start}
    for node in model.graph:
        if any(value is not None and value.producer() in found for value in node.inputs):
            found.add(node)
    return found


def _ancestors(node: ir.Node) -> set[ir.Value]:
    found: set[ir.Value] = set()
    stack = [value for value in node.inputs if value is not None]
    while stack:
        value = stack.pop()
        if value in found:
            continue
        found.add(value)
        producer = value.producer()
        stack += [] if producer is None else [v for v in producer.inputs if v is not None]
    return found


def routed(
    model: ir.Model, routes: Mapping[str, Routes], data: Iterable[Mapping[str, NDArray[Any]]]
) -> Iterator[tuple[str, Routed]]:
    """Yield what every group did with each batch, padding left out.

    Raises:
        BadInputError: no data, or values that are NaN or infinite.
    """
    names = sorted({name for one in routes.values() for name in one.values})
    empty = True
    for batch, seen in observe(model, names, data):
        empty = False
        for group, one in routes.items():
            yield group, _routed(group, one, batch, seen)
    if empty:
        raise BadInputError("this criterion needs data, and there is none")


def _routed(
    group: str, routes: Routes, batch: Mapping[str, NDArray[Any]], seen: Mapping[str, Any]
) -> Routed:
    added = routes.parts[0].read(seen[routes.parts[0].value])
    for part in routes.parts[1:]:
        added = added * part.read(seen[part.value])
    before = np.asarray(seen[routes.before], dtype=np.float64)
    before = before.reshape(len(added), -1)
    if not (np.isfinite(added).all() and np.isfinite(before).all()):
        raise BadInputError("the experts add NaN or infinities", where=group)
    if routes.chosen is None:
        experts = np.tile(np.arange(added.shape[1]), (len(added), 1))
    else:
        experts = seen[routes.chosen].reshape(len(added), -1)
    mask = batch.get("attention_mask", np.zeros(0))
    real = mask.astype(bool).ravel() if mask.size == len(added) else np.ones(len(added), bool)
    counts = np.asarray(batch.get(TOKEN_WEIGHTS, np.ones(len(added))), dtype=np.float64).ravel()
    owners = np.array(routes.units)[experts]
    return Routed(before[real], added[real], owners[real], counts[real])


__all__ = ["Routed", "Routes", "find_routes", "routed"]
