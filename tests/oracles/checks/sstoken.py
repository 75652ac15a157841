"""ssToken: which tokens of the response are kept, by what a graph scores and attends to."""

from __future__ import annotations

import numpy as np
from tests.laws.small_models import network

from secateur.calibration.activations import observe
from secateur.calibration.token_choice import best_share, token_losses, token_scores


def check(case) -> None:
    arrays = case.arrays
    is_prompt = arrays["labels"] < 0
    logits, attention = _seen(arrays)
    learned = arrays["ref_loss"] - token_losses(logits, arrays["labels"])
    ratio = 0.0 if case.text("mode") == "attention" else float(arrays["ratio"])
    scores = token_scores(learned, attention, is_prompt, ratio)
    kept = np.flatnonzero(~is_prompt)[best_share(scores, float(arrays["keep"]))]
    np.testing.assert_array_equal(kept, np.flatnonzero(arrays["kept"]))
    want = np.full_like(arrays["labels"], -100)
    want[kept] = arrays["labels"][kept]
    np.testing.assert_array_equal(want, arrays["labels_filtered"])


def _seen(arrays) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all tokens and their attention, as ONNX Runtime gives them."""
    tokens, words = arrays["logits"].shape
    text = f"""
    scorer (float[batch, {tokens}, {tokens}] x)
        => (float[batch, {tokens}, {words}] logits, float[batch, {tokens}, {tokens}] p) {{
        logits = MatMul(x, table)
        s = MatMul(x, scores)
        p = Softmax(s)
    }}
    """
    scores = np.log(np.maximum(arrays["attention"], 1e-30)).astype(np.float32)
    model = network(text, {}, {"table": arrays["logits"].astype(np.float32), "scores": scores})
    positions = np.eye(tokens, dtype=np.float32)[None]
    ((_, seen),) = observe(model, ["logits", "p"], [{"x": positions}])
    total = arrays["attention"].sum(axis=1, keepdims=True)  # rows of the vectors may not be whole
    return seen["logits"][0], seen["p"][0] * total
