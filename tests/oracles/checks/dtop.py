"""DToP: which tokens exit at a head, and what the canvas then shows."""

from __future__ import annotations

import numpy as np
from tests.oracles.onnx_form import both_ways

from secateur.models.selectors import dtop

_AXES = {
    "mask_logits": ("batch", "", "tokens"),
    "class_logits": ("batch",),
    "exited": ("batch", "tokens"),
    "canvas": ("batch", "", "tokens"),
}


def check(case) -> None:
    arrays = case.arrays
    inputs = {
        "mask_logits": arrays["mask_logits"],
        "class_logits": arrays["class_logits"],
        "exited": arrays["exited_in"],
        "canvas": arrays["canvas_in"],
    }
    for result in both_ways(
        _exit,
        inputs,
        _AXES,
        threshold=float(arrays["thresh"]),
        keep_per_class=int(arrays["keep_per_class"]),
    ):
        np.testing.assert_array_equal(result["exited"], arrays["exited_out"])
        np.testing.assert_allclose(result["canvas"], arrays["canvas_out"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(result["prediction"], arrays["pred"], rtol=1e-4, atol=1e-6)
    _check_site(arrays)


def _exit(mask_logits, class_logits, exited, canvas, *, threshold, keep_per_class):
    made = dtop.exit_tokens(
        mask_logits,
        class_logits,
        exited,
        canvas,
        threshold=threshold,
        keep_per_class=keep_per_class,
    )
    return {"exited": made.exited, "canvas": made.canvas, "prediction": made.prediction}


def _check_site(arrays) -> None:
    """Where no token had left before, the selector keeps those that do not leave now."""
    if arrays["exited_in"].any():
        return
    inputs = {
        "mask_logits": arrays["mask_logits"],
        "class_logits": arrays["class_logits"],
        "valid": ~arrays["exited_in"],
    }
    axes = {**_AXES, "valid": ("batch", "tokens")}
    for result in both_ways(
        _select,
        inputs,
        {name: axes[name] for name in inputs},
        threshold=float(arrays["thresh"]),
        keep_per_class=int(arrays["keep_per_class"]),
    ):
        for score, count, exited in zip(
            result["score"], result["count"], arrays["exited_out"], strict=True
        ):
            kept = np.sort(np.argsort(-score, kind="stable")[:count])
            np.testing.assert_array_equal(kept, np.flatnonzero(~exited))


def _select(mask_logits, class_logits, valid, *, threshold, keep_per_class):
    made = dtop.score(
        mask_logits, class_logits, valid, 0, threshold=threshold, keep_per_class=keep_per_class
    )
    return {"score": made.score, "count": made.count}
