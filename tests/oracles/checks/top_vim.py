"""ToP-ViM: the published choice after a block, and ours where the two agree."""

from __future__ import annotations

import numpy as np
from tests.oracles.onnx_form import both_ways

from secateur.models.selectors import top_vim

_TOKENS = ("batch", "tokens", "")
_AXES = {
    "hidden": _TOKENS,
    "residual": _TOKENS,
    "ssm_out_backward": ("batch", "", "tokens"),
    "valid": ("batch", "tokens"),
    "count": ("batch",),
}


def check(case) -> None:
    arrays = case.arrays
    n_tokens = arrays["hidden"].shape[1]
    kept = top_vim.kept_number(n_tokens, float(arrays["keep_ratio"]))
    assert n_tokens // 2 == int(arrays["cls_pos"])
    assert kept == arrays["hidden_out"].shape[1]
    inputs = {name: arrays[name] for name in ("hidden", "residual", "ssm_out_backward")}
    axes = {name: _AXES[name] for name in inputs}
    for result in both_ways(top_vim.select_published, inputs, axes, kept=kept):
        np.testing.assert_allclose(result["score"], arrays["score"], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(result["index"], arrays["kept_no_cls"])
        np.testing.assert_array_equal(result["hidden"], arrays["hidden_out"])
        np.testing.assert_array_equal(result["residual"], arrays["residual_out"])
    _check_site(arrays, kept)


def _check_site(arrays, kept) -> None:
    """On positive outputs that are not flipped, the selector makes the published sequence."""
    output = np.flip(arrays["ssm_out_backward"], axis=2)
    # Our score clips and turns round; undo both in what it is given.
    shift = np.abs(output).max() + 1.0
    batch, _, n_tokens = output.shape
    inputs = {
        "ssm_out_backward": output + shift,
        "valid": np.ones((batch, n_tokens), dtype=bool),
        "count": np.full(batch, kept - 1),
    }
    axes = {name: _AXES[name] for name in inputs}
    middle = int(arrays["cls_pos"])
    for result in both_ways(_select, inputs, axes):
        np.testing.assert_array_equal(result["count"], np.full(batch, kept))
        for sample in range(batch):
            if sample and middle in arrays["kept_no_cls"][sample]:
                continue  # the published code takes the class token a second time here
            order = np.argsort(-result["score"][sample], kind="stable")[:kept]
            hidden = arrays["hidden"][sample][order]
            np.testing.assert_array_equal(hidden, arrays["hidden_out"][sample])


def _select(ssm_out_backward, valid, count):
    made = top_vim.score(ssm_out_backward, valid, count)
    return {"score": made.score, "count": made.count}
