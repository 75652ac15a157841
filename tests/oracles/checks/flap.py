"""FLAP: statistics, metric, global and per-kind thresholds, compensating bias."""

from __future__ import annotations

import numpy as np

from secateur.calibration.importance.flap import (
    compensation,
    feature_metric,
    keep_globally,
    standardised,
)
from secateur.calibration.statistics.moments import Fluctuation

_HEAD_COST = 170
"""512 / 3 as the published code's integer tensor holds it."""


def check(case) -> None:
    arrays, width = case.arrays, int(case.arrays["head_dim"])
    n_layers = sum(name.endswith("_head_keep") for name in arrays)
    metrics, found, weights = {}, {}, {}
    for layer in range(n_layers):
        for name, path in (("o_proj", "self_attn.o_proj"), ("down_proj", "mlp.down_proj")):
            key = f"L{layer}_{name}"
            found[key] = Fluctuation()
            found[key].add(arrays[f"{key}_in"])
            weights[key] = arrays[f"dense__model.layers.{layer}.{path}.weight"]
            metrics[key] = feature_metric(found[key], weights[key], case.text("metric"))
            np.testing.assert_allclose(found[key].mean, arrays[f"{key}_mean"], atol=1e-5)
            np.testing.assert_allclose(metrics[key], arrays[f"{key}_metric"], rtol=1e-4, atol=1e-6)
    heads, neurons = _kept(case, metrics, n_layers, width)
    for layer in range(n_layers):
        np.testing.assert_array_equal(heads[layer], arrays[f"L{layer}_head_keep"])
        np.testing.assert_array_equal(neurons[layer], arrays[f"L{layer}_mlp_keep"])
        for name, path, kept in (
            ("o_proj", "self_attn.o_proj", np.repeat(heads[layer], width)),
            ("down_proj", "mlp.down_proj", neurons[layer]),
        ):
            key = f"L{layer}_{name}"
            bias = compensation(found[key], weights[key], kept)
            want = arrays[f"pruned__model.layers.{layer}.{path}.bias"]
            np.testing.assert_allclose(bias, want, rtol=1e-4, atol=1e-5)


def _kept(case, metrics, n_layers, width):
    heads = np.stack(
        [
            standardised(metrics[f"L{i}_o_proj"] ** 2).reshape(-1, width).mean(axis=1)
            for i in range(n_layers)
        ]
    )
    neurons = np.stack([standardised(metrics[f"L{i}_down_proj"]) for i in range(n_layers)])
    ratio = float(case.arrays["pruning_ratio"])
    if case.text("structure") == "AL-AM":
        scores = np.concatenate([heads.ravel(), neurons.ravel()])
        costs = np.concatenate([np.full(heads.size, _HEAD_COST), np.ones(neurons.size)])
        kept = keep_globally(scores, costs.astype(float), ratio)
        return kept[: heads.size].reshape(heads.shape), kept[heads.size :].reshape(neurons.shape)
    assert case.text("structure") == "AL-MM"
    n_heads = int(case.arrays["remove_heads"])
    hidden, inter = 32, neurons.shape[1]
    removed = n_layers * (3 * inter * hidden + 4 * hidden * hidden) * ratio
    n_neurons = int((removed - 4 * hidden * n_heads * width) / (3 * hidden))
    return (
        heads > np.sort(heads.ravel())[n_heads - 1],
        neurons > np.sort(neurons.ravel())[n_neurons - 1],
    )
