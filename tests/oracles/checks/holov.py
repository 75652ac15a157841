"""HoloV: worth of the crops, what each is granted, and the kept patches in published order."""

from __future__ import annotations

import numpy as np
import torch
from tests.oracles.onnx_form import both_ways
from tests.oracles.selecting import select_both_ways

from secateur.models.selectors.holov import crop_scores, grants, lay_out

AXES = {"class_row": ("batch", "tokens"), "hidden": ("batch", "tokens", ""), "n_kept": ("batch",)}


def shares(class_row, hidden, n_kept, *, crops, beta):
    laid = lay_out(torch.ones_like(class_row, dtype=torch.bool), crops)
    attention = laid.values(class_row)
    worth = crop_scores(laid, laid.rows(hidden), attention, beta)
    return {"worth": worth, "granted": grants(worth, n_kept)}


def check(case) -> None:
    arrays = case.arrays
    signals = {"class_row": arrays["attention"], "hidden": arrays["tokens"]}
    n_kept = int(arrays["k"])
    options = {"crops": int(arrays["num_crops"]), "beta": float(arrays["beta"])}
    budget = np.full(len(arrays["tokens"]), n_kept)
    for found in both_ways(shares, {**signals, "n_kept": budget}, AXES, **options):
        np.testing.assert_allclose(found["worth"], arrays["crop_score"], rtol=1e-4)
        np.testing.assert_array_equal(found["granted"], arrays["crop_alloc"])
    for kept in select_both_ways("holov", signals, n_kept, faithful=True, **options):
        np.testing.assert_array_equal(n_kept - kept.count, arrays["n_pad"])
        for sample, want in enumerate(arrays["keep_idx"]):
            got = kept.positions(sample)
            np.testing.assert_array_equal(got, want[want >= 0])
            rows = arrays["kept_tokens"][sample]
            np.testing.assert_array_equal(signals["hidden"][sample, got], rows[want >= 0])
            assert not rows[want < 0].any()
