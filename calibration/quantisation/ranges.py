"""From a histogram to the largest value that still has a whole number of its own.

``entropy`` is ONNX Runtime's own search (TensorRT's calibrator as published in 2017); the others
are a line each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from secateur.calibration.quantisation.histogram import Histogram
from secateur.registry import Registry

PERCENTILE = 99.99
_LEVELS = 127
_STEPS = 100
_MERGED = 4

RANGES: Registry[Callable[[Histogram], float]] = Registry("range of activations")


@RANGES.register("minmax")
def minmax(found: Histogram) -> float:
    """The largest absolute value."""
    return found.largest


@RANGES.register("percentile")
def percentile(found: Histogram) -> float:
    """The value below which 99.99 % of all absolute values lie."""
    shares = np.cumsum(found.counts) / max(found.counts.sum(), 1)
    at = int(np.searchsorted(shares, PERCENTILE / 100))
    return min((at + 1) * found.top / len(found.counts), found.largest)


@RANGES.register("mse")
def mse(found: Histogram) -> float:
    """The range whose 127 steps lose least in squares, clipped values included."""
    middles, best, least = found.middles, found.largest, np.inf
    for step in range(1, _STEPS + 1):
        top = found.largest * step / _STEPS
        scale = top / _LEVELS
        if not scale:
            return top
        near = np.clip(np.round(middles / scale), 0, _LEVELS) * scale
        error = float((np.square(near - middles) * found.counts).sum())
        if error < least:
            best, least = top, error
    return best


@RANGES.register("entropy")
def entropy(found: Histogram) -> float:
    """The range that keeps the distribution closest, by Kullback-Leibler divergence."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector("entropy", True, 128, 128, PERCENTILE, "same")
    # Both halves of a symmetric histogram, coarser: the search is Python and runs outwards.
    half = found.counts.reshape(-1, _MERGED).sum(axis=1)
    counts = np.concatenate([half[::-1], [0], half])
    edges = np.linspace(-found.top, found.top, len(counts) + 1).astype(np.float32)
    ends = (edges[:1], edges[-1:])
    low, high = collector.get_entropy_threshold((counts, edges, *ends), 128)[:2]
    return min(max(abs(float(low)), abs(float(high))), found.largest)


__all__ = ["PERCENTILE", "RANGES", "entropy", "minmax", "mse", "percentile"]
