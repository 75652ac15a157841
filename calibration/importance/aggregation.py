"""One number per unit from the weights that it is coupled with, and groups made comparable.

Source: Structurally Prune Anything, arXiv:2403.18955, section 3.2: the scores of a unit are
summed over every weight of its group, divided by their sum over the group, and all groups are
sorted together. The other reductions are those of a co-author's published code
(johnrachwan123/Torch-Pruning at 777d5aa).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from secateur.errors import BadInputError
from secateur.units import Aggregate, Normalise

_Array = NDArray[np.float64]

_AGGREGATES: dict[str, Callable[[_Array], _Array]] = {
    "sum": lambda rows: rows.sum(axis=0),
    "mean": lambda rows: rows.mean(axis=0),
    "max": lambda rows: rows.max(axis=0),
    "prod": lambda rows: rows.prod(axis=0),
    "first": lambda rows: rows[0],
}
_SCALES: dict[str, Callable[[_Array], float]] = {
    "none": lambda _sizes: 1.0,
    "sum": lambda sizes: float(sizes.sum()),
    "mean": lambda sizes: float(sizes.mean()),
    "max": lambda sizes: float(sizes.max()),
}


def aggregate(rows: _Array, how: Aggregate) -> _Array:
    """Reduce (weights, units) scores to (units,).

    Raises:
        BadInputError: no such reduction.
    """
    return _AGGREGATES[_known(how, _AGGREGATES, "aggregate")](rows)


def normalise(scores: _Array, how: Normalise) -> _Array:
    """Divide the scores of one group by their sum, mean or largest, of absolute values.

    After ``sum`` the units of a group share one whole, so that those of a wide layer count
    less each; after ``mean`` a unit of average score counts 1 in every layer.

    Raises:
        BadInputError: no such normalisation.
    """
    scale = _SCALES[_known(how, _SCALES, "normalise")](np.abs(scores))
    return scores / max(scale, np.finfo(np.float64).tiny)


def check_names(*, aggregate: Aggregate = "sum", normalise: Normalise = "sum") -> None:
    """Refuse a name that this module does not know; BadInputError lists those it does."""
    _known(aggregate, _AGGREGATES, "aggregate")
    _known(normalise, _SCALES, "normalise")


def _known(name: str, table: Collection[str], what: str) -> str:
    if name not in table:
        raise BadInputError(f"unknown {what} {name!r}", wanted="one of " + ", ".join(table))
    return name


__all__ = ["aggregate", "check_names", "normalise"]
