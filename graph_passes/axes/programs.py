"""Relations of a node in the form in which the walk executes them, kept for nodes like it.

What a rule says depends on the op, its attributes, the sizes of the inputs and the integers
that the graph computes from shapes. Nodes that agree in these, as those of two layers do,
have one program. A rule that looked at more, see ``View.is_particular``, is asked every time.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple, cast

import onnx_ir as ir

from secateur.graph_passes.axes.relations import (
    Fold,
    Fresh,
    Frozen,
    Port,
    ReadAt,
    Relation,
    Same,
    Unread,
)
from secateur.graph_passes.axes.sizes import Polynomial, Size

_MOST_PROGRAMS = 4096
_PLAIN = frozenset(
    {
        *(ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.FLOAT),
        *(ir.AttributeType.FLOATS, ir.AttributeType.STRING, ir.AttributeType.STRINGS),
    }
)
"""Attributes that are compared by value and keep nothing alive."""

_SOME_SIZE = Polynomial.symbol("some size but 1")
Shapes = tuple[tuple[Size, ...] | None, ...]
Pairs = tuple[tuple[int, int], ...]


Step = tuple[int, int, Pairs, Pairs, Relation]
"""One relation: an axis of an input, the axes of inputs and the axes of outputs that are it.

They are (slot, axis) and (output, axis). Where the first slot is negative, the relation is
another than ``Same`` and ``Fold``, or names no input, and is executed as it stands.
"""


class Program(NamedTuple):
    """What happens to the axes of one node."""

    is_described: bool
    """Some relation says something."""
    steps: tuple[Step, ...]
    folds: tuple[Fold, ...]
    unmentioned: Pairs
    """Axes of inputs, as (slot, axis), that no relation names."""
    output_ranks: tuple[int, ...]
    """Axes of each output, as the file declares them or else as the relations name them."""
    reads: frozenset[int]
    """Inputs whose positions a relation reads an axis at."""


class Programs:
    """Programs by what they depend on; when there are too many, all are forgotten."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Program] = {}

    def find(self, signature: Hashable) -> Program | None:
        """Return the program of a node that looked the same to its rule."""
        return self._known.get(signature)

    def clear(self) -> None:
        """Forget all: a measurement of a first analysis must not find those of the last."""
        self._known.clear()

    def keep(self, signature: Hashable, program: Program) -> None:
        """Keep a program for the next node of that signature."""
        if len(self._known) >= _MOST_PROGRAMS:
            self._known.clear()
        self._known[signature] = program


PROGRAMS = Programs()
"""Of this process: a model is analysed again when it is cut, masked or proved."""


def sizes_of(units: Iterable[tuple[Size, ...] | None]) -> Shapes:
    """Return shapes of which only is known which sizes are 1, as ``units`` tells them.

    All others are one and the same size.
    """
    return tuple(
        [
            None if shape is None else tuple([1 if is_unit else _SOME_SIZE for is_unit in shape])
            for shape in units
        ]
    )


def declared_ranks(node: ir.Node) -> tuple[int, ...]:
    """Number of axes per output that the file declares, -1 where it says nothing."""
    return tuple([-1 if v.shape is None else len(v.shape) for v in node.outputs])


def is_plain(node: ir.Node) -> bool:
    """Tell whether the attributes of a node can be a part of a signature."""
    return all(attribute.type in _PLAIN for attribute in node.attributes.data.values())


def program_of(
    relations: Iterable[Relation], input_ranks: Sequence[int | None], declared: Sequence[int]
) -> Program:
    """Put relations into the form that is executed.

    Args:
        relations: What the rule says, in its order.
        input_ranks: Number of axes per input, None where it is absent or unknown.
        declared: The same per output; -1 where the file says nothing.
    """
    relations = tuple(relations)
    named: set[tuple[int, int]] = set()
    steps: list[Step] = []
    for relation in relations:
        kind = type(relation)
        if kind is Same or kind is Fold:
            ports = cast(Same | Fold, relation).ports
            named.update(ports)
            steps.append(_joined(relation, ports, input_ranks))
            continue
        if kind is Fresh or kind is Frozen or kind is Unread:
            named.add(cast(Fresh | Frozen | Unread, relation).port)
        else:
            named.update(_ports(relation))
        if kind is not Unread:
            steps.append((-1, 0, (), (), relation))
    unmentioned = [
        (slot, axis)
        for slot, rank in enumerate(input_ranks)
        for axis in range(rank or 0)
        if (slot, axis) not in named
    ]
    return Program(
        bool(relations),
        tuple(steps),
        tuple([relation for relation in relations if type(relation) is Fold]),
        tuple(unmentioned),
        tuple([_rank(i, rank, named) for i, rank in enumerate(declared)]),
        frozenset([relation.slot for relation in relations if isinstance(relation, ReadAt)]),
    )


def _joined(relation: Relation, ports: Iterable[Port], input_ranks: Sequence[int | None]) -> Step:
    inputs = tuple([(s, a) for s, a in ports if s >= 0 and input_ranks[s] is not None])
    outputs = tuple([(~s, a) for s, a in ports if s < 0])
    slot, axis = inputs[0] if inputs else (-1, 0)
    return slot, axis, inputs[1:], outputs, relation


def _rank(output: int, declared: int, named: set[tuple[int, int]]) -> int:
    if declared >= 0:
        return declared
    return max((axis + 1 for slot, axis in named if slot == ~output), default=0)


def _ports(relation: tuple[object, ...]) -> Iterator[Port]:
    """Yield the ports that a relation names."""
    for item in relation:
        if isinstance(item, Port):
            yield item
        elif isinstance(item, tuple):
            yield from _ports(item)


__all__ = [
    "PROGRAMS",
    "Pairs",
    "Program",
    "Programs",
    "Shapes",
    "Step",
    "declared_ranks",
    "is_plain",
    "program_of",
    "sizes_of",
]
