"""The two products of attention, read letter by letter: q k^T, and probabilities by values.

A MatMul is read as the Einsum that it is. Axes are called b (batch), h (heads), n (tokens),
d (width of a head); g is batch and heads made one axis, ``b * h``.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from secateur.graph_passes.attention_steps import (
    APART,
    JOINED,
    RELAYOUTS,
    Layout,
    Pairs,
    Step,
    Way,
    axes_of,
    holds_pairs,
    mixing_slot,
    pairs_of,
    traced,
    ways_up,
)
from secateur.graph_passes.axes import AxisMap, Expr
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.selection.flow import readers

_STEPS = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Tanh", "Max", "Min"})
"""What may stand between the scores q k^T and their softmax, besides moves and mixed heads."""

_WEIGHT_STEPS = frozenset({"Cast", "Identity", "Dropout", "Where", "IsNaN", "Mul"})
"""What may stand between the softmax and its product with the values, besides the same."""

_RELAYOUT = frozenset({"Transpose", "Reshape", "Cast", "Identity"})
"""What may stand between the keys and their product with the queries, besides scales."""

_MERGED = ("gnd", "gdn", "ngd")
_BY_RANK = {3: "gnm", 4: "bhnm"}


class ScoreProduct(NamedTuple):
    """q k^T of an attention that is written out.

    Attributes:
        node: A MatMul, or an Einsum of two operands.
        query_slot: Its input that holds the queries.
        key_slot: Its input that holds the keys.
        query_layout: Order of the query's axes, such as ``bhnd`` or ``gnd``.
        key_layout: Order of the key's axes, such as ``bhdn`` or ``gdn``.
    """

    node: ir.Node
    query_slot: int
    key_slot: int
    query_layout: str
    key_layout: str

    @property
    def query(self) -> ir.Value:
        """The queries as the graph has them now."""
        value = self.node.inputs[self.query_slot]
        assert value is not None
        return value

    @property
    def key(self) -> ir.Value:
        """The keys as the graph has them now."""
        value = self.node.inputs[self.key_slot]
        assert value is not None
        return value


class ValueProduct(NamedTuple):
    """Weights by values; ``value_layout`` is the order of the value's axes.

    ``weights`` are the softmax's result or, where ``mixing`` has steps, that with heads mixed.
    """

    node: ir.Node
    value: ir.Value
    value_layout: str
    weights: ir.Value
    mixing: tuple[Step, ...] = ()


class Scores(NamedTuple):
    """What is normalised by a softmax: q k^T, and the nodes behind it, first to last."""

    product: ScoreProduct
    steps: tuple[Step, ...]


# --- q k^T ------------------------------------------------------------------------------


def find_scores(logits: ir.Value, axes: AxisMap) -> Scores | None:
    """Walk up from the input of a softmax over keys to the product of queries and keys."""
    for node, steps in ways_up(logits, _STEPS, axes):
        product = _score_product(node, axes)
        if product is None:
            continue
        way = _way(node.outputs[0], steps, axes)
        if way is not None:
            return Scores(product, way.steps)
        if not _moves(steps) or (not _turns(steps) and _is_same(node, logits, axes)):
            return Scores(product, steps)
    return None


def _way(
    start: ir.Value, steps: tuple[Step, ...], axes: AxisMap, layout: Layout = ()
) -> Way | None:
    """The steps with their axes, where scores end up as scores: queries by keys, for each head."""
    exprs = axes_of(axes, start) or ()
    way = traced(start, layout or (APART if len(exprs) == 4 else JOINED), steps, axes)
    return way if way is not None and way.end in (APART, JOINED) else None


def _moves(steps: tuple[Step, ...]) -> bool:
    return any(step.node.op_type in RELAYOUTS or step.mixes_heads for step in steps)


def _turns(steps: tuple[Step, ...]) -> bool:
    return any(step.node.op_type == "Transpose" or step.mixes_heads for step in steps)


def _is_same(product: ir.Node, logits: ir.Value, axes: AxisMap) -> bool:
    """Tell whether the softmax sees the product's own elements, in their order."""
    made, seen = axes_of(axes, product.outputs[0]), axes_of(axes, logits)
    return made is not None and seen is not None and merged(made) == merged(seen)


def _score_product(node: ir.Node, axes: AxisMap) -> ScoreProduct | None:
    """Read q k^T off a product of two activations, (B, H, N, N) or (B*H, N, N)."""
    written = _letters(node, axes)
    if written is None or len(written[0]) != 2 or any(map(_is_weight, node.inputs)):
        return None
    operands, result = written
    layout = _BY_RANK.get(len(result))
    if layout is None or len(set(result)) != len(result):
        return None
    keys = [slot for slot in (0, 1) if result[-1] in operands[slot]]
    summed = set(operands[0]) & set(operands[1]) - set(result)
    if len(keys) != 1 or len(summed) != 1 or result[-2] not in operands[1 - keys[0]]:
        return None
    named = dict(zip(result, layout, strict=True)) | dict.fromkeys(summed, "d")
    query, key = ("".join(named.get(c, "?") for c in operands[s]) for s in (1 - keys[0], keys[0]))
    key = key.replace("m", "n")
    if {*query} != {*key} or len(query) != len(layout) or len(key) != len(layout) or "?" in query:
        return None
    return ScoreProduct(node, 1 - keys[0], keys[0], query, key)


def _is_weight(value: ir.Value | None) -> bool:
    return value is None or constant_tensor(value) is not None


