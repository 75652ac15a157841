"""From scores to kept units: how many of each group stay, and which."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.aggregation import check_names, normalise
from secateur.calibration.search.evolution import Evolution
from secateur.errors import BadInputError
from secateur.units import Normalise, Scope, Structure

SCOPES: tuple[Scope, ...] = ("local", "global", "cfsp", "tyr", "flap")
_ROUNDING = 1e-9
"""What binary fractions may be off: 4 * (1 - 0.25) units are 3."""
_Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Allocation:
    """How much goes, and where from."""

    ratio: float
    """Share of the units that is removed, in (0, 1)."""
    scope: Scope = "local"
    """Rank within each group, or over all groups together; or first share out what goes over the
    groups: ``cfsp`` by how far each layer turns its tokens, ``tyr`` by an evolutionary search,
    ``flap`` by one of FLAP's structures."""
    round_to: int = 1
    """Kept units of a group are a multiple of this, or all of them."""
    at_least: int = 0
    """Every group keeps this many, also where then less goes than the ratio says. With 0 a
    ratio that empties a group is refused; a global ranking spares one unit of each group and
    takes others instead."""
    normalise: Normalise = "sum"
    """By what scores are divided before groups are compared, with scope ``global``."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Largest share that may go, by name of a group or pattern (``*layer.0*``); 0: none."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Share of each group that goes instead of ``ratio``, by its name, but with ``global``."""
    search: Evolution = field(default_factory=Evolution)
    """How long ``tyr`` searches, and where it keeps what it found."""
    structure: Structure = "AL-AM"
    """Of FLAP: ``UL-UM``, ``UL-MM``, ``AL-MM`` or ``AL-AM``."""
    remove_heads: int = 0
    """Heads of the whole model that go, with FLAP's structures that are told a number."""

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio < 1.0:
            raise BadInputError(
                "the ratio to remove is no share",
                got=str(self.ratio),
                wanted="more than 0 and less than 1: 0.25 removes a quarter",
                next_step="to remove whole layers, ask for blocks" if self.ratio == 1 else "",
            )
        if self.scope not in SCOPES:
            raise BadInputError(f"unknown scope {self.scope!r}", wanted=" or ".join(SCOPES))
        if self.round_to < 1 or self.at_least < 0:
            raise BadInputError(
                "round_to and at_least count units",
                got=f"round_to {self.round_to}, at_least {self.at_least}",
                wanted="round_to of 1 or more, at_least of 0 or more",
            )
        for name, share in self.limits.items():
            if not 0.0 <= share <= 1.0:
                raise BadInputError(
                    "a limit is no share", where=name, got=str(share), wanted="0 to 1"
                )
        check_names(normalise=self.normalise)
        self._check_structure()

    def _check_structure(self) -> None:
        if self.scope == "flap":
            if self.round_to > 1 or self.at_least > 1 or self.limits:
                raise BadInputError(
                    "FLAP's structures know no rounding, limits or floors",
                    wanted="scope flap without round_to, at_least and limits",
                    next_step="rank by flap with scope local or global",
                )
        elif self.structure != "AL-AM" or self.remove_heads:
            raise BadInputError(
                "structure and remove_heads are for scope flap", got=f"scope {self.scope}"
            )

    def limit(self, group: str) -> float:
        """Largest share of a group that may go: the smallest limit that matches its name."""
        return min((v for k, v in self.limits.items() if fnmatchcase(group, k)), default=1.0)

    def lowest(self, group: str, size: int) -> int:
        """Fewest units that a group has to keep, before rounding; 0 where nothing says."""
        by_limit = math.ceil(size * (1.0 - self.limit(group)) - _ROUNDING)
        return max(min(self.at_least, size), by_limit)

    def rounded(self, wanted: float, lowest: int, size: int) -> int:
        """Nearest allowed number of kept units; halfway rounds up."""
        steps = max(math.floor(wanted / self.round_to + 0.5), 1)
        return min(max(steps, math.ceil(lowest / self.round_to)) * self.round_to, size)


def allocate(scores: _Scores, allocation: Allocation) -> dict[str, tuple[int, ...]]:
    """Return the kept units per group, ascending.

    Args:
        scores: (size,) per group, larger is kept. With scope ``global`` each group's scores
            are normalised first.
        allocation: how much goes.

    Raises:
        BadInputError: a group would be emptied, nothing would go, or a limit is for a group
            that is not there.
    """
    _check_limits(scores, allocation)
    if allocation.scope == "global":
        counts = _global(scores, allocation)
    else:
        counts = _local(scores, allocation)
    kept = {
        name: best(values, _count(name, counts[name], len(values), allocation))
        for name, values in scores.items()
    }
    if all(len(kept[name]) == len(values) for name, values in scores.items()):
        sizes = sorted({len(values) for values in scores.values()})
        raise BadInputError(
            "nothing would be removed",
            got=f"ratio {allocation.ratio}, round_to {allocation.round_to}, groups of "
            + ", ".join(map(str, sizes)),
            wanted=f"a ratio above {allocation.round_to / 2 / sizes[-1]:.3g}",
            next_step="raise the ratio, or lower round_to, at_least or the limits",
        )
    return kept


def _check_limits(scores: _Scores, allocation: Allocation) -> None:
    for pattern in allocation.limits:
        if not any(fnmatchcase(name, pattern) for name in scores):
            raise BadInputError(
                f"the limit {pattern!r} is for no group that is ranked",
                wanted="one of: " + ", ".join(scores),
            )


def _count(name: str, wanted: float, size: int, allocation: Allocation) -> int:
    lowest = allocation.lowest(name, size)
    if lowest == 0 and math.floor(wanted + 0.5) == 0:
        raise BadInputError(
            f"the ratio {allocation.ratio} would remove all of {name}",
            got=f"{wanted:.3g} of {size} units kept",
            wanted=f"at least one kept unit: a share of up to {1 - 0.5 / size:.3g} here",
            next_step="lower the ratio, set at_least to 1, or remove whole blocks instead",
        )
    return allocation.rounded(wanted, lowest, size)


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
    shares = {name: allocation.shares.get(name, allocation.ratio) for name in scores}
    return {name: len(values) * (1 - shares[name]) for name, values in scores.items()}


def _global(scores: _Scores, allocation: Allocation) -> dict[str, float]:
    """Count what is left of each group after the weakest units of all groups are gone."""
    names, merits = [], []
    for name, values in scores.items():
        merit = normalise(values, allocation.normalise)
        merit[list(best(values, max(allocation.lowest(name, len(values)), 1)))] = np.inf
        names += [name] * len(values)
        merits.append(merit)
    merit = np.concatenate(merits)
    n_removed = math.floor(len(merit) * allocation.ratio + 0.5)
    n_free = int(np.isfinite(merit).sum())
    asked = all(allocation.lowest(name, len(values)) for name, values in scores.items())
    if n_removed > n_free and not asked:
        raise BadInputError(
            f"the ratio {allocation.ratio} would remove whole groups",
            got=f"{n_removed} of {len(merit)} units, of which {n_free} may go",
            wanted=f"a ratio of up to {n_free / len(merit):.3g}",
            next_step="lower the ratio, set at_least to 1, or remove whole blocks instead",
        )
    stays = np.argsort(merit, kind="stable")[min(n_removed, n_free) :]
    kept: dict[str, float] = dict.fromkeys(scores, 0.0)
    for position in stays:
        kept[names[position]] += 1
    return kept


__all__ = ["SCOPES", "Allocation", "Scope", "allocate", "best", "weakest"]
