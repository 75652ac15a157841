"""Many small objects at once, without Python looking for garbage among them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Let no garbage be collected inside: a walk makes a million objects, and all of them stay.

    Every so many allocations the collector visits all objects of the process, the model's
    among them; that is up to a third of the time of an analysis.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


__all__ = ["without_collector"]
