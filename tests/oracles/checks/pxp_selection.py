"""Pruning by explaining, revisited: the units with the least relevance over all layers."""

from __future__ import annotations

from secateur.calibration.allocation import weakest


def check(case) -> None:
    arrays = case.arrays
    sign = 1 if bool(arrays["least_first"]) else -1
    names = sorted(name.split("__")[0] for name in arrays if name.endswith("__relevance"))
    relevance = {name: sign * arrays[f"{name}__relevance"].astype(float) for name in names}
    for name, gone in weakest(relevance, float(arrays["pct"])).items():
        assert list(gone) == arrays[f"{name}__pruned"].tolist()
