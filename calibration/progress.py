"""What long work tells while it goes on, one sentence at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Tell: TypeAlias = Callable[[str], None]


def silent(_text: str) -> None:
    """Tell nobody."""


__all__ = ["Tell", "silent"]
