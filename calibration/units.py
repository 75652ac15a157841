"""Which unit of a group each position of an axis belongs to, and sums of what units own."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from secateur.errors import PreconditionError
from secateur.graph_passes.axes import Atom, Expr
from secateur.graph_passes.axes.expression import Factor, Sum, factor_size


def units(expr: Expr, atom: Atom) -> NDArray[np.int64]:
    """Return, for every position of an axis, its unit of ``atom``, -1 where it has none.

    For ``H * Dh`` and ``H`` this is 0, ..., 0, 1, ..., 1, ...; all positions at once, where
    ``indices`` would be asked once a unit.
    """
    owners = np.full(1, -1, dtype=np.int64)
    for factor in expr:
        inner = _of_factor(factor, atom)
        owners = np.maximum(owners[:, None], inner[None, :]).ravel()
    return owners


def _of_factor(factor: Factor, atom: Atom) -> NDArray[np.int64]:
    if isinstance(factor, Atom):
        length = _length(factor)
        return np.arange(length) if factor is atom else np.full(length, -1)
    return np.concatenate([units(term, atom) for term in factor.terms])


def sum_of_units(values: NDArray[np.float64], expr: Expr, atom: Atom) -> NDArray[np.float64]:
    """Sum the last axis of ``values``, laid out as ``expr``: (..., L) gives (..., atom.size).

    The expression says where the units stand: in ``H * Dh`` those of ``H`` are the middle axis
    of (1, H, Dh), and no position has to be looked up.
    """
    if len(expr) == 1 and expr[0] is atom:
        return values
    places = [place for place, factor in enumerate(expr) if _holds(factor, atom)]
    if len(places) != 1:  # heads by heads: the layout does not say which of the two owns
        assert isinstance(atom.size, int)
        return sum_by_unit(values, units(expr, atom), atom.size)
    (place,) = places
    before, middle, after = (
        math.prod([_length(factor) for factor in part])
        for part in (expr[:place], expr[place : place + 1], expr[place + 1 :])
    )
    if before != 1 or after != 1:
        values = values.reshape(*values.shape[:-1], before, middle, after).sum(axis=(-3, -1))
    factor = expr[place]
    return _sum_of_terms(values, factor, atom) if isinstance(factor, Sum) else values


def _sum_of_terms(values: NDArray[np.float64], factor: Sum, atom: Atom) -> NDArray[np.float64]:
    """Sum over each term that has units: all heads' keys and all heads' values, say."""
    found, start = [], 0
    for term in factor.terms:
        end = start + math.prod([_length(inner) for inner in term])
        if any(_holds(inner, atom) for inner in term):
            found.append(sum_of_units(values[..., start:end], term, atom))
        start = end
    return functools.reduce(np.add, found)


def _holds(factor: Factor, atom: Atom) -> bool:
    if isinstance(factor, Atom):
        return factor is atom
    return any(_holds(inner, atom) for term in factor.terms for inner in term)


def _length(factor: Factor) -> int:
    length = factor_size(factor)
    if not isinstance(length, int):
        raise PreconditionError("a weight axis has a size that is known only at run time")
    return length


def sum_by_unit(
    values: NDArray[np.float64], owners: NDArray[np.int64], size: int
) -> NDArray[np.float64]:
    """Sum the last axis of ``values`` by unit: (..., L) and (L,) give (..., size).

    Every unit owns at least one position.
    """
    order = np.argsort(owners, kind="stable")
    order = order[owners[order] >= 0]
    starts = np.searchsorted(owners[order], np.arange(size))
    return np.add.reduceat(values[..., order], starts, axis=-1)


__all__ = ["sum_by_unit", "sum_of_units", "units"]
