"""VTC-CLS: attention of class tokens summed over a range of layers without the last one."""

from __future__ import annotations

import numpy as np
from tests.oracles.selecting import select_both_ways


def check(case) -> None:
    arrays = case.arrays
    rows = arrays["attentions"][:, :, 0].mean(axis=1)
    start = int(arrays["start_layer"])
    chosen = rows[start:-1]
    for kept in select_both_ways(
        "vtc_cls",
        {"class_rows": chosen[None]},
        int(arrays["k"]),
        protected=1,
        layers=f"{start}:",
    ):
        np.testing.assert_allclose(kept.scores[0], arrays["score"], rtol=1e-5)
        got = kept.positions()
        np.testing.assert_array_equal(got, arrays["keep_idx"])
        np.testing.assert_array_equal(arrays["hidden_states"][1:][got], arrays["kept_tokens"])
