"""Kinds of units that a recipe and the command line can remove."""

from __future__ import annotations

from typing import Literal

Unit = Literal["heads", "query_heads", "head_width", "ffn", "channels", "experts", "residual"]
"""Roles of groups, as ``secateur analyse`` names them."""

__all__ = ["Unit"]
