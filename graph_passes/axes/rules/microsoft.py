"""Attention, embeddings and rotations as ONNX Runtime's transformer optimiser fuses them."""

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
    Fresh,
    Frozen,
    Port,
    Relation,
    Same,
    carried,
)
from secateur.graph_passes.axes.sizes import static
from secateur.graph_passes.axes.view import View

_INSIDE = "head width inside a 3-D attention input"
_PARTS = "queries, keys and values are three parts"
_NUMBERED = "its positions are counted from 0"
_COUNTED = "the padding mask counts the tokens"
_PAIRED = "pairs of positions are rotated together"
_CAUSAL = "a causal mask compares positions"
_CACHED = "it goes on from the positions in the cache"
_READ = "it is read at computed positions"


@AXIS_RULES.register("com.microsoft:Attention")
def packed_attention(view: View) -> Iterator[Relation]:
    """X (B, N, D), W (D, 3*H*Dh), bias (3*H*Dh), mask (B, N) -> (B, N, H*Dh): whole heads go.

    Frozen with a past, with an added bias, with parts of different width and with rotation.
    """
    node = view.node
    other = ("qkv_hidden_sizes", "do_rotary")
    if view.rank(0) != 3 or view.rank(1) != 2 or any(view.has(slot) for slot in (4, 5, 6)):
        return
    if len(node.outputs) > 1 or any(name in node.attributes for name in other):
        return
    yield carried(0)
    yield carried(1)
    yield Fold((Port(0, 1),), neutral=None)
    yield Fold((Port(0, 2), Port(1, 0)), neutral=0.0)
    ports = (Port(1, 1), Port(2, 0)) if view.has(2) else (Port(1, 1),)
    yield Blocks(ports, 3, ((Port(OUT, 2),),) * len(ports), fixed_blocks=_PARTS)
    yield Blocks((Port(OUT, 2),), view.integer("num_heads", 1), ((),), fixed=_INSIDE)
    yield from _padding(view, 3)


def _padding(view: View, slot: int) -> Iterator[Relation]:
    """(B, N) goes along; lengths and other forms count the tokens, which then stay."""
    if not view.has(slot):
        return
    if view.rank(slot) == 2:
        yield Same((Port(0, 0), Port(slot, 0)))
        yield Same((Port(0, 1), Port(slot, 1)))
        return
    yield Frozen(Port(0, 0), _COUNTED)
    yield Frozen(Port(0, 1), _COUNTED)


