"""FoPru: significance or its sums over rows, and the patches that they keep."""

from __future__ import annotations

import numpy as np
from tests.oracles.selecting import select_both_ways


def check(case) -> None:
    arrays = case.arrays
    attention, strategy = arrays["attention_patch"], case.text("strategy")
    side = round(attention.shape[1] ** 0.5)
    budget = int(attention.shape[1] * float(arrays["ratio"]))
    means = {"mean_over_queries": 1, "mean_over_keys": 2}
    winner = attention.mean(axis=0).mean(axis=means[case.text("winner_axis")] - 1)
    for kept in select_both_ways(
        "fopru",
        {"full": attention[None]},
        budget,
        fixed=("query_heads", "tokens"),
        strategy=strategy,
    ):
        want = arrays["significance_rank_or_rowsum"]
        if strategy == "row":
            np.testing.assert_allclose(winner.reshape(side, side).sum(1), want, rtol=1e-4)
            want = np.repeat(want, side)
        np.testing.assert_allclose(kept.scores[0], want, rtol=1e-4, atol=1e-6)
        got = kept.positions()
        np.testing.assert_array_equal(got, arrays["keep_idx"])
        np.testing.assert_array_equal(arrays["tokens"][got], arrays["kept_tokens"])
