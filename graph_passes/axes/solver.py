"""Unification of axis expressions.

The law: after ``unify(a, b)`` returned True, ``indices(a, keep) == indices(b, keep)``
for every ``keep`` over leaf atoms that carry no reason; where it returned False both
sides were frozen, so the law holds because neither may be cut.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from secateur.graph_passes.axes.expression import (
    UNIT,
    Atom,
    Expr,
    Factor,
    Reason,
    Sum,
    concatenation,
    factor_size,
    leaves,
    resolve,
    show,
    size,
)
from secateur.graph_passes.axes.sizes import Polynomial, Size, at_most, divide

_MAX_DEPTH = 64


class Solver:
    """Relates expressions by refining atoms; what cannot be related is frozen.

    ``anonymous`` names are those a converter made up: one of them may turn out to be
    another size. Two names that the user gave are never merged.
    """

    def __init__(self, anonymous: Container[str] = frozenset()) -> None:
        self._anonymous = anonymous
        self._made_here: set[str] = set()
        self._equal: dict[str, Size] = {}
        self._depth = 0

    def fresh(self, of_size: Size, label: str = "") -> Expr:
        """Return a new atom of that size, or the unit for size 1."""
        return UNIT if of_size == 1 else (Atom(of_size, label),)

    def anonymous_size(self, name: str) -> Size:
        """Return a dynamic size that may later turn out to be another."""
        self._made_here.add(name)
        return Polynomial.symbol(name)

    def freeze(self, expr: Expr, reason: Reason) -> None:
        """Give every leaf of ``expr`` the reason."""
        for atom in leaves(expr):
            atom.reasons.setdefault(reason)

    def require(self, expr: Expr, at_least: int, node: str = "") -> None:
        """Let no fewer than ``at_least`` positions of an axis stay.

        Only of a lone atom can this be asked; a composite axis is frozen.
        """
        resolved = resolve(expr)
        if len(resolved) == 1 and isinstance(resolved[0], Atom):
            resolved[0].at_least = max(resolved[0].at_least, at_least)
        else:
            self.freeze(resolved, Reason(f"{at_least} of its positions are picked", node))

    def unify(self, left: Expr, right: Expr, node: str = "") -> bool:
        """Make both sides the same axis; False where they had to be frozen."""
        left, right = resolve(left), resolve(right)
        if left is right or left == right:
            return True
        if len(left) == 1 and len(right) == 1 and self._join(left[0], right[0], node):
            return True
        if self._depth > _MAX_DEPTH:
            return self._give_up(left, right, node, "the relation does not converge")
        self._depth += 1
        try:
            return self._unify(left, right, node)
        finally:
            self._depth -= 1

    def split(self, expr: Expr, at: Size) -> tuple[Expr, Expr] | None:
        """Cut an axis into its first ``at`` positions and the rest; None where that is not one."""
        expr = resolve(expr)
        total = size(expr)
        if at in (0, total) or not expr:
            return None
        head, tail = expr[0], expr[1:]
        rows = divide(at, size(tail))
        if rows is None:
            return None
        parts = self._split_factor(head, rows)
        if parts is None:
            return None
        return parts[0] + tail, parts[1] + tail

    def same_size(self, left: Size, right: Size) -> bool:
        """Compare sizes, letting an anonymous name become the other size."""
        left, right = self._normal(left), self._normal(right)
        if left == right:
            return True
        for one, other in ((left, right), (right, left)):
            name = _bare_name(one)
            if not name or (isinstance(other, Polynomial) and name in other.names):
                continue
            if name in self._made_here or name in self._anonymous:
                self._equal[name] = other
                return True
        return False

    def _normal(self, value: Size) -> Size:
        while isinstance(value, Polynomial) and any(name in self._equal for name in value.names):
            total: Size = 0
            for names, factor in value.terms.items():
                term: Size = factor
                for name in names:
                    term = term * self._equal.get(name, Polynomial.symbol(name))
                total = total + term
            value = total
        return value

    def _give_up(self, left: Expr, right: Expr, node: str, text: str) -> bool:
        reason = Reason(f"{text}: {show(left)} against {show(right)}", node)
        self.freeze(left, reason)
        self.freeze(right, reason)
        return False

    def _unify(self, left: Expr, right: Expr, node: str) -> bool:
        while left and right and left[0] == right[0]:
            left, right = left[1:], right[1:]
        while left and right and left[-1] == right[-1]:
            left, right = left[:-1], right[:-1]
        if not left and not right:
            return True
        if not self.same_size(size(left), size(right)):
            return self._give_up(left, right, node, "sizes differ")
        if len(left) == 1 and isinstance(left[0], Atom):
            return self._bind(left[0], right, node)
        if len(right) == 1 and isinstance(right[0], Atom):
            return self._bind(right[0], left, node)
        if len(left) == 1 and len(right) == 1:
            return self._unify_sums(left, right, node)
        return self._unify_products(left, right, node)

    def _join(self, one: Factor, other: Factor, node: str) -> bool:
        """Make two leaf atoms of one integer size the same: most relations are no more."""
        if type(one) is not Atom or type(other) is not Atom:
            return False
        if type(one.size) is not int or one.size != other.size:
            return False
        older, younger = (one, other) if one.number < other.number else (other, one)
        younger.definition = (older,)  # the older one stays: it is nearer to the input
        older.reasons.update(younger.reasons)
        if younger.at_least:
            self.require((older,), younger.at_least, node)
        return True

    def _bind(self, atom: Atom, expr: Expr, node: str) -> bool:
        if len(expr) == 1 and isinstance(expr[0], Atom) and expr[0].number > atom.number:
            atom, expr = expr[0], (atom,)  # the older one stays: it is nearer to the input
        if atom in leaves(expr):
            return self._give_up((atom,), expr, node, "an axis would contain itself")
        atom.definition = expr
        for reason in atom.reasons:
            self.freeze(expr, reason)
        if atom.at_least:
            self.require(expr, atom.at_least, node)
        return True

    def _unify_products(self, left: Expr, right: Expr, node: str) -> bool:
        for at_front in (True, False):
            one, other = _side(left, at_front=at_front), _side(right, at_front=at_front)
            if self._normal(factor_size(one.factor)) == self._normal(factor_size(other.factor)):
                first = self.unify((one.factor,), (other.factor,), node)
                return self.unify(one.rest, other.rest, node) and first
            done = self._peel(one, other, node)
            if done is None:
                done = self._peel(other, one, node)
            if done is not None:
                return done
        return self._give_up(left, right, node, "the factors do not line up")

    def _peel(self, big: _Side, small: _Side, node: str) -> bool | None:
        """Split the big factor into the small one and a rest; None where it is no multiple."""
        quotient = divide(
            self._normal(factor_size(big.factor)), self._normal(factor_size(small.factor))
        )
        if quotient is None or quotient == 1:
            return None
        if isinstance(big.factor, Sum):
            return self._factor_out(big.factor, big.rest, small, node) if big.at_front else None
        remainder = self.fresh(quotient, big.factor.label)
        if big.at_front:
            halves, rest = (small.factor, *remainder), remainder + big.rest
        else:
            halves, rest = (*remainder, small.factor), big.rest + remainder
        first = self._bind(big.factor, halves, node)
        return self.unify(rest, small.rest, node) and first

    def _factor_out(self, total: Sum, rest: Expr, small: _Side, node: str) -> bool | None:
        """``(a + b) * rest`` against ``small * ...``: a = a' * r, b = b' * r, small = a' + b'."""
        inner = divide(self._normal(factor_size(total)), self._normal(factor_size(small.factor)))
        if inner is None:
            return None
        quotients = [divide(self._normal(size(term)), inner) for term in total.terms]
        if any(quotient is None for quotient in quotients):
            return None
        # with nothing behind the sum, the whole other product stands against it
        common = self.fresh(inner) if rest else small.rest
        parts = [self.fresh(q) for q in quotients if q is not None]
        sound = True
        for term, part in zip(total.terms, parts, strict=True):
            sound = self.unify(term, part + common, node) and sound
        sound = self.unify((small.factor,), concatenation(parts), node) and sound
        return self.unify(common + rest, small.rest, node) and sound if rest else sound

    def _unify_sums(self, left: Expr, right: Expr, node: str) -> bool:
        a = [*left[0].terms] if isinstance(left[0], Sum) else [left]
        b = [*right[0].terms] if isinstance(right[0], Sum) else [right]
        sound = True
        while a and b:
            size_a, size_b = self._normal(size(a[0])), self._normal(size(b[0]))
            if size_a == size_b:
                sound = self.unify(a.pop(0), b.pop(0), node) and sound
                continue
            longer, shorter = (a, b) if at_most(size_b, size_a) else (b, a)
            parts = self.split(longer[0], self._normal(size(shorter[0])))
            if parts is None:
                rest = concatenation(a), concatenation(b)
                return self._give_up(*rest, node, "the parts do not line up")
            longer[0:1] = parts
            # a refinement may have changed what the other list stands for
            a, b = [resolve(term) for term in a], [resolve(term) for term in b]
            a, b = _flat(a), _flat(b)
        return sound

    def _split_factor(self, factor: Factor, rows: Size) -> tuple[Expr, Expr] | None:
        if isinstance(factor, Atom):
            rest = factor.size - rows
            if rows == 0 or rest == 0 or not at_most(1, rows) or not at_most(1, rest):
                return None
            parts = self.fresh(rows, factor.label), self.fresh(rest, factor.label)
            factor.definition = concatenation(parts)
            for reason in factor.reasons:
                self.freeze(factor.definition, reason)
            if factor.at_least:
                self.require(factor.definition, factor.at_least)
            return parts
        before: list[Expr] = []
        terms = list(factor.terms)
        left = rows
        while terms:
            here = self._normal(size(terms[0]))
            if left == 0:
                break
            if at_most(here, left):
                before.append(terms.pop(0))
                left = left - here
                continue
            halves = self.split(terms[0], left)
            if halves is None:
                return None
            before.append(halves[0])
            return concatenation(before), concatenation([halves[1], *terms[1:]])
        return (concatenation(before), concatenation(terms)) if before and terms else None


class _Side(NamedTuple):
    """One end of a product and what is left of it."""

    factor: Factor
    rest: Expr
    at_front: bool


def _side(expr: Expr, *, at_front: bool) -> _Side:
    if at_front:
        return _Side(expr[0], expr[1:], at_front)
    return _Side(expr[-1], expr[:-1], at_front)


def _flat(terms: list[Expr]) -> list[Expr]:
    flat: list[Expr] = []
    for term in terms:
        if len(term) == 1 and isinstance(term[0], Sum):
            flat.extend(term[0].terms)
        else:
            flat.append(term)
    return flat


def _bare_name(value: Size) -> str:
    if isinstance(value, Polynomial) and len(value.terms) == 1:
        (names, factor) = next(iter(value.terms.items()))
        if factor == 1 and len(names) == 1:
            return names[0]
    return ""


__all__ = ["Solver"]
