"""Sizes of axes: integers, or polynomials over the names of dynamic dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

Monomial = tuple[str, ...]


class Polynomial:
    """A sum of integer multiples of products of names; never a plain integer.

    Arithmetic returns an ``int`` wherever the names cancel, so that two sizes are
    equal exactly when they compare equal. Immutable and hashable.
    """

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms: dict[Monomial, int] = dict(terms)
        self._hash = hash(frozenset(self.terms.items()))

    @staticmethod
    @lru_cache(maxsize=4096)
    def symbol(name: str) -> Polynomial:
        """Return the size that is called ``name``."""
        return Polynomial({(name,): 1})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Polynomial) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Size) -> Size:
        terms = dict(self.terms)
        for monomial, factor in _terms(other).items():
            terms[monomial] = terms.get(monomial, 0) + factor
        return _normal(terms)

    def __radd__(self, other: Size) -> Size:
        return self + other

    def __neg__(self) -> Size:
        return self * -1

    def __sub__(self, other: Size) -> Size:
        return self + other * -1

    def __rsub__(self, other: Size) -> Size:
        return self * -1 + other

    def __mul__(self, other: Size) -> Size:
        terms: dict[Monomial, int] = {}
        for left, a in self.terms.items():
            for right, b in _terms(other).items():
                monomial = tuple(sorted(left + right))
                terms[monomial] = terms.get(monomial, 0) + a * b
        return _normal(terms)

    def __rmul__(self, other: Size) -> Size:
        return self * other

    @property
    def names(self) -> frozenset[str]:
        """The dimension names it mentions."""
        return frozenset(name for monomial in self.terms for name in monomial)

    def __repr__(self) -> str:
        parts = []
        for monomial, factor in sorted(self.terms.items(), reverse=True):
            names = "*".join(monomial)
            if not monomial:
                parts.append(str(factor))
            else:
                parts.append(names if factor == 1 else f"{factor}*{names}")
        return " + ".join(parts)


Size = int | Polynomial


def _terms(size: Size) -> Mapping[Monomial, int]:
    return size.terms if isinstance(size, Polynomial) else {(): size}


def _normal(terms: Mapping[Monomial, int]) -> Size:
    kept = {monomial: factor for monomial, factor in terms.items() if factor}
    if not kept:
        return 0
    if len(kept) == 1 and () in kept:
        return kept[()]
    return Polynomial(kept)


def product(sizes: tuple[Size, ...] | list[Size]) -> Size:
    """Multiply sizes; 1 for none."""
    total: Size = 1
    for one in sizes:
        total = total * one
    return total


def divide(size: Size, by: Size) -> Size | None:
    """Return the exact quotient, or None where it is not a size.

    A divisor of several terms divides only itself and its integer multiples.
    """
    if isinstance(size, int) and isinstance(by, int):
        return size // by if by and size % by == 0 else None
    if size == by:
        return 1
    divisor = _terms(by)
    if len(divisor) != 1:
        return _multiple(size, by)
    (monomial, factor) = next(iter(divisor.items()))
    terms: dict[Monomial, int] = {}
    for names, value in _terms(size).items():
        rest = _without(names, monomial)
        if rest is None or not factor or value % factor:
            return None
        terms[rest] = value // factor
    return _normal(terms)


def _multiple(size: Size, by: Size) -> Size | None:
    if not isinstance(size, Polynomial) or not isinstance(by, Polynomial):
        return None
    names, factor = next(iter(by.terms.items()))
    candidate = size.terms.get(names, 0)
    if candidate % factor:
        return None
    quotient = candidate // factor
    return quotient if quotient and by * quotient == size else None


def _without(names: Monomial, remove: Monomial) -> Monomial | None:
    left = list(names)
    for name in remove:
        if name not in left:
            return None
        left.remove(name)
    return tuple(left)


def static(size: Size) -> int:
    """Return an integer size.

    Raises:
        TypeError: the size is known only at run time.
    """
    if not isinstance(size, int):
        raise TypeError(f"the size {size} is known only at run time")
    return size


def at_most(small: Size, large: Size) -> bool:
    """Tell whether ``small <= large`` for every value >= 1 of the names."""
    difference = large - small
    if isinstance(difference, int):
        return difference >= 0
    negative = sum(min(factor, 0) for names, factor in difference.terms.items() if not names)
    if any(factor < 0 for names, factor in difference.terms.items() if names):
        return False
    positive = sum(factor for names, factor in difference.terms.items() if names)
    return positive + negative >= 0


__all__ = ["Monomial", "Polynomial", "Size", "at_most", "divide", "product", "static"]
