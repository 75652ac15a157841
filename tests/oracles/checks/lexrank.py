"""LexRank: cosines, walks over them, and where they end."""

from __future__ import annotations

import numpy as np
import torch
from tests.oracles.onnx_form import both_ways

from secateur.calibration.sample_choice import centrality
from secateur.models.selectors.lexrank import score
from secateur.models.selectors.parts import cosines


def everything(hidden, threshold):
    """Both kinds of weights in one graph, for any threshold."""
    valid = torch.ones_like(hidden[..., 0], dtype=torch.bool)
    return {
        "similarity": cosines(hidden),
        "continuous": score(hidden, valid),
        "threshold": score(hidden, valid, weights="threshold", threshold=threshold),
    }


def check(case) -> None:
    arrays = case.arrays
    features = arrays["features"].astype(np.float32)[None]
    cut = arrays["threshold"].astype(np.float32)
    given = {"hidden": features, "threshold": cut}
    for found in both_ways(everything, given, {"hidden": ("batch", "tokens", "")}):
        alike = found["similarity"][0]
        np.testing.assert_allclose(alike, arrays["similarity"], rtol=1e-4, atol=1e-6)
        for weights, name in ((alike, "continuous"), (alike >= cut, "threshold")):
            walk = weights / weights.sum(axis=1, keepdims=True)
            np.testing.assert_allclose(walk, arrays[f"markov_{name}"], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(found[name][0], arrays[f"rank_{name}"], rtol=1e-4)
        np.testing.assert_allclose(centrality(features[0]), arrays["rank_continuous"], rtol=1e-4)
        share = found["threshold"][0] / features.shape[1]
        np.testing.assert_allclose(share, arrays["rank_threshold_normalized"], rtol=1e-4)
