"""What a selector may look at, built at a site in the cheapest way.

``class_row`` is one row of attention, O(N d), and never asks fused attention for its
probabilities; ``column_mean`` and ``full`` need the whole map, which a fused node has to repeat.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.axes import AxisMap, Expr, Sum, size
from secateur.graph_passes.axes.expression import concatenation
from secateur.graph_passes.selection.attention_rows import Row, as_heads
from secateur.graph_passes.selection.context import Context
from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.selection.flow import descendants
from secateur.graph_passes.selection.given_signals import given_signal
from secateur.graph_passes.selection.pictures import in_line, pictures_of
from secateur.graph_passes.selection.region import Regions
from secateur.graph_passes.selection.site_signals import (
    WITHOUT_ATTENTION,
    check_attends,
    check_class_token,
)
from secateur.graph_passes.selection.window import inside
from secateur.graph_passes.sites import Site, attention_of
from secateur.registry import Registry

logger = logging.getLogger(__name__)

_LAST = int(np.iinfo(np.int64).max)


SIGNALS: Registry[Callable[[Context], ir.Value]] = Registry("signal")

_TOKEN_AXES: dict[str, tuple[int, ...]] = {
    "class_row": (1,),
    "last_row": (1,),
    "column_mean": (1,),
    "class_rows": (2,),
    "column_means": (2,),
    "keys": (2,),
    "values": (2,),
    "full": (2, 3),
    "hidden_before": (1,),
}
"""Where signals of the site's attention have its tokens, which may be more than the cut's."""

_RANKS = dict.fromkeys(("class_row", "last_row", "column_mean"), 2)
_RANKS |= dict.fromkeys(("class_rows", "column_means", "hidden_before"), 3)
_RANKS |= dict.fromkeys(("keys", "values"), 4)

_FLOAT32 = frozenset({"accumulated", "patch_entropy"})


def build(context: Context, names: tuple[str, ...]) -> dict[str, ir.Value]:
    """Emit the named signals.

    Raises:
        BadInputError: a name is not a signal, or is one that a recipe has to give.
        PreconditionError: the site's attention cannot give it.
    """
    made = {name: _signal(context, name) for name in names}
    for name, value in made.items():
        if value.type is None:
            value.type = ir.TensorType(_type_of(context, name))
    return made


def _signal(context: Context, name: str) -> ir.Value:
    if name in context.given:
        return given_signal(context, name)
    check_signal(
        name,
        context.site,
        context.emit.graph,
        context.regions.axes,
        class_token=context.class_token,
    )
    value = SIGNALS[name](context)
    axes, window = _TOKEN_AXES.get(name, ()), context.window
    pictures = pictures_of(context.regions, context.site, _wanted(context))
    if pictures and name not in WITHOUT_ATTENTION:
        return _in_line(context, name, value, pictures)
    fewer = lacking(context.regions, context.site) if axes else 0
    if window is not None and fewer == 0:
        for axis in axes:
            value = inside(context.emit, value, window, axis, context.tokens.length)
        return value
    if window is not None and axes:
        fewer = lacking(context.regions, context.site, window.expr)
    if fewer is None:
        raise _about_others(context, name)
    for axis in axes if fewer else ():
        value = without_first(context.emit, value, axis, fewer)
    return value


def check_signal(
    name: str, site: Site, graph: ir.Graph, axes: AxisMap, *, class_token: bool = False
) -> None:
    """Refuse a signal that a site cannot give, before anything is made of it.

    Args:
        name: The signal.
        site: Where it is read.
        graph: The graph of the site.
        axes: Its axes.
        class_token: Whether the user says that a class token leads the site's tokens.

    Raises:
        BadInputError: naming the signal and what the site has.
    """
    if name not in SIGNALS:
        raise BadInputError(
            f"the selector reads the signal {name!r}, which this site cannot give",
            where=f"site {site.name!r}",
            wanted=f"a value of the graph for {name!r}, or one of " + ", ".join(SIGNALS),
            next_step=f"name it in the recipe: signals: {{{name}: <value of the graph>}}",
        )
    check_attends(site, name)
    if not class_token:
        check_class_token(graph, axes, site, name)


def _about_others(context: Context, name: str) -> PreconditionError:
    return PreconditionError(
        f"the signal {name!r} of {context.site.name} is about other tokens than the cut's",
        where=f"value {context.cut.value.name!r}",
        wanted="the tokens of the site, or those behind its first ones",
        next_step="choose a selector that reads hidden states, or a site of the same tower",
    )


def _in_line(context: Context, name: str, value: ir.Value, pictures: Expr) -> ir.Value:
    """Lay out what a tower says of each picture as the tokens at the cut stand."""
    axes, wanted = _TOKEN_AXES.get(name, ()), _wanted(context)[len(pictures) :]
    fewer = lacking(context.regions, context.site, wanted)
    n_pictures = size(pictures)
    if fewer is None or len(axes) != 1 or not isinstance(n_pictures, int):
        raise _about_others(context, name)
    if fewer:
        value = without_first(context.emit, value, axes[0], fewer)
    return in_line(context.emit, value, axes[0], (_RANKS[name], n_pictures))


def _wanted(context: Context) -> Expr:
    """Return the tokens to select from."""
    return context.regions.tokens if context.window is None else context.window.expr


def lacking(regions: Regions, site: Site, wanted: Expr | None = None) -> int | None:
    """Return how many leading tokens of a site are not at the cut, None for other tokens.

    ``wanted`` are the tokens to look for, where that is not all at the cut.
    """
    wanted = regions.tokens if wanted is None else wanted
    # Where nothing follows, what is found as the block's end may lack the class token already.
    exprs = regions.axes.of(site.after_attention)
    tokens = exprs[1] if len(exprs) == 3 else ()
    if tokens == wanted:
        return 0
    if len(tokens) != 1 or not isinstance(tokens[0], Sum):
        return None
    return _prefix(tokens[0].terms, wanted)


def _prefix(terms: tuple[Expr, ...], rest: Expr) -> int | None:
    """Return the length of the leading terms without which a sum is ``rest``."""
    total = 0
    for i in range(1, len(terms)):
        length = size(terms[i - 1])
        if not isinstance(length, int):
            return None
        total += length
        if concatenation(terms[i:]) == rest:
            return total
    return None


def without_first(emit: Emitter, value: ir.Value, axis: int, n_first: int) -> ir.Value:
    """Drop the first elements along an axis."""
    made = emit.op("Slice", value, emit.ints(n_first), emit.ints(_LAST), emit.ints(axis))
    made.type = value.type
    return made


def _type_of(context: Context, name: str) -> ir.DataType:
    if name == "valid":
        return ir.DataType.BOOL
    if name in _FLOAT32:
        return ir.DataType.FLOAT
    query = None if context.site.attention is None else context.site.attention.query
    return (query and query.dtype) or context.cut.value.dtype or ir.DataType.FLOAT


# --- the tokens themselves -------------------------------------------------------------------


@SIGNALS.register("hidden")
def hidden(context: Context) -> ir.Value:
    """(B, N, D), the very tokens that are selected from."""
    value, window = context.cut.value, context.window
    if window is None:
        return value
    return inside(context.emit, value, window, 1, context.tokens.length)


@SIGNALS.register("hidden_before")
def hidden_before(context: Context) -> ir.Value:
    """(B, N, D), the residual stream that the site's attention is added to."""
    flow = descendants(context.attention.output)
    value = context.site.after_attention
    while (node := value.producer()) is not None and node in flow:
        from_outside = [
            item
            for item in node.inputs
            if item is not None and item.producer() not in flow and item.const_value is None
        ]
        if node.op_type == "Add" and from_outside:
            return from_outside[0]
        inside = [item for item in node.inputs if item is not None and item.producer() in flow]
        if not inside:
            break
        value = inside[0]
    raise PreconditionError(
        f"the signal 'hidden_before' cannot be had at {context.site.name}",
        where=f"value {context.site.after_attention.name!r}",
        got="no sum of the residual stream and what attention returns",
        next_step="choose a selector that reads hidden states behind the block",
    )


