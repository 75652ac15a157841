"""Where a graph attends: attention blocks found by structure, in any of the usual forms.

A block is the decomposed ``MatMul -> ... -> Softmax -> ... -> MatMul``, of which each product
may be an Einsum and batch and heads may be one axis, the ``Attention`` op (opset 23 and later)
or com.microsoft's ``MultiHeadAttention``.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.attention_absent import sums_over_tokens
from secateur.graph_passes.attention_products import (
    ScoreProduct,
    find_scores,
    find_values,
    raw_key,
)
from secateur.graph_passes.attention_steps import axes_of, replays
from secateur.graph_passes.axes import AxisMap, Expr, analyse_axes, size
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.names import layer_of, module_path
from secateur.graph_passes.selection.flow import ancestors, bottlenecks, descendants, readers
from secateur.graph_passes.sites import Attention, Layout, Site

_NORMALISATIONS = frozenset(
    {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
)
_FUSED = frozenset({("", "Attention"), ("com.microsoft", "MultiHeadAttention")})


def find_sites(model: ir.Model, axes: AxisMap | None = None) -> tuple[Site, ...]:
    """Find the attention blocks of a graph, in graph order.

    Args:
        model: Functions inlined.
        axes: The model's axis analysis, made here when not given.

    Raises:
        BadInputError: the graph has no attention block.
        PreconditionError: its attention makes no scores of tokens.
    """
    known = axes if axes is not None else analyse_axes(model)
    order = list(model.graph)
    found = attention_sites(model, known)
    if not found:
        raise sums_over_tokens(order, known) or BadInputError(
            "the model has no attention block to select tokens at",
            got=_op_summary(order),
            wanted="MatMul -> Softmax -> MatMul, or an Attention node",
            next_step="name the module behind which tokens leave, remove channels instead, or "
            "check that the right model was exported",
        )
    return found


def attention_sites(model: ir.Model, axes: AxisMap) -> tuple[Site, ...]:
    """Find the attention blocks of a graph, () where there are none; see ``find_sites``."""
    order = list(model.graph)
    found = [one for node in order if (one := _attention(node, axes)) is not None]
    return _with_names(_with_cuts(found, order, axes))


# --- one block ---------------------------------------------------------------------------


def _attention(node: ir.Node, axes: AxisMap) -> Attention | None:
    if (node.domain, node.op_type) in _FUSED:
        return _fused(node, axes)
    if node.op_type == "Softmax" and not node.domain:
        return _decomposed(node, axes)
    return None


def _decomposed(softmax: ir.Node, axes: AxisMap) -> Attention | None:
    logits = softmax.inputs[0]
    if logits is None or not _is_last_axis(softmax, axes):
        return None
    scores = find_scores(logits, axes)
    values = None if scores is None else find_values(softmax, axes)
    if scores is None or values is None or _is_pooling(scores.product, axes):
        return None
    product = scores.product
    key, layout = raw_key(product.key, product.key_layout, axes)
    sizes = _sizes(product.query, product.query_layout, axes)
    key_sizes = _sizes(product.key, product.key_layout, axes)
    heads = sizes.get("h") or _sizes(key, layout, axes).get("h") or _heads_beside(product, axes)
    if not heads:
        return None  # batch and heads cannot be told apart
    return Attention(
        node=softmax,
        query=product.query,
        key=key,
        value=values.value,
        product=product,
        steps=scores.steps,
        replays=replays(scores.steps + values.mixing, axes),
        weights=values.weights,
        mixing=values.mixing,
        mask=None,
        output=values.node.outputs[0],
        heads=heads,
        key_heads=key_sizes.get("h", heads),
        head_dim=sizes["d"],
        scale=1.0,
        layout=product.query_layout,
        key_layout=layout,
        value_layout=values.value_layout,
    )


def _sizes(value: ir.Value, layout: Layout, axes: AxisMap) -> dict[str, int]:
    return {letter: _int(expr) for letter, expr in zip(layout, axes.of(value), strict=True)}


def _is_pooling(product: ScoreProduct, axes: AxisMap) -> bool:
    """Tell whether one learned query pools the tokens, so that no token follows."""
    query = product.query
    if axes.of(query)[product.query_layout.index("n")] or query.is_graph_input():
        return False
    nodes = ancestors(query)
    return not any(
        item is not None and item.is_graph_input() for node in nodes for item in node.inputs
    )


def _heads_beside(product: ScoreProduct, axes: AxisMap) -> int:
    """Return how many heads stand in one axis with the batch of a graph input, 0 for unknown."""
    graph = product.node.graph
    both = axes.of(product.query)[product.query_layout.index("g")]
    for value in () if graph is None else graph.inputs:
        exprs = axes_of(axes, value)
        if exprs and both[: len(exprs[0])] == exprs[0]:
            return _int(both[len(exprs[0]) :])
    return 0


def _is_last_axis(softmax: ir.Node, axes: AxisMap) -> bool:
    exprs = axes.raw(softmax, 0)
    axis = softmax.attributes.get_int("axis", -1)
    return axis == -1 or (exprs is not None and axis == len(exprs) - 1)


def _fused(node: ir.Node, axes: AxisMap) -> Attention | None:
    query, key, value = node.inputs[0], node.inputs[1], node.inputs[2]
    if query is None or key is None or value is None:
        return None
    exprs = axes_of(axes, query)
    key_exprs = axes_of(axes, key)
    if exprs is None or key_exprs is None or len(exprs) not in (3, 4):
        return None
    is_microsoft = node.domain == "com.microsoft"
    slot = 5 if is_microsoft else 3
    if len(exprs) == 4:
        heads, key_heads = _int(exprs[1]), _int(key_exprs[1])
        width = _int(exprs[3])
    else:
        heads = node.attributes.get_int("num_heads" if is_microsoft else "q_num_heads", 0)
        key_heads = heads if is_microsoft else node.attributes.get_int("kv_num_heads", heads)
        width = _int(exprs[2]) // heads if heads else 0
    scale = node.attributes.get_float("scale", 0.0) or 1.0 / math.sqrt(max(width, 1))
    return Attention(
        node=node,
        query=query,
        key=key,
        value=value,
        product=None,
        steps=(),
        replays=True,
        weights=None,
        mixing=(),
        mask=node.inputs[slot] if slot < len(node.inputs) else None,
        output=node.outputs[0],
        heads=heads,
        key_heads=key_heads,
        head_dim=width,
        scale=scale,
        layout="bhnd" if len(exprs) == 4 else "bnd",
        key_layout="bhnd" if len(exprs) == 4 else "bnd",
        value_layout="bhnd" if len(exprs) == 4 else "bnd",
    )


def _int(expr: Expr) -> int:
    found = size(expr)
    return found if isinstance(found, int) else 0


# --- cut points --------------------------------------------------------------------------


def _with_cuts(found: list[Attention], order: list[ir.Node], axes: AxisMap) -> list[Site]:
    """Make a site of every attention: where its two cut points are."""
    reach = [descendants(one.output) for one in found]
    made: list[Site] = []
    for i, one in enumerate(found):
        later = [reach[j] for j in range(len(found)) if found[j].node in reach[i]]
        chain = [
            value
            for value in bottlenecks(one.output, order)
            if not any(value.producer() in after for after in later)
            and value.producer()
            and not any(value is other.output for other in found if other is not one)
        ]
        # a learned query that pools the tokens is no next block of the same stream
        followed = any(other.query.producer() in reach[i] for other in found)
        after, block = _cuts(chain, followed=followed, before=reach[i])
        made.append(Site("", one.node, block, after, _width(block, axes), one))
    return made


def _cuts(
    chain: list[ir.Value], *, followed: bool, before: set[ir.Node]
) -> tuple[ir.Value, ir.Value]:
    """Return the stream behind the attention and behind the block."""
    joins = [i for i, value in enumerate(chain) if _is_join(value, before)]
    attention = _slide(chain, joins[0]) if joins else len(chain) - 1
    if followed:
        block = len(chain) - 1
    else:
        later = [i for i, value in enumerate(chain) if i > attention and _is_sum(value)]
        slides = _is_normalised(chain[attention])
        block = _slide(chain, later[0], norms=slides) if later else attention
    return chain[attention], chain[block]


def _width(block: ir.Value, axes: AxisMap) -> int:
    """Return D as the axes say it: a file may declare another name for it at an output."""
    exprs = axes_of(axes, block)
    return _int(exprs[-1]) if exprs else 0


def _slide(chain: list[ir.Value], start: int, *, norms: bool = True) -> int:
    """Go on through further sums and the normalisation of a post-norm block."""
    at = start
    while at + 1 < len(chain) and len(readers(chain[at])) == 1:
        node = readers(chain[at])[0][0]
        if node is not chain[at + 1].producer():
            break
        if not (_is_sum(chain[at + 1]) or (norms and _is_normalised(chain[at + 1]))):
            break
        at += 1
    return at


def _is_join(value: ir.Value, flow: set[ir.Node]) -> bool:
    """Tell whether the value adds something that does not come from this attention."""
    return _is_sum(value) and any(
        item is not None and item.producer() not in flow for item in _producer_inputs(value)
    )


def _is_sum(value: ir.Value) -> bool:
    node = value.producer()
    if node is None or node.op_type != "Add":
        return False
    return all(item is not None and constant_tensor(item) is None for item in node.inputs)


def _is_normalised(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type in _NORMALISATIONS


def _producer_inputs(value: ir.Value) -> tuple[ir.Value | None, ...]:
    node = value.producer()
    return () if node is None else tuple(node.inputs)


# --- names -------------------------------------------------------------------------------


def _with_names(sites: list[Site]) -> tuple[Site, ...]:
    """Name sites after their blocks; after their module where a block has two."""
    paths = [module_path(site.node) for site in sites]
    blocks = [layer_of(path) or path for path in paths]
    shared = {name for name, n in Counter(blocks).items() if n > 1}
    names = [path if block in shared else block for path, block in zip(paths, blocks, strict=True)]
    taken = {name for name, n in Counter(names).items() if n > 1 or not name}
    return tuple(
        replace(site, name=f"site{i}" if name in taken else name)
        for i, (site, name) in enumerate(zip(sites, names, strict=True))
    )


def _op_summary(order: list[ir.Node]) -> str:
    counts = Counter(node.op_type for node in order).most_common(6)
    return ", ".join(f"{n} {op}" for op, n in counts) or "an empty graph"


__all__ = ["attention_sites", "find_sites"]
