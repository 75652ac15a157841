"""Which samples and tokens importance, compensation and quantisation look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from secateur.calibration.activations import observe
from secateur.calibration.sample_choice import (
    are_misconceptions,
    centrality,
    evidence,
    quadrant_levels,
    tf_idf,
)
from secateur.errors import BadInputError
from secateur.recipe import Calibrate, UncertainTokens
from secateur.runtime.backend import Array
from secateur.workflow.calibration_tokens import check_scores, token_input, weigh_tokens
from secateur.workflow.data import Samples

_BATCH = 8
_MASK = "attention_mask"


@dataclass(frozen=True, slots=True)
class Chosen:
    """Some of the samples, and why these."""

    samples: Samples
    indices: tuple[int, ...]
    by: str
    sha256: str
    """Of the samples, without the weights of their tokens."""
    tokens: dict[str, Any] | None = None
    """How tokens were weighed, and a hash of the weights."""

    def record(self) -> dict[str, Any]:
        """What a bundle keeps: the choice, and hashes of what was chosen."""
        found = {"by": self.by, "samples": list(self.indices), "sha256": self.sha256}
        return found if self.tokens is None else {**found, "tokens": self.tokens}


def choose_samples(samples: Samples, model: ir.Model, settings: Calibrate) -> Chosen:
    """Choose what to calibrate on; in the order of the data.

    Args:
        samples: of the user.
        model: the dense graph, whose own scores ``q_tuning`` looks at.
        settings: of the recipe.

    Raises:
        BadInputError: samples that the choice cannot be made of, named with the reason.
        PreconditionError: attention that tokens are weighed by does not show.
    """
    count = min(settings.samples, len(samples))
    plane = _evidence(samples, model) if _looks_at_scores(settings) else None
    if settings.choose == "first":
        best = np.arange(count)
    elif settings.choose == "lexrank":
        best = np.argsort(-centrality(_features(samples)), kind="stable")[:count]
    else:
        assert plane is not None
        best = np.argsort(quadrant_levels(*plane), kind="stable")[:count]
    indices = tuple(sorted(best.tolist()))
    chosen = samples.subset(indices)
    found = Chosen(chosen, indices, settings.choose, chosen.sha256)
    if settings.tokens is None:
        return found
    wrong = np.zeros(len(samples), bool) if plane is None else are_misconceptions(*plane)
    weighed = weigh_tokens(chosen, model, settings.tokens, wrong[list(indices)].tolist())
    return replace(found, samples=weighed.samples, tokens=weighed.record)


def _looks_at_scores(settings: Calibrate) -> bool:
    return settings.choose == "q_tuning" or isinstance(settings.tokens, UncertainTokens)


def _features(samples: Samples) -> Array:
    """Words of texts by TF-IDF; of other inputs all numbers, which takes one shape."""
    name = token_input(samples)
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


def _real(sample: Mapping[str, Array], name: str) -> Array:
    mask = sample.get(_MASK)
    return sample[name] if mask is None else sample[name][mask.astype(bool)]


def _evidence(samples: Samples, model: ir.Model) -> tuple[Array, Array]:
    name, output = token_input(samples), str(model.graph.outputs[0].name)
    errors, uncertainties = [], []
    for batch, seen in observe(model, [output], samples.batches(_BATCH)):
        logits, ids = seen[output], batch.get(name or "", np.zeros(0))
        check_scores(logits, ids, output, "q_tuning")
        mask = batch.get(_MASK, np.ones(ids.shape))
        error, uncertainty = evidence(logits, ids, mask.astype(bool))
        errors.append(error)
        uncertainties.append(uncertainty)
    return np.concatenate(errors), np.concatenate(uncertainties)


__all__ = ["Chosen", "choose_samples"]