@SIGNALS.register("valid")
def valid(context: Context) -> ir.Value:
    """(B, N) bool, False on padding."""
    if context.tokens.valid is not None:
        return context.tokens.valid
    yes = ir.tensor(np.array([True]))
    return context.emit.op("ConstantOfShape", _rows(context), value=yes)


def _rows(context: Context) -> ir.Value:
    """(2,) int64: B and N."""
    emit, value = context.emit, context.cut.value
    if context.window is None:
        return emit.op("Shape", value, start=0, end=2)
    batch = emit.op("Shape", value, start=0, end=1)
    return emit.op("Concat", batch, context.tokens.length, axis=0)


@SIGNALS.register("accumulated")
def accumulated(context: Context) -> ir.Value:
    """(B, N) float32: what the site before handed on, of the tokens that it kept."""
    if not context.versions.kept:
        zero = ir.tensor(np.zeros(1, dtype=np.float32))
        return context.emit.op("ConstantOfShape", _rows(context), value=zero)
    state = context.versions.kept[-1].state
    if state is None:
        raise BadInputError(
            "the selector reads the signal 'accumulated', which the site before does not hand on",
            where=f"site {context.cut.site!r}",
            wanted="a method with a state at the site before",
            next_step="name the same selector at both sites",
        )
    return state


