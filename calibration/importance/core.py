"""What an importance criterion is: it gives every unit of a coupled group one number."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.aggregation import check_names
from secateur.errors import BadInputError
from secateur.graph_passes.groups import Analysis, Group
from secateur.registry import Registry
from secateur.units import Aggregate

Scores: TypeAlias = NDArray[np.float64]
Batches: TypeAlias = Iterable[Mapping[str, NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a unit's weights become one number, for criteria that measure weights."""

    aggregate: Aggregate = "sum"
    """Over the weights of the coupled group."""
    biases: bool = True
    """Biases count too, as in the paper; its co-author's code leaves them out."""

    def __post_init__(self) -> None:
        check_names(aggregate=self.aggregate)


@dataclass(frozen=True, slots=True)
class Context:
    """What a criterion may look at besides its group."""

    analysis: Analysis
    groups: tuple[Group, ...]
    """All groups that are being ranked, so that one pass over the data serves them all."""
    data: Batches = ()
    """Batches of input arrays; read once."""
    seed: int = 0
    gathered: dict[str, Any] = field(default_factory=dict)
    """What a pass over the data has already given, by the name of what was gathered."""
    scoring: Scoring = field(default_factory=Scoring)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Handed in from training, by parameter name: gradients, ``NAME@fisher``, ..."""


Criterion: TypeAlias = Callable[[Group, Context], Scores]

CRITERIA: Registry[Criterion] = Registry("importance criterion")


def rank(importance: str, context: Context) -> dict[str, Scores]:
    """Score the groups of a context by a criterion: (size,) float64 each, larger is kept.

    Raises:
        BadInputError: the criterion is unknown, or gives NaN or the wrong number of scores.
    """
    criterion = resolve_criterion(importance)
    return {
        group.name: _checked(importance, group, criterion(group, context))
        for group in context.groups
    }


def resolve_criterion(spec: str) -> Criterion:
    """Return a registered criterion, or the function that ``package.module:function`` names."""
    if ":" not in spec:
        return CRITERIA[spec]
    module_name, _, name = spec.partition(":")
    try:
        function: Criterion = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise BadInputError(
            f"cannot find the criterion {spec!r}",
            got=str(error),
            wanted="package.module:function, taking a group and a context",
        ) from error
    return function


def _checked(importance: str, group: Group, scores: Scores) -> Scores:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (group.size,):
        raise BadInputError(
            f"{importance!r} gave scores of another shape",
            where=group.name,
            got=str(scores.shape),
            wanted=str((group.size,)),
        )
    if bad := np.flatnonzero(np.isnan(scores)).tolist():
        raise BadInputError(
            f"{importance!r} gave NaN scores",
            where=group.name,
            got=f"units {bad[:5]}",
            next_step="check the weights and the data for NaN and overflow",
        )
    return scores


__all__ = [
    "CRITERIA",
    "Batches",
    "Context",
    "Criterion",
    "Scores",
    "Scoring",
    "rank",
    "resolve_criterion",
]
