"""Where a graph attends: attention blocks found by structure, in any of the usual forms.

A block is the decomposed ``MatMul -> ... -> Softmax -> ... -> MatMul``, the ``Attention``
op (opset 23 and later) or com.microsoft's ``MultiHeadAttention``.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.axes import AxisMap, Expr, analyse_axes, size
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.names import layer_of, module_path
from secateur.graph_passes.selection.flow import bottlenecks, descendants, readers

Cut = Literal["block", "attention"]
Layout = Literal["bhnd", "bnhd", "bhdn", "bnd"]

_STEPS = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Tanh", "Max", "Min"})
"""What may stand between the scores q k^T and their softmax."""

_WEIGHT_STEPS = frozenset({"Cast", "Identity", "Dropout", "Where", "IsNaN", "Mul"})
"""What may stand between the softmax and its product with the values."""

_RELAYOUT = frozenset({"Transpose", "Reshape", "Cast", "Identity"})
"""What may stand between the keys and their product with the queries, besides scales."""

_NORMALISATIONS = frozenset(
    {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
)
_FUSED = frozenset({("", "Attention"), ("com.microsoft", "MultiHeadAttention")})


class LogitStep(NamedTuple):
    """One node between q k^T and the softmax; the scores enter at input ``slot``."""

    node: ir.Node
    slot: int


@dataclass(frozen=True, slots=True)
class Site:
    """One attention block.

    Attributes:
        name: Module path of the block, such as ``encoder.layer.1``.
        node: The Softmax, or the fused attention node.
        query: (B, H, N, Dh), or (B, N, H * Dh) where ``layout`` says so; in the decomposed
            form the left operand of q k^T, scaled or not.
        key: Keys as the projection (and rotary embedding) gave them, unscaled.
        value: Values, in the layout of the queries.
        transposed_key: (B, H, Dh, N), the right operand of q k^T; None in a fused node.
        steps: Nodes between q k^T and the softmax, first to last.
        mask: The mask input of a fused node.
        output: What the block's attention returns, before its output projection.
        heads: H of the queries.
        key_heads: H of the keys: fewer than ``heads`` with grouped queries.
        head_dim: Dh of the keys.
        scale: Factor on q k^T in a fused node; 1 where the graph has nodes for it.
        layout: Order of the query's and the value's axes, ``bhnd`` or ``bnd``.
        key_layout: Order of the key's axes.
        block: Residual stream behind the whole block, (B, N, D).
        after_attention: Residual stream behind the attention sub-layer, (B, N, D).
        width: D, 0 where it is not known.
    """

    name: str
    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    transposed_key: ir.Value | None
    steps: tuple[LogitStep, ...]
    mask: ir.Value | None
    output: ir.Value
    heads: int
    key_heads: int
    head_dim: int
    scale: float
    layout: Layout
    key_layout: Layout
    block: ir.Value
    after_attention: ir.Value
    width: int = 0

    def cut(self, at: Cut) -> ir.Value:
        """Return the value that a selection at this site reduces."""
        return self.block if at == "block" else self.after_attention


def find_sites(model: ir.Model, axes: AxisMap | None = None) -> tuple[Site, ...]:
    """Find the attention blocks of a graph, in graph order.

    Args:
        model: Functions inlined.
        axes: The model's axis analysis, made here when not given.

    Raises:
        BadInputError: the graph has no attention block.
    """
    known = axes if axes is not None else analyse_axes(model)
    order = list(model.graph)
    found = [site for node in order if (site := _site(node, known)) is not None]
    if not found:
        raise BadInputError(
            "the model has no attention block to select tokens at",
            got=_op_summary(order),
            wanted="MatMul -> Softmax -> MatMul, or an Attention node",
            next_step="remove channels instead, or check that the right model was exported",
        )
    cut = [replace(site, width=_width(site, known)) for site in _with_cuts(found, order)]
    return _with_names(cut)


def site_named(sites: tuple[Site, ...], name: str) -> Site:
    """Return the site called ``name``, or the only one whose path ends in it, as ``name``.

    Raises:
        BadInputError: no site, or more than one, answers to the name.
    """
    exact = [site for site in sites if site.name == name]
    ending = [site for site in sites if site.name.endswith(f".{name}")]
    found = exact or ending
    if len(found) == 1:
        return replace(found[0], name=name)
    names = [site.name for site in sites]
    close = difflib.get_close_matches(name, names, n=1)
    raise BadInputError(
        f"unknown site {name!r}" if not found else f"more than one site ends in {name!r}",
        wanted="one of " + ", ".join(site.name for site in (found or sites)),
        next_step=f"did you mean {close[0]!r}?" if close else "name one of these sites",
    )


# --- one block ---------------------------------------------------------------------------


def _site(node: ir.Node, axes: AxisMap) -> Site | None:
    if (node.domain, node.op_type) in _FUSED:
        return _fused(node, axes)
    if node.op_type == "Softmax" and not node.domain:
        return _decomposed(node, axes)
    return None


def _decomposed(softmax: ir.Node, axes: AxisMap) -> Site | None:
    logits, weights = softmax.inputs[0], softmax.outputs[0]
    product = None if logits is None else _score_product(logits, ())
    output = _value_product(weights)
    if product is None or output is None or not _is_last_axis(softmax, axes):
        return None
    matmul, steps = product
    query, right, value = matmul.inputs[0], matmul.inputs[1], output.inputs[1]
    if query is None or right is None or value is None:
        return None
    if any(len(_axes_of(axes, item) or ()) != 4 for item in (query, right, value)):
        return None
    key, layout = _raw_key(right, axes)
    return Site(
        name="",
        node=softmax,
        query=query,
        key=key,
        value=value,
        transposed_key=right,
        steps=steps,
        mask=None,
        output=output.outputs[0],
        heads=_int(axes.of(query)[1]),
        key_heads=_int(axes.of(right)[1]),
        head_dim=_int(axes.of(query)[3]),
        scale=1.0,
        layout="bhnd",
        key_layout=layout,
        block=output.outputs[0],
        after_attention=output.outputs[0],
    )


def _score_product(
    value: ir.Value, steps: tuple[LogitStep, ...]
) -> tuple[ir.Node, tuple[LogitStep, ...]] | None:
    """Walk up from the softmax to the product of two activations."""
    node = value.producer()
    if node is None or node.domain:
        return None
    if node.op_type == "MatMul":
        is_weight = any(item is None or constant_tensor(item) is not None for item in node.inputs)
        return None if is_weight else (node, steps)
    if node.op_type not in _STEPS:
        return None
    for slot, item in enumerate(node.inputs):
        if item is None or (node.op_type == "Where" and slot == 0):
            continue
        found = _score_product(item, (LogitStep(node, slot), *steps))
        if found is not None:
            return found
    return None


def _value_product(weights: ir.Value) -> ir.Node | None:
    """Walk down from the softmax to its product with the values."""
    for node, slot in readers(weights):
        if node.domain:
            continue
        if node.op_type == "MatMul" and slot == 0:
            return node
        if node.op_type in _WEIGHT_STEPS and (found := _value_product(node.outputs[0])):
            return found
    return None


def _is_last_axis(softmax: ir.Node, axes: AxisMap) -> bool:
    exprs = axes.raw(softmax, 0)
    axis = softmax.attributes.get_int("axis", -1)
    return axis == -1 or (exprs is not None and axis == len(exprs) - 1)


def _raw_key(right: ir.Value, axes: AxisMap) -> tuple[ir.Value, Layout]:
    """Follow k^T up to the keys as they were before transpositions and scales."""
    batch, heads, width, tokens = axes.of(right)
    layouts: dict[tuple[Expr, ...], Layout] = {
        (batch, tokens, heads, width): "bnhd",
        (batch, heads, width, tokens): "bhdn",
        (batch, heads, tokens, width): "bhnd",
    }
    found: tuple[ir.Value, Layout] = (right, "bhdn")
    here, is_fresh = right, False
    while (node := here.producer()) is not None and not node.domain:
        if node.op_type in {"Mul", "Div"}:
            step, is_fresh = _scaling_input(node, axes), True
        else:
            step = node.inputs[0] if node.op_type in _RELAYOUT else None
        if step is None:
            break
        here = step
        layout = layouts.get(_axes_of(axes, here) or ())
        if layout is not None and (is_fresh or layout == "bhnd" or found[1] == "bhdn"):
            found, is_fresh = (here, layout), False
    return found


def _scaling_input(node: ir.Node, axes: AxisMap) -> ir.Value | None:
    """Return the tensor operand of a product with one number, None for other products."""
    tensors = [
        item
        for slot, item in enumerate(node.inputs)
        if item is not None and any(axes.raw(node, slot) or ())
    ]
    return tensors[0] if len(tensors) == 1 else None


def _fused(node: ir.Node, axes: AxisMap) -> Site | None:
    query, key, value = node.inputs[0], node.inputs[1], node.inputs[2]
    if query is None or key is None or value is None:
        return None
    exprs = _axes_of(axes, query)
    key_exprs = _axes_of(axes, key)
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
    return Site(
        name="",
        node=node,
        query=query,
        key=key,
        value=value,
        transposed_key=None,
        steps=(),
        mask=node.inputs[slot] if slot < len(node.inputs) else None,
        output=node.outputs[0],
        heads=heads,
        key_heads=key_heads,
        head_dim=width,
        scale=scale,
        layout="bhnd" if len(exprs) == 4 else "bnd",
        key_layout="bhnd" if len(exprs) == 4 else "bnd",
        block=node.outputs[0],
        after_attention=node.outputs[0],
    )


def _axes_of(axes: AxisMap, value: ir.Value) -> tuple[Expr, ...] | None:
    try:
        return axes.of(value)
    except KeyError:
        return None


def _width(site: Site, axes: AxisMap) -> int:
    """Return D as the axes say it: a file may declare another name for it at an output."""
    exprs = _axes_of(axes, site.block)
    return _int(exprs[-1]) if exprs else 0


def _int(expr: Expr) -> int:
    found = size(expr)
    return found if isinstance(found, int) else 0


# --- cut points --------------------------------------------------------------------------


def _with_cuts(sites: list[Site], order: list[ir.Node]) -> list[Site]:
    """Fill in the two cut points of every site."""
    reach = [descendants(site.output) for site in sites]
    made: list[Site] = []
    for i, site in enumerate(sites):
        later = [reach[j] for j in range(len(sites)) if sites[j].node in reach[i]]
        chain = [
            value
            for value in bottlenecks(site.output, order)
            if not any(value.producer() in after for after in later) and value.producer()
        ]
        followed = any(other.node in reach[i] for other in sites)
        made.append(_cut_site(site, chain, followed=followed, before=reach[i]))
    return made


def _cut_site(site: Site, chain: list[ir.Value], *, followed: bool, before: set[ir.Node]) -> Site:
    joins = [i for i, value in enumerate(chain) if _is_join(value, before)]
    attention = _slide(chain, joins[0]) if joins else len(chain) - 1
    if followed:
        block = len(chain) - 1
    else:
        later = [i for i, value in enumerate(chain) if i > attention and _is_sum(value)]
        slides = _is_normalised(chain[attention])
        block = _slide(chain, later[0], norms=slides) if later else attention
    return replace(site, block=chain[block], after_attention=chain[attention])


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


__all__ = ["Cut", "LogitStep", "Site", "find_sites", "site_named"]
