"""Keep the channels that a batch norm scales up.

Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017,
arXiv:1708.06519; without its sparsity training, which belongs before export.
"""

from __future__ import annotations

import numpy as np

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.unit_weights import rows
from secateur.errors import PreconditionError
from secateur.graph_passes.groups import Group


@CRITERIA.register("bn_scale")
def bn_scale(group: Group, context: Context) -> Scores:
    """Sum of absolute scales of the batch norms of the group.

    Raises:
        PreconditionError: no batch norm, as after it was folded into a convolution.
    """
    del context
    scales = [
        use for use in group.weights if use.node.op_type == "BatchNormalization" and use.slot == 1
    ]
    if not scales:
        raise PreconditionError(
            "no batch norm scales these units",
            where=group.name,
            got="a graph in which it was folded away, or a group that never had one",
            next_step="export with for_training=True, which keeps batch norms; or rank by l1",
        )
    total: Scores = rows(group, scales, np.abs).sum(axis=0)
    return total


__all__ = ["bn_scale"]