# --- of attention ----------------------------------------------------------------------------


@SIGNALS.register("keys")
def keys(context: Context) -> ir.Value:
    """(B, H, N, Dh), unscaled, rotated where the model rotates them; H of the keys."""
    there = context.attention
    return as_heads(context.emit, there.key, there.key_layout, (there.key_heads, there.head_dim))


@SIGNALS.register("values")
def values(context: Context) -> ir.Value:
    """(B, H, N, Dh)."""
    there = context.attention
    heads = (there.key_heads, there.head_dim)
    return as_heads(context.emit, there.value, there.value_layout, heads)


@SIGNALS.register("class_value")
def class_value(context: Context) -> ir.Value:
    """(B, H, Dh): the value of the first token."""
    emit, made = context.emit, values(context)
    first = emit.op("Slice", made, emit.ints(0), emit.ints(1), emit.ints(2))
    return emit.squeeze(first, (2,))


@SIGNALS.register("class_row")
def class_row(context: Context) -> ir.Value:
    """(B, N): how much the first token attends to each token, mean over heads.

    Where heads are mixed behind the softmax, of the weights after that: those of the values.
    """
    return _class_row_of(context, context.site)


@SIGNALS.register("class_rows")
def class_rows(context: Context) -> ir.Value:
    """(B, L, N): the same of several layers."""
    return _of_layers(context, _class_row_of)


@SIGNALS.register("last_row")
def last_row(context: Context) -> ir.Value:
    """(B, N): how much the last valid token attends to each token, mean over heads."""
    emit, counts = context.emit, context.tokens.counts
    position = None
    if context.tokens.valid is not None and counts is not None:
        position = _position(context, last=True)
    row = context.rows.row(context.attention, Row("last", position))
    return emit.op("ReduceMean", row, emit.ints(1, 2), keepdims=0)


@SIGNALS.register("column_mean")
def column_mean(context: Context) -> ir.Value:
    """(B, N): how much each token is attended to, mean over heads and valid queries.

    Of mixed weights, as ``class_row``.
    """
    return _column_mean_of(context, context.site)


