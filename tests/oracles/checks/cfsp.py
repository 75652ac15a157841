"""CFSP: layer importance, shares per layer; activity on a graph, and kept channels."""

from __future__ import annotations

import numpy as np
from tests.oracles.readers import Reader, readers

from secateur.calibration.importance import Context, rank
from secateur.calibration.importance.cfsp import (
    block_importance,
    channel_scores,
    keep_channels,
    keep_ratios,
)


def check(case) -> None:
    arrays = case.arrays
    n_layers = len(arrays["keep_ratio_per_layer"])
    importance = np.array(
        [
            block_importance(
                arrays[f"L{i}_hidden_in"], arrays[f"L{i}_hidden_out"], case.text("global_metric")
            )
            for i in range(n_layers)
        ]
    )
    np.testing.assert_allclose(importance, arrays["layer_importance_sum"], rtol=1e-4)
    keep = keep_ratios(importance, float(arrays["pruning_ratio"]), float(arrays["a"]))
    np.testing.assert_allclose(keep, arrays["keep_ratio_per_layer"], rtol=1e-4)
    multiple = 128 if bool(arrays["round_to_128"]) else 1
    layers = {
        f"L{i}_down_proj": Reader(arrays[f"dense__model.layers.{i}.mlp.down_proj.weight"])
        for i in range(n_layers)
    }
    analysis, groups = readers(layers)
    data = [{f"{name}_in": arrays[f"{name}_in"] for name in layers}]
    found = list(rank("cfsp", Context(analysis, groups, data)).values())
    for i in range(n_layers):
        path = f"dense__model.layers.{i}.mlp"
        weights = [arrays[f"{path}.down_proj.weight"]]
        if case.text("local_metric").startswith("three"):
            weights += [arrays[f"{path}.{name}_proj.weight"].T for name in ("up", "gate")]
        active = found[i]
        np.testing.assert_allclose(active**2, arrays[f"L{i}_scaler_row"], rtol=1e-4)
        scores = channel_scores(weights, active, float(arrays["b"]), float(arrays["c"]))
        kept = keep_channels(scores, keep[i], multiple)
        np.testing.assert_array_equal(kept, arrays[f"L{i}_keep"])
