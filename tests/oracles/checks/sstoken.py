"""ssToken: which tokens of the response are kept."""

from __future__ import annotations

import numpy as np

from secateur.calibration.token_choice import best_share, token_losses, token_scores


def check(case) -> None:
    arrays = case.arrays
    is_prompt = arrays["labels"] < 0
    learned = arrays["ref_loss"] - token_losses(arrays["logits"], arrays["labels"])
    ratio = 0.0 if case.text("mode") == "attention" else float(arrays["ratio"])
    scores = token_scores(learned, arrays["attention"], is_prompt, ratio)
    kept = np.flatnonzero(~is_prompt)[best_share(scores, float(arrays["keep"]))]
    np.testing.assert_array_equal(kept, np.flatnonzero(arrays["kept"]))
    want = np.full_like(arrays["labels"], -100)
    want[kept] = arrays["labels"][kept]
    np.testing.assert_array_equal(want, arrays["labels_filtered"])
