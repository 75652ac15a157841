"""One algebra of axes, for removal and for selection (DESIGN.md section 2)."""

from secateur.graph_passes.axes import rewrites, rules
from secateur.graph_passes.axes.analysis import analyse_axes
from secateur.graph_passes.axes.axis_map import AxisMap, FoldUse, IndexUse, constant
from secateur.graph_passes.axes.expression import (
    UNIT,
    Atom,
    Expr,
    Reason,
    Sum,
    indices,
    is_cut,
    kept_length,
    leaves,
    show,
    size,
)
from secateur.graph_passes.axes.relations import AXIS_RULES, REWRITES, Port
from secateur.graph_passes.axes.sizes import Polynomial, Size
from secateur.graph_passes.names import node_name

__all__ = [
    "AXIS_RULES",
    "REWRITES",
    "UNIT",
    "Atom",
    "AxisMap",
    "Expr",
    "FoldUse",
    "IndexUse",
    "Polynomial",
    "Port",
    "Reason",
    "Size",
    "Sum",
    "analyse_axes",
    "constant",
    "indices",
    "is_cut",
    "kept_length",
    "leaves",
    "node_name",
    "rewrites",
    "rules",
    "show",
    "size",
]
