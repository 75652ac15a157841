"""LoRAPrune: unit scores of adapted layers on a graph, and their moving average.

Two metrics that the paper compares with are those of other criteria on the merged weights,
``taylor`` and ``l1``, each matrix brought to length 1.
"""

from __future__ import annotations

from dataclasses import replace

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
from secateur.graph_passes.groups import Analysis, Group, analyse

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_CRITERIA = {"grad": "taylor", "magnitude": "l1"}


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
    arrays, is_lora = case.arrays, case.text("metric") == "lora"
    held = {n: arrays[f"{key}{n}__W"] if is_lora else _merged(case, f"{key}{n}__") for n in names}
    weights = {n: np.ascontiguousarray(held[n].T, np.float32) for n in names}
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
    if not is_lora:
        given = {n: arrays[f"{key}{n}__gW"].T for n in names}
        return _by_matrix(case, analysis, group, given)
    given = {"lora.scale": np.float32(_scale(case))}
    for n in names:
        a, b, ga, gb = (arrays[f"{key}{n}__{x}"] for x in ("A", "B", "gA", "gB"))
        given |= {f"{n}@lora_a": b.T, f"{n}@lora_b": a.T, f"{n}@grad_a": gb.T, f"{n}@grad_b": ga.T}
    (scores,) = rank("loraprune", Context(analysis, (group,), arrays=given)).values()
    return scores


def _by_matrix(case, analysis: Analysis, group: Group, given: dict) -> np.ndarray:
    """The other metrics: each matrix of the units ranked alone, and its scores to length 1."""
    criterion, total = _CRITERIA[case.text("metric")], np.zeros(group.size)
    uses = {use.parameter: use for use in group.weights if use.parameter in given}
    assert uses.keys() == given.keys()
    for use in uses.values():
        alone = replace(group, weights=(use,))
        (scores,) = rank(criterion, Context(analysis, (alone,), arrays=given)).values()
        total += scores / np.linalg.norm(scores)
    return total


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


def _scale(case) -> float:
    return float(case.arrays["alpha"]) / float(case.arrays["rank"])


def _merged(case, key: str) -> np.ndarray:
    """(out, in) weight with its adapter in it, float64."""
    weight, a, b = (case.arrays[f"{key}{name}"].astype(np.float64) for name in ("W", "A", "B"))
    return weight + _scale(case) * (b @ a)


def _scores(case, key: str, units: int) -> np.ndarray:
    arrays = case.arrays
    metric = case.text("metric")
    if metric == "lora":
        parts = (arrays[f"{key}{name}"] for name in ("W", "A", "B", "gA", "gB"))
        importance = weight_importance(Adapted(*parts, _scale(case)))
    else:
        factor = 1.0 if metric == "magnitude" else arrays[f"{key}gW"].astype(np.float64)
        importance = np.abs(factor * _merged(case, key))
    by_input = key.endswith(("o_proj__", "down_proj__"))
    return unit_scores(importance.T if by_input else importance, units)
