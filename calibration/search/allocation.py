"""How many units each group keeps, by a search over a supernet of all cuts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from secateur.calibration.allocation import Allocation, best
from secateur.calibration.importance.core import Context, Scores
from secateur.calibration.search.evolution import Layer, evolve
from secateur.calibration.search.journal import Genes, Journal
from secateur.calibration.search.supernet import Supernet

Keep = dict[str, tuple[int, ...]]


def searched(
    context: Context, scores: Mapping[str, Scores], uniform: Keep, allocation: Allocation
) -> Keep:
    """Move units between groups of one size where the model's answers lose less.

    Args:
        context: with data; the groups that are ranked.
        scores: of every group; how many it keeps is searched, which ones its scores say.
        uniform: what each group keeps at the start; all together keep as many at the end.
        allocation: limits, rounding, and how long to search.

    Raises:
        BadInputError: no data, or nothing that could move.
    """
    options = allocation.search
    layers = [
        Layer(
            len(kept),
            max(allocation.lowest(name, len(scores[name])), 1),
            len(scores[name]),
            allocation.round_to,
        )
        for name, kept in uniform.items()
    ]

    def counts(genes: Genes) -> dict[str, int]:
        """Units that each group keeps."""
        return {
            name: layer.kept + moved
            for name, layer, moved in zip(uniform, layers, genes, strict=True)
        }

    with Supernet(context.analysis, scores, context.data, options.measure) as supernet:
        journal = Journal(options.journal, _subject(context, scores, uniform, options.measure))
        genes, _ = evolve(
            layers, lambda genes, stage: supernet.loss(counts(genes), stage), options, journal
        )
    return {name: best(scores[name], count) for name, count in counts(genes).items()}


def _subject(
    context: Context, scores: Mapping[str, Scores], uniform: Keep, measure: str
) -> dict[str, object]:
    """What the losses of a journal are about."""
    digest = hashlib.sha256()
    for values in scores.values():
        digest.update(np.ascontiguousarray(values).data)
    for batch in context.data:
        for name, array in sorted(batch.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    sizes = {name: len(kept) for name, kept in uniform.items()}
    return {"kept": sizes, "measure": measure, "scores and data": digest.hexdigest()}


__all__ = ["searched"]
