"""Op rules, one file per op family; importing a file enters its rules."""

from secateur.graph_passes.axes.rules import (
    attention,
    classical,
    contraction,
    convolution,
    elementwise,
    generators,
    indexing,
    layout,
    marker,
    normalisation,
    recurrent,
    reduction,
)

__all__ = [
    "attention",
    "classical",
    "contraction",
    "convolution",
    "elementwise",
    "generators",
    "indexing",
    "layout",
    "marker",
    "normalisation",
    "recurrent",
    "reduction",
]
