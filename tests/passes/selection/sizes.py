"""Sizes of the small transformers: width, heads, width of a head, FFN, places, outputs."""

from __future__ import annotations

D, H, DH, FFN, PLACES, OUT = 16, 2, 8, 24, 24, 5

__all__ = ["DH", "FFN", "OUT", "PLACES", "D", "H"]
