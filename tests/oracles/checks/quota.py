"""QuoTA: quotas of frames, and the tokens that their frames become."""

from __future__ import annotations

import numpy as np
from tests.oracles.onnx_form import both_ways

from secateur.models.selectors import quota


def check(case) -> None:
    arrays, version = case.arrays, case.text("version")
    frames, most = arrays["frames"], arrays["frames"].shape[1]
    total = int(arrays["total"]) * int(arrays["max_token"])
    np.testing.assert_allclose((100 * arrays["probs"]) ** 2, arrays["weights"])
    slots = min(total, most) if version != "v1" else total
    inputs = {"frames": frames, "relevance": arrays["weights"]}
    options = {"total": total, "most": most, "slots": slots, "version": version}
    for result in both_ways(_assign, inputs, {}, **options):
        kept = result["quota"] > 0
        sizes = np.stack([result["height"], result["width"]], axis=1)
        np.testing.assert_array_equal(sizes[kept], arrays["out_sizes"])
        tokens = np.concatenate(
            [one[valid] for one, valid in zip(result["tokens"], result["valid"], strict=True)]
        )
        np.testing.assert_allclose(tokens, arrays["out_concat"], rtol=1e-4, atol=1e-5)


def _assign(frames, relevance, *, total, most, slots, version):
    amount = quota.frame_quotas(relevance, total=total, most=most, version=version)
    made = quota.compress(frames, amount, slots=slots, version=version)
    return {
        "quota": amount,
        "tokens": made.tokens,
        "valid": made.valid,
        "height": made.height,
        "width": made.width,
    }
