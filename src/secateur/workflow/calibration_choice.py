"""Which of the user's samples importance, compensation and quantisation look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from secateur.calibration.activations import observe
from secateur.calibration.sample_choice import centrality, evidence, quadrant_levels, tf_idf
from secateur.errors import BadInputError
from secateur.recipe import Calibrate
from secateur.runtime.backend import Array
from secateur.workflow.data import Samples

_BATCH = 8
_MASK = "attention_mask"
_NO_TOKENS = frozenset({_MASK, "token_type_ids", "position_ids"})


@dataclass(frozen=True, slots=True)
class Chosen:
    """Some of the samples, and why these."""

    samples: Samples
    indices: tuple[int, ...]
    by: str

    def record(self) -> dict[str, Any]:
        """What a bundle keeps: the choice, and a hash of what was chosen."""
        return {
            "by": self.by,
            "samples": list(self.indices),
            "sha256": self.samples.sha256,
        }


def choose_samples(samples: Samples, model: ir.Model, settings: Calibrate) -> Chosen:
    """Choose what to calibrate on; in the order of the data.

    Args:
        samples: of the user.
        model: the dense graph, whose own scores ``q_tuning`` looks at.
        settings: of the recipe.

    Raises:
        BadInputError: samples that the choice cannot be made of, named with the reason.
    """
    count = min(settings.samples, len(samples))
    if settings.choose == "first":
        best = np.arange(count)
    elif settings.choose == "lexrank":
        best = np.argsort(-centrality(_features(samples)), kind="stable")[:count]
    else:
        levels = quadrant_levels(*_evidence(samples, model))
        best = np.argsort(levels, kind="stable")[:count]
    indices = tuple(sorted(best.tolist()))
    return Chosen(samples.subset(indices), indices, settings.choose)


def _features(samples: Samples) -> Array:
    """Words of texts by TF-IDF; of other inputs all numbers, which takes one shape."""
    name = _tokens(samples)
    if name is not None:
        return tf_idf([_real(one, name) for one in samples.arrays])
    rows = [
        np.concatenate([np.asarray(one[key], np.float64).ravel() for key in sorted(one)])
        for one in samples.arrays
    ]
    if len({len(row) for row in rows}) > 1:
        raise BadInputError(
            "samples of different shapes cannot be compared",
            wanted="texts, or inputs of one shape",
            next_step="calibrate: {choose: first}",
        )
    return np.stack(rows)


def _tokens(samples: Samples) -> str | None:
    """The input that holds tokens: whole numbers, (1, N)."""
    found = [
        name
        for name, array in samples.arrays[0].items()
        if array.dtype.kind in "iu" and array.ndim == 2 and name not in _NO_TOKENS
    ]
    return "input_ids" if "input_ids" in found else found[0] if len(found) == 1 else None


def _real(sample: Mapping[str, Array], name: str) -> Array:
    mask = sample.get(_MASK)
    return sample[name] if mask is None else sample[name][mask.astype(bool)]


def _evidence(samples: Samples, model: ir.Model) -> tuple[Array, Array]:
    name, output = _tokens(samples), str(model.graph.outputs[0].name)
    errors, uncertainties = [], []
    for batch, seen in observe(model, [output], samples.batches(_BATCH)):
        logits = seen[output]
        ids = np.zeros(0) if name is None else batch[name]
        if logits.ndim != 3 or logits.shape[:2] != ids.shape or ids.max() >= logits.shape[2]:
            raise BadInputError(
                "q_tuning needs a model that scores the next token",
                where=f"output {output!r}",
                got=f"{list(logits.shape)} for {name or 'no input of tokens'}",
                wanted="(batch, tokens, vocabulary)",
                next_step="calibrate: {choose: lexrank}",
            )
        mask = batch.get(_MASK, np.ones(ids.shape))
        error, uncertainty = evidence(logits, ids, mask.astype(bool))
        errors.append(error)
        uncertainties.append(uncertainty)
    return np.concatenate(errors), np.concatenate(uncertainties)


__all__ = ["Chosen", "choose_samples"]
