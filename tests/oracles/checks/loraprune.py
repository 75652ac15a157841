"""LoRAPrune: unit scores of adapted layers, and their moving average."""

from __future__ import annotations

import numpy as np

from secateur.calibration.allocation import best
from secateur.calibration.importance.loraprune import (
    Adapted,
    accumulate,
    sparsity_at,
    unit_scores,
    weight_importance,
)

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


def check(case) -> None:
    arrays = case.arrays
    for layer in range(int(arrays["layers"])):
        for module, names, units in (
            ("self_attn", _ATTENTION, int(arrays["heads"])),
            ("mlp", _MLP, int(arrays["inter"])),
        ):
            total = np.zeros(units)
            for name in names:
                scores = _scores(case, f"L{layer}_{name}__", units)
                want = arrays[f"L{layer}_{name}__score"]
                np.testing.assert_allclose(scores, want, rtol=2e-3, atol=1e-6)
                total += scores
            after = accumulate(np.zeros(units), total)
            np.testing.assert_allclose(
                after, arrays[f"ema1__L{layer}_{module}"], rtol=2e-3, atol=1e-6
            )
            for name in names[:-1]:  # the last one has the units on its inputs: no mask of its own
                _check_mask(case, layer, module, name)
    ratio = float(arrays["target_ratio"])
    for step, want in zip(arrays["schedule_steps"], arrays["schedule_ratio"], strict=True):
        got = sparsity_at(int(step), 100, ratio, ramp=(0.1, 0.1))
        np.testing.assert_allclose(got, want, atol=1e-9)


def _check_mask(case, layer: int, module: str, name: str) -> None:
    """Remove the lowest share of each module's units by the average after three steps."""
    scores = case.arrays[f"ema3__L{layer}_{module}"]
    mask = case.arrays[f"mask__L{layer}_{name}"].reshape(len(scores), -1)
    if mask.all():
        return  # the published schedule leaves the first layers and the last one whole
    n_kept = len(scores) - int(len(scores) * float(case.arrays["ratio"]))
    assert best(scores, n_kept) == tuple(np.flatnonzero(mask[:, 0]))


def _scores(case, key: str, units: int) -> np.ndarray:
    arrays = case.arrays
    a, b, ga, gb = (arrays[f"{key}{name}"].astype(np.float64) for name in ("A", "B", "gA", "gB"))
    scale = float(arrays["alpha"]) / float(arrays["rank"])
    weight = arrays[f"{key}W"].astype(np.float64)
    metric = case.text("metric")
    if metric == "lora":
        importance = weight_importance(Adapted(weight, a, b, ga, gb, scale))
    else:
        factor = 1.0 if metric == "magnitude" else arrays[f"{key}gW"].astype(np.float64)
        importance = np.abs(factor * (weight + scale * (b @ a)))
    by_input = key.endswith(("o_proj__", "down_proj__"))
    return unit_scores(importance.T if by_input else importance, units)
