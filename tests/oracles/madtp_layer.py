"""One layer of MADTP on the inputs of the vectors, which leave position 0 out.

Every size is dynamic, so that two graphs (with and without a mask) serve all cases of all sets.
"""

from __future__ import annotations

import numpy as np
import torch
from tests.oracles.onnx_form import both_ways
from torch.nn import functional as F

from secateur.models.madtp.budget import Adaptive
from secateur.models.madtp.cut import Evidence, Tokens, countable, cut
from secateur.models.madtp.importance import importance

_AXES = {
    "x": ("batch", "tokens", "width"),
    "self_attn": ("batch", "heads", "tokens", "tokens"),
    "cls_attn": ("batch", "tokens"),
    "token_attn": ("batch", "tokens", "concepts"),
    "mask": ("batch", "tokens"),
}


def layer(x, self_attn, cls_attn, token_attn, temperature, floor, mask=None, *, coupled=True):
    """The layer; position 0 is put back in front, as a token of zeros."""
    tokens = Tokens(
        F.pad(x, (0, 0, 1, 0)),
        None if mask is None else torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1) > 0,
    )
    scores = F.pad(token_attn, (0, 0, 1, 0))
    alive = countable(tokens, coupled=coupled)
    matters = importance(
        F.pad(self_attn, (1, 0, 1, 0)), F.pad(cls_attn, (1, 0)), scores, alive=alive
    )
    made = cut(
        tokens,
        Evidence(scores, matters, alive),
        Adaptive(temperature, coupled=coupled, floor=floor),
        coupled=coupled,
        order="importance",
    )
    result = {"hidden": made.tokens.hidden, "index": made.index, "kept": made.kept}
    if made.tokens.mask is not None:
        result["mask_out"] = made.tokens.mask
    return {**result, "importance": matters}


def run(case, *, coupled: bool = True):
    """Results of the layer, PyTorch's and the graph's, without position 0."""
    arrays = case.arrays
    inputs = {name: arrays[name] for name in ("x", "cls_attn", "token_attn", "temperature")} | {
        "self_attn": np.ascontiguousarray(arrays["self_attn"][:, :, 1:, 1:]),
        "floor": arrays.get("max_keep", np.array(0)),
    }
    if "mask" in arrays:
        inputs["mask"] = (arrays["mask"] == 0).astype(np.float32)
    axes = {name: dims for name, dims in _AXES.items() if name in inputs}
    return [_without_first(r) for r in both_ways(layer, inputs, axes, coupled=coupled)]


def _without_first(result):
    behind = {"hidden", "index", "importance", "mask_out"} & set(result)
    made = {name: result[name][:, 1:] for name in behind}
    return {**made, "index": made["index"] - 1, "kept": result["kept"]}


def check(case) -> None:
    """Tokens as sets, the merged one last, masks with the tokens that they belong to."""
    arrays = case.arrays
    for result in run(case):
        assert result["hidden"].shape == arrays["out"].shape
        if "importance" in arrays:
            close(result["importance"], arrays["importance"])
        if not arrays["pruned"]:
            close(result["hidden"], arrays["out"])
            continue
        k = arrays["out"].shape[1] - 1
        want = arrays["order_sorted"][:, :k]
        kept = arrays.get("kept_unsorted", arrays.get("kept_plus1_unsorted"))[:, :k]
        np.testing.assert_array_equal(result["kept"], k)
        np.testing.assert_array_equal(np.sort(result["index"][:, :k]), np.sort(kept))
        np.testing.assert_array_equal(np.sort(want), np.sort(kept))
        where = np.argsort(kept), np.argsort(result["index"][:, :k])
        close(_rows(result["hidden"], where[1]), _rows(arrays["out"], where[0]))
        close(result["hidden"][:, k], arrays["out"][:, k])


def _rows(tokens, order):
    return np.take_along_axis(tokens, order[:, :, None], axis=1)


def close(got, want) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
