"""RSQ: token weights by what a graph shows; Hessian and GPTQ on a graph around the weight.

Rounded weights are compared as the codes and scales that the graph holds, and by what it computes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
from tests.laws.small_models import network

from secateur.calibration.activations import TOKEN_WEIGHTS, observe
from secateur.calibration.quantisation.gptq import Rounding
from secateur.calibration.quantisation.grid import fit_grid
from secateur.calibration.quantisation.insertion import round_weight
from secateur.calibration.quantisation.weights import Layout, store_whole
from secateur.calibration.statistics import Gram, all_places, gather, token_weights
from secateur.calibration.statistics.token_scaling import TokenScaling
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.opset import raise_opset

_OPSET = 21
_LINEAR = """
linear (float[batch, tokens, {inside}] x) => (float[batch, tokens, {out}] y) {{
    y = MatMul(x, w)
}}
"""
_TOY = """
toy (float[batch, tokens, {d}] x) => (float[batch, {h}, tokens, tokens] p) {{
    n = LayerNormalization <epsilon = 1e-5> (x, ln_w, ln_b)
    q0 = MatMul(n, wq)
    k0 = MatMul(n, wk)
    q1 = Reshape(q0, split)
    k1 = Reshape(k0, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q1)
    k = Transpose <perm = [0, 2, 3, 1]> (k1)
    s = MatMul(q, k)
    t = Mul(s, scale)
    u = Add(t, causal)
    p = Softmax (u)
}}
"""


def check(case) -> None:
    arrays = case.arrays
    weights = _token_weights(case)
    np.testing.assert_allclose(weights, arrays["token_weights"], rtol=1e-4, atol=1e-5)
    rounding = Rounding(
        bits=int(arrays["bits"]),
        symmetric=bool(arrays["symmetric"]),
        group=max(int(arrays["groupsize"]), 0),
        search=bool(arrays["mse_clip"]),
        by_activity=bool(arrays["act_order"]),
        block=int(arrays["blocksize"]),
        damping=float(arrays["percdamp"]),
    )
    for name, counts in {"weighted": weights, "uniform": np.ones_like(weights)}.items():
        hessian = _hessian(arrays, token_weights.normalised(counts))
        np.testing.assert_allclose(hessian, arrays[f"H_{name}"], rtol=1e-4, atol=1e-3)
        _check_rounded(arrays, rounding, hessian, f"W_quant_{name}")
    whole = Rounding(rounding.bits, search=rounding.search)  # a grid for the row, as published
    _check_rounded(arrays, whole, None, "W_rtn")
    grid = whole.fit(arrays["W"].astype(np.float64))
    np.testing.assert_allclose(grid.scale, arrays["scale_full"], rtol=1e-4)
    np.testing.assert_allclose(grid.zero, arrays["zero_full"], atol=1e-6)
    assert fit_grid(arrays["W"], rounding.bits).limits[0] == -(2 ** (rounding.bits - 1))


def _linear(arrays) -> ir.Model:
    """The layer that is rounded, as a product in a graph."""
    out, inside = arrays["W"].shape
    text = _LINEAR.format(inside=inside, out=out)
    return network(text, {}, {"w": np.ascontiguousarray(arrays["W"].T)})


def _hessian(arrays, counts: np.ndarray) -> np.ndarray:
    """Gathered by the graph, two sequences at a time."""
    analysis, found = analyse(_linear(arrays)), Gram()
    (place,) = all_places(analysis)
    parts = zip(*(np.split(x, 3) for x in (arrays["linear_inputs"], counts)), strict=True)
    gather(analysis.model, [(place, found)], [{"x": x, TOKEN_WEIGHTS: c} for x, c in parts])
    return found.hessian


def _check_rounded(arrays, rounding: Rounding, hessian: np.ndarray | None, name: str) -> None:
    """What the graph holds after rounding is the published weight, and so is what it computes."""
    analysis = analyse(_linear(arrays))
    (place,) = all_places(analysis)
    layout = Layout(arrays["W"].T.shape, place.weight_axis)
    model = analysis.model
    raise_opset(model, _OPSET)
    round_weight(model, place, store_whole(place.matrix(), layout, rounding, hessian))
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "MatMul"]
    held = str(model.graph[0].outputs[0].name)
    ((_, seen),) = observe(model, [held, "y"], [{"x": arrays["linear_inputs"]}])
    np.testing.assert_allclose(seen[held].T, arrays[name], rtol=1e-4, atol=1e-5)
    want = arrays["linear_inputs"] @ arrays[name].T
    np.testing.assert_allclose(seen["y"], want, rtol=1e-4, atol=1e-4)


def _token_weights(case) -> np.ndarray:
    arrays, kind = case.arrays, case.text("weighting")
    if kind == "AdhocMaskingWeighting":
        *kept, n_chunks = map(int, case.text("cfg_method_type").split("_"))
        samples, tokens = arrays["token_weights"].shape
        return np.tile(token_weights.chunks(tokens, tuple(kept), n_chunks), (samples, 1))
    scores = {
        "OriginalAttentionWeighting": lambda: token_weights.by_attention(_attention(arrays)),
        "MagnitudeWeighting": lambda: _scaling(arrays, "norm"),
        "MaxDistWeighting": lambda: _scaling(arrays, "distance"),
        "TokenFreqWeighting": lambda: token_weights.by_rarity(arrays["token_freq"]),
        "DiffWeighting": lambda: token_weights.by_stability(
            arrays["layer_in"], arrays["layer_out"]
        ),
    }
    low, high = float(arrays["cfg_min_value"]), float(arrays["cfg_max_value"])
    return token_weights.spread(scores[kind](), low, high)


def _scaling(arrays, tokens: Literal["norm", "distance"]) -> np.ndarray:
    """(S, T) weights by what a product in a graph reads; ``spread`` brings any range to another."""
    analysis = analyse(_linear(arrays))
    (place,) = all_places(analysis)
    ((_, seen),) = observe(analysis.model, [place.value], [{"x": arrays["layer_in"]}])
    scaling = TokenScaling(analysis.model, [place], tokens)
    return np.stack(scaling.weights(place, list(seen[place.value]), seen, None))


def _attention(arrays) -> np.ndarray:
    """Causal attention probabilities of the toy layer, seen inside a graph."""
    width, heads = arrays["attn_wq"].shape[0], int(arrays["heads"])
    tokens = arrays["layer_in"].shape[1]
    constants = {
        "ln_w": arrays["ln_w"],
        "ln_b": arrays["ln_b"],
        "wq": np.ascontiguousarray(arrays["attn_wq"].T),
        "wk": np.ascontiguousarray(arrays["attn_wk"].T),
        "split": np.array([0, 0, heads, width // heads], np.int64),
        "scale": np.float32((width // heads) ** -0.5),
        "causal": np.triu(np.full((tokens, tokens), -1e9, np.float32), 1),
    }
    model: ir.Model = network(_TOY.format(d=width, h=heads), {}, constants)
    ((_, seen),) = observe(model, ["p"], [{"x": arrays["layer_in"]}])
    return seen["p"]
