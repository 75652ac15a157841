"""DivPrune: distances, the order of the picks, and the tokens they keep.

Published code picks from the first sample alone. Cases 5 and 6 hold duplicates, of which case 6
has too few: there the published code repeats picks, and so does ``faithful``.
"""

from __future__ import annotations

import numpy as np
import torch
from tests.oracles.onnx_form import both_ways
from tests.oracles.selecting import select_both_ways

from secateur.models.selectors.divprune import farthest_first
from secateur.models.selectors.parts import cosines

SQUARE = {
    "distance": ("batch", "tokens", "tokens"),
    "patch": ("batch", "tokens"),
    "n_picks": ("batch",),
}


def check(case) -> None:
    arrays = case.arrays
    tokens, n_kept = arrays["tokens"], int(arrays["k"])
    for distance in both_ways(cosines, {"rows": tokens[:1]}, {"rows": ("batch", "tokens", "")}):
        np.testing.assert_allclose(1 - distance["output"][0], arrays["distance"], atol=2e-6)
    given = {
        "distance": torch.as_tensor(arrays["distance"][None]),
        "patch": torch.ones(1, tokens.shape[1], dtype=torch.bool),
        "n_picks": torch.tensor([n_kept]),
    }
    distinct = list(dict.fromkeys(arrays["select_order"].tolist()))
    for found in both_ways(farthest_first, given, SQUARE, repeats=True):
        order = found["output"][0]
        picked = np.flatnonzero(order >= 0)
        assert picked[np.argsort(order[picked])].tolist() == distinct
    is_short = len(distinct) < n_kept
    want = np.unique(arrays["keep_idx"])
    for kept in select_both_ways("divprune", {"hidden": tokens}, n_kept, faithful=is_short):
        np.testing.assert_array_equal(kept.positions(), want)
        assert len(want) == int(arrays["n_unique"])
        published = np.unique(arrays["kept_tokens"][0], axis=0)
        np.testing.assert_array_equal(np.unique(tokens[0, want], axis=0), published)
