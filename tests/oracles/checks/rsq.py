"""RSQ: token weights, weighted Hessian and GPTQ; inputs and attention gathered on a graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tests.laws.small_models import network

from secateur.calibration.activations import observe
from secateur.calibration.quantisation.gptq import Rounding, gptq
from secateur.calibration.quantisation.grid import fit_grid
from secateur.calibration.statistics import token_weights

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
    ones = np.ones_like(weights)
    found = {
        "weighted": token_weights.weighted_hessian(arrays["linear_inputs"], weights),
        "uniform": token_weights.weighted_hessian(arrays["linear_inputs"], ones),
    }
    rounding = Rounding(
        bits=int(arrays["bits"]),
        symmetric=bool(arrays["symmetric"]),
        group=max(int(arrays["groupsize"]), 0),
        search=bool(arrays["mse_clip"]),
        by_activity=bool(arrays["act_order"]),
        block=int(arrays["blocksize"]),
        damping=float(arrays["percdamp"]),
    )
    weight = arrays["W"].astype(np.float64)
    for name, hessian in found.items():
        np.testing.assert_allclose(hessian, arrays[f"H_{name}"], rtol=1e-4, atol=1e-3)
        got = gptq(weight, hessian, rounding)
        np.testing.assert_allclose(got, arrays[f"W_quant_{name}"], rtol=1e-4, atol=1e-5)
    grid = rounding.fit(weight)
    np.testing.assert_allclose(grid.scale, arrays["scale_full"], rtol=1e-4)
    np.testing.assert_allclose(grid.zero, arrays["zero_full"], atol=1e-6)
    np.testing.assert_allclose(grid.rounded(weight), arrays["W_rtn"], rtol=1e-4, atol=1e-5)
    assert fit_grid(weight, rounding.bits).limits[0] == -(2 ** (rounding.bits - 1))


def _token_weights(case) -> np.ndarray:
    arrays, kind = case.arrays, case.text("weighting")
    if kind == "AdhocMaskingWeighting":
        *kept, n_chunks = map(int, case.text("cfg_method_type").split("_"))
        samples, tokens = arrays["token_weights"].shape
        return np.tile(token_weights.chunks(tokens, tuple(kept), n_chunks), (samples, 1))
    scores = {
        "OriginalAttentionWeighting": lambda: token_weights.by_attention(_attention(arrays)),
        "MagnitudeWeighting": lambda: token_weights.by_norm(arrays["layer_in"]),
        "MaxDistWeighting": lambda: token_weights.by_distance(arrays["layer_in"]),
        "TokenFreqWeighting": lambda: token_weights.by_rarity(arrays["token_freq"]),
        "DiffWeighting": lambda: token_weights.by_stability(
            arrays["layer_in"], arrays["layer_out"]
        ),
    }
    low, high = float(arrays["cfg_min_value"]), float(arrays["cfg_max_value"])
    return token_weights.spread(scores[kind](), low, high)


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
