"""Chooses how far ONNX Runtime may optimise a model as deployed.

Its rewrites are not all right (1.31.1 folds a zero Pad into a following MaxPool and changes
the values), so a level is used only where it gives what the untouched graph gives.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from secateur.errors import BadInputError
from secateur.runtime.backend import Array, Arrays
from secateur.runtime.backends.onnxruntime import OPTIMISATION_LEVELS, OnnxRuntime
from secateur.runtime.compare import Tolerance, compare

logger = logging.getLogger(__name__)


def highest_agreeing_level(model: Path, feeds: Sequence[Arrays], *, tolerance: Tolerance) -> str:
    """The highest level whose outputs stay within the tolerance of the untouched graph's.

    Integer outputs (indices) are compared like values. Raises BadInputError without inputs.
    """
    if not feeds:
        raise BadInputError(
            "no inputs to compare optimisation levels on", next_step="give at least one batch"
        )
    wanted = _outputs(model, feeds, "disabled")
    levels: tuple[str, ...] = OPTIMISATION_LEVELS
    for level in reversed(levels[1:]):
        why = _difference(wanted, _outputs(model, feeds, level), tolerance)
        if not why:
            return level
        logger.warning("ONNX Runtime's level %s is not used: %s", level, why)
    return "disabled"


def _outputs(model: Path, feeds: Sequence[Arrays], level: str) -> list[dict[str, Array]]:
    with OnnxRuntime(optimisation=level).session(model) as run:
        return [run(feed) for feed in feeds]


def _difference(
    wanted: list[dict[str, Array]], got: list[dict[str, Array]], tolerance: Tolerance
) -> str:
    """Why two runs differ; "" when they do not."""
    rows = [
        compare(name, one[name], reference, tolerance=tolerance)
        for one, other in zip(got, wanted, strict=True)
        for name, reference in other.items()
    ]
    return next((f"{row.name}: {row.reason}" for row in rows if not row.passed), "")


__all__ = ["highest_agreeing_level"]
