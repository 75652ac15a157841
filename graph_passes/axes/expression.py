"""What an axis is made of: atoms, products of them and sums of products.

An axis is an *expression*: a row-major, ordered product of factors; a factor is an
atom (an index set of some size) or a sum (a concatenation of expressions). An axis
of size 1 is the empty product. ``indices`` is the meaning of an expression; every
law of the solver is stated with it.

Source: the masks that Structurally Prune Anything (arXiv 2403.18955, section 3)
propagates, made symbolic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secateur.errors import PreconditionError
from secateur.graph_passes.axes.sizes import Size

_numbers = count()


class Reason(NamedTuple):
    """Why an atom may not be cut: one sentence and the name of the node that says so."""

    text: str
    node: str = ""

    def __str__(self) -> str:
        return f"{self.text} (at {self.node})" if self.node else self.text


class Atom:
    """An index set. Two atoms are the same only if they are one object.

    ``definition`` is set once, by the solver, when the atom turns out to be finer or
    to be another one; reasons against cutting it move on to its definition.
    """

    __slots__ = ("at_least", "definition", "label", "number", "reasons", "size")

    def __init__(self, size: Size, label: str = "") -> None:
        self.size = size
        self.label = label
        self.definition: Expr | None = None
        self.reasons: dict[Reason, None] = {}
        """An ordered set: an axis that runs through the whole graph collects thousands."""
        self.at_least = 0
        """So many are picked at a time (TopK), so that fewer may not stay."""
        self.number = next(_numbers)

    def __repr__(self) -> str:
        return f"{self.label or 'a'}#{self.number}[{self.size}]"


@dataclass(frozen=True, slots=True)
class Sum:
    """A concatenation of expressions, in order."""

    terms: tuple[Expr, ...]

    def __repr__(self) -> str:
        return "(" + " + ".join(show(term) for term in self.terms) + ")"


Factor = Atom | Sum
Expr = tuple[Factor, ...]
UNIT: Expr = ()
Keep = Mapping[Atom, NDArray[np.int64]]


def show(expr: Expr) -> str:
    """Spell an expression for a person: factors joined by ``*``, 1 for none."""
    return "*".join(repr(factor) for factor in expr) or "1"


def concatenation(terms: tuple[Expr, ...] | list[Expr]) -> Expr:
    """Return the sum of ``terms`` in normal form: nested sums flat, a lone term bare."""
    flat: list[Expr] = []
    for term in terms:
        if len(term) == 1 and isinstance(term[0], Sum):
            flat.extend(term[0].terms)
        else:
            flat.append(term)
    return flat[0] if len(flat) == 1 else (Sum(tuple(flat)),)


def resolve(expr: Expr) -> Expr:
    """Replace every defined atom by its definition, down to the leaves."""
    if len(expr) == 1 and type(atom := expr[0]) is Atom:  # most axes are one atom
        if atom.definition is None:
            return expr
        atom.definition = found = resolve(atom.definition)
        return found
    for factor in expr:
        if type(factor) is not Atom or factor.definition is not None:
            break
    else:
        return expr
    factors: list[Factor] = []
    for factor in expr:
        if isinstance(factor, Atom):
            if factor.definition is None:
                factors.append(factor)
                continue
            factor.definition = resolve(factor.definition)  # path compression
            factors.extend(factor.definition)
            continue
        terms = tuple([resolve(term) for term in factor.terms])
        if terms == factor.terms:
            factors.append(factor)
        else:
            factors.extend(concatenation(terms))
    return tuple(factors)


def current_size(expr: Expr) -> Size:
    """Return the size of an axis by its leaves; a dynamic one may have become known since."""
    if len(expr) == 1 and type(expr[0]) is Atom and type(expr[0].size) is int:
        return expr[0].size  # an integer stays what it is, however the atom is refined
    return size(resolve(expr))


def current_sizes(exprs: Iterable[Expr]) -> tuple[Size, ...]:
    """Return ``current_size`` of each axis."""
    sizes: list[Size] = []
    for expr in exprs:
        if not expr:
            sizes.append(1)
        elif (
            len(expr) == 1
            and type(atom := expr[0]) is Atom
            and (type(atom.size) is int or atom.definition is None)
        ):
            sizes.append(atom.size)
        else:
            sizes.append(size(resolve(expr)))
    return tuple(sizes)


def units(exprs: Iterable[Expr]) -> tuple[bool, ...]:
    """Tell of each axis whether its size is 1."""
    found = []
    for expr in exprs:
        if not expr:
            found.append(True)
        elif type(first := expr[0]) is Atom and (
            type(first.size) is int or first.definition is None
        ):
            found.append(False)  # whatever it is multiplied with
        else:
            found.append(size(resolve(expr)) == 1)
    return tuple(found)


def size(expr: Expr) -> Size:
    """Number of positions of the axis."""
    if len(expr) == 1 and type(expr[0]) is Atom:
        return expr[0].size
    total: Size = 1
    for factor in expr:
        total = total * factor_size(factor)
    return total


def factor_size(factor: Factor) -> Size:
    """Number of positions of one factor."""
    if isinstance(factor, Atom):
        return factor.size
    total: Size = 0
    for term in factor.terms:
        total = total + size(term)
    return total


def leaves(expr: Expr) -> tuple[Atom, ...]:
    """Return the undefined atoms of an expression, in order, each once."""
    if not expr:
        return ()
    if len(expr) == 1 and type(expr[0]) is Atom and expr[0].definition is None:
        return (expr[0],)  # most axes are one atom
    found: dict[Atom, None] = {}
    _collect(resolve(expr), found)
    return tuple(found)


def _collect(expr: Expr, found: dict[Atom, None]) -> None:
    for factor in expr:
        if isinstance(factor, Atom):
            found[factor] = None
        else:
            for term in factor.terms:
                _collect(term, found)


def stands_in(atom: Atom, expr: Expr) -> bool:
    """Tell whether a leaf atom is a part of a resolved axis."""
    for factor in expr:
        if factor is atom:
            return True
        if type(factor) is Sum and any(stands_in(atom, term) for term in factor.terms):
            return True
    return False


def is_cut(expr: Expr, keep: Keep) -> bool:
    """Tell whether an axis contains one of the atoms."""
    for factor in expr:
        if isinstance(factor, Sum):
            if any(is_cut(term, keep) for term in factor.terms):
                return True
        elif factor in keep or (factor.definition is not None and is_cut(factor.definition, keep)):
            return True
    return False


def kept_length(expr: Expr, keep: Keep) -> int:
    """Number of positions that survive, ``len(indices(expr, keep))``, without listing them."""
    length = 1
    for factor in resolve(expr):
        if isinstance(factor, Sum):
            length *= sum(kept_length(term, keep) for term in factor.terms)
        else:
            length *= len(keep[factor]) if factor in keep else _int(factor.size)
    return length


def indices(expr: Expr, keep: Keep) -> NDArray[np.int64]:
    """Return the positions that survive when each atom keeps the given subset.

    Args:
        expr: An axis whose atoms have integer sizes.
        keep: Sorted kept positions per leaf atom; an atom not named keeps all.

    Returns:
        int64 positions along the axis, in the order in which they will stand.

    Raises:
        PreconditionError: some size is known only at run time.
    """
    if len(expr) == 1 and isinstance(expr[0], Atom) and expr[0].definition is None:
        return _factor_indices(expr[0], keep)
    kept = np.zeros(1, dtype=np.int64)
    for factor in resolve(expr):
        part = _factor_indices(factor, keep)
        kept = (kept[:, None] * _int(factor_size(factor)) + part[None, :]).reshape(-1)
    return kept


def _factor_indices(factor: Factor, keep: Keep) -> NDArray[np.int64]:
    if isinstance(factor, Atom):
        if factor in keep:
            return np.asarray(keep[factor], dtype=np.int64)
        return np.arange(_int(factor.size), dtype=np.int64)
    parts, offset = [], 0
    for term in factor.terms:
        parts.append(indices(term, keep) + offset)
        offset += _int(size(term))
    return np.concatenate(parts)


def _int(value: Size) -> int:
    if not isinstance(value, int):
        raise PreconditionError(
            f"a cut axis has the dynamic size {value}, so that its positions cannot be listed",
            next_step="export the model with that dimension fixed, or leave the group out",
        )
    return value


__all__ = [
    "UNIT",
    "Atom",
    "Expr",
    "Factor",
    "Keep",
    "Reason",
    "Sum",
    "concatenation",
    "current_size",
    "current_sizes",
    "factor_size",
    "indices",
    "is_cut",
    "kept_length",
    "leaves",
    "resolve",
    "show",
    "size",
    "stands_in",
    "units",
]
