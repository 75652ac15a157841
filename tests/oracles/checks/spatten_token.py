"""SpAtten's released code: which positions of a key-value cache stay, per head."""

from __future__ import annotations

import numpy as np
from tests.oracles.onnx_form import both_ways

from secateur.models.selectors import spatten

_SIZES = {"start": "start", "recent": "recent", "important": "important", "coming": "num_coming"}


def check(case) -> None:
    arrays = case.arrays
    options = {name: int(arrays[key]) for name, key in _SIZES.items()}
    n_layers = sum(name.endswith("_scores") for name in arrays)
    for layer in range(n_layers):
        inputs = {
            "keys": arrays[f"L{layer}_k"],
            "values": arrays[f"L{layer}_v"],
            "logits": arrays[f"L{layer}_scores"],
        }
        axes = dict.fromkeys(inputs, ("batch", ""))
        for result in both_ways(spatten.prune_cache, inputs, axes, **options):
            np.testing.assert_array_equal(result["keys"], arrays[f"L{layer}_k_out"])
            np.testing.assert_array_equal(result["values"], arrays[f"L{layer}_v_out"])
            want = arrays[f"L{layer}_importance"]
            np.testing.assert_allclose(result["importance"][0], want, rtol=1e-4, atol=1e-5)
