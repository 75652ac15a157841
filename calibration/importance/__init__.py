"""Importance criteria, one file each; importing this package registers them all."""

from secateur.calibration.importance import (  # noqa: F401 - registration
    apoz,
    bn_scale,
    cfsp,
    easyep,
    flap,
    fpgm,
    gaprune,
    gradients,
    hrank,
    lamp,
    loraprune,
    magnitude,
    obd,
    obspa,
    output_norm,
    prunenet,
    random,
    relevance,
    shrp,
    spatten,
    synflow,
    tyr,
    wanda,
)
from secateur.calibration.importance.core import (
    CRITERIA,
    Batches,
    Context,
    Criterion,
    Scores,
    Scoring,
    rank,
    resolve_criterion,
)

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
