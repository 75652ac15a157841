"""Stable sorts, which torch's exporter does not know, as TopK over the whole axis.

TopK puts the lower index first among equal values, in both directions, which is what a stable
sort does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch


def translations(opset: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the entry that stable sorts add to torch's translation table."""
    from onnxscript.onnx_opset import all_opsets

    op = all_opsets["", opset]

    def stable_sort(
        x: ir.Value, stable: bool = True, dim: int = -1, descending: bool = False
    ) -> tuple[ir.Value, ir.Value]:
        del stable
        rank = len(x.shape) if x.shape is not None else 0
        axis = dim % rank if rank else dim
        length = op.Shape(x, start=axis, end=axis + 1)
        values, indices = op.TopK(x, length, axis=axis, largest=descending, sorted=True)
        return values, indices

    return {torch.ops.aten.sort.stable: stable_sort}


__all__ = ["translations"]