@SIGNALS.register("column_means")
def column_means(context: Context) -> ir.Value:
    """(B, L, N): the same of several layers."""
    return _of_layers(context, _column_mean_of)


@SIGNALS.register("full")
def full(context: Context) -> ir.Value:
    """(B, H, N, N), softmax over keys; mixed as in ``class_row``."""
    _warn_of_map(context.site)
    return context.rows.full(context.attention)


def _class_row_of(context: Context, site: Site) -> ir.Value:
    emit = context.emit
    position = None if context.tokens.ranks is None else _position(context, last=False)
    row = context.rows.row(attention_of(site), Row("first", position))
    return emit.op("ReduceMean", row, emit.ints(1, 2), keepdims=0)


def _column_mean_of(context: Context, site: Site) -> ir.Value:
    emit = context.emit
    _warn_of_map(site)
    weights = context.rows.full(attention_of(site))
    if context.tokens.valid is None:
        # One axis after the other: ONNX Runtime takes five times as long over both at once.
        by_head = emit.op("ReduceMean", weights, emit.ints(2), keepdims=0)
        return emit.op("ReduceMean", by_head, emit.ints(1), keepdims=0)
    counted = emit.op("CastLike", context.tokens.valid, weights)
    total = emit.op("ReduceSum", counted, emit.ints(1), keepdims=1)
    share = emit.unsqueeze(emit.op("Div", counted, total), (1, 2))
    columns = emit.op("MatMul", share, weights)
    return emit.op("ReduceMean", columns, emit.ints(1, 2), keepdims=0)


def _warn_of_map(site: Site) -> None:
    if attention_of(site).product is None:
        logger.info("the attention map of %s is computed a second time", site.name)


def _position(context: Context, *, last: bool) -> ir.Value:
    """(B,) int64: the first or the last valid token of each sample."""
    emit, alive = context.emit, context.tokens.valid
    assert alive is not None
    numbers = emit.op("Cast", alive, to=ir.DataType.INT32.value)
    return emit.op("ArgMax", numbers, axis=1, keepdims=0, select_last_index=int(last))


def _of_layers(context: Context, of: Callable[[Context, Site], ir.Value]) -> ir.Value:
    """Stack (B, N) of several sites into (B, L, N), with the tokens that are left here."""
    here = len(context.versions.kept)
    rows = []
    for site in _layers(context):
        row, region = of(context, site), context.regions.of.get(site.node, 0)
        if region != here and context.tokens.valid is not None:
            raise PreconditionError(
                f"attention of {site.name} cannot be read behind a cut of padded samples",
                where=f"site {context.cut.site!r}",
                next_step="name later layers in the option 'layers'",
            )
        for number in range(region + 1, here + 1):
            row = context.versions.gather(row, number)
        rows.append(context.emit.unsqueeze(row, (1,)))
    return rows[0] if len(rows) == 1 else context.emit.op("Concat", *rows, axis=1)


def _layers(context: Context) -> list[Site]:
    """Return the sites that ``layers`` names, of those whose flow reaches the site's node."""
    name = context.site.node
    there = [
        site
        for site in context.sites
        if site.node is name or name in descendants(attention_of(site).output)
    ]
    try:
        picked = _pick(context.layers, len(there))
    except (ValueError, IndexError):
        picked = []
    if not picked:
        raise BadInputError(
            "the option 'layers' names no layer",
            where=f"site {context.cut.site!r}",
            got=repr(context.layers),
            wanted=f"a range such as '2:' or a list such as '0,-1' of {len(there)} layers",
        )
    return [there[i] for i in picked]


def _pick(spec: str, n_layers: int) -> list[int]:
    everything = list(range(n_layers))
    if ":" not in spec:
        return [everything[int(item)] for item in spec.split(",")]
    first, _, stop = spec.partition(":")
    return everything[slice(int(first) if first else None, int(stop) if stop else None)]


__all__ = ["SIGNALS", "build", "check_signal", "lacking", "without_first"]
