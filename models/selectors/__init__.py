"""Token selectors, one file per criterion; importing this package registers them all."""

from secateur.models.selectors import (  # noqa: F401 - registration
    aim,
    class_row,
    column_mean,
    divprune,
    dtop,
    fastervlm,
    flowcut,
    fopru,
    hidden_norm,
    hiprune,
    holov,
    key_norm,
    lexrank,
    quota,
    random,
    reagent,
    recoverable,
    spatten,
    todre,
    todre_relevance,
    top_vim,
    value_norm,
    vflowopt,
    vtc_cls,
    zero_tprune,
)
from secateur.models.selectors.core import (
    KINDS,
    SELECTORS,
    Merge,
    Selection,
    Selector,
    resolve_selector,
    selector,
)
from secateur.models.selectors.signal_table import SIGNALS

__all__ = [
    "KINDS",
    "SELECTORS",
    "SIGNALS",
    "Merge",
    "Selection",
    "Selector",
    "resolve_selector",
    "selector",
]
