"""Unification of axis expressions.

The law: after ``unify(a, b)`` returned True, ``indices(a, keep) == indices(b, keep)``
for every ``keep`` over leaf atoms that carry no reason; where it returned False both
sides were frozen, so the law holds because neither may be cut.
"""

from __future__ import annotations

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

    def __init__(self, anonymous: frozenset[str] = frozenset()) -> None:
        self._anonymous = set(anonymous)
        self._equal: dict[str, Size] = {}
        self._depth = 0

    def fresh(self, of_size: Size, label: str = "") -> Expr:
        """Return a new atom of that size, or the unit for size 1."""
        return UNIT if of_size == 1 else (Atom(of_size, label),)

    def anonymous_size(self, name: str) -> Size:
        """Return a dynamic size that may later turn out to be another."""
        self._anonymous.add(name)
        return Polynomial.symbol(name)

    def freeze(self, expr: Expr, reason: Reason) -> None:
        """Give every leaf of ``expr`` the reason."""
        for atom in leaves(expr):
            if reason not in atom.reasons:
                atom.reasons.append(reason)

    def unify(self, left: Expr, right: Expr, node: str = "") -> bool:
        """Make both sides the same axis; False where they had to be frozen."""
        left, right = resolve(left), resolve(right)
        if left == right:
            return True
        if self._depth > _MAX_DEPTH:
            return self._give_up(left, right, node, "the relation does not converge")
        self._depth += 1
        try:
            return self._unify(left, right, node)
        finally:
            self._depth -= 1

    def split(self, expr: Expr, at: Size) -> tuple[Expr, Expr] | None:
        """Cut an axis into its first ``at`` positions and the rest; None where it cannot be said."""
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
            if name in self._anonymous and not (
                isinstance(other, Polynomial) and name in other.names
            ):
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

    def _bind(self, atom: Atom, expr: Expr, node: str) -> bool:
        if len(expr) == 1 and isinstance(expr[0], Atom) and expr[0].number > atom.number:
            atom, expr = expr[0], (atom,)  # the older one stays: it is nearer to the input
        if atom in leaves(expr):
            return self._give_up((atom,), expr, node, "an axis would contain itself")
        atom.definition = expr
        for reason in atom.reasons:
            self.freeze(expr, reason)
        return True

    def _unify_products(self, left: Expr, right: Expr, node: str) -> bool:
        for a, b, rest_a, rest_b, at_front in (
            (left[0], right[0], left[1:], right[1:], True),
            (left[-1], right[-1], left[:-1], right[:-1], False),
        ):
            if self._normal(factor_size(a)) == self._normal(factor_size(b)):
                first = self.unify((a,), (b,), node)
                return self.unify(rest_a, rest_b, node) and first
            done = self._peel(a, b, rest_a, rest_b, at_front, node)
            if done is None:
                done = self._peel(b, a, rest_b, rest_a, at_front, node)
            if done is not None:
                return done
        return self._give_up(left, right, node, "the factors do not line up")

    def _peel(
        self,
        big: Factor,
        small: Factor,
        rest_big: Expr,
        rest_small: Expr,
        at_front: bool,
        node: str,
    ) -> bool | None:
        """Split ``big`` into ``small`` and a remainder; None where it is not a multiple."""
        quotient = divide(self._normal(factor_size(big)), self._normal(factor_size(small)))
        if quotient is None or quotient == 1:
            return None
        if isinstance(big, Sum):
            return self._factor_out(big, small, rest_big, rest_small, node) if at_front else None
        remainder = self.fresh(quotient, big.label)
        halves = (small, *remainder) if at_front else (*remainder, small)
        first = self._bind(big, halves, node)
        rest_big = remainder + rest_big if at_front else rest_big + remainder
        return self.unify(rest_big, rest_small, node) and first

    def _factor_out(
        self, big: Sum, small: Factor, rest_big: Expr, rest_small: Expr, node: str
    ) -> bool | None:
        """``(a + b + ...)`` against ``small * rest``: a = a' * r, b = b' * r, small = a' + b'."""
        inner = divide(self._normal(factor_size(big)), self._normal(factor_size(small)))
        if inner is None:
            return None
        quotients = [divide(self._normal(size(term)), inner) for term in big.terms]
        if any(quotient is None for quotient in quotients):
            return None
        if not rest_big:
            common, remaining = rest_small, None  # the whole product stands against the sum
        else:
            common, remaining = self.fresh(inner), rest_small
        parts = [self.fresh(q) for q in quotients if q is not None]
        sound = True
        for term, part in zip(big.terms, parts, strict=True):
            sound = self.unify(term, part + common, node) and sound
        sound = self.unify((small,), concatenation(parts), node) and sound
        if remaining is not None:
            sound = self.unify(common + rest_big, remaining, node) and sound
        return sound

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
            parts = self.split(terms[0], left)
            if parts is None:
                return None
            before.append(parts[0])
            return concatenation(before), concatenation([parts[1], *terms[1:]])
        return (concatenation(before), concatenation(terms)) if before and terms else None


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
