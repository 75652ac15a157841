"""Which unit of a group each position of an axis belongs to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secateur.errors import PreconditionError
from secateur.graph_passes.axes import Atom, Expr
from secateur.graph_passes.axes.expression import Factor


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
        if not isinstance(factor.size, int):
            raise PreconditionError("a weight axis has a size that is known only at run time")
        return np.arange(factor.size) if factor is atom else np.full(factor.size, -1)
    return np.concatenate([units(term, atom) for term in factor.terms])


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


__all__ = ["sum_by_unit", "units"]
