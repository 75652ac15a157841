"""Relations of a node in the form in which the walk executes them, kept for nodes like it.

What a rule says depends on the op, its attributes, the sizes of the inputs and the integers
that the graph computes from shapes. Nodes that agree in these, as those of two layers do,
have one program. A rule that looked at more, see ``View.is_particular``, is asked every time.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

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


class Program:
    """What happens to the axes of one node."""

    __slots__ = (
        *("carried", "folds", "is_described", "is_settled", "joins", "output_ranks", "reads"),
        *("steps", "unmentioned"),
    )

    def __init__(self, steps: tuple[Step, ...], *, is_described: bool, is_settled: bool) -> None:
        self.steps = steps
        self.is_described = is_described
        """Some relation says something."""
        self.is_settled = is_settled
        """The steps, and freezing what is unmentioned, look at every axis of every input."""
        self.carried = -1
        """The input whose axes the only output has, as they are; -1 where there is none."""
        self.joins: tuple[Step, ...] = ()
        """What is left of ``steps`` if that input is handed on: nothing is put on the output."""
        self.folds: tuple[Fold, ...] = ()
        self.unmentioned: Pairs = ()
        """Axes of inputs, as (slot, axis), that no relation names."""
        self.output_ranks: tuple[int, ...] = ()
        """Axes of each output, as the file declares them or else as the relations name them."""
        self.reads: frozenset[int] = frozenset()
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


def ranks_of(declared: Iterable[Sequence[object] | None]) -> tuple[int, ...]:
    """Number of axes of each declared shape, -1 where the file says nothing."""
    return tuple([-1 if dims is None else len(dims) for dims in declared])


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
    named: set[tuple[int, int]] = set()
    touched: set[tuple[int, int]] = set()
    steps: list[Step] = []
    folds: list[Fold] = []
    reads: list[int] = []
    is_described = False
    for relation in relations:
        is_described, kind = True, type(relation)
        if kind is Same or kind is Fold:
            ports = relation.ports  # type: ignore[union-attr]
            touched.update(ports)
            steps.append(_joined(relation, ports, input_ranks))
            if kind is Fold:
                folds.append(relation)  # type: ignore[arg-type]
            continue
        if kind is Fresh or kind is Frozen:
            touched.add(relation.port)  # type: ignore[union-attr]
        else:
            named.update(_ports(relation))
            if isinstance(relation, ReadAt):
                reads.append(relation.slot)
        if kind is not Unread:
            steps.append((-1, 0, (), (), relation))
    is_settled = named <= touched
    named |= touched
    unmentioned = [
        (slot, axis)
        for slot, rank in enumerate(input_ranks)
        if rank
        for axis in range(rank)
        if (slot, axis) not in named
    ]
    program = Program(tuple(steps), is_described=is_described, is_settled=is_settled)
    program.output_ranks = ranks = tuple([_rank(i, rank, named) for i, rank in enumerate(declared)])
    program.carried = carried = _carried(steps, input_ranks, ranks)
    if carried >= 0:
        program.joins = tuple([(s, a, more, (), r) for s, a, more, _, r in steps if more])
    program.folds, program.unmentioned = tuple(folds), tuple(unmentioned)
    program.reads = frozenset(reads)
    return program


def _carried(
    steps: Sequence[Step], input_ranks: Sequence[int | None], output_ranks: Sequence[int]
) -> int:
    """The input of which each axis, and nothing else, is an axis of the only output."""
    if len(output_ranks) != 1 or not steps:
        return -1
    carried, found = steps[0][0], []
    for slot, axis, _, outputs, _ in steps:
        if slot != carried or (outputs and outputs != ((0, axis),)):
            return -1
        if outputs:
            found.append(axis)
    is_whole = carried >= 0 and input_ranks[carried] == output_ranks[0] == len(found)
    return carried if is_whole and len(set(found)) == len(found) else -1


def _joined(relation: Relation, ports: Iterable[Port], input_ranks: Sequence[int | None]) -> Step:
    inputs: list[tuple[int, int]] = []
    outputs: list[tuple[int, int]] = []
    for port in ports:
        if port[0] < 0:
            outputs.append((~port[0], port[1]))
        elif input_ranks[port[0]] is not None:
            inputs.append(port)
    slot, axis = inputs[0] if inputs else (-1, 0)
    return slot, axis, tuple(inputs[1:]), tuple(outputs), relation


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
    "is_plain",
    "program_of",
    "ranks_of",
    "sizes_of",
]
