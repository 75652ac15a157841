"""What stands between q k^T, the softmax over keys and the values, with the axes it sees.

Axes are called b (batch), h (heads), n (queries), m (keys). A layout is the order in which they
stand, each axis of a value being none of them, one, or several made one: scores are
``("b", "h", "n", "m")``, or ``("bh", "n", "m")`` with batch and heads in one axis.

Heads may be mixed on the way by a constant matrix, as talking heads are: by a MatMul or a Gemm
behind a Transpose, an Einsum, or a convolution with a kernel of size 1.
*Source: Shazeer et al., Talking-Heads Attention, 2020, arXiv:2003.02436, section 3.*
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import onnx_ir as ir

from secateur.graph_passes.axes import Atom, AxisMap, Expr, Sum
from secateur.graph_passes.axes.axis_map import constant_tensor

Layout = tuple[str, ...]
Pairs = Counter[Atom | Sum]
"""What queries and keys are made of, and how often."""

APART: Layout = ("b", "h", "n", "m")
JOINED: Layout = ("bh", "n", "m")

RELAYOUTS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze"})
"""Steps that move axes and change no element."""

_MIXERS = frozenset({"MatMul", "Gemm", "Einsum", "Conv"})
_ELEMENTWISE = frozenset(
    {*("Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Tanh", "Max", "Min"),
     *("Dropout", "IsNaN")}
)  # fmt: skip


class Step(NamedTuple):
    """One node on the way; what is followed enters at input ``slot``, with axes ``layout``.

    The layout is () where it is not one of those that ``traced`` knows.
    """

    node: ir.Node
    slot: int
    layout: Layout = ()

    @property
    def mixes_heads(self) -> bool:
        """Whether heads become sums of heads."""
        return self.node.op_type in _MIXERS


class Way(NamedTuple):
    """Steps with their layouts, and the layout behind the last of them."""

    steps: tuple[Step, ...]
    end: Layout

    @property
    def mixes_heads(self) -> bool:
        """Whether some step does."""
        return any(step.mixes_heads for step in self.steps)


# --- walking up --------------------------------------------------------------------------


def ways_up(
    value: ir.Value, allowed: frozenset[str], axes: AxisMap
) -> Iterator[tuple[ir.Node, tuple[Step, ...]]]:
    """Yield the nodes that ``value`` may come from, with the steps from each of them.

    ``value`` has queries and keys as its last axes. Steps are ``allowed`` ones, and those that
    move axes or mix heads by a constant; nothing is followed to where queries meet no keys.
    """
    pairs = pairs_of(axes_of(axes, value) or ())
    yield from _Walk(axes, allowed, pairs, set()).up(value, ())


class _Walk(NamedTuple):
    axes: AxisMap
    allowed: frozenset[str]
    pairs: Pairs
    mixed: set[ir.Node]
    """Nodes above a mixing of heads that were seen: ways through weights may be many."""

    def up(
        self, value: ir.Value, steps: tuple[Step, ...]
    ) -> Iterator[tuple[ir.Node, tuple[Step, ...]]]:
        node = value.producer()
        if node is None or node.domain:
            return
        if any(step.mixes_heads for step in steps):
            if node in self.mixed:
                return
            self.mixed.add(node)
        yield node, steps
        for slot in self._followed(node):
            item = node.inputs[slot]
            assert item is not None
            yield from self.up(item, (Step(node, slot), *steps))

    def _followed(self, node: ir.Node) -> list[int]:
        if node.op_type in _MIXERS:
            slot = mixing_slot(node)
            return [] if slot is None or not self._has_pairs(node, slot) else [slot]
        if node.op_type == "Transpose" and not self._has_pairs(node, 0):
            return []
        if node.op_type in RELAYOUTS:
            return [0] if node.inputs[0] is not None else []
        if node.op_type not in self.allowed:
            return []
        first = 1 if node.op_type == "Where" else 0
        return [i for i, item in enumerate(node.inputs) if i >= first and item is not None]

    def _has_pairs(self, node: ir.Node, slot: int) -> bool:
        """Tell whether queries and keys are both there: hidden states have tokens only once."""
        exprs = self.axes.raw(node, slot)
        return exprs is not None and holds_pairs(self.axes.at(node, slot), self.pairs)


def pairs_of(exprs: tuple[Expr, ...]) -> Pairs:
    """Return what the last two axes, queries and keys, are made of."""
    return Counter(factor for expr in exprs[-2:] for factor in expr)


def holds_pairs(exprs: tuple[Expr, ...], pairs: Pairs) -> bool:
    """Tell whether axes have all of that, as often."""
    found = Counter(factor for expr in exprs for factor in expr)
    return all(found[factor] >= n for factor, n in pairs.items())


def mixing_slot(node: ir.Node) -> int | None:
    """Return the input that a node multiplies by a constant, None where it does not."""
    inputs = node.inputs[:2]
    if node.domain or node.op_type not in _MIXERS or len(inputs) != 2:
        return None
    constant = [value is None or constant_tensor(value) is not None for value in inputs]
    if sum(constant) != 1 or (node.op_type in {"Conv", "Gemm"} and constant[0]):
        return None
    return constant.index(False)


# --- axes along the way -------------------------------------------------------------------


def traced(start: ir.Value, layout: Layout, steps: tuple[Step, ...], axes: AxisMap) -> Way | None:
    """Follow the axes of ``start`` through the steps; None where they cannot be told apart."""
    exprs = axes_of(axes, start)
    if exprs is None or len(exprs) != len(layout):
        return None
    here = _Axes(dict(zip(layout, exprs, strict=True)), layout)
    found: list[Step] = []
    for step in steps:
        after = axes_of(axes, step.node.outputs[0])
        seen = axes.raw(step.node, step.slot)
        if after is None or seen is None or len(seen) != len(here.layout):
            return None
        found.append(step._replace(layout=here.layout))
        moved = here.behind(step, after)
        if moved is None:
            return None
        here = moved
    return Way(tuple(found), here.layout)


class _Axes(NamedTuple):
    """Where the letters stand, and the axis that each of them is."""

    known: dict[str, Expr]
    layout: Layout

    def behind(self, step: Step, after: tuple[Expr, ...]) -> _Axes | None:
        """Return the same behind a step, whose result has the axes ``after``."""
        node = step.node
        if step.mixes_heads:
            layout = mixed_layout(step._replace(layout=self.layout))
            if layout is None:
                return None
            return _Axes({**self.known, "h": after[layout.index("h")]}, layout)
        if node.op_type == "Transpose":
            perm = node.attributes.get_ints("perm", tuple(reversed(range(len(self.layout)))))
            return self._replace(layout=tuple(self.layout[axis] for axis in perm))
        if node.op_type in RELAYOUTS:
            return self._regrouped(after)
        is_elementwise = node.op_type in _ELEMENTWISE and len(after) == len(self.layout)
        return self if is_elementwise else None

    def _regrouped(self, after: tuple[Expr, ...]) -> _Axes | None:
        """The same axes in the same order, some of them made one or taken apart."""
        known, rest, layout = dict(self.known), list(self._letters()), []
        for expr in after:
            taken, left = "", expr
            if not left and rest and (rest[0] == "bh" or not known[rest[0]]):
                taken = _first(rest, known)
            while left:
                if not rest:
                    return None
                letter = rest.pop(0)
                whole = known[letter]
                if left[: len(whole)] == whole:
                    taken, left = taken + letter, left[len(whole) :]
                elif letter == "bh" and whole[: len(left)] == left:
                    known |= {"b": left, "h": whole[len(left) :]}
                    rest.insert(0, "h")
                    taken, left = f"{taken}b", ()
                else:
                    return None
            layout.append(taken)
        return None if rest else _Axes(known, tuple(layout))

    def _letters(self) -> Iterator[str]:
        """Yield what stands in the axes, one by one as far as that is known."""
        for group in self.layout:
            if group == "bh" and "h" not in self.known:
                yield group
            else:
                yield from group


def _first(rest: list[str], known: dict[str, Expr]) -> str:
    """Take what an axis of size 1 is: the next letter, or the batch off batch and heads."""
    letter = rest.pop(0)
    if letter != "bh":
        return letter
    known |= {"b": (), "h": known["bh"]}
    rest.insert(0, "h")
    return "b"


def mixed_layout(step: Step) -> Layout | None:
    """Return the layout behind a step that mixes heads, None where it mixes something else."""
    node, slot, layout = step
    weight = node.inputs[1 - slot]
    shape = None if weight is None or weight.shape is None else [*weight.shape]
    if shape is None or "h" not in layout:
        return None
    match node.op_type:
        case "MatMul":
            is_matrix = len(shape) >= 2 and all(size == 1 for size in shape[:-2])
            return layout if is_matrix and layout[-1 - slot] == "h" else None
        case "Gemm":
            is_plain = not node.attributes.get_int("transA", 0) and layout[-1] == "h"
            return layout if is_plain else None
        case "Conv":
            return layout if layout[1] == "h" and _is_pointwise(node, shape[2:]) else None
        case _:
            return _einsum_layout(node, slot, layout)


def _is_pointwise(node: ir.Node, kernel: list[object]) -> bool:
    attributes = node.attributes
    return (
        all(extent == 1 for extent in kernel)
        and attributes.get_int("group", 1) == 1
        and set(attributes.get_ints("strides", (1,))) == {1}
        and not any(attributes.get_ints("pads", (0,)))
    )


def _einsum_layout(node: ir.Node, slot: int, layout: Layout) -> Layout | None:
    """``bhnm,hg->bgnm``, in any order of the letters."""
    left, arrow, result = (
        node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    )
    operands = left.split(",")
    if not arrow or "." in left or len(operands) != 2 or len(operands[slot]) != len(layout):
        return None
    data, weight = operands[slot], operands[1 - slot]
    summed, made = set(data) - set(result), set(result) - set(data)
    if len(weight) != 2 or set(weight) != summed | made or len(summed) != 1 or len(made) != 1:
        return None
    named = dict(zip(data, layout, strict=True))
    if named[summed.pop()] != "h" or len(set(result)) != len(result):
        return None
    return tuple(named.get(letter, "h") for letter in result)


# --- rows of it ---------------------------------------------------------------------------


def replays(steps: tuple[Step, ...], axes: AxisMap) -> bool:
    """Tell whether the steps work on some rows of the scores as on all of them."""
    return all(step.layout and _replays(step, axes) for step in steps)


def _replays(step: Step, axes: AxisMap) -> bool:
    node, layout = step.node, step.layout
    if node.op_type in RELAYOUTS or layout == APART:
        return True
    if step.mixes_heads:
        is_last = node.op_type in {"MatMul", "Gemm"} and step.slot == 0
        return is_last or all(len(group) == 1 for group in layout)
    others = [
        axes.at(node, slot)
        for slot, item in enumerate(node.inputs)
        if item is not None and slot != step.slot and axes.knows(node, slot)
    ]
    if layout == JOINED:
        return True
    # elsewhere only what is the same for all queries and needs no axis taken apart
    return all(
        not expr or group == "h"
        for exprs in others
        for expr, group in zip(reversed(exprs), reversed(layout), strict=False)
    )


def axes_of(axes: AxisMap, value: ir.Value) -> tuple[Expr, ...] | None:
    """Return the axes of a value, None where its rank is unknown."""
    try:
        return axes.of(value)
    except KeyError:
        return None


__all__ = [
    "APART",
    "JOINED",
    "RELAYOUTS",
    "Layout",
    "Step",
    "Way",
    "axes_of",
    "holds_pairs",
    "mixed_layout",
    "mixing_slot",
    "pairs_of",
    "replays",
    "traced",
    "ways_up",
]
