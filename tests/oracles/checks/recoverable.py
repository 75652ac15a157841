"""Recoverable Compression: counts, what is kept, centres, and the tokens that come out."""

from __future__ import annotations

import numpy as np
import torch
from tests.oracles.onnx_form import both_ways

from secateur.models.selectors import recoverable

_TOKENS = ("batch", "tokens", "")
_AXES = {
    "hidden": _TOKENS,
    "query": _TOKENS,
    "key": _TOKENS,
    "projected": _TOKENS,
    "text": ("batch", ""),
}


def check(case) -> None:
    arrays = case.arrays
    inputs = {
        "hidden": arrays["hidden_states"],
        "query": arrays["q_last"],
        "key": arrays["k_last"],
        "projected": arrays["proj_hidden"] @ arrays["visual_projection"],
        "text": arrays["text_feature"],
    }
    for result in both_ways(_compress, inputs, _AXES):
        _check_decisions(arrays, result)
        _check_tokens(result, "", arrays["keep_idx"], arrays["output_tokens"])
        _check_tokens(result, "alt_", arrays["alt_keep_idx"], arrays["alt_output_tokens"])


def _compress(hidden, query, key, projected, text):
    attention = recoverable.full_width_row(query, key)[:, 1:]
    similarity = recoverable.text_similarity(text, projected[:, 1:])
    valid = torch.ones_like(attention, dtype=torch.bool)
    parts = recoverable.divide(attention, similarity, valid, width=hidden.shape[2], faithful=True)
    asked = recoverable.asked_similarity(similarity, parts, valid)
    at_once = recoverable.divide_at_once(attention, similarity, faithful=True)
    return {
        "attention": attention,
        "similarity": similarity,
        "vision_factor": recoverable.outlier_factor(attention, valid, neighbours=20),
        "centre_factor": recoverable.outlier_factor(attention, parts.rest, neighbours=10),
        "by_vision": parts.by_vision,
        "by_text": parts.by_text,
        **_outputs("", parts, hidden, key, asked, attention),
        **_outputs("alt_", at_once, hidden, key, similarity, attention),
    }


def _outputs(prefix, parts, hidden, key, similarity, attention):
    taken = recoverable.members(parts, key[:, 1:], similarity, faithful=True)
    places, left = recoverable.mixing(parts, taken, attention)
    return {
        f"{prefix}order": recoverable.placing(parts, attention),
        f"{prefix}rest": parts.rest,
        f"{prefix}centres": parts.centres,
        f"{prefix}tokens": places @ hidden[:, 1:],
        f"{prefix}left": left @ hidden[:, 1:],
    }


def _check_decisions(arrays, result) -> None:
    for name, want in (("attention", "cls_attention"), ("similarity", "text_similarity")):
        np.testing.assert_allclose(result[name].ravel(), arrays[want].ravel(), rtol=1e-4, atol=1e-7)
    rest = arrays["rest_idx"]
    factor = result["vision_factor"][0]
    np.testing.assert_allclose(factor, arrays["lof_factor_vision"], rtol=1e-3)
    centre_factor = result["centre_factor"][0][rest]
    np.testing.assert_allclose(centre_factor, arrays["lof_factor_centers"], rtol=1e-3)
    by_vision, by_text = (np.flatnonzero(result[name][0]) for name in ("by_vision", "by_text"))
    np.testing.assert_array_equal(by_vision, np.sort(arrays["idx_vision"]))
    np.testing.assert_array_equal(by_text, np.sort(arrays["idx_text"]))
    np.testing.assert_array_equal(np.flatnonzero(result["rest"][0]), rest)
    centres = rest[arrays["center_pos_in_rest"]]
    np.testing.assert_array_equal(np.flatnonzero(result["centres"][0]), np.sort(centres))
    alt_rest = np.flatnonzero(result["alt_rest"][0])
    alt_centres = alt_rest[arrays["alt_center_pos_in_rest"]]
    np.testing.assert_array_equal(np.flatnonzero(result["alt_centres"][0]), np.sort(alt_centres))


def _check_tokens(result, prefix, kept, want) -> None:
    """Kept tokens, then centres, then what is left where there is a centre."""
    n_centres = int(result[f"{prefix}centres"].sum())
    order = np.argsort(-result[f"{prefix}order"][0], kind="stable")[: len(kept) + n_centres]
    np.testing.assert_array_equal(order[: len(kept)], kept)
    made = result[f"{prefix}tokens"][0][order]
    if n_centres:
        made = np.concatenate([made, result[f"{prefix}left"][0]])
    np.testing.assert_allclose(made, want, rtol=1e-4, atol=1e-4)


IS_LONG = True  # its exports
