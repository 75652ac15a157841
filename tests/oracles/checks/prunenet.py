"""PruneNet: the policy's scores of a graph's units, the relaxed draw, the distance of spectra."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tests.laws.small_models import group_of, network

from secateur.calibration.allocation import best
from secateur.calibration.importance import Context, rank
from secateur.calibration.importance.prunenet import keep_probability, spectrum_distance
from secateur.graph_passes.groups import analyse


def check(case) -> None:
    arrays = case.arrays
    policy = {
        "prunenet.projection": arrays["proj_weight"],
        "prunenet.bias": arrays["proj_bias"],
        "prunenet.row_vector": arrays["row_vector"],
    }
    analysis = analyse(_mlp(arrays["W_first"]))
    groups = (group_of(analysis, "first", 1),)
    (scores,) = rank("prunenet", Context(analysis, groups, arrays=policy)).values()
    np.testing.assert_allclose(scores, arrays["alpha"], rtol=1e-4)
    probability = keep_probability(scores, arrays["eps"])
    np.testing.assert_allclose(probability, arrays["keep_prob"], rtol=1e-3, atol=1e-6)
    kept = best(probability, int(arrays["num_keep"]))
    by_scores = best(scores, int(arrays["num_keep"]))
    assert tuple(np.sort(arrays["topk_keep_idx"])) in {kept, by_scores}
    part = arrays["W_first"][arrays["sampled_keep_idx"]]
    distance = spectrum_distance(arrays["W_first"], part)
    np.testing.assert_allclose(distance, float(arrays["ks_statistic"]), atol=1e-6)


def _mlp(weight: np.ndarray) -> ir.Model:
    """The units that the weight's rows make, and a reader of them."""
    rows, width = weight.shape
    text = f"""
    mlp (float[batch, {width}] x) => (float[batch, 2] y) {{
        a = MatMul(x, first)
        b = Relu(a)
        y = MatMul(b, last)
    }}
    """
    first = np.ascontiguousarray(weight.T.astype(np.float32))
    return network(text, {"last": (rows, 2)}, {"first": first})
