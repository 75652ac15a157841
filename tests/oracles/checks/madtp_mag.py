"""MADTP's concept queries: scores of tokens and alignment features."""

from __future__ import annotations

import numpy as np
import torch
from tests.oracles.onnx_form import both_ways

from secateur.models.madtp.concepts import alignment_features, concept_scores


def check(case) -> None:
    arrays = dict(case.arrays)
    tokens = arrays["tokens"]
    if "q_map_weight" in arrays:
        weight, bias = (torch.as_tensor(arrays[f"q_map_{part}"]) for part in ("weight", "bias"))
        tokens = (torch.as_tensor(tokens) @ weight.t() + bias).numpy()
    axes = {"tokens": ("batch", "tokens", ""), "concepts": ("concepts", "")}
    for result in both_ways(_query, {"tokens": tokens, "concepts": arrays["space_dict"]}, axes):
        np.testing.assert_allclose(result["scores"], arrays["token_attn"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(result["features"], arrays["concept_ft"], rtol=1e-4, atol=1e-5)


def _query(tokens, concepts):
    scores = concept_scores(tokens, concepts)
    return {"scores": scores, "features": alignment_features(tokens, scores)}
