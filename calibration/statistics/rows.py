"""An activation as rows of what one weight reads at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from secateur.calibration.statistics.places import Place
from secateur.errors import PreconditionError

Array = NDArray[Any]
Weights = Sequence[NDArray[np.float64]] | None
"""How much each token of each sample counts, (tokens,); None: all the same."""


def samples_of(array: Array, axis: int, real: NDArray[np.bool_] | None) -> list[Array]:
    """Split an activation into samples of (tokens, features), without rows that are not real.

    Args:
        array: the first axis are the samples, unless the tokens of all samples were flattened
            into it.
        axis: of the features.
        real: (B, N) mask, or None.
    """
    last = np.moveaxis(_floats(array), axis, -1)
    if real is None:
        if axis == 0 or last.ndim == 1:
            return [last.reshape(-1, last.shape[-1])]
        return list(last.reshape(last.shape[0], -1, last.shape[-1]))
    if last.ndim == 2:  # (B * N, D)
        last = last.reshape(*real.shape, last.shape[-1])
    return [
        sample[keep].reshape(-1, last.shape[-1]) for sample, keep in zip(last, real, strict=True)
    ]


def weights_of(
    counts: NDArray[Any] | None, real: NDArray[np.bool_] | None, samples: Sequence[Array]
) -> Weights:
    """Weights of the rows of ``samples``, of which a token has one or several.

    Args:
        counts: (B, N), or None.
        real: (B, N) rows that are there, or None for all.
        samples: as ``samples_of`` gave them.
    """
    if counts is None:
        return None
    found = []
    for i, rows in enumerate(samples):
        own = np.asarray(counts[i], dtype=np.float64)
        own = own if real is None else own[real[i]]
        found.append(np.repeat(own, len(rows) // max(len(own), 1)))
    return found


def patches_of(array: Array, place: Place) -> list[Array]:
    """Split a convolution's input into samples of (positions, channels * kernel).

    Raises:
        PreconditionError: a convolution in groups, whose weights do not read every channel.
    """
    node, kernel = place.node, place.kernel
    if node.attributes.get_int("group", 1) != 1:
        raise PreconditionError("a convolution in groups has no joint rows", where=str(node.name))
    rank = len(kernel)
    strides = _ints(node, "strides", [1] * rank)
    dilations = _ints(node, "dilations", [1] * rank)
    padded = np.pad(_floats(array), [(0, 0), (0, 0), *_pads(node, array.shape[2:], kernel)])
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = sliding_window_view(padded, extent, axis=tuple(range(2, 2 + rank)))
    steps = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    holes = tuple(slice(None, None, d) for d in dilations)
    windows = windows[(*steps, *holes)]
    moved = np.moveaxis(windows, 1, 1 + rank)  # (B, *positions, C, *kernel)
    columns = moved.shape[1 + rank] * int(np.prod(kernel))
    return [sample.reshape(-1, columns) for sample in moved]


def _pads(node: ir.Node, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    rank = len(kernel)
    kind = node.attributes.get_string("auto_pad", "NOTSET")
    if kind == "VALID":
        return [(0, 0)] * rank
    if kind == "NOTSET":
        pads = _ints(node, "pads", [0] * (2 * rank))
        return list(zip(pads[:rank], pads[rank:], strict=True))
    strides = _ints(node, "strides", [1] * rank)
    totals = [
        max((-(-size // s) - 1) * s + k - size, 0)
        for size, s, k in zip(sizes, strides, kernel, strict=True)
    ]
    halves = [(total // 2, total - total // 2) for total in totals]
    return halves if kind == "SAME_UPPER" else [(b, a) for a, b in halves]


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    attribute = node.attributes.get(name)
    return default if attribute is None else list(attribute.as_ints())


def _floats(array: Array) -> Array:
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


__all__ = ["Weights", "patches_of", "samples_of", "weights_of"]
