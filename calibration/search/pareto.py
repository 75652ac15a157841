"""A search for the front of cost against loss, by mutation and crossing of its points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from secateur.calibration.search.journal import Genes, Journal
from secateur.errors import BadInputError

_MOST_STEPS = 3
_FOCUS = 0.7
"""Share of the candidates that are bred from the points nearest to what is wanted."""
_NEAREST = 6
_PATIENCE = 200
"""Tries at something new before the space counts as searched."""


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate and what it gave; smaller is better in both."""

    genes: Genes
    cost: float
    loss: float


@dataclass(frozen=True, slots=True)
class Space:
    """How many levels each gene has; level 0 is where a search starts."""

    levels: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many candidates there are."""
        return int(np.prod([float(n) for n in self.levels]))


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a search goes on, and where it looks most."""

    evaluations: int
    seed: int = 0
    """Of the mutations."""
    off: Callable[[Point], float] | None = None
    """How far a point is from what is wanted: most candidates are then bred from those of the
    front that are nearest to it. None treats the whole front alike."""


def front(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points that no other beats in both, cheapest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.loss, p.genes)):
        if not found or point.loss < found[-1].loss:
            found.append(point)
    return tuple(found)


def search(
    space: Space,
    evaluate: Callable[[Genes], tuple[float, float]],
    journal: Journal,
    effort: Effort,
) -> tuple[Point, ...]:
    """Return every point evaluated; what the journal knows counts and is not computed again.

    Args:
        space: what the genes may be.
        evaluate: genes to (cost, loss).
        journal: where results are kept.
        effort: how long, and where most of it goes.

    Raises:
        BadInputError: no gene has a choice.
    """
    if not space.levels or max(space.levels) < 2:
        raise BadInputError("there is nothing to search: no choice has two levels")
    rng = np.random.default_rng(effort.seed)
    points: dict[Genes, Point] = {}
    genes: Genes | None = (0,) * len(space.levels)
    while genes is not None and len(points) < min(effort.evaluations, space.size):
        known = journal.find(genes)
        if known is None:
            known = evaluate(genes)
            journal.record(genes, known)
        points[genes] = Point(genes, *known)
        genes = _next(space, points, rng, effort.off)
    return tuple(points.values())


def _next(
    space: Space,
    points: dict[Genes, Point],
    rng: np.random.Generator,
    off: Callable[[Point], float] | None,
) -> Genes | None:
    """A candidate that was not evaluated: mostly near the front, now and then anywhere."""
    whole = front(list(points.values()))
    near = whole if off is None else sorted(whole, key=off)[:_NEAREST]
    for _ in range(_PATIENCE):
        best = near if rng.random() < _FOCUS else whole
        parent = list(best[rng.integers(len(best))].genes)
        chance = rng.random()
        if chance < 0.1:
            parent = [int(rng.integers(n)) for n in space.levels]
        elif chance < 0.3:
            other = best[rng.integers(len(best))].genes
            parent = [a if rng.random() < 0.5 else b for a, b in zip(parent, other, strict=True)]
        for _ in range(int(rng.integers(1, _MOST_STEPS + 1))):
            at = int(rng.integers(len(parent)))
            step = int(rng.integers(1, _MOST_STEPS + 1)) * (1 if rng.random() < 0.5 else -1)
            parent[at] = int(np.clip(parent[at] + step, 0, space.levels[at] - 1))
        if tuple(parent) not in points:
            return tuple(parent)
    return None


def within(points: Sequence[Point], *, loss: float) -> Point:
    """The cheapest point that loses no more than ``loss``.

    Raises:
        BadInputError: none does; the message says what can be reached.
    """
    allowed = [point for point in points if point.loss <= loss]
    if not allowed:
        raise BadInputError(
            "no schedule agrees so well",
            got=f"losses from {min(p.loss for p in points):.3g}",
            wanted=f"at most {loss:.3g}",
            next_step="allow a larger loss, or search longer",
        )
    return min(allowed, key=lambda p: (p.cost, p.loss))


def under(points: Sequence[Point], *, cost: float) -> Point:
    """The point that loses least at no more than ``cost``.

    Raises:
        BadInputError: none is so cheap; the message says what can be reached.
    """
    allowed = [point for point in points if point.cost <= cost]
    if not allowed:
        costs = [point.cost for point in points]
        raise BadInputError(
            "no schedule is so fast",
            got=f"{min(costs):.3g} to {max(costs):.3g} ms",
            wanted=f"at most {cost:.3g} ms",
            next_step="allow more time, remove units too, or search longer",
        )
    return min(allowed, key=lambda p: (p.loss, p.cost))


__all__ = ["Effort", "Point", "Space", "front", "search", "under", "within"]
