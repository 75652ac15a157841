"""Pruning by explaining, revisited: the units with the least relevance go, cut out of a graph."""

from __future__ import annotations

import numpy as np
from tests.oracles.readers import Reader, readers

from secateur.calibration.allocation import weakest
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove


def check(case) -> None:
    arrays = case.arrays
    sign = 1 if bool(arrays["least_first"]) else -1
    names = sorted(name.split("__")[0] for name in arrays if name.endswith("__relevance"))
    relevance = {name: sign * arrays[f"{name}__relevance"].astype(float) for name in names}
    found = weakest(relevance, float(arrays["pct"]))
    for name, gone in found.items():
        assert list(gone) == arrays[f"{name}__pruned"].tolist()
    sizes = {name: len(one) for name, one in relevance.items() if len(found[name]) < len(one)}
    analysis, groups = readers(
        {n: Reader(np.eye(size, dtype=np.float32)) for n, size in sizes.items()}
    )
    keep = {
        group.name: tuple(i for i in range(group.size) if i not in set(found[name]))
        for name, group in zip(sizes, groups, strict=True)
    }
    small = remove(analysis.model, make_plan(analysis, keep))
    for name, size in sizes.items():
        read = small.graph.initializers[f"{name}_read"].const_value.numpy()
        np.testing.assert_array_equal(read, np.delete(np.eye(size), found[name], axis=0))
