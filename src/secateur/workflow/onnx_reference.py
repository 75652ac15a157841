"""The reference for a model that came as ONNX: the dense graph, dropped tokens masked.

Finding attention is shared with the selection pass, since it says what a site *is*; masking,
scoring and choosing are not. The graph stays dense: keys are masked, pooling is weighted,
nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.attention import find_sites
from secateur.graph_passes.axes import AxisMap, Expr, analyse_axes
from secateur.graph_passes.prepare import prepare
from secateur.graph_passes.selection.region import beside_tokens
from secateur.graph_passes.sites import Attention, Site, attention_of, site_named
from secateur.models.reference import ReferenceRun, SiteRun, TokenSite
from secateur.runtime.backend import Array, Arrays
from secateur.workflow.golden import Golden, golden
from secateur.workflow.model_session import open_model

if TYPE_CHECKING:
    from torch import Tensor

    from secateur.models.token_mode import Attention as Seen

_LOWEST = 3e38
"""Subtracted from masked scores: exp gives 0, and no row becomes NaN as with infinity."""


@dataclass(frozen=True, slots=True)
class _Twin:
    """The dense graph with an input ``alive.<i>`` (B, N) per site, and what to read."""

    model: ir.Model
    sites: tuple[Site, ...]
    outputs: tuple[str, ...]


def golden_from_onnx(
    dense: ir.Model,
    batch: Arrays,
    sites: Sequence[TokenSite],
    *,
    feeds: Mapping[str, dict[str, Array]] | None = None,
) -> Golden:
    """Run the masked dense graph on one batch, choosing tokens site by site.

    Raises:
        BadInputError: an unknown site, or a graph that is not float32.
        PreconditionError: tokens are combined, behind a site, in a way that cannot be masked.
    """
    import torch

    from secateur.models.reference_selection import attention_signals, select

    names = [site.site for site in sites]
    twin = _twin(dense, names, masked=True)
    runs: dict[str, SiteRun] = {}
    alive: list[Tensor] = []
    with open_model(_twin(dense, names, masked=False).model) as run:
        arrays = run(batch)
    with open_model(twin.model) as run:
        for site, place in zip(sites, twin.sites, strict=True):
            seen = _attention(attention_of(place), arrays, alive[-1] if alive else None)
            eligible = alive[-1] if alive else _valid(batch, seen)
            hidden = torch.from_numpy(arrays[place.block.name or ""])
            signals = attention_signals(site, seen, hidden, eligible)
            record, chosen = select(site, signals, eligible)
            runs[site.site] = record
            alive.append(chosen)
            arrays = run(dict(batch) | _alive(alive, len(sites)))
    outputs = {name: torch.from_numpy(arrays[name]) for name in twin.outputs}
    return golden(batch, ReferenceRun(outputs, runs), sites, feeds or {})


def check_masked(sites: Sequence[TokenSite], restore: Sequence[str]) -> None:
    """Refuse selections that this reference does not know; the PyTorch one does.

    Raises:
        BadInputError: naming the site and what it asks for.
    """
    for site in sites:
        asked = {
            "cut": site.cut,
            "signals": ", ".join(site.given),
            "among": site.among,
            "close_gaps": site.close_gaps,
            "restore": ", ".join(restore),
        }
        if found := {name: str(value) for name, value in asked.items() if value}:
            raise BadInputError(
                "a model that came as ONNX has no reference for this selection",
                where=f"site {site.site!r}",
                got=", ".join(f"{name}: {value}" for name, value in found.items()),
                wanted="a model from PyTorch, or a selection behind a block of attention",
                next_step="give the module that the file was exported from",
            )


def _alive(known: Sequence[Tensor], n_sites: int) -> dict[str, Array]:
    """A site that is not yet reached keeps what the one before it kept."""
    return {
        f"alive.{i}": known[min(i, len(known) - 1)].numpy().astype(np.float32)
        for i in range(n_sites)
    }


def _valid(batch: Arrays, seen: Seen) -> Tensor:
    import torch

    mask = batch.get("attention_mask")
    return seen.visible if mask is None or mask.ndim != 2 else torch.from_numpy(mask).bool()


def _attention(there: Attention, arrays: Arrays, alive: Tensor | None) -> Seen:
    """What the attention block read, in the form of the PyTorch reference."""
    import torch

    from secateur.models.token_mode import Attention as Seen

    def tensor(value: ir.Value, layout: str) -> Tensor:
        x: Tensor = torch.from_numpy(arrays[value.name or ""])
        if layout == "bnd":
            return x.reshape(*x.shape[:2], -1, there.head_dim).transpose(1, 2)
        if "g" in layout:  # batch and heads in one axis
            x = x.permute(*(layout.index(axis) for axis in "gnd"))
            return x.reshape(-1, there.heads, *x.shape[1:])
        return x.permute(*(layout.index(axis) for axis in "bhnd"))

    query, key = tensor(there.query, there.layout), tensor(there.key, there.key_layout)

    def scores(value: ir.Value) -> Tensor:
        x: Tensor = torch.from_numpy(arrays[value.name or ""])
        # batch and heads may be one axis
        return x if x.dim() == 4 else x.reshape(len(query), -1, *x.shape[1:])

    if there.weights is not None:
        probabilities, seen = scores(there.weights), scores(there.node.outputs[0])
    else:
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        logits = query @ keys.transpose(-1, -2) * there.scale
        if there.mask is not None:
            mask = torch.from_numpy(arrays[there.mask.name or ""])
            logits = (
                logits.masked_fill(~mask, -_LOWEST) if mask.dtype == torch.bool else logits + mask
            )
        if alive is not None:
            logits = logits.masked_fill(~alive[:, None, None], -_LOWEST)
        probabilities = seen = torch.softmax(logits, dim=-1)
    return Seen(
        query=query,
        key=key,
        value=tensor(there.value, there.value_layout),
        probabilities=probabilities,
        visible=(seen > 0).flatten(1, 2).any(dim=1),
    )


# --- the masked graph --------------------------------------------------------------------


@dataclass
class _Writer:
    """Puts nodes that depend on ``alive.<i>`` alone in front of the graph."""

    graph: ir.Graph
    first: ir.Node
    made: dict[str, ir.Value] = field(default_factory=dict)

    def constant(self, name: str, array: Array) -> ir.Value:
        if name not in self.made:
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
            self.graph.initializers[name] = value
            self.made[name] = value
        return self.made[name]

    def node(self, op: str, inputs: Sequence[ir.Value], before: ir.Node | None = None) -> ir.Value:
        node = ir.node(op, list(inputs))
        node.outputs[0].name = f"masked.{op}.{len(self.made)}.{id(node)}"
        node.outputs[0].dtype = ir.DataType.FLOAT
        self.graph.insert_before(before or self.first, node)
        return node.outputs[0]

    def spread(self, alive: ir.Value, axes: Sequence[int]) -> ir.Value:
        """(B, N) with axes of size 1 put in."""
        key = f"{alive.name}.spread{'_'.join(map(str, axes))}"
        if key not in self.made:
            at = self.constant(f"masked.axes{'_'.join(map(str, axes))}", np.array(axes, np.int64))
            self.made[key] = self.node("Unsqueeze", [alive, at])
        return self.made[key]

    def among(self, alive: ir.Value, before: int, behind: int) -> ir.Value:
        """(B, N) -> (B, before + N + behind): what joined the tokens counts."""
        key = f"{alive.name}.among{before}_{behind}"
        if key not in self.made:
            pads = self.constant(f"{key}.pads", np.array([0, before, 0, behind], np.int64))
            one = self.constant("masked.one_more", np.array(1.0, np.float32))
            self.made[key] = self.node("Pad", [alive, pads, one])
        return self.made[key]

    def bias(self, alive: ir.Value) -> ir.Value:
        """(B, 1, N, N): 0 for keys that count, the lowest score for others.

        (B, 1, 1, N + M) where others joined the tokens.
        """
        key = f"{alive.name}.bias"
        if key not in self.made:
            one = self.constant("masked.one", np.array([1.0], np.float32))
            scale = self.constant("masked.scale", np.array([_LOWEST], np.float32))
            zero = self.constant("masked.zero", np.array([0.0], np.float32))
            row = self.node("Mul", [self.node("Sub", [self.spread(alive, (1, 2)), one]), scale])
            if not alive.is_graph_input():
                self.made[key] = row
                return row
            square = self.node("Mul", [self.spread(alive, (1, 3)), zero])
            self.made[key] = self.node("Add", [row, square])
        return self.made[key]


def _twin(dense: ir.Model, names: Sequence[str], *, masked: bool) -> _Twin:
    model = prepare(dense)
    axes = analyse_axes(model)
    known = find_sites(model, axes)
    chosen = tuple(site_named(known, name) for name in names)
    order = {node: i for i, node in enumerate(model.graph)}
    cuts = [order[_producer(site.block)] for site in chosen]
    if cuts != sorted(cuts):
        raise BadInputError("the sites are not in the order of the graph", got=", ".join(names))
    outputs = tuple(value.name or "" for value in model.graph.outputs)
    if masked:
        alive = [(cut, _alive_input(model.graph, i)) for i, cut in enumerate(cuts)]
        writer = _Writer(model.graph, next(iter(model.graph)))
        tokens = [axes.of(site.block)[1] for site in chosen][:1]
        _mask_all(writer, known, alive, (axes, tokens, order))
    for value in dict.fromkeys(_taps(chosen)):
        if value not in model.graph.outputs:
            model.graph.outputs.append(value)
    return _Twin(model, chosen, outputs)


def _mask_all(
    writer: _Writer,
    known: Sequence[Site],
    cuts: Sequence[tuple[int, ir.Value]],
    context: tuple[AxisMap, list[Expr], dict[ir.Node, int]],
) -> None:
    """Mask every attention and every pooling by the last site before it."""
    axes, tokens, order = context

    def alive_at(node: ir.Node) -> ir.Value | None:
        passed = [value for cut, value in cuts if cut < order[node]]
        return passed[-1] if passed else None

    products = {attention_of(site).output.producer() for site in known}
    products |= {site.node for site in known}
    poolings = [
        (fold.node, port.axis, len(axes.at(fold.node, 0)))
        for fold in axes.folds
        for port in fold.ports
        if fold.node in order and port.slot == 0 and axes.expr(fold.node, port) in tokens
    ]
    for site in known:
        if (alive := alive_at(site.node)) is not None:
            keys = axes.at(site.node, 0)[-1] if attention_of(site).product else tokens[0]
            beside = beside_tokens(keys, tokens[0])
            if beside is not None and any(beside):
                alive = writer.among(alive, *beside)
            _mask_attention(writer, site, alive)
    for node, axis, rank in poolings:
        alive = alive_at(node)
        if alive is not None and node not in products:
            others = [i for i in range(1, rank) if i != axis]
            _mask_pooling(writer, node, others, alive)


def _mask_attention(writer: _Writer, site: Site, alive: ir.Value) -> None:
    bias, there = writer.bias(alive), attention_of(site)
    if there.product is not None:
        scores = _input(there.node, 0)
        if scores.dtype not in {None, ir.DataType.FLOAT}:
            raise BadInputError("the reference runs in float32", got=str(scores.dtype))
        masked = _add_to_heads(writer, scores, bias, there)
        there.node.replace_input_with(0, masked)
        if there.mixing:
            _zero_weights(writer, site, alive)
        return
    if there.node.domain:
        raise PreconditionError("com.microsoft attention is not masked here", where=site.name)
    while len(there.node.inputs) < 4:
        there.node.resize_inputs(len(there.node.inputs) + 1)
    if there.mask is None:
        there.node.replace_input_with(3, bias)
    elif there.mask.dtype == ir.DataType.BOOL:
        low = writer.constant("masked.lowest", np.array([-_LOWEST], np.float32))
        masked = writer.node("Where", [there.mask, bias, low], there.node)
        there.node.replace_input_with(3, masked)
    else:
        there.node.replace_input_with(3, writer.node("Add", [there.mask, bias], there.node))


def _add_to_heads(writer: _Writer, scores: ir.Value, bias: ir.Value, there: Attention) -> ir.Value:
    """Add (B, 1, N, N) to scores (B, H, N, N), or to (B * H, N, N) with the heads apart."""
    before = there.node
    if scores.shape is None or len(scores.shape) != 3:
        return writer.node("Add", [scores, bias], before)
    first = writer.constant("masked.one_axis", np.array([1], np.int64))
    heads = writer.constant("masked.heads", np.array([-1, there.heads, 0, 0], np.int64))
    apart = writer.node("Unsqueeze", [scores, first], before)
    apart = writer.node("Reshape", [apart, heads], before)
    shape = writer.node("Shape", [scores], before)
    shape.dtype = ir.DataType.INT64
    return writer.node("Reshape", [writer.node("Add", [apart, bias], before), shape], before)


def _zero_weights(writer: _Writer, site: Site, alive: ir.Value) -> None:
    """Weigh no key that is gone: behind the softmax a bias of mixed heads would."""
    there = attention_of(site)
    weights, values = there.weights, there.output.producer()
    if weights is None or values is None or weights.shape is None or len(weights.shape) != 4:
        raise PreconditionError("mixed heads are masked apart from the batch", where=site.name)
    made = writer.node("Mul", [weights, writer.spread(alive, (1, 2))], values)
    values.replace_input_with(list(values.inputs).index(weights), made)


def _mask_pooling(writer: _Writer, node: ir.Node, others: Sequence[int], alive: ir.Value) -> None:
    """Weight the tokens of a sum or a mean; ``others`` are its axes but batch and tokens."""
    weight = alive
    if node.op_type == "ReduceMean":
        at = writer.constant("masked.token_axis", np.array([1], np.int64))
        weight = writer.node("Div", [alive, writer.node("ReduceMean", [alive, at])])
    elif node.op_type != "ReduceSum":
        raise PreconditionError(
            f"{node.op_type} over tokens that were dropped cannot be masked", where=node.name or ""
        )
    column = writer.spread(weight, others)
    node.replace_input_with(0, writer.node("Mul", [_input(node, 0), column], node))


def _taps(sites: Sequence[Site]) -> Iterator[ir.Value]:
    for site in sites:
        there = attention_of(site)
        yield from (there.query, there.key, there.value, site.block)
        if there.weights is not None:
            yield there.node.outputs[0]
            yield there.weights
        elif there.mask is not None:
            yield there.mask


def _alive_input(graph: ir.Graph, number: int) -> ir.Value:
    value = ir.Value(name=f"alive.{number}")
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([None, None])
    graph.inputs.append(value)
    return value


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    if node is None:
        raise PreconditionError(
            "a site's tokens come straight from an input", where=value.name or ""
        )
    return node


def _input(node: ir.Node, slot: int) -> ir.Value:
    value = node.inputs[slot]
    if value is None:
        raise PreconditionError(f"{node.op_type} lacks input {slot}", where=node.name or "")
    return value


__all__ = ["check_masked", "golden_from_onnx"]
