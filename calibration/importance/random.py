"""Keep units drawn at random: the control that every criterion has to beat."""

from __future__ import annotations

import zlib

import numpy as np

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.graph_passes.groups import Group


@CRITERIA.register("random")
def random(group: Group, context: Context) -> Scores:
    """Uniform numbers, the same for the same seed and group name."""
    stream = np.random.default_rng([context.seed, zlib.crc32(group.name.encode())])
    return stream.random(group.size)


__all__ = ["random"]
