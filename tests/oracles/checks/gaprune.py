"""GAPrune: alignment, score with its post-processing, and the weights that go."""

from __future__ import annotations

import numpy as np

from secateur.calibration.importance.gaprune import Evidence, alignment, post_processed, raw_score


def check(case) -> None:
    arrays, scores = case.arrays, []
    for name in arrays["names"]:
        evidence = Evidence(
            *(arrays[f"{name}__{x}"] for x in ("grad_general", "grad_domain")),
            *(arrays[f"{name}__{x}"] for x in ("fisher_general", "fisher_domain")),
        )
        want = arrays[f"{name}__alignment"]
        np.testing.assert_allclose(alignment(evidence), want, rtol=1e-4, atol=1e-7)
        score = raw_score(
            arrays[f"{name}__W"],
            evidence,
            float(arrays["beta"]),
            float(arrays["compression_weight"]),
        )
        how, temperature = case.text("score_postproc"), float(arrays["score_temperature"])
        score = post_processed(score, how, temperature)
        np.testing.assert_allclose(score, arrays[f"{name}__score"], rtol=1e-4)
        scores.append(score.ravel())
    ranked = np.argsort(np.concatenate(scores), kind="stable")[: int(arrays["num_zeroed"])]
    assert set(ranked) == set(np.flatnonzero(arrays["zero_mask_concat"]))
