"""VFlowOpt: the importance map, pruning with recycling, and the stages behind it."""

from __future__ import annotations

import numpy as np
from tests.oracles.onnx_form import both_ways

from secateur.models.selectors import vflowopt
from secateur.models.selectors.core import best

_TOKENS = ("batch", "tokens")


def check(case) -> None:
    arrays = case.arrays
    _check_importance(arrays)
    _check_recycling(arrays)
    _check_stages(arrays)


def _check_importance(arrays) -> None:
    inputs = {"pixels": arrays["A_pixel_values"], "full": arrays["A_attention"]}
    options = {"threshold": float(arrays["A_t"]), "entropy_weight": float(arrays["A_alpha_v"])}
    axes = {"pixels": ("batch",), "full": ("batch",)}
    for result in both_ways(_importance, inputs, axes, **options):
        want = arrays["A_entropy"].reshape(len(result["entropy"]), -1)
        np.testing.assert_allclose(result["entropy"], want, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            result["importance"], arrays["A_importance"], rtol=1e-4, atol=1e-7
        )


def _importance(pixels, full, *, threshold, entropy_weight):
    entropy = vflowopt.patch_entropy(pixels)
    valid = entropy.new_ones(entropy.shape, dtype=bool)
    made = vflowopt.importance(
        full, entropy, valid, threshold=threshold, entropy_weight=entropy_weight
    )
    return {"entropy": entropy, "importance": made}


def _check_recycling(arrays) -> None:
    tokens, made = arrays["B_tokens"][None], arrays["B_importance"][None]
    inputs = {
        "tokens": tokens,
        "made": made,
        "wanted": np.asarray([made.size - int(arrays["B_reduce_tokens"])]),
    }
    axes = {"tokens": (*_TOKENS, ""), "made": _TOKENS, "wanted": ("batch",)}
    options = {"columns": int(arrays["B_grid_w_with_newline"]), "cell": float(arrays["B_cell"])}
    want = arrays["B_keep_idx"]
    for result in both_ways(_recycle, inputs, axes, **options):
        np.testing.assert_array_equal(np.flatnonzero(result["kept"][0]), want)
        np.testing.assert_allclose(
            result["mixed"][0][want], arrays["B_kept_tokens"], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_array_equal(made[0][want], arrays["B_kept_importance"])


def _recycle(tokens, made, wanted, *, columns, cell):
    layout = vflowopt.Layout(base=27, columns=columns, cell=cell)
    valid = made == made
    kept = vflowopt.survivors(made, valid, wanted, layout)
    position = valid.long().cumsum(dim=1) - 1
    weights = vflowopt.recycling(made, valid, kept, position, layout)
    return {"kept": kept, "mixed": weights @ tokens}


def _check_stages(arrays) -> None:
    alive = arrays["B_keep_idx"]
    carried = arrays["B_kept_importance"]
    start = int(arrays["C_image_start"])
    for number, ratio in enumerate(arrays["C_llm_keep_ratios"]):
        left = len(alive) - round(len(alive) * (1 - float(ratio)))
        inputs = {"accumulated": carried[None], "count": np.asarray([left])}
        for result in both_ways(_stage, inputs, {"accumulated": _TOKENS, "count": ("batch",)}):
            kept = result["kept"][0]
            np.testing.assert_array_equal(alive[kept], arrays[f"C_llm_stage{number}_keep_idx"])
            mask = arrays[f"C_llm_stage{number}_keep_mask"]
            np.testing.assert_array_equal(mask[start : start + len(alive)], kept)
        alive, carried = alive[kept], carried[kept]


def _stage(accumulated, count):
    return {"kept": best(vflowopt.stage(accumulated).score, count)}


IS_LONG = True  # its exports
