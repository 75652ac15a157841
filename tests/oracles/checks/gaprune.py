"""GAPrune on a graph's weights: alignment, score with its post-processing, and what goes."""

from __future__ import annotations

import numpy as np
from tests.oracles.readers import Reader, readers

from secateur.calibration.importance.gaprune import Evidence, alignment, post_processed, raw_score
from secateur.calibration.importance.unit_weights import weight
from secateur.calibration.statistics.handed_in import HandedIn
from secateur.graph_passes.groups import Analysis

_KINDS = {
    "grad_general": "general",
    "grad_domain": "domain",
    "fisher_general": "fisher_general",
    "fisher_domain": "fisher_domain",
}


def check(case) -> None:
    arrays, scores = case.arrays, []
    analysis, given = _graph(arrays)
    for name in arrays["names"]:
        use = next(u for g in analysis.groups for u in g.weights if u.initialiser == f"{name}_read")
        evidence = Evidence(*(given.find(use, kind) for kind in _KINDS.values()))
        want = arrays[f"{name}__alignment"]
        np.testing.assert_allclose(alignment(evidence).T, want, rtol=1e-4, atol=1e-7)
        score = raw_score(
            weight(use),
            evidence,
            float(arrays["beta"]),
            float(arrays["compression_weight"]),
        )
        how, temperature = case.text("score_postproc"), float(arrays["score_temperature"])
        score = post_processed(score, how, temperature)
        np.testing.assert_allclose(score.T, arrays[f"{name}__score"], rtol=1e-4)
        scores.append(score.T.ravel())
    ranked = np.argsort(np.concatenate(scores), kind="stable")[: int(arrays["num_zeroed"])]
    assert set(ranked) == set(np.flatnonzero(arrays["zero_mask_concat"]))


def _graph(arrays) -> tuple[Analysis, HandedIn]:
    """Every matrix as the graph has it, (in, out), and its arrays in the same layout."""
    names = [str(name) for name in arrays["names"]]
    analysis, _ = readers({name: Reader(arrays[f"{name}__W"]) for name in names})
    handed = {
        f"{name}_read@{kind}": arrays[f"{name}__{own}"].T
        for name in names
        for own, kind in _KINDS.items()
    }
    return analysis, HandedIn(analysis.model, handed)
