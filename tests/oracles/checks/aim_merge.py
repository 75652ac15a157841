"""AIM: one round of merging, in the published order and in ours."""

from __future__ import annotations

import numpy as np
from tests.oracles.onnx_form import both_ways

from secateur.models.selectors import aim

_AXES = {"hidden": ("batch", "tokens", "")}


def check(case) -> None:
    arrays = case.arrays
    tokens, removed = arrays["x"], int(arrays["r"])
    batch_only = {"hidden": ("batch",)}
    for result in both_ways(aim.merge_tokens, {"hidden": tokens}, batch_only, removed=removed):
        np.testing.assert_allclose(result["output"], arrays["out"], rtol=1e-4, atol=1e-5)
    batch, n_tokens, _ = tokens.shape
    inputs = {
        "hidden": tokens,
        "valid": np.ones((batch, n_tokens), dtype=bool),
        "count": np.full(batch, n_tokens - removed),
    }
    axes = {**_AXES, "valid": ("batch", "tokens"), "count": ("batch",)}
    for result in both_ways(_merged, inputs, axes):
        np.testing.assert_array_equal(result["count"], inputs["count"])
        for got, want, kept in zip(result["merged"], arrays["out"], result["kept"], strict=True):
            _assert_same_rows(got[kept], want)


def _merged(hidden, valid, count):
    """All tokens in their places, merged into where they go; which of them are kept."""
    made = aim.score(hidden, valid, count, 0)
    kept = aim.best(made.score, made.count)
    everywhere = kept.new_ones(kept.shape).long().cumsum(dim=1) - 1
    # Dropped places point at the first kept one, as fillers of a rectangle may.
    index = everywhere.where(kept, kept.long().argmax(dim=1, keepdim=True))
    weights = aim.combine(hidden, valid, index, kept, 0)
    return {"merged": weights @ hidden, "kept": kept, "count": made.count}


def _assert_same_rows(got, want) -> None:
    """The same rows in any order."""
    assert got.shape == want.shape
    distance = np.abs(got[:, None] - want[None]).max(axis=2)
    assert sorted(distance.argmin(axis=1)) == list(range(len(want)))
    assert distance.min(axis=1).max() < 1e-4
