"""Kinds of units that a recipe and the command line can remove, and how they are compared."""

from __future__ import annotations

from typing import Literal

Unit = Literal[
    "heads",
    "query_heads",
    "head_width",
    "ffn",
    "channels",
    "experts",
    "recurrent",
    "residual",
    "outputs",
    "blocks",
]
"""Roles of groups, as ``secateur analyse`` names them; and whole residual blocks."""

Aggregate = Literal["sum", "mean", "max", "prod", "first"]
"""How the scores of a unit in each weight of its group become one."""

Normalise = Literal["none", "sum", "mean", "max"]
"""By what the scores of a group are divided before groups are compared."""

__all__ = ["Aggregate", "Normalise", "Unit"]
