"""An evolutionary search for how many units each layer keeps, all together as many as before.

Source: Li et al., Tyr-the-Pruner, NeurIPS 2025, arXiv:2503.09657, section 3.3; as in
AMD-AGI/Tyr-the-Pruner: one parent, offspring by moves of units between layers of one kind, three
stages of more and more data, steps that are halved from round to round. Published are 4 rounds of
50 generations of 128; the defaults here are for small models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateur.calibration.progress import Tell, silent
from secateur.calibration.search.journal import Genes, Journal
from secateur.errors import BadInputError

_COARSEST = 0.125
"""Share of a layer's units that a move of the first round takes."""
_MOST_PAIRS = 3
_SURVIVING = 4
"""Of so many offspring one reaches the next stage."""
STAGES = 3

Judge = Callable[[Genes, int], float]
"""Loss of genes at a stage; the last one sees all data."""


@dataclass(frozen=True, slots=True)
class Evolution:
    """How long a search goes on, and where it keeps what it found."""

    rounds: int = 3
    generations: int = 6
    """Of each round."""
    offspring: int = 16
    """Of each generation."""
    seed: int = 0
    journal: Path | None = None
    """Where losses are kept, so that an interrupted search goes on."""
    measure: str = "error"
    """``error``: squared, of the first output; ``kl``: of its softmax, as published."""
    progress: Tell = silent
    """Told the best loss after every generation."""

    def __post_init__(self) -> None:
        if min(self.rounds, self.generations, self.offspring) < 1:
            raise BadInputError("a search has one round, generation and offspring at least")
        if self.measure not in {"error", "kl"}:
            raise BadInputError(f"unknown measure {self.measure!r}", wanted="error or kl")


@dataclass(frozen=True, slots=True)
class Layer:
    """Units of one layer: how many it keeps at the start, and between which numbers."""

    kept: int
    fewest: int
    size: int
    multiple: int = 1
    """Moves are of a multiple of this."""

    def step(self, number: int) -> int:
        """Units that a move takes in a round."""
        wanted = self.size * _COARSEST / (1 << number) / self.multiple
        return max(round(wanted), 1) * self.multiple


def evolve(
    layers: Sequence[Layer], judge: Judge, options: Evolution, journal: Journal
) -> tuple[Genes, float]:
    """Return how many units more or fewer each layer keeps than at the start, and the loss.

    Raises:
        BadInputError: no two layers of one size have units to move.
    """
    pairs = [
        (a, b)
        for a, one in enumerate(layers)
        for b, other in enumerate(layers)
        if a != b and (one.size, one.multiple) == (other.size, other.multiple)
    ]
    parent = (0,) * len(layers)
    if not any(_moved(parent, [pair], layers, options.rounds - 1) for pair in pairs):
        raise BadInputError(
            "there is nothing to search: no units can move from one layer to another",
            got=f"{len(layers)} layers that keep "
            + ", ".join(f"{one.kept} of {one.size} (at least {one.fewest})" for one in layers[:4]),
            next_step="raise or lower the ratio, or round_to, or allocate with scope local",
        )
    rng = np.random.default_rng(options.seed)

    def known(genes: Genes, stage: int) -> float:
        """Judge what the journal does not hold yet."""
        found = journal.find((*genes, stage))
        if found is None:
            found = (judge(genes, stage),)
            journal.record((*genes, stage), found)
        return found[0]

    loss = known(parent, STAGES - 1)
    for number in range(options.rounds):
        for generation in range(options.generations):
            children = _offspring(parent, (layers, pairs), (options.offspring, number), rng)
            for stage in range(STAGES - 1):
                losses = {child: known(child, stage) for child in children}
                ranked = sorted(children, key=losses.__getitem__)
                children = ranked[: max(len(children) // _SURVIVING, 1)]
            for child in children:
                if (found := known(child, STAGES - 1)) < loss:
                    parent, loss = child, found
            options.progress(f"round {number + 1}, generation {generation + 1}: loss {loss:.4g}")
    return parent, loss


def _offspring(
    parent: Genes,
    space: tuple[Sequence[Layer], Sequence[tuple[int, int]]],
    wanted: tuple[int, int],
    rng: np.random.Generator,
) -> list[Genes]:
    """Different children, at most as many as asked for."""
    (layers, pairs), (count, number) = space, wanted
    found: dict[Genes, None] = {}
    for _ in range(4 * count):
        n_pairs = min(rng.integers(1, _MOST_PAIRS + 1, 2))
        chosen = [pairs[i] for i in rng.integers(0, len(pairs), n_pairs)]
        child = _moved(parent, chosen, layers, number)
        if child is not None and child != parent:
            found[child] = None
        if len(found) == count:
            break
    return list(found)


def _moved(
    parent: Genes, pairs: Sequence[tuple[int, int]], layers: Sequence[Layer], number: int
) -> Genes | None:
    """Let the first layer of each pair give units to the second; None where one cannot."""
    child = list(parent)
    for giver, taker in pairs:
        step = layers[giver].step(number)
        child[giver] -= step
        child[taker] += step
    for genes, layer in zip(child, layers, strict=True):
        if not layer.fewest <= layer.kept + genes <= layer.size:
            return None
    return tuple(child)


__all__ = ["STAGES", "Evolution", "Layer", "evolve"]
