"""FasterVLM: the class token's attention, and the tokens it keeps."""

from __future__ import annotations

import numpy as np
from tests.oracles.selecting import select_both_ways


def check(case) -> None:
    arrays = case.arrays
    class_row = arrays["attentions"][:, :, 0].mean(axis=1)
    for kept in select_both_ways(
        "fastervlm", {"class_row": class_row}, int(arrays["k"]), protected=1
    ):
        np.testing.assert_allclose(kept.scores, arrays["score"], rtol=1e-5)
        for sample, want in enumerate(arrays["keep_idx"]):
            got = kept.positions(sample)
            np.testing.assert_array_equal(got, want)
            patches = arrays["hidden_states"][sample, 1:]
            np.testing.assert_array_equal(patches[got], arrays["kept_tokens"][sample])
