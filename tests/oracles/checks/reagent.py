"""ReAGent: the score after each replacement."""

from __future__ import annotations

import numpy as np
from tests.oracles.onnx_form import both_ways

from secateur.models.selectors import reagent

_AXES = {
    "logits": ("batch", "tokens"),
    "replaced": ("batch", "tokens"),
    "p_original": ("batch",),
    "p_replaced": ("batch",),
}


def check(case) -> None:
    for way in (0, 1):
        _follow(case.arrays, way)


def _follow(arrays, way) -> None:
    logits = arrays["init_logit_score"]
    steps = zip(
        arrays["replaced_mask"], arrays["p_replaced"], arrays["logit_score_trace"], strict=True
    )
    for replaced, probability, want in steps:
        inputs = {
            "logits": logits,
            "replaced": replaced[None],
            "p_original": arrays["p_original"][0],
            "p_replaced": probability[None],
        }
        made = both_ways(_step, inputs, _AXES)[way]
        logits = made["logits"]
        np.testing.assert_allclose(logits[0], want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(made["importance"], arrays["importance"], rtol=1e-4, atol=1e-6)


def _step(logits, replaced, p_original, p_replaced):
    made = reagent.update(logits, replaced, p_original, p_replaced)
    return {"logits": made, "importance": made.softmax(dim=1)}
