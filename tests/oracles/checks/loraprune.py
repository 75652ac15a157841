"""LoRAPrune: unit scores of adapted layers on a graph, and their moving average."""

from __future__ import annotations

import numpy as np
from tests.laws.small_models import network

from secateur.calibration.allocation import best
from secateur.calibration.importance import Context, rank
from secateur.calibration.importance.loraprune import (
    Adapted,
    accumulate,
    sparsity_at,
    unit_scores,
    weight_importance,
)
from secateur.graph_passes.groups import analyse

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
            if case.text("metric") == "lora":
                on_graph = _on_graph(case, f"L{layer}_", names, units)
                np.testing.assert_allclose(on_graph, total, rtol=2e-3, atol=1e-6)
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


def _on_graph(case, key: str, names: tuple[str, ...], units: int) -> np.ndarray:
    """Scores of the units that all but the last matrix make together and the last one reads."""
    arrays = case.arrays
    weights = {n: np.ascontiguousarray(arrays[f"{key}{n}__W"].T, np.float32) for n in names}
    inner, width = weights[names[-1]].shape
    makers = [f"m_{n} = MatMul(x, {n})\n s_{n} = Reshape(m_{n}, split)" for n in names[:-1]]
    joined = [f"p_{n} = Mul({b}, s_{n})" for b, n in _chain(names[:-1])]
    text = f"""
    block (float[batch, tokens, {width}] x) => (float[batch, tokens, {width}] y) {{
        {" ".join(makers)}
        {" ".join(joined)}
        merged = Reshape(p_{names[-2]}, merge)
        y = MatMul(merged, {names[-1]})
    }}
    """
    shapes = {"split": np.array([0, 0, units, inner // units]), "merge": np.array([0, 0, inner])}
    analysis = analyse(network(text, {}, weights | shapes))
    group = next(
        g for g in analysis.groups if g.size == units and len({u.parameter for u in g.weights}) > 2
    )
    # Arrays are in the layout of the parameters here: this graph holds no record of a transpose.
    given = {"lora.scale": np.float32(float(arrays["alpha"]) / float(arrays["rank"]))}
    for n in names:
        a, b, ga, gb = (arrays[f"{key}{n}__{x}"] for x in ("A", "B", "gA", "gB"))
        given |= {f"{n}@lora_a": b.T, f"{n}@lora_b": a.T, f"{n}@grad_a": gb.T, f"{n}@grad_b": ga.T}
    (scores,) = rank("loraprune", Context(analysis, (group,), arrays=given)).values()
    return scores


def _chain(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each name with what was joined before it."""
    before = [f"s_{names[0]}", *(f"p_{n}" for n in names[1:-1])]
    return list(zip(before, names[1:], strict=True))


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