def _letters(node: ir.Node, axes: AxisMap) -> tuple[list[str], str] | None:
    """Return the letters of the operands and of the result of a product."""
    if node.op_type == "MatMul":
        ranks = [len(axes.raw(node, slot) or ()) for slot in (0, 1)]
        same = {3: (["gik", "gkj"], "gij"), 4: (["bhik", "bhkj"], "bhij")}
        return same.get(ranks[0]) if ranks[0] == ranks[1] else None
    if node.op_type != "Einsum":
        return None
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    operands = left.split(",")
    ranks = [len(axes.raw(node, slot) or ()) for slot in range(len(operands))]
    is_plain = arrow and "." not in equation and ranks == [*map(len, operands)]
    return (operands, right) if is_plain else None


# --- probabilities by values ------------------------------------------------------------


def find_values(softmax: ir.Node, axes: AxisMap) -> ValueProduct | None:
    """Walk down from a softmax over keys to its product with the values."""
    weights = softmax.outputs[0]
    pairs = pairs_of(axes_of(axes, weights) or ())
    found = _values_below(weights, axes, pairs)
    if found is None:
        return None
    allowed = _WEIGHT_STEPS | {"Add"}
    for node, steps in ways_up(found.weights, allowed, axes):
        if node is softmax and not _turns(steps):
            return found._replace(weights=weights)
        way = _way(weights, steps, axes) if node is softmax else None
        if way is not None:
            return found._replace(mixing=way.steps)
    return None


def _values_below(weights: ir.Value, axes: AxisMap, pairs: Pairs) -> ValueProduct | None:
    for node, slot in readers(weights):
        if node.domain:
            continue
        found = _value_product(node, slot, axes)
        if found is None and _goes_on(node, slot, axes, pairs):
            found = _values_below(node.outputs[0], axes, pairs)
        if found is not None:
            return found
    return None


def _goes_on(node: ir.Node, slot: int, axes: AxisMap, pairs: Pairs) -> bool:
    """Tell whether a node hands the weights on: what it makes has queries and keys too."""
    if node.op_type in _WEIGHT_STEPS or node.op_type in RELAYOUTS - {"Transpose"}:
        return True
    is_bias = node.op_type == "Add" and _is_weight(node.inputs[1 - slot])
    is_step = is_bias or node.op_type == "Transpose" or mixing_slot(node) == slot
    made = axes_of(axes, node.outputs[0])
    return is_step and made is not None and holds_pairs(made, pairs)


def _value_product(node: ir.Node, slot: int, axes: AxisMap) -> ValueProduct | None:
    """Read the values off a product that sums over the last axis of its input ``slot``."""
    written = _letters(node, axes)
    if written is None or slot >= len(written[0]):
        return None
    operands, result = written
    weights = operands[slot]
    leading = {3: "g", 4: "bh"}.get(len(weights))
    if leading is None or weights[-1] in result:
        return None
    named = dict(zip(weights, f"{leading}?n", strict=True))  # values have no axis of queries
    for other, letters in enumerate(operands):
        value = node.inputs[other]
        if other == slot or _is_weight(value) or weights[-1] not in letters:
            continue
        found = "".join(named.get(letter, "d") for letter in letters)
        if sorted(found) == sorted(f"{leading}nd"):
            source = node.inputs[slot]
            assert value is not None
            assert source is not None
            return ValueProduct(node, value, found, source)
    return None


# --- keys as the projection made them ----------------------------------------------------


def raw_key(right: ir.Value, layout: str, axes: AxisMap) -> tuple[ir.Value, str]:
    """Follow k^T up to the keys as they were before transpositions and scales."""
    wanted = dict(zip(layout, axes.of(right), strict=True))
    found, here, is_fresh = (right, layout), right, False
    while (node := here.producer()) is not None and not node.domain:
        if node.op_type in {"Mul", "Div"}:
            step, is_fresh = _scaling_input(node, axes), True
        else:
            step = node.inputs[0] if node.op_type in _RELAYOUT else None
        if step is None:
            break
        here = step
        seen = _layout_of(axes_of(axes, here) or (), wanted)
        is_better = len(seen) == 4 and (seen == "bhnd" or found[1] in {"bhdn", *_MERGED})
        if seen and (is_fresh or is_better):
            found, is_fresh = (here, seen), False
    return found


def _layout_of(exprs: tuple[Expr, ...], wanted: dict[str, Expr]) -> str:
    """Return the layout in which the axes are those of the keys, "" for none."""
    if len(exprs) == 3 and "g" in wanted:
        joined = (dict(zip(layout, exprs, strict=True)) for layout in _MERGED)
        return next(("".join(here) for here in joined if here == wanted), "")
    if len(exprs) != 4:
        return ""
    for layout in ("bnhd", "bhdn", "bhnd"):
        here = dict(zip(layout, exprs, strict=True))
        both = wanted["g"] if "g" in wanted else merged((wanted["b"], wanted["h"]))
        is_same = merged((here["b"], here["h"])) == both
        if is_same and all(here[c] == wanted[c] for c in "nd"):
            return layout
    return ""


def _scaling_input(node: ir.Node, axes: AxisMap) -> ir.Value | None:
    """Return the tensor operand of a product with one number, None for other products."""
    tensors = [
        item
        for slot, item in enumerate(node.inputs)
        if item is not None and any(axes.raw(node, slot) or ())
    ]
    return tensors[0] if len(tensors) == 1 else None


# --- helpers ----------------------------------------------------------------------------


def merged(exprs: tuple[Expr, ...]) -> Expr:
    """Return several axes as one, row by row."""
    return tuple(factor for expr in exprs for factor in expr)


__all__ = [
    "ScoreProduct",
    "Scores",
    "ValueProduct",
    "find_scores",
    "find_values",
    "merged",
    "raw_key",
]
