"""HiPrune: anchors and buffers of the object layer, registers of the deep layer."""

from __future__ import annotations

import numpy as np
from tests.oracles.selecting import select_both_ways

FIXED = ("layers", "tokens")


def check(case) -> None:
    arrays = case.arrays
    has_class = case.text("variant") == "cls_encoder_grid24"
    means, tokens = _with_class(arrays) if has_class else _vectors(arrays)
    masks = arrays["index_mask"].reshape(tokens.shape[:2])
    for kept in select_both_ways(
        "hiprune",
        {"column_means": means},
        int(arrays["budget_per_image"]),
        protected=int(has_class),
        fixed=FIXED,
        alpha=float(arrays["alpha"]),
        grid_width=int(arrays["grid_w"]),
    ):
        for sample, mask in enumerate(masks):
            got = kept.positions(sample)
            np.testing.assert_array_equal(got, np.flatnonzero(mask))
            want = arrays["kept_tokens"].reshape(len(tokens), -1, tokens.shape[2])[sample]
            np.testing.assert_array_equal(tokens[sample, got], want)
        chosen = np.flatnonzero(kept.scores[-1] > means[-1, 1].max() + 0.5)
        np.testing.assert_array_equal(chosen, arrays["anchor_buffer_last"])


def _with_class(arrays):
    layers = [arrays[name].mean(axis=(1, 2)) for name in ("attn_object", "attn_deep")]
    np.testing.assert_allclose(layers[0][:, 1:], arrays["score_object"], rtol=1e-4)
    return np.stack(layers, axis=1), arrays["hidden_states"][:, 1:]


def _vectors(arrays):
    layers = arrays["layer_scores"]
    return layers[[int(arrays["object_layer"]) - 1, -1]][None], arrays["tokens"][None]