@REWRITES.register("com.microsoft:Attention")
def packed_heads(node: ir.Node, axes: AxisMap, keep: Keep) -> None:
    """Spell the number of heads again."""
    merged = axes.at(node, OUT)[2]
    width = static(size(merged)) // node.attributes.get_int("num_heads", 1)
    node.attributes["num_heads"] = ir.AttrInt64("num_heads", len(indices(merged, keep)) // width)


@AXIS_RULES.register("com.microsoft:GroupQueryAttention")
def grouped_attention(view: View) -> Iterator[Relation]:
    """Q (B, N, G*r*Dh), K, V (B, N, G*Dh), past (B, G, P, Dh) -> (B, N, G*r*Dh), present.

    Whole groups of query heads go with their key and value head. Frozen where queries, keys
    and values come packed in one input.
    """
    if any(view.rank(slot) != 3 for slot in (0, 1, 2)) or len(view.node.outputs) != 3:
        return
    groups = view.integer("kv_num_heads", 1)
    merged = (Port(0, 2), Port(1, 2), Port(2, 2), Port(OUT, 2))
    past = [slot for slot in (3, 4) if view.rank(slot) == 4]
    outer = (*(Port(slot, 1) for slot in past), Port(~1, 1), Port(~2, 1))
    yield Blocks(merged[:3], groups, ((), (), ()), outer, fixed=_INSIDE)
    yield carried(2)
    present = (Port(~1, 0), Port(~2, 0))
    ports = (*(Port(slot, 0) for slot in (0, 1, 2, *past)), Port(OUT, 0), *present)
    yield Same(ports)
    yield carried(1)
    yield from (Frozen(Port(slot, 1), _CAUSAL) for slot in (0, 1, 2))
    for slot in (*past, ~1, ~2):
        for axis in (2, 3):
            if slot < 0:
                yield Fresh(Port(slot, axis), None if axis == 2 else _width(view, groups))
            yield Frozen(Port(slot, axis), _CACHED if axis == 2 else _INSIDE)
    if view.has(5):
        yield Same((Port(0, 0), Port(5, 0)))
    for slot in (7, 8):
        if view.has(slot):
            yield Frozen(Port(slot, 0), _READ)
            yield Frozen(Port(slot, 1), _PAIRED)


def _width(view: View, groups: int) -> int | None:
    keys = view.shape(1)
    return keys[2] // groups if keys is not None and isinstance(keys[2], int) else None


@REWRITES.register("com.microsoft:GroupQueryAttention")
def grouped_heads(node: ir.Node, axes: AxisMap, keep: Keep) -> None:
    """Spell the numbers of query heads and of groups again."""
    for name, slot in (("num_heads", 0), ("kv_num_heads", 1)):
        merged = axes.at(node, slot)[2]
        width = static(size(merged)) // node.attributes.get_int(name, 1)
        node.attributes[name] = ir.AttrInt64(name, len(indices(merged, keep)) // width)


@AXIS_RULES.register("com.microsoft:RotaryEmbedding")
def rotary_embedding(view: View) -> Iterator[Relation]:
    """X (B, H, N, Dh) or (B, N, H*Dh), positions (B, N) or (1), tables (P, Dh/2) -> X rotated."""
    rank, positions = view.rank(0), view.shape(1)
    if rank not in (3, 4) or positions is None:
        return
    for axis in range(rank):
        yield carried(axis)
    heads = view.integer("num_heads", 0)
    if rank == 3 and heads:
        yield Blocks((Port(0, 2),), heads, ((),), fixed=_PAIRED)
    else:
        yield Frozen(Port(0, rank - 1), _PAIRED)
    if len(positions) == 2:
        yield Same((Port(0, 0), Port(1, 0)))
        yield Same((Port(0, rank - 2), Port(1, 1)))
    else:
        yield Frozen(Port(0, rank - 2), "its positions are counted from an offset")
    for slot in (2, 3):
        yield Frozen(Port(slot, 0), _READ)
        yield Frozen(Port(slot, 1), _PAIRED)


@REWRITES.register("com.microsoft:RotaryEmbedding")
def rotated_heads(node: ir.Node, axes: AxisMap, keep: Keep) -> None:
    """Spell the number of heads again where the input is 3-D and the number is given."""
    heads = node.attributes.get_int("num_heads", 0)
    if heads and len(axes.at(node, 0)) == 3:
        packed = axes.at(node, 0)[2]
        width = static(size(packed)) // heads
        node.attributes["num_heads"] = ir.AttrInt64(
            "num_heads", len(indices(packed, keep)) // width
        )


@AXIS_RULES.register("com.microsoft:EmbedLayerNormalization")
def embed_layer_norm(view: View) -> Iterator[Relation]:
    """Ids, segments (B, N), tables (rows, D), scale, bias (D), mask (B, N) -> (B, N, D), (B)."""
    if view.rank(0) != 2:
        return
    ids = [slot for slot in (0, 1, 7, 8) if view.rank(slot) == 2]
    yield Same((*(Port(slot, 0) for slot in ids), Port(OUT, 0)))
    yield Same((*(Port(slot, 1) for slot in ids), Port(OUT, 1)))
    if 8 not in ids:
        yield Frozen(Port(0, 1), _NUMBERED)
    elif view.rank(7) is not None:
        yield Frozen(Port(0, 1), _COUNTED)
    tables = [slot for slot in (2, 3, 4) if view.rank(slot) == 2]
    yield from (Frozen(Port(slot, 0), _READ) for slot in tables)
    wide = (*(Port(slot, 1) for slot in tables), *(Port(slot, 0) for slot in (5, 6)))
    yield Fold(wide, neutral=None)
    outputs = [Port(~i, 2) for i in (0, 2) if i < len(view.node.outputs)]
    yield Same((*wide, *outputs))
    if len(outputs) > 1:
        yield Same((Port(OUT, 0), Port(~2, 0)))
        yield Same((Port(OUT, 1), Port(~2, 1)))
    if len(view.node.outputs) > 1:
        yield Same((Port(0, 0), Port(~1, 0)))
