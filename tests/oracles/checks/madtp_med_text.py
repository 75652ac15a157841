"""MADTP's selection and merge in one layer of the BLIP text branch of VQA and retrieval."""

from __future__ import annotations

import numpy as np
from tests.oracles import madtp_layer


def check(case) -> None:
    madtp_layer.check(case)
    visible = case.arrays["out_mask"] == 0
    order = np.argsort(case.arrays["kept_plus1_unsorted"])
    for result in madtp_layer.run(case):
        np.testing.assert_array_equal(
            np.take_along_axis(result["mask_out"], np.argsort(result["index"]), axis=1),
            np.take_along_axis(visible, order, axis=1),
        )
