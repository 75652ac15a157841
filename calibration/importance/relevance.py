"""Relevance walked back from the answer: filters that carried none of it can go.

Source: Yeom et al., Pruning by Explaining, Pattern Recognition 2021, arXiv:1912.08881,
section 3; the z-plus rules as in seulkiyeom/LRP_pruning: biases are left out, ReLU passes.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

_TINY = 1e-9


def linear(inputs: Array, weight: NDArray[Any], relevance: Array) -> Array:
    """Pass (B, out) relevance through positive (out, in) weights to (B, in) inputs."""
    positive = np.maximum(np.asarray(weight, dtype=np.float64), 0)
    share = relevance / (inputs @ positive.T + _TINY)
    result: Array = inputs * (share @ positive)
    return result


def convolution(inputs: Array, weight: NDArray[Any], relevance: Array) -> Array:
    """Pass (B, C_out, h, w) relevance through a same-padded, unit-stride convolution.

    Args:
        inputs: (B, C_in, h, w), not negative.
        weight: (C_out, C_in, k, k), k odd.
        relevance: of the outputs.
    """
    positive = np.maximum(np.asarray(weight, dtype=np.float64), 0)
    share = relevance / (_correlate(inputs, positive) + _TINY)
    flipped = positive[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    result: Array = inputs * _correlate(share, flipped)
    return result


def max_pooling(inputs: Array, size: int, relevance: Array) -> Array:
    """Route (B, C, h/size, w/size) relevance to the winner of each window."""
    batch, channels, height, width = inputs.shape
    shape = (batch, channels, height // size, size, width // size, size)
    windows = inputs.reshape(shape).transpose(0, 1, 2, 4, 3, 5).reshape(*relevance.shape, -1)
    routed = np.zeros(windows.shape)
    winner = windows.argmax(axis=-1)[..., None]
    value = np.take_along_axis(windows, winner, axis=-1)
    np.put_along_axis(routed, winner, value * relevance[..., None] / (value + _TINY), axis=-1)
    back = routed.reshape(*relevance.shape, size, size).transpose(0, 1, 2, 4, 3, 5)
    return back.reshape(inputs.shape)


def filter_scores(relevance: Array) -> Array:
    """Sum (B, C, h, w) relevance at a convolution's output by filter, (C,)."""
    result: Array = relevance.sum(axis=(0, 2, 3))
    return result


def _correlate(x: Array, weight: Array) -> Array:
    """Convolution of deep learning: (B, I, h, w) and (O, I, k, k) -> (B, O, h, w)."""
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    windows = sliding_window_view(padded, (k, k), axis=(2, 3))
    result: Array = np.einsum("bihwkl,oikl->bohw", windows, weight)
    return result


__all__ = ["convolution", "filter_scores", "linear", "max_pooling"]
