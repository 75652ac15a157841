"""HoloV: worth of the crops, what each is granted, and the kept patches in published order."""

from __future__ import annotations

import numpy as np
import torch
from tests.oracles.onnx_form import both_ways

from secateur.models.selectors.holov import crop_scores, grants, lay_out, score

AXES = {
    "class_row": ("batch", "tokens"),
    "hidden": ("batch", "tokens", "width"),
    "count": ("batch",),
}


def everything(class_row, hidden, count, *, crops, beta):
    """The inner numbers beside the decision, in one graph."""
    alive = torch.ones_like(class_row, dtype=torch.bool)
    laid = lay_out(alive, crops)
    worth = crop_scores(laid, laid.rows(hidden), laid.values(class_row), beta)
    made = score(class_row, hidden, alive, count, 0, crops=crops, beta=beta, faithful=True)
    assert made.order == "score"
    return {
        "worth": worth,
        "granted": grants(worth, count),
        "score": made.score,
        "count_kept": made.count,
    }


def check(case) -> None:
    arrays = case.arrays
    tokens, n_kept = arrays["tokens"], int(arrays["k"])
    inputs = {
        "class_row": arrays["attention"],
        "hidden": tokens,
        "count": np.full(len(tokens), n_kept),
    }
    options = {"crops": int(arrays["num_crops"]), "beta": float(arrays["beta"])}
    for found in both_ways(everything, inputs, AXES, **options):
        np.testing.assert_allclose(found["worth"], arrays["crop_score"], rtol=1e-4)
        np.testing.assert_array_equal(found["granted"], arrays["crop_alloc"])
        np.testing.assert_array_equal(n_kept - found["count_kept"], arrays["n_pad"])
        for sample, want in enumerate(arrays["keep_idx"]):
            order = np.argsort(-found["score"][sample], kind="stable")
            got = order[: found["count_kept"][sample]]
            np.testing.assert_array_equal(got, want[want >= 0])
            rows = arrays["kept_tokens"][sample]
            np.testing.assert_array_equal(tokens[sample, got], rows[want >= 0])
            assert not rows[want < 0].any()


IS_LONG = True  # its exports
