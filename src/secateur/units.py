"""Kinds of units that a recipe and the command line can remove, and how they are compared."""

from __future__ import annotations

from typing import Literal

Unit = Literal[
    "heads",
    "query_heads",
    "head_width",
    "ffn",
    "heads_and_ffn",
    "channels",
    "experts",
    "recurrent",
    "residual",
    "outputs",
    "vocabulary",
    "blocks",
]
"""Roles of groups, as ``secateur analyse`` names them; two of them together; and whole residual
blocks."""

Aggregate = Literal["sum", "mean", "max", "prod", "first"]
"""How the scores of a unit in each weight of its group become one."""

Normalise = Literal["none", "sum", "mean", "max"]
"""By what the scores of a group are divided before groups are compared."""

Scope = Literal["local", "global", "cfsp", "tyr", "flap"]
"""How what goes is shared out over the layers."""

Structure = Literal["UL-UM", "UL-MM", "AL-MM", "AL-AM"]
"""How FLAP shares out what goes over heads, neurons and layers."""

__all__ = ["Aggregate", "Normalise", "Scope", "Structure", "Unit"]
