"""Op rules, one file per op family; importing a file enters its rules."""

from secateur.graph_passes.axes.rules import (
    attention,
    classical,
    contraction,
    convolution,
    elementwise,
    frozen,
    generators,
    indexing,
    layout,
    marker,
    microsoft,
    normalisation,
    quantisation,
    recurrent,
    reduction,
    sampling,
)

__all__ = [
    "attention",
    "classical",
    "contraction",
    "convolution",
    "elementwise",
    "frozen",
    "generators",
    "indexing",
    "layout",
    "marker",
    "microsoft",
    "normalisation",
    "quantisation",
    "recurrent",
    "reduction",
    "sampling",
]
