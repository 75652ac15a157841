"""Token selectors, one file per criterion; importing this package registers them all."""

from secateur.models.selectors import (  # noqa: F401 - registration
    class_row,
    column_mean,
    hidden_norm,
    key_norm,
    random,
    value_norm,
)
from secateur.models.selectors.core import (
    SELECTORS,
    SIGNALS,
    Selector,
    resolve_selector,
    selector,
)

__all__ = ["SELECTORS", "SIGNALS", "Selector", "resolve_selector", "selector"]
