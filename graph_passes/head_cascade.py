"""Drop attention heads while the model runs: one that is dropped stays dropped behind it.

A head counts by the magnitude of what it put out in the blocks so far, summed over tokens and
channels. No runtime has a head axis that varies, so that a dropped head is multiplied by 0: this
says what a schedule of heads costs in quality, and removing the same heads for good what it gains.

Source: SpAtten (Wang et al., HPCA 2021, arXiv:2012.09852), section III-B;
``models.selectors.spatten.cascade_heads`` is the same in PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.attention import find_sites
from secateur.graph_passes.axes import AxisMap, analyse_axes
from secateur.graph_passes.opset import SELECTION_OPSET, raise_opset
from secateur.graph_passes.prepare import prepare
from secateur.graph_passes.selection.emit import Emitter, named
from secateur.graph_passes.sites import Attention, Site, attention_of, site_named

_FLOAT, _BOOL = ir.DataType.FLOAT, ir.DataType.BOOL


def cascade_heads(model: ir.Model, keep: Mapping[str, int], *, valid: str = "") -> ir.Model:
    """Return a model whose heads are dropped in a cascade; the input stays as it is.

    Given   o = Attention(...)                          for every block behind the first of ``keep``
    Result  o = Attention(...) * alive, (B, H, 1, 1)    where a block of ``keep`` renews ``alive``

    Args:
        model: with blocks of attention that have the same number of heads.
        keep: heads that stay behind a block, by its name, in the order of the graph.
        valid: name of the input (B, N) that is 0 on padding; "" where there is none.

    Returns:
        The model, with outputs ``<block>.heads`` (B, H) bool for every block of ``keep``.

    Raises:
        BadInputError: an unknown block or input, numbers of heads that rise, exceed the heads or
            are less than 1, blocks with other numbers of heads.
        PreconditionError: heads that stand in one axis with the batch.
    """
    copy = prepare(model)
    raise_opset(copy, SELECTION_OPSET)
    axes = analyse_axes(copy)
    sites = find_sites(copy, axes)
    asked = {site_named(sites, name).node: (name, number) for name, number in keep.items()}
    _check(sites, list(asked.values()))
    first = next(i for i, site in enumerate(sites) if site.node in asked)
    emit = Emitter(copy.graph)
    cascade = _Cascade(emit, axes, _valid(copy.graph, valid))
    for site in sites[first:]:
        there, alive = attention_of(site), cascade.alive
        emit.prefix = f"{site.name}/heads"
        readers = tuple(there.output.uses())
        rows = there.output if alive is None else cascade.masked(site, there, alive)
        cascade.add(site, there, rows)
        for node, slot in readers if alive is not None else ():
            node.replace_input_with(slot, rows)
        if site.node in asked:
            name, number = asked[site.node]
            cascade.drop(name, number)
    copy.graph.sort()
    return copy


def _check(sites: tuple[Site, ...], asked: list[tuple[str, int]]) -> None:
    heads = [attention_of(site).heads for site in sites]
    numbers = [number for _, number in asked]
    if not asked or len(set(heads)) != 1:
        raise BadInputError(
            "heads cannot go in a cascade here",
            got=f"blocks of {', '.join(map(str, heads))} heads, {len(asked)} of them named",
            wanted="one number of heads in all blocks, and one block at least",
        )
    if not all(1 <= number <= heads[0] for number in numbers) or numbers != sorted(numbers)[::-1]:
        raise BadInputError(
            "no cascade of heads",
            got=", ".join(f"{name}: {number}" for name, number in asked),
            wanted=f"numbers from {heads[0]} down to 1, none larger than the one before",
        )


def _valid(graph: ir.Graph, name: str) -> ir.Value | None:
    if not name:
        return None
    found = next((value for value in graph.inputs if value.name == name), None)
    if found is None or found.shape is None or len(found.shape) != 2:
        raise BadInputError(
            f"no input {name!r} says which tokens are padding",
            got=", ".join(str(value.name) for value in graph.inputs),
            wanted="the name of a (B, N) input",
        )
    return found


@dataclass
class _Cascade:
    """What heads count so far, (B, H) float32, and which are left, (B, H) bool; None at first."""

    emit: Emitter
    axes: AxisMap
    valid: ir.Value | None
    total: ir.Value | None = None
    alive: ir.Value | None = None

    def masked(self, site: Site, there: Attention, alive: ir.Value) -> ir.Value:
        """Multiply what dropped heads put out by 0."""
        emit, heads, rank = self.emit, self._heads(site, there), len(self.axes.of(there.output))
        kept = emit.op("Cast", alive, to=there.dtype.value)
        spread = emit.unsqueeze(kept, (2, 3) if rank == 4 else (1, 3))
        made = emit.op("Mul", heads, spread)
        if rank == 3:
            made = emit.op("Reshape", made, emit.ints(0, 0, -1))
        made.type, made.shape = there.output.type, there.output.shape
        return made

    def add(self, site: Site, there: Attention, rows: ir.Value) -> None:
        """Let heads count by what they put out, (B, H)."""
        emit, tokens = self.emit, 2 if len(self.axes.of(there.output)) == 4 else 1
        found = emit.op("Abs", emit.op("Cast", self._heads(site, there, rows), to=_FLOAT.value))
        by_token = emit.op("ReduceSum", found, emit.ints(3), keepdims=0)
        if self.valid is not None:
            real = emit.op("Cast", emit.op("Cast", self.valid, to=_BOOL.value), to=_FLOAT.value)
            spread = emit.unsqueeze(real, (1,) if tokens == 2 else (2,))
            by_token = emit.op("Mul", by_token, spread)
        made = emit.op("ReduceSum", by_token, emit.ints(tokens), keepdims=0)
        self.total = made if self.total is None else emit.op("Add", self.total, made)

    def drop(self, name: str, keep: int) -> None:
        """Leave the heads that count most, of those that are left."""
        emit, total = self.emit, self.total
        assert total is not None
        ranked = total
        if self.alive is not None:
            ranked = emit.op("Where", self.alive, total, emit.number(-1.0, _FLOAT))
        _, best = emit.node("TopK", [ranked, emit.ints(keep)], {"axis": 1}, outputs=2)
        nothing = emit.op("Mul", total, emit.number(0.0, _FLOAT))
        ones = emit.op("Expand", emit.number(1.0, _FLOAT), emit.op("Shape", best))
        chosen = emit.op("ScatterElements", nothing, best, ones, axis=1)
        alive = emit.op("Greater", chosen, emit.number(0.5, _FLOAT))
        self.alive = alive
        output = named(emit.op("Identity", alive), f"{name}.heads")
        output.type, output.shape = ir.TensorType(_BOOL), ir.Shape(["batch", None])
        emit.graph.outputs.append(output)

    def _heads(self, site: Site, there: Attention, rows: ir.Value | None = None) -> ir.Value:
        """(B, H, N, Dh), or (B, N, H, Dh) where a fused node puts heads and channels in one."""
        value, exprs = rows or there.output, self.axes.of(there.output)
        is_fused = there.product is None
        if len(exprs) == 4 and (is_fused or there.value_layout in ("bhnd", "bhdn", "bnhd")):
            return value
        if len(exprs) == 3 and is_fused:
            return self.emit.op("Reshape", value, self.emit.ints(0, 0, there.heads, -1))
        raise PreconditionError(
            "heads stand in one axis with the batch, where none can be dropped alone",
            where=f"site {site.name!r}",
            got=f"an output of rank {len(exprs)}",
            next_step="export with batch and heads apart, or remove heads for good",
        )


__all__ = ["cascade_heads"]
