"""DivPrune: distances, the order of the picks, and the tokens they keep.

Published code picks from the first sample alone. Cases 5 and 6 hold duplicates, of which case 6
has too few: there the published code repeats picks, and so does ``faithful``.
"""

from __future__ import annotations

import numpy as np
import torch
from tests.oracles.onnx_form import both_ways

from secateur.models.selectors.divprune import farthest_first, score
from secateur.models.selectors.parts import cosines

AXES = {
    "hidden": ("batch", "tokens", "width"),
    "distance": ("batch", "tokens", "tokens"),
    "count": ("batch",),
}


def everything(hidden, distance, count, *, faithful):
    """The distances, the picks that published distances give, and the decision."""
    alive = torch.ones_like(hidden[..., 0], dtype=torch.bool)
    made = score(hidden, alive, count, 0, faithful=faithful)
    return {
        "made_distance": 1 - cosines(hidden),
        "order": farthest_first(distance, alive, count, repeats=True),
        "score": made.score,
        "count_kept": made.count if faithful else count + 0,
    }


def check(case) -> None:
    arrays = case.arrays
    tokens, n_kept = arrays["tokens"][:1], int(arrays["k"])
    given = {"hidden": tokens, "distance": arrays["distance"][None], "count": np.array([n_kept])}
    distinct = list(dict.fromkeys(arrays["select_order"].tolist()))
    want = np.unique(arrays["keep_idx"])
    assert len(want) == int(arrays["n_unique"])
    published = np.unique(arrays["kept_tokens"][0], axis=0)
    np.testing.assert_array_equal(np.unique(tokens[0, want], axis=0), published)
    for found in both_ways(everything, given, AXES, faithful=len(distinct) < n_kept):
        np.testing.assert_allclose(found["made_distance"], given["distance"], atol=2e-6)
        order = found["order"][0]
        picked = np.flatnonzero(order >= 0)
        assert picked[np.argsort(order[picked])].tolist() == distinct
        kept = np.argsort(-found["score"][0], kind="stable")[: found["count_kept"][0]]
        np.testing.assert_array_equal(np.sort(kept), want)
