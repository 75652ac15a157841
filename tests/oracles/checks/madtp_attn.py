"""MADTP's attention: output, probabilities and the class score weighted by heads."""

from __future__ import annotations

import numpy as np
from tests.oracles.onnx_form import both_ways
from torch.nn import functional as F

from secateur.models.madtp.attention import Visible, attend
from secateur.models.madtp.importance import class_score

_INPUTS = ("x", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias")


def check(case) -> None:
    arrays = case.arrays
    axes = {"x": ("batch", "tokens", "")}
    inputs = {name: arrays[name] for name in _INPUTS}
    for result in both_ways(_attention, inputs, axes, heads=int(arrays["num_heads"])):
        np.testing.assert_allclose(result["out"], arrays["out"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            result["probabilities"], arrays["attention_map"], rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            result["class_score"][:, 1:], arrays["cls_attn"], rtol=1e-4, atol=1e-6
        )


def _attention(x, qkv_weight, qkv_bias, proj_weight, proj_bias, *, heads):
    mixed = F.linear(x, qkv_weight, qkv_bias).unflatten(2, (3, heads, -1))
    made = attend(*mixed.permute(2, 0, 3, 1, 4).unbind(0), Visible())
    return {
        "out": F.linear(made.output, proj_weight, proj_bias),
        "probabilities": made.probabilities,
        "class_score": class_score(made.probabilities, made.heads),
    }
