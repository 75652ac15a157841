"""MADTP's selection and merge in one layer of the BLIP NLVR2 text branch.

The published masks follow falling importance while the tokens do not; ours follow falling
importance together, so both agree with the vectors, each by itself.
"""

from __future__ import annotations

import numpy as np
from tests.oracles import madtp_layer


def check(case) -> None:
    madtp_layer.check(case)
    for result in madtp_layer.run(case):
        np.testing.assert_array_equal(result["mask_out"], case.arrays["out_mask"] == 0)
