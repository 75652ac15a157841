"""What a leaf atom is to a person: heads, their width, channels, the residual stream.

Everything is read off the axes; no module or weight name decides anything here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from secateur.graph_passes.axes import Atom, AxisMap, Expr, Sum, leaves
from secateur.graph_passes.axes.axis_map import constant_tensor

_CONTRACTIONS = frozenset({"MatMul", "Einsum", "FusedMatMul", "Gemm"})
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
    """Repetitions of a key-value head: query heads inside a group."""
    width: set[Atom] = field(default_factory=set)
    """Width of one head, of queries and keys or of values."""
    scored: set[Atom] = field(default_factory=set)
    """Atoms that products of two computed values sum over: the width of queries and keys."""
    tokens: dict[Atom, None] = field(default_factory=dict)
    experts: set[Atom] = field(default_factory=set)
    """Atoms that a router picks from."""
    residual: set[Atom] = field(default_factory=set)
    inexact: set[Atom] = field(default_factory=set)


def find_roles(model: ir.Model, axes: AxisMap, weighted: set[Atom]) -> Roles:
    """Sort atoms by what the graph does with them.

    Args:
        model: The graph that was analysed.
        axes: Its axes.
        weighted: Atoms that stand in an axis of some weight.
    """
    roles = Roles()
    for node in model.graph:
        if node.op_type in {"Softmax", "Attention", "MultiHeadAttention"}:
            _attention(node, axes, weighted, roles)
    for fold in axes.folds:
        atoms = [atom for port in fold.ports for atom in leaves(axes.expr(fold.node, port))]
        if fold.neutral is None:
            roles.inexact.update(atoms)
        elif fold.node.op_type in _CONTRACTIONS and not _has_weight(fold.node):
            roles.scored.update(atoms)
    roles.experts.update(a for a in weighted if a.at_least and a not in roles.tokens)
    _width(axes, roles)
    _residual(axes, weighted, roles)
    return roles


def _attention(node: ir.Node, axes: AxisMap, weighted: set[Atom], roles: Roles) -> None:
    if not axes.knows(node, 0):
        return
    if node.op_type == "Softmax":
        exprs: Sequence[Expr] = axes.at(node, 0)
        if len(exprs) < 3 or not _is_attention(node):
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
        if position and not _stands_alone(atom, found[0], axes):
            roles.query_heads.add(atom)
        else:
            roles.heads.setdefault(atom, node)


def _fused(node: ir.Node, axes: AxisMap) -> tuple[Sequence[Expr], Sequence[Expr]]:
    queries, keys = axes.at(node, 0), axes.at(node, 1)
    if len(queries) == 4:
        return [queries[1]], [queries[2], keys[2]]
    return [queries[2][:1]], [queries[1], keys[1]]


def _stands_alone(atom: Atom, first: Atom, axes: AxisMap) -> bool:
    """Tell whether an atom is also found without ``first`` before it (another set of heads)."""
    for node, slot in axes.constant_uses():
        for expr in axes.at(node, slot):
            atoms = leaves(expr)
            if atom in atoms and first not in atoms:
                return True
    return False


def _is_attention(softmax: ir.Node) -> bool:
    """Tell whether the result of a softmax enters a product of two computed values.

    A softmax over classes, experts or kernels does not. Factorised attention normalises
    projections instead of products, so what comes before the softmax decides nothing.
    """
    return _meets_product(softmax)


def _meets_product(node: ir.Node, depth: int = 12) -> bool:
    frontier, seen = [node], {node}
    for _ in range(depth):
        reached = []
        for here in frontier:
            for other in _readers(here):
                if other in seen:
                    continue
                seen.add(other)
                if other.op_type in _CONTRACTIONS and not _has_weight(other):
                    return True
                if other.op_type in _WALKED_OVER or _has_weight(other):
                    reached.append(other)
        frontier = reached
    return False


def _has_weight(node: ir.Node) -> bool:
    """Tell whether fewer than two operands of a product are computed (Einsum may have three)."""
    computed = sum(value is None or constant_tensor(value) is None for value in node.inputs)
    return node.op_type in _CONTRACTIONS and computed < 2


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    yield from (user for value in node.outputs for user, _ in value.uses())


def _width(axes: AxisMap, roles: Roles) -> None:
    """What stands behind a head in the same axis of a weight is that head's width."""
    for node, slot in axes.constant_uses():
        for expr in axes.at(node, slot):
            for inner in _runs(expr):
                atoms = [a for factor in inner for a in _direct(factor)]
                heads = [i for i, a in enumerate(atoms) if a in roles.heads]
                if heads:
                    behind = atoms[heads[-1] + 1 :]
                    roles.width.update(a for a in behind if a not in roles.query_heads)


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


def _residual(axes: AxisMap, weighted: set[Atom], roles: Roles) -> None:
    """The widths that norms are taken over and that several weights write to."""
    for fold in axes.folds:
        if fold.neutral is not None:
            continue
        is_norm = fold.node.op_type in _NORMS or fold.node.op_type == "ReduceMean"
        for port in fold.ports:
            for atom in leaves(axes.expr(fold.node, port)):
                known = atom in roles.heads or atom in roles.width or atom in roles.tokens
                if is_norm and atom in weighted and not known:
                    roles.residual.add(atom)


__all__ = ["Roles", "find_roles"]
