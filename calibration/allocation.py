"""From scores to kept units: how many of each group stay, and which."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from secateur.errors import BadInputError

_Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Allocation:
    """How much goes, and where from."""

    ratio: float
    """Share of the units that is removed, in (0, 1)."""
    scope: Literal["local", "global"] = "local"
    """Rank within each group, or over all groups together."""
    round_to: int = 1
    """Kept units of a group are a multiple of this, or all of them."""
    at_least: int = 1
    """Every group keeps this many."""

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio < 1.0:
            raise BadInputError(
                "the ratio to remove is no share",
                got=str(self.ratio),
                wanted="more than 0 and less than 1: 0.25 removes a quarter",
            )
        if self.scope not in {"local", "global"}:
            raise BadInputError(f"unknown scope {self.scope!r}", wanted="local or global")
        if self.round_to < 1 or self.at_least < 1:
            raise BadInputError(
                "round_to and at_least count units",
                got=f"round_to {self.round_to}, at_least {self.at_least}",
                wanted="1 or more",
            )

    def rounded(self, wanted: float, size: int) -> int:
        """Nearest allowed number of kept units; halfway rounds up."""
        steps = max(math.floor(wanted / self.round_to + 0.5), 1)
        lowest = math.ceil(min(self.at_least, size) / self.round_to)
        return min(max(steps, lowest) * self.round_to, size)


def allocate(scores: _Scores, allocation: Allocation) -> dict[str, tuple[int, ...]]:
    """Return the kept units per group, ascending.

    Args:
        scores: (size,) per group, larger is kept. With scope ``global`` each group's scores
            are divided by their mean first, so that layers of other scale compete fairly.
        allocation: how much goes.
    """
    counts = (
        _local(scores, allocation) if allocation.scope == "local" else _global(scores, allocation)
    )
    return {
        name: best(values, allocation.rounded(counts[name], len(values)))
        for name, values in scores.items()
    }


def best(scores: NDArray[np.float64], count: int) -> tuple[int, ...]:
    """The ``count`` units with the largest scores, ascending; of equal ones the earlier."""
    return tuple(sorted(np.argsort(-scores, kind="stable")[:count].tolist()))


def weakest(scores: _Scores, share: float) -> dict[str, tuple[int, ...]]:
    """Return the units with the lowest scores of all groups together, weakest first.

    Exactly ``int(total * share)`` units, compared as they are, and no group is spared: the
    selection of Hatefi et al., Pruning By Explaining Revisited, arXiv:2408.12568, section 3.
    """
    owners = [(name, unit) for name, values in scores.items() for unit in range(len(values))]
    merit = np.concatenate(list(scores.values()))
    found: dict[str, list[int]] = {name: [] for name in scores}
    for position in np.argsort(merit, kind="stable")[: int(len(merit) * share)]:
        name, unit = owners[position]
        found[name].append(unit)
    return {name: tuple(gone) for name, gone in found.items()}


def _local(scores: _Scores, allocation: Allocation) -> dict[str, float]:
    return {name: len(values) * (1 - allocation.ratio) for name, values in scores.items()}


def _global(scores: _Scores, allocation: Allocation) -> dict[str, float]:
    """Count what is left of each group after the weakest units of all groups are gone."""
    names, merits = [], []
    for name, values in scores.items():
        normalised = values / max(float(np.abs(values).mean()), np.finfo(np.float64).tiny)
        merit = normalised.copy()
        merit[list(best(values, allocation.at_least))] = np.inf
        names += [name] * len(values)
        merits.append(merit)
    merit = np.concatenate(merits)
    n_removed = math.floor(len(merit) * allocation.ratio + 0.5)
    stays = np.argsort(merit, kind="stable")[n_removed:]
    kept: dict[str, float] = dict.fromkeys(scores, 0.0)
    for position in stays:
        kept[names[position]] += 1
    return kept


__all__ = ["Allocation", "allocate", "best", "weakest"]
