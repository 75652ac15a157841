"""One selection: from the signals of a site to the tokens that go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes import signals
from secateur.graph_passes.axes import size
from secateur.graph_passes.selection.budget import (
    Amount,
    Budget,
    Kept,
    Tokens,
    amount_of,
    count_valid,
    equal_amount,
    finite,
    keep,
    own_amount,
    protect,
)
from secateur.graph_passes.selection.context import Context
from secateur.graph_passes.selection.emit import Emitter, named
from secateur.graph_passes.selection.pointers import Pointers
from secateur.graph_passes.selection.region import Cut as CutPoint
from secateur.graph_passes.selection.region import Regions
from secateur.graph_passes.selection.validity import validity
from secateur.graph_passes.selection.versions import Versions
from secateur.graph_passes.selection.window import Window, inside, widened
from secateur.graph_passes.shape_repair import tokens_before
from secateur.graph_passes.sites import Site
from secateur.graph_passes.splice import Splice, required_signals

_OPTIONS_KEY = "secateur.selector.options"
_ORDER_KEY = "secateur.selector.order"
_PROTECTED_KEY = "secateur.selector.protected"
_ON_GRID_KEY = "secateur.selector.on_grid"


@dataclass(frozen=True, slots=True)
class Selection:
    """One selection to insert.

    Attributes:
        site: Name of an attention block, or a unique end of it; signals come from it.
        graph: The selector: inputs named after signals, output ``score`` (B, N), and those
            that ``secateur.export.selector_graph.trace`` describes.
        budget: How many tokens stay; not read where the method decides that itself.
        cut: Where tokens leave: behind the ``block``, behind its ``attention``, or a value of
            the graph by name, or a module path, for what that module returns.
        expose_kept: Whether ``<site>.kept``, int64 (B, K), becomes an output: original
            positions, -1 in slots that hold no token.
        signals: Signals that the graph's own values give: signal name to value name.
        among: A value, or the path of a module that returns one, whose tokens are those to
            select from where they are a part of what is cut; "" for all of them.
        leaves: A value, or the path of a module that returns one, with a row per token: what
            a token that leaves here has where tokens are put back; "" for its hidden state.
        close_gaps: Whether tokens that stay are neighbours from there on, for what reads
            neighbours: a convolution or a scan along the tokens. Refused where it is not said.
        class_token: Whether the first token of the site is a class token, where the graph does
            not tell; see ``site_signals``.
    """

    site: str
    graph: ir.Model
    budget: Budget = Budget()  # noqa: RUF009 - frozen
    cut: str = "block"
    expose_kept: bool = False
    signals: Mapping[str, str] = field(default_factory=dict)
    among: str = ""
    leaves: str = ""
    close_gaps: bool = False
    class_token: bool = False

    @property
    def options(self) -> dict[str, object]:
        """The method's options, as it was traced with them."""
        found: dict[str, object] = json.loads(self.graph.metadata_props.get(_OPTIONS_KEY, "{}"))
        return found

    @property
    def is_adaptive(self) -> bool:
        """Whether the method decides how many tokens stay, whatever the budget."""
        outputs = {output.name for output in self.graph.graph.outputs}
        inputs = {value.name for value in self.graph.graph.inputs}
        return "count_kept" in outputs and "count" not in inputs

    @property
    def merges(self) -> bool:
        """Whether the method makes new tokens of what it drops."""
        return self._weights is not None

    @property
    def appends(self) -> bool:
        """Whether the method puts new tokens behind those that it keeps."""
        shape = None if self._weights is None else self._weights.shape
        return self._weights is not None and (shape is None or str(shape[1]) != "kept")

    @property
    def _weights(self) -> ir.Value | None:
        found = (value for value in self.graph.graph.outputs if value.name == "weights")
        return next(found, None)


