"""Quantisation as a step of a recipe: ranges from its data, Q/DQ into what is shipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from secateur.calibration.quantisation.graph import METADATA_KEY, quantise
from secateur.calibration.quantisation.scheme import Scheme
from secateur.recipe import Quantise
from secateur.runtime.backend import Arrays
from secateur.workflow.golden import default_budgets


def quantised(model: ir.Model, settings: Quantise, batches: Sequence[Arrays]) -> ir.Model:
    """Round what a recipe asks for; budgets of token selections are at their defaults.

    Args:
        model: stays as it is.
        settings: of the recipe.
        batches: the recipe's data.

    Raises:
        BadInputError: nothing can be rounded, a pattern fits nothing, or the data says too little.
    """
    asked = settings.model_dump()
    keep = asked.pop("keep")
    budgets = default_budgets(model)
    fed = [{**batch, **budgets} for batch in batches]
    return quantise(model, Scheme(**asked), fed, keep=keep)


def quantisation_record(model: ir.Model) -> dict[str, Any]:
    """What was rounded, what was left and why; empty for a model in full precision."""
    record: dict[str, Any] = json.loads(model.metadata_props.get(METADATA_KEY, "{}"))
    return record


def what_was_rounded(model: ir.Model) -> str:
    """One line for the screen."""
    record = quantisation_record(model)
    left = record["left"]
    reasons = sorted({one["reason"] for one in left})
    line = f"{len(record['layers'])} products in {record['kind']}"
    return f"{line}, {len(left)} left as they are: {'; '.join(reasons)}" if left else line


__all__ = ["quantisation_record", "quantised", "what_was_rounded"]
