"""Which temperature, or which counts, meet a target.

The published search moves the temperature by steps between epochs. Here it is bisected: the
multiply-adds fall as the temperature rises, towards those of keeping what is above the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import BadInputError
from secateur.models.madtp.cut import Cut

Progress = Callable[[float, float], None]
"""Called with a temperature and the multiply-adds that it gives."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the search is for."""

    macs: float
    """Mean multiply-adds of a sample."""
    tolerance: float = 0.01
    """As a share of the target."""
    lowest: float = 1e-3
    """Temperatures are looked for from here ..."""
    highest: float = 1e3
    """... to here."""
    trials: int = 20


@dataclass(frozen=True, slots=True)
class Found:
    """A temperature, and what it gives."""

    temperature: float
    macs: float


def search_temperature(
    macs_at: Callable[[float], float],
    target: Target,
    progress: Progress | None = None,
    *,
    nearest: bool = False,
) -> Found:
    """Return the temperature that meets the target best.

    Args:
        macs_at: mean multiply-adds of a sample at a temperature, e.g. over a few batches.
        target: the multiply-adds to meet.
        progress: called after every trial.
        nearest: where no temperature reaches the target, return the one that comes nearest.

    Raises:
        BadInputError: no temperature reaches the target; names the reachable range.
    """

    def measured(temperature: float) -> Found:
        made = Found(temperature, macs_at(temperature))
        if progress is not None:
            progress(made.temperature, made.macs)
        return made

    few, many = measured(target.highest), measured(target.lowest)
    margin = target.tolerance * target.macs
    best = min((few, many), key=lambda found: abs(found.macs - target.macs))
    if not few.macs - margin <= target.macs <= many.macs + margin:
        if nearest:
            return best
        raise BadInputError(
            "no temperature reaches the target",
            got=f"{target.macs:.4g} multiply-adds",
            wanted=f"{few.macs:.4g} to {many.macs:.4g}",
            next_step="ask for a target in that range; training at it moves the range",
        )
    for _ in range(target.trials):
        if abs(best.macs - target.macs) <= margin:
            break
        middle = measured(math.sqrt(few.temperature * many.temperature))
        best = min((best, middle), key=lambda found: abs(found.macs - target.macs))
        few, many = (middle, many) if middle.macs < target.macs else (few, middle)
    return best


def calibrated_counts(runs: Sequence[Sequence[Cut]], quantile: float = 1.0) -> Tensor:
    """Return counts for a schedule, (layers,) int64, from what thresholds kept.

    Args:
        runs: the cuts of all layers, per batch of calibration data.
        quantile: of the counts over samples; 1.0 is what the widest sample needed.

    Raises:
        BadInputError: no cuts, or a quantile outside 0 to 1.
    """
    if not runs or not runs[0] or not 0 <= quantile <= 1:
        raise BadInputError(
            "no schedule can be made",
            got=f"{len(runs)} batches, quantile {quantile:g}",
            wanted="at least one batch that was pruned, a quantile from 0 to 1",
        )
    layers = [torch.cat([cuts[i].kept for cuts in runs]) for i in range(len(runs[0]))]
    counts = [counts.double().quantile(quantile).ceil() for counts in layers]
    return torch.stack(counts).long()


__all__ = ["Found", "Progress", "Target", "calibrated_counts", "search_temperature"]
