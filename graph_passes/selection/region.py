"""What a chain of cuts reaches: a region per node, the values that cross, what is refused.

Region r is what descends from the readers of the r-th cut. One analysis of the uncut
graph serves all cuts, because they share the token axis and follow one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from secateur.errors import PreconditionError
from secateur.graph_passes.attention_steps import axes_of
from secateur.graph_passes.axes import AxisMap, Expr, Sum, leaves, node_name, show, size
from secateur.graph_passes.axes.expression import concatenation, resolve
from secateur.graph_passes.axes.shape_values import SHAPE_SLOTS
from secateur.graph_passes.selection.flow import reads_shape_only


@dataclass(frozen=True, slots=True)
class Cut:
    """One place where tokens leave.

    Attributes:
        site: Name for messages.
        value: (B, N, D), reduced for its readers.
        readers: The uses to rewire, recorded before anything is spliced.
    """

    site: str
    value: ir.Value
    readers: tuple[tuple[ir.Node, int], ...]


@dataclass(frozen=True, slots=True)
class Crossing:
    """A value with the token axis that a node reads from an earlier region."""

    node: ir.Node
    slot: int
    value: ir.Value
    exprs: tuple[Expr, ...]
    source: int
    region: int


@dataclass
class Regions:
    """The chain of cuts on one graph.

    Attributes:
        axes: Analysis of the graph before any cut.
        cuts: In the order of the flow.
        tokens: The token axis as an expression.
        batch: The batch axis as an expression.
        order: Nodes in topological order, as they were before the cuts.
        of: Region per node; a node that is not in it has region 0.
        joins: Where all tokens are put back: what reads them is in region 0 again.
    """

    axes: AxisMap
    cuts: tuple[Cut, ...]
    tokens: Expr
    batch: Expr
    order: list[ir.Node]
    of: dict[ir.Node, int] = field(default_factory=dict)
    joins: tuple[Cut, ...] = ()
    _inputs: dict[ir.Node, tuple[ir.Value | None, ...]] = field(default_factory=dict)
    _exprs: dict[tuple[ir.Node, int], list[Expr]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Keep the inputs as they are now: the pass rewires nodes as it goes along."""
        for node in self.order:
            self._inputs[node] = tuple(node.inputs)
            for slot in range(len(node.inputs)):
                exprs = self.axes.raw(node, slot)
                if exprs is not None:
                    self._exprs[node, slot] = list(exprs)

    def inputs(self, node: ir.Node) -> tuple[ir.Value | None, ...]:
        """Return the inputs that a node had before any cut."""
        return self._inputs[node]

    def exprs(self, node: ir.Node, slot: int) -> tuple[Expr, ...] | None:
        """Return the axes of an input before any cut, None where its rank is unknown."""
        exprs = self._exprs.get((node, slot))
        return None if exprs is None else tuple(resolve(expr) for expr in exprs)

    def made(self, node: ir.Node) -> tuple[Expr, ...] | None:
        """Return the axes of a node's first output, None where its rank is unknown."""
        return axes_of(self.axes, node.outputs[0])

    def bears(self, expr: Expr) -> bool:
        """Tell whether an axis is made, in part at least, of token positions."""
        atoms = set(leaves(self.tokens))
        return any(atom in atoms for atom in leaves(expr))

    def is_tokens(self, expr: Expr) -> bool:
        """Tell whether an axis is the token axis, whole and alone."""
        return expr == self.tokens

    def tail(self, expr: Expr) -> int | None:
        """Return how many leading tokens the axis lacks: 0 for all of them, None for others."""
        if expr == self.tokens:
            return 0
        if len(self.tokens) != 1 or not isinstance(self.tokens[0], Sum):
            return None
        terms, lacking = self.tokens[0].terms, 0
        for i in range(1, len(terms)):
            length = size(terms[i - 1])
            if not isinstance(length, int):
                return None
            lacking += length
            if expr == concatenation(terms[i:]):
                return lacking
        return None

    def ahead(self, expr: Expr) -> int | None:
        """Return how many others stand before the tokens in an axis: 0 in their own.

        A class token may join them late. None where the tokens are not there whole, or what
        joins them is made of tokens or of unknown number.
        """
        found = beside_tokens(expr, self.tokens)
        return None if found is None else found[0]

    def beside_batch(self, expr: Expr) -> Expr | None:
        """Return what stands in one axis with the batch, such as heads, of known size."""
        n = len(self.batch)
        rest = expr[n:]
        is_joined = expr[:n] == self.batch and rest and isinstance(size(rest), int)
        return rest if is_joined and not self.bears(rest) else None

    def edge(self, node: ir.Node, slot: int) -> int:
        """Return the region that input ``slot`` of ``node`` comes from."""
        value = self._inputs[node][slot]
        for number, cut in enumerate(self.cuts, start=1):
            if value is cut.value and (node, slot) in cut.readers:
                return number
        if any(value is join.value and (node, slot) in join.readers for join in self.joins):
            return 0
        producer = None if value is None else value.producer()
        return 0 if producer is None else self.of.get(producer, 0)

    def in_region(self) -> Iterator[tuple[ir.Node, int]]:
        """Yield the nodes behind a cut with their region, in graph order."""
        for node in self.order:
            if region := self.of.get(node, 0):
                yield node, region

    def data_slots(self, node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
        """Yield the inputs of a node that carry data, not a shape."""
        spelled = frozenset[int]() if node.domain else SHAPE_SLOTS.get(node.op_type, frozenset())
        for slot, value in enumerate(self._inputs[node]):
            if value is not None and slot not in spelled:
                yield slot, value


def map_regions(
    model: ir.Model, axes: AxisMap, cuts: tuple[Cut, ...], joins: tuple[Cut, ...] = ()
) -> Regions:
    """Find the region of every node.

    Args:
        model: The graph before any cut.
        axes: Its analysis.
        cuts: In the order of the flow.
        joins: Where all tokens are put back.

    Raises:
        PreconditionError: the cuts are not one chain along one token axis.
    """
    batch, tokens = _axes_of_cut(axes, cuts[0])
    regions = Regions(axes, cuts, tokens, batch, list(model.graph), joins=joins)
    for node in regions.order:
        if reads_shape_only(node) or _is_size(node, axes):
            continue
        edges = [regions.edge(node, slot) for slot, _ in regions.data_slots(node)]
        region = max(edges, default=0)
        if region:
            regions.of[node] = region
    _check_chain(regions)
    _check_joins(regions)
    return regions


def crossings(regions: Regions) -> list[Crossing]:
    """Return every input of a region that carries tokens and was made before its cut.

    Raises:
        PreconditionError: an input of the region has unknown axes.
    """
    found = []
    for node, region in regions.in_region():
        for slot, value in regions.data_slots(node):
            source = regions.edge(node, slot)
            if source == region or regions.axes.entries(value) is not None:
                continue
            exprs = regions.exprs(node, slot)
            if exprs is None:
                raise refusal(regions, node, f"the axes of its input {value.name!r} are unknown")
            if any(regions.bears(expr) for expr in exprs):
                found.append(Crossing(node, slot, value, exprs, source, region))
    return found


def refusal(regions: Regions, node: ir.Node, reason: str, next_step: str = "") -> PreconditionError:
    """Return the error for a node that cannot stand behind the cut it is behind."""
    region = regions.of.get(node, 1)
    cut = regions.cuts[max(region, 1) - 1]
    return PreconditionError(
        f"tokens cannot be selected at {cut.site}: {reason}",
        where=f"{node.op_type} node {node_name(node)}",
        next_step=next_step or "select at a later site, or change the model at this node",
    )


def beside_tokens(expr: Expr, tokens: Expr) -> tuple[int, int] | None:
    """Return how many others stand before and behind the tokens in an axis, see ``ahead``."""
    terms, mine = _terms(expr), _terms(tokens)
    atoms = set(leaves(tokens))
    for i in range(len(terms) - len(mine) + 1):
        if terms[i : i + len(mine)] != mine:
            continue
        lengths = [[size(one) for one in part] for part in (terms[:i], terms[i + len(mine) :])]
        others = (*terms[:i], *terms[i + len(mine) :])
        known = [[n for n in part if isinstance(n, int)] for part in lengths]
        is_apart = not any(atom in atoms for one in others for atom in leaves(one))
        if is_apart and sum(map(len, known)) == len(others):
            return sum(known[0]), sum(known[1])
    return None


def _terms(expr: Expr) -> tuple[Expr, ...]:
    only = expr[0] if len(expr) == 1 else None
    return only.terms if isinstance(only, Sum) else (expr,)


def _is_size(node: ir.Node, axes: AxisMap) -> bool:
    return bool(node.outputs) and axes.entries(node.outputs[0]) is not None


def _axes_of_cut(axes: AxisMap, cut: Cut) -> tuple[Expr, Expr]:
    exprs = axes_of(axes, cut.value) or ()
    if len(exprs) != 3:
        raise PreconditionError(
            f"tokens cannot be selected at {cut.site}: the residual stream is not (B, N, D)",
            where=f"value {cut.value.name!r}",
            got=f"{len(exprs)} axes: " + ", ".join(show(expr) for expr in exprs),
            next_step="choose cut='attention', or export with batch-first layout",
        )
    if size(exprs[1]) == 1:
        raise PreconditionError(
            f"tokens cannot be selected at {cut.site}: there is only one token",
            where=f"value {cut.value.name!r}",
            next_step="export with a longer example input",
        )
    if not leaves(exprs[1]):  # nothing says which other axes are these tokens
        raise PreconditionError(
            f"tokens cannot be selected at {cut.site}: each of them is an axis of its own before "
            "they are joined",
            where=f"value {cut.value.name!r}",
            got=show(exprs[1]),
            next_step="export with a longer example input",
        )
    return exprs[0], exprs[1]


def _check_joins(regions: Regions) -> None:
    """Tokens are put back behind a cut, and nothing reads both them and what was left."""
    for join in regions.joins:
        producer = join.value.producer()
        if producer is None or not regions.of.get(producer, 0):
            raise PreconditionError(
                f"no token has left where {join.site!r} puts them back",
                where=f"value {join.value.name!r}",
                next_step="name a value behind the last site",
            )
        for node, _ in join.readers:
            if regions.of.get(node, 0):
                reason = "it reads tokens that were put back beside tokens that were not"
                raise refusal(regions, node, reason, "put them back at a later value")


def _check_chain(regions: Regions) -> None:
    for number, cut in enumerate(regions.cuts[1:], start=1):
        producer = cut.value.producer()
        behind = 0 if producer is None else regions.of.get(producer, 0)
        if behind != number:
            previous = regions.cuts[number - 1].site
            raise PreconditionError(
                f"the sites {previous} and {cut.site} do not follow one another",
                where=f"value {cut.value.name!r}",
                wanted="sites of one branch of the model, each with its own cut",
                next_step="select in one branch at a time",
            )
        if _axes_of_cut(regions.axes, cut)[1] != regions.tokens:
            raise PreconditionError(
                f"{cut.site} has another token axis than {regions.cuts[0].site}",
                where=f"value {cut.value.name!r}",
                got=show(_axes_of_cut(regions.axes, cut)[1]),
                wanted=show(regions.tokens),
                next_step="select along one token axis at a time",
            )


__all__ = [
    "Crossing",
    "Cut",
    "Regions",
    "beside_tokens",
    "crossings",
    "map_regions",
    "refusal",
]