Chosen = tuple[Selection, Site, CutPoint]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a selection is made in: the graph, the cuts before it, all attention blocks."""

    versions: Versions
    regions: Regions
    pointers: Pointers
    sites: tuple[Site, ...]
    windows: Mapping[str, Window] = field(default_factory=dict)
    """By cut: where the tokens to select from stand, if they are not all."""

    @property
    def emit(self) -> Emitter:
        """Where the nodes go."""
        return self.versions.emit


def choose(chosen: Chosen, around: Surroundings) -> Kept:
    """Splice the selector and the budget arithmetic of one site."""
    selection, site, cut = chosen
    emit = around.emit
    selector = Splice(emit, selection.graph)
    window = around.windows.get(cut.site)
    _check_fit(selection, around, window)
    tokens = _tokens(chosen, around, window)
    context = Context(
        emit=emit,
        regions=around.regions,
        versions=around.versions,
        site=site,
        sites=around.sites,
        cut=cut,
        tokens=tokens,
        given=selection.signals,
        window=window,
        class_token=selection.class_token,
        layers=str(selection.options.get("layers", ":")),
    )
    selector.give(signals.build(context, required_signals(selection.graph)))
    always = selection.budget.protected + len(around.pointers)
    amount = None
    if not selection.is_adaptive:
        budget = replace(selection.budget, protected=always)
        amount = amount_of(emit, tokens, budget, cut.site)
        if selector.reads("count"):
            selector.give({"count": _per_sample(emit, amount, cut.value)})
    score = selector.result("score")
    own = selector.result("count_kept")
    assert score is not None
    if own is not None:
        is_equal = amount is not None and amount.counts is None and selector.follows_count()
        amount = own_amount(emit, tokens, own, always)
        if is_equal:
            amount = equal_amount(emit, amount)
    assert amount is not None
    amount = _named_amount(amount, cut.site)
    first = protect(emit, finite(emit, score), tokens, selection.budget.protected)
    score = _ranked(first, tokens, around)
    named(score, f"{cut.site}.score")
    biased = emit.op("Add", score, _bias(emit, cut.site))
    standing = None
    if selection.graph.metadata_props.get(_ORDER_KEY) == "score":
        standing = first if len(around.pointers) else biased
    kept = keep(emit, biased, tokens, amount, standing=standing)
    if kept.valid is not None:
        named(kept.valid, f"{cut.site}.valid")
    made = _with_results(kept, selector, emit, appends=selection.appends)
    return made if window is None else widened(emit, made, window, cut.value)


def _tokens(chosen: Chosen, around: Surroundings, window: Window | None) -> Tokens:
    """Return what the selection starts from: the last one's tokens, or all that are valid."""
    versions, regions, emit = around.versions, around.regions, around.emit
    if versions.kept:
        last = versions.kept[-1] if window is None else versions.kept[-1].inner
        assert last is not None
        return Tokens(last.length, last.valid, last.counts, None)
    length = tokens_before(emit, regions) if window is None else window.length
    found = validity(emit, regions, chosen[1])
    lacking = signals.lacking(regions, chosen[1])
    if found is None or lacking is None:
        return Tokens(length, None, None, None)
    if window is not None:
        there = inside(emit, found.valid, window, 1, length)
    elif lacking:
        there = signals.without_first(emit, found.valid, 1, lacking)
    else:
        versions.valid_source, there = found.source, found.valid
    return count_valid(emit, length, there)


def _check_fit(selection: Selection, around: Surroundings, window: Window | None) -> None:
    """A selector that was traced for a number of tokens, or of protected ones, needs it."""
    metadata = selection.graph.metadata_props
    if selection.close_gaps and selection.appends:
        raise PreconditionError(
            "tokens that the method adds have no place among neighbours",
            where=f"site {selection.site!r}",
            got=f"{metadata.get('secateur.selector', 'a selector')} with close_gaps",
            wanted="one token for each that is kept, in their order",
            next_step="choose a selector whose tokens stay, leave or merge into those that stay",
        )
    if metadata.get(_ON_GRID_KEY) and around.versions.kept:
        raise PreconditionError(
            "the method asks where patches stand in the picture, and some left before",
            where=f"site {selection.site!r}",
            got=metadata.get("secateur.selector", "a selector"),
            wanted="all tokens, at the first site",
            next_step="let it select first, or choose a method for tokens in any order here",
        )
    traced = metadata.get(_PROTECTED_KEY)
    if traced is not None and int(traced) != selection.budget.protected:
        raise BadInputError(
            "the selector was traced for another number of protected tokens",
            where=f"site {selection.site!r}",
            got=traced,
            wanted=str(selection.budget.protected),
            next_step="give Signature(protected=...) to secateur.export.selector_graph.trace",
        )
    score = next(value for value in selection.graph.graph.outputs if value.name == "score")
    fixed = None if score.shape is None else score.shape[1]
    there = "a number that an earlier site decides"
    if not around.versions.kept:
        there = str(size(around.regions.tokens if window is None else window.expr))
    if isinstance(fixed, int) and str(fixed) != there:
        raise BadInputError(
            "the selector was traced for another number of tokens",
            where=f"site {selection.site!r}",
            got=str(fixed),
            wanted=there,
            next_step="trace it with Signature(tokens=None), or for this site",
        )


def _per_sample(emit: Emitter, amount: Amount, value: ir.Value) -> ir.Value:
    """(B,) int64."""
    if amount.counts is not None:
        return emit.squeeze(amount.counts, (1,))
    return emit.op("Expand", amount.length, emit.op("Shape", value, start=0, end=1))


