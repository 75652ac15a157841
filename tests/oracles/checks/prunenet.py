"""PruneNet: the policy's scores, the relaxed draw, the distance of spectra."""

from __future__ import annotations

import numpy as np

from secateur.calibration.allocation import best
from secateur.calibration.importance.prunenet import (
    Policy,
    keep_probability,
    row_scores,
    spectrum_distance,
)


def check(case) -> None:
    arrays = case.arrays
    policy = Policy(*(arrays[name] for name in ("proj_weight", "proj_bias", "row_vector")))
    scores = row_scores(policy, arrays["W_first"])
    np.testing.assert_allclose(scores, arrays["alpha"], rtol=1e-4)
    probability = keep_probability(scores, arrays["eps"])
    np.testing.assert_allclose(probability, arrays["keep_prob"], rtol=1e-3, atol=1e-6)
    kept = best(probability, int(arrays["num_keep"]))
    by_scores = best(scores, int(arrays["num_keep"]))
    assert tuple(np.sort(arrays["topk_keep_idx"])) in {kept, by_scores}
    part = arrays["W_first"][arrays["sampled_keep_idx"]]
    distance = spectrum_distance(arrays["W_first"], part)
    np.testing.assert_allclose(distance, float(arrays["ks_statistic"]), atol=1e-6)
