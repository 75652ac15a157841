"""Tyr on a graph: which groups each sparsity keeps, and the refitted weights."""

from __future__ import annotations

import numpy as np
from tests.oracles.readers import Reader, readers

from secateur.calibration.importance.tyr import choose, normal_from_gram, refit
from secateur.calibration.statistics import Gram, all_places, gather, places_of


def check(case) -> None:
    arrays, group = case.arrays, int(case.arrays["group_size"])
    analysis, (units,) = readers({"x": Reader(arrays["W"], group)})
    (place,) = places_of(units, all_places(analysis))
    inputs, sums = arrays["X"].reshape(-1, 1, arrays["X"].shape[-1]), Gram()
    gather(analysis.model, [(place, sums)], [{"x_in": inputs}])
    normal = normal_from_gram(place.matrix(), sums.products)
    np.testing.assert_allclose(normal.gram, arrays["H_damped"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(normal.target, arrays["G"], rtol=1e-3, atol=1e-2)
    for i, n_keep in enumerate(arrays["num_keep"]):
        kept = choose(normal, group, int(n_keep), rounds=int(arrays["update_iters"]))
        np.testing.assert_array_equal(kept, arrays["kept_mask"][i])
        solved = refit(normal, kept, group)
        np.testing.assert_allclose(solved, arrays["W_solved"][i], rtol=5e-3, atol=1e-3)
