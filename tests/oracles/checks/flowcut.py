"""FlowCut: a whole small encoder, layer by layer, each of which may drop patches."""

from __future__ import annotations

import numpy as np
import torch
from tests.oracles.onnx_form import both_ways
from torch.nn import functional as F

from secateur.models.selectors import flowcut

_LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_AXES = {
    "hidden": ("batch", "tokens", ""),
    "carried": ("batch", "tokens"),
    "count": ("batch",),
}


def check(case) -> None:
    """Follow the encoder once in PyTorch and once in ONNX Runtime."""
    for way in (0, 1):
        _follow(case.arrays, way)


def _follow(arrays, way) -> None:
    n_layers, target = int(arrays["num_layers"]), int(arrays["k"]) + 1
    hidden = arrays["inputs_embeds"]
    rows = np.arange(len(hidden))[:, None]
    alive = np.tile(np.arange(hidden.shape[1]), (len(hidden), 1))
    carried = np.zeros(alive.shape, np.float32)
    for layer in range(n_layers - 1):
        remaining = n_layers - 3 - layer
        prunes = remaining >= 0 and hidden.shape[1] > target
        made = _layer_both_ways(arrays, layer, hidden, carried, max(remaining, 0))[way]
        hidden = made["hidden"]
        if not prunes:
            continue
        _assert_close(made["now"], arrays[f"trace{layer}.score"])
        carried = made["score"]
        chosen = np.argsort(-np.pad(carried[:, 1:], ((0, 0), (1, 0)), constant_values=np.inf))
        assert len(set(made["count"])) == 1
        kept = np.sort(chosen[:, : made["count"][0]], axis=1)
        hidden, carried, alive = hidden[rows, kept], carried[rows, kept], alive[rows, kept]
        np.testing.assert_array_equal(alive[:, 1:] - 1, arrays[f"trace{layer}.kept_after"])
        _assert_close(carried[:, 1:], arrays[f"trace{layer}.cumulative_after"])
    np.testing.assert_array_equal(alive[:, 1:] - 1, arrays["keep_idx"])
    _assert_close(hidden[:, 1:], arrays["kept_tokens"])


def _assert_close(got, want) -> None:
    """Relative to the largest, and 1e-3: rounding grows through ten layers of random weights,
    whose softmax over logits near 40 is close to a choice."""
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * np.abs(want).max())


def _layer_both_ways(arrays, layer, hidden, carried, remaining):
    weights = {
        f"{name}_{part}": arrays[f"w{layer}.{path}.{part}"]
        for name, path in _LINEARS.items()
        for part in ("weight", "bias")
    }
    inputs = {
        "hidden": hidden,
        "carried": carried,
        "count": np.full(len(hidden), int(arrays["k"]) + 1),
        "remaining": np.asarray(remaining),
        **weights,
    }
    return both_ways(_layer, inputs, _AXES, n_heads=int(arrays["num_heads"]))


def _layer(hidden, carried, count, remaining, *, n_heads, **weights):
    """One layer of a CLIP encoder, and the decision behind it."""
    batch, n_tokens, width = hidden.shape
    normed = _normed(hidden, weights, "norm1")
    q, k, v = (
        _linear(normed, weights, name).reshape(batch, n_tokens, n_heads, -1).transpose(1, 2)
        for name in "qkv"
    )
    attention = (q @ k.transpose(-1, -2) * (width // n_heads) ** -0.5).softmax(dim=-1)
    mixed = (attention @ v).transpose(1, 2).reshape(batch, n_tokens, width)
    hidden = hidden + _linear(mixed, weights, "out")
    inner = _linear(_normed(hidden, weights, "norm2"), weights, "fc1")
    hidden = hidden + _linear(inner * torch.sigmoid(1.702 * inner), weights, "fc2")
    row, valid = attention[:, :, 0].mean(dim=1), torch.ones_like(carried, dtype=torch.bool)
    made = flowcut.score(
        row, v[:, :, 0], v, carried, valid, count, 1, remaining=remaining, faithful=True
    )
    now = flowcut.layer_score(row[:, 1:], v[:, :, 0], v[:, :, 1:], valid[:, 1:])
    return {"hidden": hidden, "score": made.score, "count": made.count, "now": now}


def _normed(hidden, weights, name):
    scale, shift = weights[f"{name}_weight"], weights[f"{name}_bias"]
    return F.layer_norm(hidden, hidden.shape[-1:], scale, shift, 1e-5)


def _linear(hidden, weights, name):
    return F.linear(hidden, weights[f"{name}_weight"], weights[f"{name}_bias"])
