"""Attention as one op: ai.onnx Attention, com.microsoft MultiHeadAttention, RotaryEmbedding."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from secateur.graph_passes.axes.axis_map import AxisMap
from secateur.graph_passes.axes.expression import Keep, indices, size
from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    OUT,
    REWRITES,
    Blocks,
    Fold,
    Frozen,
    Port,
    Relation,
    Same,
    carried,
)
from secateur.graph_passes.axes.sizes import static
from secateur.graph_passes.axes.view import View

_PAIRED = "pairs of positions are rotated together"
_SCALED = "the scale is computed from the head width"
_PACKED = "head width inside a 3-D attention input"
_COUNTED = "the padding mask counts the tokens"
_CAUSAL = "a causal mask compares positions"


@AXIS_RULES.register("Attention")
def attention(view: View) -> Iterator[Relation]:
    """Q (B, H, N, Dh), K (B, G, M, Dh), V (B, G, M, Dv), mask -> (B, H, N, Dv).

    H = G * repetitions. Also 3-D: (B, N, H*Dh). Past, present and score outputs freeze,
    and with ``is_causal`` tokens that are not as many as the keys.
    """
    rank = view.rank(0)
    if rank not in (3, 4) or view.has(4) or len(view.node.outputs) > 1:
        return
    yield Same((Port(0, 0), Port(1, 0), Port(2, 0), Port(OUT, 0)))
    if rank == 4:
        yield from _heads_apart(view)
    else:
        yield from _heads_packed(view)
    tokens = rank - 2
    yield from _tokens(view, tokens, causal=bool(view.integer("is_causal", 0)))
    yield from _mask(view, 3, rank, tokens)


def _tokens(view: View, axis: int, *, causal: bool) -> Iterator[Relation]:
    """Queries are carried, keys fold; a causal mask counts both from the same start."""
    queries, keys = view.shape(0), view.shape(1)
    folded: tuple[Port, ...] = (Port(1, axis), Port(2, axis))
    if causal and queries is not None and keys is not None and queries[axis] == keys[axis]:
        folded = (Port(0, axis), *folded)
    elif causal:
        yield from (Frozen(Port(slot, axis), _CAUSAL) for slot in (0, 1))
    yield carried(axis)
    yield Fold(folded, neutral=None)


def _heads_apart(view: View) -> Iterator[Relation]:
    queries, keys = view.shape(0), view.shape(1)
    if queries is None or keys is None:
        return
    yield carried(1)
    if queries[1] == keys[1]:
        yield Same((Port(0, 1), Port(1, 1), Port(2, 1)))
    else:
        yield Blocks((Port(0, 1),), keys[1], ((),), (Port(1, 1), Port(2, 1)))
    yield Fold((Port(0, 3), Port(1, 3)), neutral=0.0)
    if view.node.attributes.get("scale") is None:
        yield Frozen(Port(0, 3), _SCALED)
    yield Same((Port(2, 3), Port(OUT, 3)))


def _heads_packed(view: View) -> Iterator[Relation]:
    n_heads = view.integer("q_num_heads", view.integer("num_heads", 1))
    n_groups = view.integer("kv_num_heads", n_heads)
    ports: tuple[Port, ...] = (Port(0, 2), Port(1, 2), Port(2, 2))
    if n_heads == n_groups:
        yield Blocks(ports, n_groups, ((), (), ()), fixed=_PACKED)
        yield Same((Port(2, 2), Port(OUT, 2)))
    elif view.shape(OUT) is not None:  # else nothing says how wide a group is in the output
        yield Blocks((*ports, Port(OUT, 2)), n_groups, ((), (), (), ()), fixed=_PACKED)


def _mask(view: View, slot: int, rank: int, tokens: int) -> Iterator[Relation]:
    """(B or 1, H or 1, N, M), leading axes optional."""
    shape = view.shape(slot)
    if shape is None:
        return
    last = len(shape) - 1
    targets = {last: Port(1, tokens), last - 1: Port(0, tokens), last - 3: Port(0, 0)}
    if rank == 4:
        targets[last - 2] = Port(0, 1)
    for axis, length in enumerate(shape):
        if length == 1:
            continue
        if axis in targets:
            yield Same((Port(slot, axis), targets[axis]))
        else:
            yield Frozen(Port(slot, axis), "heads of the mask of a 3-D attention input")
            yield Frozen(Port(0, rank - 1), "the mask has an axis of its heads")


@AXIS_RULES.register("com.microsoft:MultiHeadAttention")
def multi_head_attention(view: View) -> Iterator[Relation]:
    """Q (B, N, H*Dh), K (B, M, H*Dh), V (B, M, H*Dv), ..., bias (B, H, N, M) -> (B, N, H*Dv).

    Of the forms of the padding mask (input 4) only (B, M) is carried.
    """
    if any(view.rank(slot) != 3 for slot in (0, 1, 2)) or any(view.has(s) for s in (6, 7)):
        return
    if len(view.node.outputs) > 1:
        return
    yield Same((Port(0, 0), Port(1, 0), Port(2, 0), Port(OUT, 0)))
    yield from _heads_packed(view)
    if view.has(3):
        yield Frozen(Port(0, 2), "queries, keys and values share one bias")
    yield from _tokens(view, 1, causal=bool(view.integer("unidirectional", 0)))
    if view.rank(4) == 2:
        yield Same((Port(0, 0), Port(4, 0)))
        yield Same((Port(1, 1), Port(4, 1)))
    elif view.has(4):
        yield from (Frozen(Port(slot, axis), _COUNTED) for slot in (0, 1) for axis in (0, 1))
    yield from _mask(view, 5, 3, 1)


@REWRITES.register("Attention", "com.microsoft:MultiHeadAttention", "RotaryEmbedding")
def head_counts(node: ir.Node, axes: AxisMap, keep: Keep) -> None:
    """Spell the number of heads again where the inputs are 3-D."""
    exprs = axes.at(node, 0)
    if len(exprs) != 3:
        return
    for name, slot in (("num_heads", 0), ("q_num_heads", 0), ("kv_num_heads", 1)):
        if name not in node.attributes:
            continue
        heads = node.attributes.get_int(name, 1)
        packed = axes.at(node, slot)[2]
        if not heads:  # the default of a rotation of four axes
            continue
        width = static(size(packed)) // heads
        node.attributes[name] = ir.AttrInt64(name, len(indices(packed, keep)) // width)


@AXIS_RULES.register("RotaryEmbedding")
def rotary_embedding(view: View) -> Iterator[Relation]:
    """X (B, H, N, Dh) or (B, N, H*Dh), cos, sin (B, N, Dh/2) -> X rotated: halves are paired.

    With positions (B, N) the tables are (positions, Dh/2) and stay frozen.
    """
    rank = view.rank(0)
    if rank not in (3, 4):
        return
    for axis in range(rank):
        yield carried(axis)
    if rank == 4:
        yield Frozen(Port(0, 3), _PAIRED)
    elif heads := view.integer("num_heads", 0):
        yield Blocks((Port(0, 2),), heads, ((),), fixed=_PAIRED)
    else:
        yield Frozen(Port(0, 2), _PAIRED)
    for slot in (3,) if view.has(3) else (1, 2):
        yield Same((Port(0, 0), Port(slot, 0)))
        yield Same((Port(0, rank - 2), Port(slot, 1)))
