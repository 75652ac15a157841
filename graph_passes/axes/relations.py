"""What an op rule may say about axes, and the table of rules.

A rule returns relations; the one solver executes them. An axis that no relation
mentions, and every axis of an op without a rule, is frozen with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import onnx_ir as ir

from secateur.graph_passes.axes.sizes import Size
from secateur.registry import Registry

if TYPE_CHECKING:
    from secateur.graph_passes.axes.axis_map import AxisMap
    from secateur.graph_passes.axes.expression import Keep
    from secateur.graph_passes.axes.view import View


class Port(NamedTuple):
    """Axis ``axis``, from 0, of input ``slot``; a negative slot ``~i`` is output ``i``."""

    slot: int
    axis: int


OUT = -1
"""Slot of the first output."""


class Same(NamedTuple):
    """Element i of each port is element i of every other."""

    ports: tuple[Port, ...]


class Product(NamedTuple):
    """The left axes, flattened row-major, are the right axes, flattened row-major."""

    left: tuple[Port, ...]
    right: tuple[Port, ...]


class Sum(NamedTuple):
    """The axis ``port`` is the concatenation of ``parts``."""

    port: Port
    parts: tuple[Port, ...]


class Part(NamedTuple):
    """``part`` is the positions ``start`` to ``stop`` of ``whole``."""

    whole: Port
    part: Port
    start: Size
    stop: Size


class Blocks(NamedTuple):
    """Each of ``ports`` is ``n_blocks`` blocks, one after the other; the blocks are shared.

    ``ports[i]`` is blocks x ``inner[i]``: the ports there run over the inside of one
    block. ``outer`` names ports that run over the blocks. ``fixed`` and ``fixed_blocks``
    are reasons against cutting inside a block, and against cutting blocks.
    """

    ports: tuple[Port, ...]
    n_blocks: Size
    inner: tuple[tuple[Port, ...], ...]
    outer: tuple[Port, ...] = ()
    fixed: str = ""
    fixed_blocks: str = ""


class Padded(NamedTuple):
    """``out`` is ``port`` with ``before`` and ``after`` constant positions around it."""

    port: Port
    out: Port
    before: int
    after: int


class Positions(NamedTuple):
    """Output ``slot`` holds ``picked`` positions of the axis ``of`` (TopK, ArgMax).

    They are numbered anew after a cut, so they may only be used to read the same axis.
    """

    slot: int
    of: Port
    picked: int


class ReadAt(NamedTuple):
    """The axis is read at positions that input ``slot`` holds."""

    port: Port
    slot: int
    is_lookup: bool = False
    """Every element of the input picks one row, so that a table can say which."""


class Unread(NamedTuple):
    """Only the size or the type of the axis is read, never an element."""

    port: Port


class Fold(NamedTuple):
    """The op combines all elements of the ports, which are cut together.

    Cutting equals writing ``neutral`` at the cut elements; ``None`` says that no such
    value exists, so that a cut changes the result (LayerNorm, ReduceMean).
    """

    ports: tuple[Port, ...]
    neutral: float | None


class Index(NamedTuple):
    """The axis is read at constant positions; ``out`` is the axis they make, if any."""

    port: Port
    values: tuple[int, ...]
    out: Port | None = None


class Fresh(NamedTuple):
    """An output axis that stands for itself: broadcast, counted or generated.

    ``size`` is needed where the file may not declare it.
    """

    port: Port
    size: Size | None = None


class Frozen(NamedTuple):
    """No pass may cut this axis."""

    port: Port
    reason: str


_CARRIED: dict[int, Same] = {}


def carried(axis: int) -> Same:
    """Say that an axis of the first input is that of the first output: most relations do."""
    found = _CARRIED.get(axis)
    if found is None:
        _CARRIED[axis] = found = Same((Port(0, axis), Port(OUT, axis)))
    return found


Relation = (
    Same
    | Product
    | Sum
    | Part
    | Blocks
    | Padded
    | Positions
    | ReadAt
    | Unread
    | Fold
    | Index
    | Fresh
    | Frozen
)
AxisRule = Callable[["View"], Iterable[Relation]]
Rewrite = Callable[[ir.Node, "AxisMap", "Keep"], None]

AXIS_RULES: Registry[AxisRule] = Registry("axis rule")
"""The only place where axis semantics live: op type (``domain:Op`` outside ai.onnx) to rule."""

_BY_UNITS: dict[AxisRule, bool] = {}
"""Rules marked with ``by_units``, and whether output sizes have to be declared."""

Rule = TypeVar("Rule", bound=AxisRule)


def by_units(rule: Rule) -> Rule:
    """Say that of the sizes of its inputs a rule only asks which are 1; it sees no others.

    What it says about one node then holds for all of these ranks and units.
    """
    _BY_UNITS[rule] = False
    return rule


def by_units_if_declared(rule: Rule) -> Rule:
    """Say so of nodes for which the file declares the sizes of the outputs.

    For other nodes the rule sees the sizes of the inputs, to work out those of the outputs.
    """
    _BY_UNITS[rule] = True
    return rule


_BODIES: set[AxisRule] = set()
"""Rules marked with ``sees_bodies``."""


def sees_bodies(rule: Rule) -> Rule:
    """Say that a rule holds whatever the graphs inside a node do, and is asked about it."""
    _BODIES.add(rule)
    return rule


def knows_bodies(rule: AxisRule) -> bool:
    """Tell whether a rule is asked about nodes with graphs inside, by its mark."""
    return rule in _BODIES


def sees_units_only(rule: AxisRule, declared: Iterable[Sequence[object] | None]) -> bool:
    """Tell whether a rule sees only which sizes are 1, by its mark.

    ``declared`` are the shapes of the outputs as they stand in the file, None where one does not.
    """
    if_declared = _BY_UNITS.get(rule)
    if if_declared:
        return all(dims is not None and ir.SymbolicDim not in map(type, dims) for dims in declared)
    return if_declared is not None


REWRITES: Registry[Rewrite] = Registry("attribute rewrite")
"""Ops whose attributes or constant inputs spell sizes: how to spell them after a cut."""


__all__ = [
    "AXIS_RULES",
    "OUT",
    "REWRITES",
    "AxisRule",
    "Blocks",
    "Fold",
    "Fresh",
    "Frozen",
    "Index",
    "Padded",
    "Part",
    "Port",
    "Positions",
    "Product",
    "ReadAt",
    "Relation",
    "Rewrite",
    "Same",
    "Sum",
    "Unread",
    "by_units",
    "by_units_if_declared",
    "carried",
    "knows_bodies",
    "sees_bodies",
    "sees_units_only",
]
