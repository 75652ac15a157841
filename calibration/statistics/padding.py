"""Which rows of an activation are real: not padding, and not behind a sample's kept tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_MASK = "attention_mask"


@dataclass(frozen=True, slots=True)
class _Region:
    """What a token selection leaves: everything computed from ``length`` may have its tokens."""

    behind: frozenset[str]
    mask: str | None
    """Value (B, K) that is true, or not negative, at a real token; None: all are."""


class Padding:
    """The masks of a model, and for each of its values which of them holds."""

    def __init__(self, model: ir.Model) -> None:
        self._regions = [_region(model, record) for record in _records(model)]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Values that have to be looked at besides the activations."""
        return tuple(dict.fromkeys(r.mask for r in self._regions if r.mask is not None))

    def rows(
        self,
        name: str,
        shape: tuple[int, ...],
        batch: Mapping[str, NDArray[Any]],
        seen: Mapping[str, NDArray[Any]],
    ) -> NDArray[np.bool_] | None:
        """Return the (B, N) mask of real tokens for a value of this shape, None for all real."""
        for region in reversed(self._regions):
            if name not in region.behind:
                continue
            if region.mask is None:
                return None
            mask = seen[region.mask]
            real: NDArray[np.bool_] = mask if mask.dtype == np.bool_ else mask >= 0
            if _fits(real, shape):
                return real
        mask = batch.get(_MASK, np.zeros(0))
        return mask.astype(bool) if mask.ndim == 2 and _fits(mask, shape) else None


def _fits(mask: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """A token has a row of its own: (B, N, ...), or (B * N, D) after flattening."""
    if len(shape) > 2:
        return mask.shape == shape[:2]
    return len(shape) == 2 and shape[0] == mask.size and mask.shape[1] > 1


def _records(model: ir.Model) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads(model.metadata_props.get("secateur.sites", "[]"))
    return records


def _region(model: ir.Model, record: Mapping[str, Any]) -> _Region:
    values = record.get("values", {})
    mask = record.get("kept_output") or values.get("valid")
    per_sample = record.get("per_sample", True)
    start = values.get("length")
    return _Region(_descendants(model, str(start)), mask if per_sample else None)


def _descendants(model: ir.Model, name: str) -> frozenset[str]:
    """Names of all values computed from a value."""
    found = {name}
    for node in model.graph:
        if any(value is not None and value.name in found for value in node.inputs):
            found.update(value.name or "" for value in node.outputs)
    return frozenset(found)


__all__ = ["Padding"]
