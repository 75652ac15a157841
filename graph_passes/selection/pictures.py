"""Several pictures in one sample: a tower sees each by itself, a selector sees all of them.

The tower's first axis is then batch x pictures, and the tokens to select from are pictures x
tokens of a picture: the crops of an image, the frames of a video.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.attention_steps import axes_of
from secateur.graph_passes.axes import Expr
from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.selection.region import Regions
from secateur.graph_passes.sites import Site

_LAST = int(np.iinfo(np.int64).max)


def pictures_of(regions: Regions, site: Site, wanted: Expr) -> Expr:
    """Return the axis of pictures, () where a site sees whole samples.

    Args:
        regions: The chain of cuts.
        site: The attention block that signals come from.
        wanted: The tokens to select from.
    """
    exprs = axes_of(regions.axes, site.after_attention) or ()
    n = len(regions.batch)
    if len(exprs) != 3 or exprs[0][:n] != regions.batch:
        return ()
    pictures = exprs[0][n:]
    return pictures if wanted[: len(pictures)] == pictures else ()


def in_line(emit: Emitter, value: ir.Value, axis: int, sizes: tuple[int, int]) -> ir.Value:
    """(B * F, ..., N, ...) -> (B, ..., F * N, ...).

    Args:
        emit: Where nodes go.
        value: What is said of each picture.
        axis: Where its tokens are.
        sizes: Its rank, and F.
    """
    rank, n_pictures = sizes
    shape = emit.op("Shape", value, start=1)
    made = emit.op("Reshape", value, emit.op("Concat", emit.ints(-1, n_pictures), shape, axis=0))
    made = emit.transpose(made, [0, *range(2, axis + 1), 1, *range(axis + 1, rank + 1)])
    now = emit.op("Shape", made)
    ahead = emit.op("Slice", now, emit.ints(0), emit.ints(axis), emit.ints(0))
    behind = emit.op("Slice", now, emit.ints(axis + 2), emit.ints(_LAST), emit.ints(0))
    made = emit.op("Reshape", made, emit.op("Concat", ahead, emit.ints(-1), behind, axis=0))
    made.type = value.type
    return made


__all__ = ["in_line", "pictures_of"]
