"""Which rows of an activation are real: not padding, and not behind a sample's kept tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.activations import TOKEN_WEIGHTS
from secateur.errors import PreconditionError

_MASK = "attention_mask"


@dataclass(frozen=True, slots=True)
class _Region:
    """What a token selection leaves: everything computed from ``length`` may have its tokens."""

    site: str
    behind: frozenset[str]
    mask: str | None
    """Value (B, K) that is true, or not negative, at a real token; None: all are."""
    kept: str | None
    """Value (B, K) of where each token stood at first; None: it is not to be seen."""


class Padding:
    """The masks of a model, and for each of its values which of them holds."""

    def __init__(self, model: ir.Model) -> None:
        self._regions = [_region(model, record) for record in _records(model)]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Values that have to be looked at besides the activations."""
        both = (name for r in self._regions for name in (r.mask, r.kept))
        return tuple(dict.fromkeys(name for name in both if name is not None))

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

    def counts(
        self,
        name: str,
        shape: tuple[int, ...],
        batch: Mapping[str, NDArray[Any]],
        seen: Mapping[str, NDArray[Any]],
    ) -> NDArray[np.float64] | None:
        """Return how much each row counts, (B, N), None where the batch does not say.

        Raises:
            PreconditionError: behind a selection that does not show what it kept.
        """
        if TOKEN_WEIGHTS not in batch:
            return None
        weights = np.asarray(batch[TOKEN_WEIGHTS], dtype=np.float64)
        for region in reversed(self._regions):
            if name not in region.behind:
                continue
            if region.kept is None:
                raise PreconditionError(
                    "tokens cannot be weighed behind this selection: it does not show which stay",
                    where=region.site,
                    next_step="leave out calibrate: tokens, or expose the kept positions",
                )
            kept = seen[region.kept]
            if _fits(kept, shape):
                found = np.take_along_axis(weights, np.maximum(kept, 0), axis=1)
                return np.where(kept >= 0, found, 0.0)
        return weights if weights.ndim == 2 and _fits(weights, shape) else None


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
    behind = _descendants(model, str(start))
    return _Region(
        str(record["site"]), behind, mask if per_sample else None, record.get("kept_output")
    )


def _descendants(model: ir.Model, name: str) -> frozenset[str]:
    """Names of all values computed from a value."""
    found = {name}
    for node in model.graph:
        if any(value is not None and value.name in found for value in node.inputs):
            found.update(value.name or "" for value in node.outputs)
    return frozenset(found)


__all__ = ["Padding"]
