"""EASY-EP on the layers of the vectors as graphs: scores, kept experts, the mixed-domain rule.

A graph is the whole layer: the norm before it, the router with its groups, all experts and the
shared one, from the published weights; it chooses and weighs as the vectors say. Which group an
expert is in stands in a matrix: a Reshape into groups, as DeepSeek's code has it, makes units of
groups and of places in them, and no single expert can go.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tests.laws.small_models import network

from secateur.calibration.activations import observe
from secateur.calibration.allocation import best
from secateur.calibration.importance import Context, rank
from secateur.calibration.importance.easyep import (
    Routing,
    expert_scores,
    mixed,
    token_contribution,
)
from secateur.graph_passes.groups import analyse

_LAYER = """
layer (float[batch, tokens, {width}] x) => (float[batch, tokens, {width}] y) {{
    squares = Mul(x, x)
    square = ReduceMean(squares, last)
    large = Add(square, tiny)
    length = Sqrt(large)
    n = Div(x, length)
    logits = MatMul(n, gate)
    {scores}
    {groups}
    taken, chosen = TopK(open, k)
    none = Mul(scores, zero)
    {weights}
    dense = ScatterElements <axis = -1> (none, chosen, scaled)
    n4 = Unsqueeze(n, before_last)
    n5 = Unsqueeze(n4, before_last)
    a = MatMul(n5, w1)
    b = MatMul(n5, w3)
    c = Sigmoid(a)
    d = Mul(a, c)
    e = Mul(d, b)
    f = MatMul(e, w2)
    made = Squeeze(f, before_last)
    by = Unsqueeze(dense, last)
    parts = Mul(made, by)
    routed = ReduceSum <keepdims = 0> (parts, before_last)
    sa = MatMul(n, shared_w1)
    sb = MatMul(n, shared_w3)
    sc = Sigmoid(sa)
    sd = Mul(sa, sc)
    se = Mul(sd, sb)
    shared = MatMul(se, shared_w2)
    both = Add(routed, shared)
    y = Add(x, both)
}}
"""
_SCORES = {
    "sigmoid": "scores = Sigmoid(logits)",
    "softmax": "scores = Softmax <axis = -1> (logits)",
}
_WEIGHTS = {
    "sigmoid": """sum = ReduceSum(taken, last)
    share = Div(taken, sum)
    scaled = Mul(share, route_scale)""",
    "softmax": "scaled = Mul(taken, route_scale)",
}
_GROUPS = """each = Unsqueeze(scores, last)
    own = Mul(each, member)
    strongest = ReduceMax <keepdims = 0> (own, before_last)
    top, groups = TopK(strongest, n_groups)
    shut = Mul(strongest, zero)
    ones = Div(top, top)
    mask = ScatterElements <axis = -1> (shut, groups, ones)
    mask_e = MatMul(mask, members)
    open = Mul(scores, mask_e)"""


def check(case) -> None:
    arrays = case.arrays
    target = int(arrays["target_number"])
    total = np.zeros(arrays["expert_score"].shape)
    for layer in range(int(arrays["num_layers"])):
        total[layer] = _on_graph(case, layer)
        np.testing.assert_allclose(_by_vectors(case, layer), total[layer], rtol=1e-3)
        assert best(total[layer], target) == tuple(arrays["kept_idx"][layer])
    np.testing.assert_allclose(total, arrays["expert_score"], rtol=1e-3, atol=1e-5)
    both = mixed((total, arrays["second_domain_score"]))
    np.testing.assert_allclose(both, arrays["mixed_score"], rtol=1e-4)
    for layer, kept in enumerate(arrays["mixed_kept_idx"]):
        assert best(both[layer], len(kept)) == tuple(kept)


def _on_graph(case, layer: int) -> np.ndarray:
    """Scores of one layer by the criterion; the graph chooses experts as the vectors say."""
    model = _layer(case, layer)
    keys = [f"S{i}_L{layer}" for i in range(int(case.arrays["num_samples"]))]
    data = [{"x": case.arrays[f"{key}_resid"]} for key in keys]
    names = ["chosen", "scaled", "routed"]
    for key, (_, seen) in zip(keys, observe(model, names, data), strict=True):
        want = [case.arrays[f"{key}_{n}"] for n in ("topk_idx", "topk_weight", "routed_out")]
        np.testing.assert_array_equal(seen["chosen"][0], want[0])
        np.testing.assert_allclose(seen["scaled"][0], want[1], rtol=1e-4)
        np.testing.assert_allclose(seen["routed"], want[2], rtol=1e-3, atol=1e-5)
    analysis = analyse(model)
    group = next(g for g in analysis.by_role("experts") if g.size == int(case.arrays["n_experts"]))
    (scores,) = rank("easyep", Context(analysis, (group,), data)).values()
    return scores


def _layer(case, layer: int) -> ir.Model:
    arrays, key = case.arrays, f"L{layer}_"
    n_experts, n_groups = int(arrays["n_experts"]), int(arrays["n_groups"])
    weights = {
        name: np.ascontiguousarray(np.swapaxes(arrays[key + source], -1, -2))
        for name, source in {
            "gate": "gate",
            **{f"w{i}": f"expert_w{i}" for i in (1, 2, 3)},
            **{f"shared_w{i}": f"shared_w{i}" for i in (1, 2, 3)},
        }.items()
    }
    numbers = {
        "last": np.array([-1]),
        "before_last": np.array([-2]),
        "tiny": np.float32(1e-6),
        "zero": np.float32(0),
        "k": np.array([int(arrays["topk"])]),
        "route_scale": np.float32(arrays["route_scale"]),
    }
    if n_groups > 1:
        member = np.repeat(np.eye(n_groups, dtype=np.float32), n_experts // n_groups, axis=0)
        numbers |= {
            "n_groups": np.array([int(arrays["limited_groups"])]),
            "member": member,
            "members": np.ascontiguousarray(member.T),
        }
    kind = case.text("score_func")
    text = _LAYER.format(
        width=weights["gate"].shape[0],
        scores=_SCORES[kind],
        groups=_GROUPS if n_groups > 1 else "open = Identity(scores)",
        weights=_WEIGHTS[kind],
    )
    return network(text, {}, weights | numbers)


def _by_vectors(case, layer: int) -> np.ndarray:
    """Scores of one layer by the formula, from what the published code gives on the way."""
    arrays, n_experts = case.arrays, int(case.arrays["n_experts"])
    total = np.zeros(n_experts)
    for sample in range(int(arrays["num_samples"])):
        key = f"S{sample}_L{layer}"
        moved = token_contribution(arrays[f"{key}_resid"][0], arrays[f"{key}_routed_out"][0])
        want = np.maximum(0, 1 - arrays[f"{key}_cos_before_after"][0])
        np.testing.assert_allclose(moved, want, atol=1e-5)
        routing = Routing(
            *(arrays[f"{key}_{name}"] for name in ("topk_idx", "topk_weight", "expert_norm"))
        )
        total += expert_scores(routing, moved, n_experts)
    return total
