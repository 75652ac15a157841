"""LexRank: cosines, walks over them, and where they end."""

from __future__ import annotations

import numpy as np
from tests.oracles.onnx_form import both_ways
from tests.oracles.selecting import select_both_ways

from secateur.models.selectors.parts import cosines


def check(case) -> None:
    arrays = case.arrays
    features = arrays["features"].astype(np.float32)[None]
    threshold = float(arrays["threshold"])
    for found in both_ways(cosines, {"rows": features}, {"rows": ("batch", "tokens", "")}):
        alike = found["output"][0]
        np.testing.assert_allclose(alike, arrays["similarity"], rtol=1e-4, atol=1e-6)
        for weights, name in ((alike, "continuous"), (alike >= threshold, "threshold")):
            walk = weights / weights.sum(axis=1, keepdims=True)
            np.testing.assert_allclose(walk, arrays[f"markov_{name}"], rtol=1e-4, atol=1e-6)
    n_tokens = features.shape[1]
    for name in ("continuous", "threshold"):
        for kept in select_both_ways(
            "lexrank", {"hidden": features}, n_tokens, weights=name, threshold=threshold
        ):
            np.testing.assert_allclose(kept.scores[0], arrays[f"rank_{name}"], rtol=1e-4)
            if name == "threshold":
                share = kept.scores[0] / n_tokens
                np.testing.assert_allclose(share, arrays["rank_threshold_normalized"], rtol=1e-4)
