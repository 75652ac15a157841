"""What a leaf atom is to a person: heads, their width, channels, the residual stream.

Everything is read off the axes; no module or weight name decides anything here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from secateur.graph_passes.axes import Atom, AxisMap, Expr, FoldUse, Sum, leaves
from secateur.graph_passes.axes.expression import stands_in

_CONTRACTIONS = frozenset({"MatMul", "Einsum", "FusedMatMul", "Gemm"})
_ATTENDING = frozenset({"Softmax", "Attention", "MultiHeadAttention", "GroupQueryAttention"})
"""In whatever domain."""
_WALKED_OVER = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Where", "Cast", "IsNaN", "Not", "Clip", "Tanh", "Identity"),
        *("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Dropout"),
        *("Slice", "Concat", "Pad", "Gather", "Split", "Conv", "BatchNormalization"),
    }
)
_NORMS = frozenset(
    {
        "LayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "ReduceMean",
    }
)


@dataclass(slots=True)
class Roles:
    """Atoms by role; an atom in none of the sets is a channel of a layer."""

    sites: list[ir.Node] = field(default_factory=list)
    """Softmax and fused nodes that attend, in graph order."""
    heads: dict[Atom, ir.Node] = field(default_factory=dict)
    """Leaf atoms over which independent attentions run, with the softmax that says so."""
    query_heads: set[Atom] = field(default_factory=set)
    """Repetitions of a key-value head: query heads inside a group, or of the only group."""
    width: set[Atom] = field(default_factory=set)
    """Width of one head, of queries and keys or of values."""
    scored: set[Atom] = field(default_factory=set)
    """Atoms that products of two computed values sum over: the width of queries and keys."""
    tokens: dict[Atom, None] = field(default_factory=dict)
    experts: set[Atom] = field(default_factory=set)
    """Atoms that a router picks from."""
    residual: set[Atom] = field(default_factory=set)
    inexact: set[Atom] = field(default_factory=set)
    outputs: set[Atom] = field(default_factory=set)
    """Positions of graph outputs that are allowed to change shape."""
    vocabulary: dict[Atom, set[int]] = field(default_factory=dict)
    """Rows that ids from outside read, with those that stand in for others and so stay."""

    def is_head(self, atom: Atom) -> bool:
        """Tell whether the atom counts heads of keys and values, or of queries."""
        return atom in self.heads or atom in self.query_heads


def find_roles(axes: AxisMap, weighted: set[Atom]) -> Roles:
    """Sort atoms by what the graph does with them.

    Args:
        axes: Those of the graph.
        weighted: Atoms that stand in an axis of some weight.
    """
    roles = Roles()
    for visit in axes.visited.values():
        if visit.op in _ATTENDING:
            _attention(visit.node, axes, weighted, roles)
    folded = [(fold, _folded(fold, axes)) for fold in axes.folds]
    for fold, atoms in folded:
        if fold.neutral is None:
            roles.inexact.update(atoms)
        elif fold.node.op_type in _CONTRACTIONS and not _has_weight(fold.node, axes):
            roles.scored.update(atoms)
    roles.experts.update(a for a in weighted if a.at_least and a not in roles.tokens)
    for lookup in axes.lookups.values():
        for atom in leaves(axes.expr(lookup.node, lookup.port)):
            roles.vocabulary.setdefault(atom, set()).add(lookup.stand_in)
    if roles.heads or roles.query_heads:
        _width(axes, roles)
    _residual(folded, weighted, roles)
    return roles


def _folded(fold: FoldUse, axes: AxisMap) -> list[Atom]:
    return [atom for port in fold.ports for atom in leaves(axes.expr(fold.node, port))]


def _attention(node: ir.Node, axes: AxisMap, weighted: set[Atom], roles: Roles) -> None:
    if not axes.knows(node, 0):
        return
    if node.op_type == "Softmax":
        exprs: Sequence[Expr] = axes.at(node, 0)
        if len(exprs) < 3 or not _is_attention(node, axes):
            return
        axis = node.attributes.get_int("axis", -1) % len(exprs)
        # Factorised attention normalises the keys over the tokens, not the last axis.
        last = axis == len(exprs) - 1
        over, tokens = exprs[:-2], exprs[-2:] if last else exprs[axis : axis + 1]
    else:
        over, tokens = _fused(node, axes)
    roles.sites.append(node)
    for expr in tokens:
        for atom in leaves(expr):
            roles.tokens.setdefault(atom)
    found = [atom for expr in over for atom in leaves(expr) if atom in weighted]
    found = [atom for atom in found if atom not in roles.tokens]
    for position, atom in enumerate(found):
        inside = position > 0 and not _stands_alone(atom, found[0], axes)
        if inside or _is_of_queries_only(node, atom, axes):
            roles.query_heads.add(atom)
        else:
            roles.heads.setdefault(atom, node)
    for atom in _behind_a_mix(node, axes):
        if atom in weighted and atom not in roles.tokens:
            roles.heads.setdefault(atom, node)


def _behind_a_mix(node: ir.Node, axes: AxisMap) -> Iterator[Atom]:
    """Heads of the products beside a softmax where a weight mixes heads between (talking heads)."""
    for step in (_made_from, _read_by):
        here, mixes = step(node, axes), False
        while here is not None and not _is_product(here, axes):
            mixed = _has_weight(here, axes) or here.op_type == "Conv"
            mixes = mixes or mixed
            here = step(here, axes) if mixed or here.op_type in _WALKED_OVER else None
        if here is not None and mixes and axes.knows(here, -1) and len(axes.at(here, -1)) > 3:
            yield from leaves(axes.at(here, -1)[1])


def _made_from(node: ir.Node, axes: AxisMap) -> ir.Node | None:
    """The node that makes the first computed input."""
    computed = (v for v in node.inputs if v is not None and v not in axes.constants)
    value = next(computed, None)
    return None if value is None else value.producer()


def _read_by(node: ir.Node, axes: AxisMap) -> ir.Node | None:
    """The only reader."""
    del axes
    found = list(_readers(node))
    return found[0] if len(found) == 1 else None


def _fused(node: ir.Node, axes: AxisMap) -> tuple[Sequence[Expr], Sequence[Expr]]:
    queries, keys = axes.at(node, 0), axes.at(node, 1)
    if node.op_type == "Attention" and node.domain == "com.microsoft":  # its weights are inside
        merged = axes.at(node, -1) if axes.knows(node, -1) else ()
        return [merged[2][:1]] if len(merged) == 3 else [], [queries[1]]
    if len(queries) == 4:
        return [queries[1]], [queries[2], keys[2]]
    return [queries[2][:1]], [queries[1], keys[1]]


def _stands_alone(atom: Atom, first: Atom, axes: AxisMap) -> bool:
    """Tell whether an atom is also found without ``first`` before it (another set of heads)."""
    return any(not stands_in(first, expr) for expr in axes.constant_axes_with(atom))


def _is_of_queries_only(node: ir.Node, atom: Atom, axes: AxisMap) -> bool:
    """Tell whether the keys have one head that all queries share (multi-query attention)."""
    if node.op_type == "Attention" and node.domain == "com.microsoft":
        return False  # queries, keys and values are parts of one product
    if node.op_type != "Softmax":
        keys = axes.at(node, 1)[1 if len(axes.at(node, 1)) == 4 else 2]
        return atom not in leaves(keys)
    makers = _makers(node.inputs[0], atom, axes)
    product = next((maker for maker in makers if _is_product(maker, axes)), None)
    if product is None:
        return False  # factorised attention normalises the keys themselves
    return not all(_is_made_with(value, atom, axes) for value in product.inputs)


def _is_product(node: ir.Node, axes: AxisMap) -> bool:
    return node.op_type in _CONTRACTIONS and not _has_weight(node, axes)


def _is_made_with(value: ir.Value | None, atom: Atom, axes: AxisMap) -> bool:
    """Tell whether a weight or a graph input brings the atom in, not a broadcast."""
    if value is not None and value.is_graph_input():
        return _has(axes, value, atom)
    for node in _makers(value, atom, axes):
        for slot, source in enumerate(node.inputs):
            if source is None or not (source in axes.constants or source.is_graph_input()):
                continue
            exprs = axes.raw(node, slot) or ()
            if any(stands_in(atom, expr) for expr in exprs):
                return True
    return False


def _makers(value: ir.Value | None, atom: Atom, axes: AxisMap) -> Iterator[ir.Node]:
    """Nodes that made a value, nearest first, as far up as the atom is in their results."""
    frontier, seen = [value], set()
    while frontier:
        reached: list[ir.Value | None] = []
        for here in frontier:
            node = None if here is None or not _has(axes, here, atom) else here.producer()
            if node is not None and node not in seen:
                seen.add(node)
                yield node
                reached.extend(node.inputs)
        frontier = reached


def _has(axes: AxisMap, value: ir.Value, atom: Atom) -> bool:
    """Tell whether an axis of a computed value contains the atom."""
    exprs = axes.of_values.get(value)
    return exprs is not None and any(stands_in(atom, expr) for expr in exprs)


def _is_attention(softmax: ir.Node, axes: AxisMap) -> bool:
    """Tell whether the result of a softmax enters a product of two computed values.

    A softmax over classes, experts or kernels does not. Factorised attention normalises
    projections instead of products, so what comes before the softmax decides nothing.
    """
    return _meets_product(softmax, axes)


def _meets_product(node: ir.Node, axes: AxisMap, depth: int = 12) -> bool:
    frontier, seen = [node], {node}
    for _ in range(depth):
        reached = []
        for here in frontier:
            for other in _readers(here):
                if other in seen:
                    continue
                seen.add(other)
                if _is_product(other, axes):
                    return True
                if other.op_type in _WALKED_OVER or _has_weight(other, axes):
                    reached.append(other)
        frontier = reached
    return False


def _has_weight(node: ir.Node, axes: AxisMap) -> bool:
    """Tell whether fewer than two operands of a product are computed (Einsum may have three)."""
    if node.op_type not in _CONTRACTIONS:
        return False
    return sum(value not in axes.constants for value in node.inputs) < 2


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    yield from (user for value in node.outputs for user, _ in value.uses())


def _width(axes: AxisMap, roles: Roles) -> None:
    """What stands behind a head in the same axis of a weight is that head's width."""
    for read in axes.of_uses.values():
        for expr in read.exprs:
            if len(expr) < 2 and (not expr or isinstance(expr[0], Atom)):
                continue  # nothing stands behind anything
            for inner in _runs(expr):
                atoms = [a for factor in inner for a in _direct(factor)]
                heads = [i for i, a in enumerate(atoms) if roles.is_head(a)]
                if heads:
                    roles.width.update(atoms[heads[-1] + 1 :])


def _runs(expr: Expr) -> Iterator[Expr]:
    yield expr
    for factor in expr:
        if isinstance(factor, Sum):
            for term in factor.terms:
                yield from _runs(term)


def _direct(factor: Atom | Sum) -> Iterator[Atom]:
    if isinstance(factor, Atom):
        yield factor
    else:
        yield from leaves((factor,))


def _residual(
    folded: Sequence[tuple[FoldUse, Sequence[Atom]]], weighted: set[Atom], roles: Roles
) -> None:
    """The widths that norms are taken over and that several weights write to."""
    for fold, atoms in folded:
        if fold.neutral is None and fold.node.op_type in _NORMS:
            for atom in atoms:
                known = roles.is_head(atom) or atom in roles.width or atom in roles.tokens
                if atom in weighted and not known:
                    roles.residual.add(atom)


__all__ = ["Roles", "find_roles"]