def _named_amount(amount: Amount, site: str) -> Amount:
    if amount.length.const_value is None:  # a constant may serve other sites too
        named(amount.length, f"{site}.length")
    if amount.counts is not None:
        named(amount.counts, f"{site}.counts")
    return amount


def _ranked(score: ir.Value, tokens: Tokens, around: Surroundings) -> ir.Value:
    """Put tokens that are pointed at above, padding below all others."""
    emit = around.emit
    score = around.pointers.protect(score, tokens.length)
    if tokens.valid is None:
        return score
    padding = emit.number(-np.inf, ir.DataType.FLOAT)
    return emit.op("Where", tokens.valid, score, padding)


def _bias(emit: Emitter, site: str) -> ir.Value:
    """(1, 1) zero that is an input too: [B, N] in the forced twin, protection at run time."""
    value = ir.Value(
        name=f"{site}.score_bias",
        const_value=ir.tensor(np.zeros((1, 1), dtype=np.float32)),
        shape=ir.Shape([f"{site}.score_bias.rows", f"{site}.score_bias.columns"]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    emit.graph.register_initializer(value)
    emit.graph.inputs.append(value)
    return value


# --- what becomes of the tokens --------------------------------------------------------------


def _with_results(kept: Kept, selector: Splice, emit: Emitter, *, appends: bool) -> Kept:
    """Merge tokens and hand the state on, where the method does."""
    state = selector.result("state")
    if state is not None:
        index = emit.unsqueeze(kept.index, (2,))
        kept = replace(kept, state=emit.op("GatherND", state, index, batch_dims=1))
    if not selector.has("weights"):
        return kept
    valid = kept.valid
    if valid is None:
        yes = emit.constant(np.array(True))
        valid = emit.op("Expand", yes, emit.op("Shape", kept.index))
    selector.give({"index": kept.index, "valid_kept": valid})
    weights, own_valid = selector.result("weights"), selector.result("valid_merged")
    assert weights is not None
    made = _merged(kept, weights, own_valid, emit)
    return replace(made, index=_standing(kept, weights, emit)) if appends else made


def _standing(kept: Kept, weights: ir.Value, emit: Emitter) -> ir.Value:
    """(B, K') int64: tokens that were kept stay where they are, new ones stand by their weights."""
    ends = emit.ints(np.iinfo(np.int64).max)
    added = emit.op("Slice", weights, kept.length, ends, emit.ints(1))
    heaviest = emit.op("ArgMax", added, axis=2, keepdims=0)
    return emit.op("Concat", kept.index, heaviest, axis=1)


def _merged(kept: Kept, weights: ir.Value, own_valid: ir.Value | None, emit: Emitter) -> Kept:
    """New tokens = weights x old ones; one that others merge into stands where it stood.

    The weights are float32, (B, K', N).
    """
    length = emit.op("Shape", weights, start=1, end=2)
    valid = own_valid
    if valid is None and kept.valid is not None:
        appended = emit.op("Sub", length, kept.length)
        batch = emit.op("Shape", kept.index, start=0, end=1)
        yes = emit.constant(np.array(True))
        more = emit.op("Expand", yes, emit.op("Concat", batch, appended, axis=0))
        valid = emit.op("Concat", kept.valid, more, axis=1)
    counts = None
    if valid is not None:
        ones = emit.op("Cast", valid, to=ir.DataType.INT64.value)
        counts = emit.op("ReduceSum", ones, emit.ints(1), keepdims=1)
    return replace(
        kept,
        valid=valid,
        length=length,
        counts=counts,
        merge=lambda state: emit.op("MatMul", _as_wide(emit, weights, state), state),
        state=_merged_state(kept, length, emit),
        chosen=kept,
    )


def _as_wide(emit: Emitter, weights: ir.Value, state: ir.Value) -> ir.Value:
    """The weights in the type of a stream, which may be another for a model's residual."""
    dtype = state.dtype or ir.DataType.FLOAT
    return weights if dtype == ir.DataType.FLOAT else emit.op("Cast", weights, to=dtype.value)


def _merged_state(kept: Kept, length: ir.Value, emit: Emitter) -> ir.Value | None:
    """Appended tokens start with 0."""
    if kept.state is None:
        return None
    appended = emit.op("Sub", length, kept.length)
    pads = emit.op("Concat", emit.ints(0, 0, 0), appended, axis=0)
    return emit.op("Pad", kept.state, pads)


__all__ = ["Chosen", "Selection", "Surroundings", "choose"]
