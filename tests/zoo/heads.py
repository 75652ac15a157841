"""Attention heads that the analysis found, over every site, and how many a plan removes."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import dataclass

from secateur.graph_passes.axes import Atom, Expr, Sum, leaves
from secateur.graph_passes.groups import Analysis
from secateur.graph_passes.plan import Plan, resolve_plan


@dataclass(frozen=True)
class Heads:
    """Key-value heads over all attention sites; a weight shared by two sites counts twice.

    Multi-query attention has one key-value head a site, which cannot go; its query heads can.
    """

    sites: int
    found: int
    removed: int
    queries_found: int
    queries_removed: int


def heads_of(analysis: Analysis, plan: Plan) -> Heads:
    """Count at every softmax or attention node whose leading axes hold heads."""
    kept = {atom: len(units) for atom, units in resolve_plan(analysis, plan).items()}
    exprs = _heads_at_each_site(analysis)

    def found_and_removed(known: Container[Atom]) -> tuple[int, int]:
        found = sum(_count(expr, known, _size) for expr in exprs)
        left = sum(_count(expr, known, lambda atom: kept.get(atom, _size(atom))) for expr in exprs)
        return found, found - left

    groups = analysis.roles.heads
    queries = set(groups) | analysis.roles.query_heads
    return Heads(len(exprs), *found_and_removed(groups), *found_and_removed(queries))


def _heads_at_each_site(analysis: Analysis) -> list[Expr]:
    exprs = []
    for node in analysis.roles.sites:
        axes = analysis.axes.at(node, 0)
        leading = axes[:-2] if node.op_type == "Softmax" or len(axes) == 4 else axes[2:]
        exprs.append(tuple(factor for axis in leading for factor in axis))
    return exprs


def _count(expr: Expr, heads: Container[Atom], size: Callable[[Atom], int]) -> int:
    """Heads in an axis: its size with everything that is not a head taken as one."""
    return math.prod(_factor(factor, heads, size) for factor in expr)


def _factor(factor: Atom | Sum, heads: Container[Atom], size: Callable[[Atom], int]) -> int:
    if isinstance(factor, Atom):
        return size(factor) if factor in heads else 1
    if not any(atom in heads for atom in leaves((factor,))):
        return 1
    return sum(_count(term, heads, size) for term in factor.terms)


def _size(atom: Atom) -> int:
    assert isinstance(atom.size, int), f"a head axis of unknown size: {atom}"
    return atom.size
